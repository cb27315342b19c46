"""Documentation of the action plugin of the same name."""

DOCUMENTATION = """
module: deploy_card
author: clawDeploy contributors (@clawdeploy)
short_description: Show what was deployed
version_added: 0.1.0
description:
  - Shows the card of one bot, or a compact list of several, on the terminal of the controller only.
  - Neither the result nor Ansible's log file holds what is shown.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
  - clawdeploy.fleet.attributes.controller
options:
  bots:
    description:
      - The bots, as M(clawdeploy.fleet.bot_registry) returned them, and C(talk), how to use each of them.
    type: list
    elements: dict
    required: true
  support:
    description: Where people can ask.
    type: str
    default: ""
  result_file:
    description:
      - File on the controller that gets the same as JSON, readable only by its owner.
      - Nothing is written when empty.
    type: path
    default: ""
"""

EXAMPLES = """
- name: Show the card
  clawdeploy.fleet.deploy_card:
    bots: "{{ cards }}"
    support: help@example.com
  no_log: true
"""

RETURN = """
"""
