"""Documentation of the action plugin of the same name."""

DOCUMENTATION = """
module: check_settings
author: clawDeploy contributors (@clawdeploy)
short_description: Refuse settings that nobody declared
version_added: 0.1.0
description:
  - Compares the extra variables that were really passed with the names a playbook knows, so that a misspelt
    one is an error with a suggestion.
  - Inventory variables are judged only when they begin with the name of one of O(roles).
  - Variables that begin with C(ansible_) are Ansible's own and always known.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
  - clawdeploy.fleet.attributes.controller
options:
  options:
    description: The playbook's own settings.
    type: list
    elements: str
    default: []
  roles:
    description: Roles of this collection whose options are settings of the playbook too.
    type: list
    elements: str
    default: []
  mutually_exclusive:
    description: Groups of settings of which only one may be given.
    type: list
    elements: list
    default: []
  required_one_of:
    description: Groups of settings of which at least one must be given.
    type: list
    elements: list
    default: []
  single_host:
    description: Refuse to go on when the play has more than one host.
    type: bool
    default: false
"""

EXAMPLES = """
- name: Refuse settings nobody declared
  clawdeploy.fleet.check_settings:
    options: [token, bots]
    roles: [bot]
    mutually_exclusive: [[token, bots]]
    required_one_of: [[token, bots]]
    single_host: true
"""

RETURN = """
msg:
  description: One sentence for each problem.
  type: str
  returned: always
"""
