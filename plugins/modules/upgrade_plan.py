"""Documentation of the action plugin of the same name."""

DOCUMENTATION = """
module: upgrade_plan
author: clawDeploy contributors (@clawdeploy)
short_description: Work out which bots are upgraded, to what and in which order
version_added: 0.1.0
description:
  - Checks all settings of an upgrade at once, in the light of the bots there are, and fills them up.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
  - clawdeploy.fleet.attributes.controller
options:
  settings:
    description: The settings of the playbook P(clawdeploy.fleet.upgrade_bots#playbook) by their names.
    type: dict
    required: true
  bots:
    description: The bots of the host, as M(clawdeploy.fleet.bot_recall) returns them.
    type: list
    elements: dict
    required: true
  images:
    description: Name of each agent and the image that it was tested with.
    type: dict
    required: true
"""

EXAMPLES = """
- name: Plan the upgrade
  clawdeploy.fleet.upgrade_plan:
    settings: {bots: [], bot_image: "ghcr.io/nullclaw/nullclaw:v2026.5.29"}
    bots: "{{ recalled.bots }}"
    images: {nullclaw: "ghcr.io/nullclaw/nullclaw:v2026.5.29"}
"""

RETURN = """
plan:
  description: The settings, and in C(bots) those that are meant, each with the image it is to run.
  type: dict
  returned: success
"""
