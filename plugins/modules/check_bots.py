"""Documentation of the action plugin of the same name."""

DOCUMENTATION = """
module: check_bots
author: clawDeploy contributors (@clawdeploy)
short_description: Check the bots a user asks for
version_added: 0.1.0
description:
  - Checks every option of every bot on the controller and reports all problems at once, each with its fix.
  - Neither result nor message holds a token.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
  - clawdeploy.fleet.attributes.controller
options:
  bots:
    description: The bots as the user wrote them; see the role P(clawdeploy.fleet.bot#role) for their options.
    type: list
    elements: raw
    required: true
  agents:
    description: Names of the agents there are.
    type: list
    elements: str
    required: true
  result_file:
    description: Where the result is to be written on the controller. Its directory must be there.
    type: path
    default: ""
  plans:
    description: Names of the host's plans. Not checked when empty.
    type: list
    elements: str
    default: []
  reserved_names:
    description: Names no bot may have. Not checked when empty.
    type: list
    elements: str
    default: []
"""

EXAMPLES = """
- name: Check the bots
  clawdeploy.fleet.check_bots:
    bots: "{{ bot_entries }}"
    agents: [nullclaw]
"""

RETURN = """
msg:
  description: One sentence for each problem.
  type: str
  returned: always
"""
