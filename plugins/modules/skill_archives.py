"""Documentation of the action plugin of the same name."""

DOCUMENTATION = """
module: skill_archives
author: clawDeploy contributors (@clawdeploy)
short_description: Fetch and pack skills on the controller
version_added: 0.1.0
description:
  - Packs directories, reads archives and fetches commits of git repositories.
  - The result is for M(clawdeploy.fleet.bot_skills).
  - Checks nothing in them. The host does.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
  - clawdeploy.fleet.attributes.controller
options:
  skills:
    description: Skills as P(clawdeploy.fleet.bot_entries#filter) returns them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = """
- name: Fetch the skills
  clawdeploy.fleet.skill_archives:
    skills: "{{ wanted | map(attribute='skills') | flatten | unique }}"
  register: fetched
"""

RETURN = """
skills:
  description: The skills with their C(archive) (base64); those of the host's library have none.
  type: list
  elements: dict
  returned: success
"""
