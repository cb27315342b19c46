"""Documentation of the action plugin of the same name."""

DOCUMENTATION = """
module: fly_card
author: clawDeploy contributors (@clawdeploy)
short_description: Show what was deployed to Fly.io
version_added: 0.2.0
description:
  - Shows the card on the terminal of the controller only.
  - Neither the result nor Ansible's log file holds what is shown.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
  - clawdeploy.fleet.attributes.controller
options:
  bot:
    description:
      - The plan of M(clawdeploy.fleet.fly_plan), with C(id), C(telegram_username), C(account), C(talk) and
        C(gateway_token).
    type: dict
    required: true
  support:
    description: Where people can ask.
    type: str
    default: ""
  result_file:
    description: File on the controller that gets the card as JSON (0600). Nothing is written when empty.
    type: path
    default: ""
"""

EXAMPLES = """
- name: Show the card
  clawdeploy.fleet.fly_card:
    bot: "{{ bot }}"
    support: help@example.com
"""

RETURN = """
"""
