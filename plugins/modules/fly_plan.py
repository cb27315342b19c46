"""Documentation of the action plugin of the same name."""

DOCUMENTATION = """
module: fly_plan
author: clawDeploy contributors (@clawdeploy)
short_description: Work out what a bot at Fly.io is to be
version_added: 0.2.0
description:
  - Checks all settings at once, in the light of what the bot is already, and fills them up.
  - Decides whether Fly.io may put it to sleep.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
  - clawdeploy.fleet.attributes.controller
options:
  bot:
    description: The bot as the user wrote it; see the role P(clawdeploy.fleet.fly_bot#role) for its options.
    type: dict
    required: true
  remotes:
    description: The bots that run elsewhere, as M(clawdeploy.fleet.remote_bot_info) returns them.
    type: list
    elements: dict
    required: true
  agents:
    description: The agents that can run there, by name, with C(image), C(memory_mb) and C(owner_names).
    type: dict
    required: true
  default_agent:
    description: Name of the agent of a new bot that names none.
    type: str
    required: true
  result_file:
    description: Where the result is to be written on the controller. Its directory must be there.
    type: path
    default: ""
"""

EXAMPLES = """
- name: Plan a bot
  clawdeploy.fleet.fly_plan:
    bot: {token: "{{ token }}", owner: "4242"}
    remotes: []
    agents: "{{ agents }}"
    default_agent: "{{ fly_bot_default_agent }}"
"""

RETURN = """
plan:
  description: All that the bot is to be.
  type: dict
  returned: success
settings:
  description: What is to be remembered of it.
  type: dict
  returned: success
"""
