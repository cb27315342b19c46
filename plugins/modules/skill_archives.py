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
    description:
      - Skills as the user names them. See C(skills) of the role P(clawdeploy.fleet.bot#role).
    type: list
    elements: raw
    required: true
"""

EXAMPLES = """
- name: Fetch the skills
  clawdeploy.fleet.skill_archives:
    skills: [./refund-policy, "git+https://git.example.com/skills.git#v1.2:faq", shipping@2.0]
  register: fetched
"""

RETURN = """
skills:
  description: The skills, each with its C(source) and C(archive) (base64). Those of the library have none.
  type: list
  elements: dict
  returned: success
"""
