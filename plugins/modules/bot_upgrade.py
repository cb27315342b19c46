"""Module: give bots another image or configuration, or back what they had."""

DOCUMENTATION = """
module: bot_upgrade
author: clawDeploy contributors (@clawdeploy)
short_description: Upgrade bots that become healthy, and roll the others back
version_added: 0.1.0
description:
  - Takes bots whose turns come at the same time. Each one's old container ends before its new one starts.
  - A bot that does not become healthy, or does not stay so, gets back its image and configuration. That is
    reported, not a failure. The caller decides what follows.
  - A bot that is there already is left alone, and so is a suspended one.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  run_id:
    description: Name of this run, hexadecimal.
    type: str
    required: true
  bots:
    description: What the bots should become. All else about them stays.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Id of the bot.
        type: str
        required: true
      image:
        description: Image of the agent, as the user names it.
        type: str
        required: true
      image_digest:
        description: What pins that image.
        type: str
        required: true
      interface:
        description: As M(clawdeploy.fleet.bot_registry) has it.
        type: str
        required: true
      llm_refusal:
        description: As M(clawdeploy.fleet.bot_registry) has it.
        type: str
        required: true
      edge:
        description: What the edge lets through, as M(clawdeploy.fleet.bot_registry) has it.
        type: dict
        required: true
      home:
        description: Its disk and files, as M(clawdeploy.fleet.bot_home) has them, nothing left out; as text.
        type: json
        required: true
      container:
        description: Its container, as M(clawdeploy.fleet.bot_live) has it.
        type: dict
        required: true
  timeout:
    description: Seconds to wait until they answer through TLS, and again after a way back.
    type: int
    default: 60
  watch:
    description: Seconds that they must stay healthy after that.
    type: int
    default: 0
"""

EXAMPLES = """
- name: Upgrade a bot
  clawdeploy.fleet.bot_upgrade:
    run_id: 0123456789abcdef
    bots: ["{{ wanted }}"]
    watch: 60
"""

RETURN = """
bots:
  description:
    - For each bot its id, label, C(from) and C(to) (image, image_digest, config_hash), the seconds its turn
      took and C(downtime), and its C(result), one of pending (in check mode), unchanged, skipped, upgraded,
      rolled_back, failed, with the reason and its last log lines.
  type: list
  elements: dict
  returned: success
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked

BOT = {
    "id": {"type": "str", "required": True},
    "image": {"type": "str", "required": True},
    "image_digest": {"type": "str", "required": True},
    "interface": {"type": "str", "required": True},
    "llm_refusal": {"type": "str", "required": True},
    "edge": {"type": "dict", "required": True},
    # As text: every part of a dictionary would be blotted out wherever else it appears.
    "home": {"type": "json", "required": True, "no_log": True},
    "container": {"type": "dict", "required": True},
}


def asked(bot: dict[str, Any]) -> dict[str, Any]:
    """One bot as clawctl takes it."""
    return {**bot, "home": json.loads(bot["home"])}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "run_id": {"type": "str", "required": True},
            "bots": {"type": "list", "elements": "dict", "required": True, "options": BOT},
            "timeout": {"type": "int", "default": 60},
            "watch": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    given = module.params
    verb = ("upgrade", "--timeout", str(given["timeout"]), "--watch", str(given["watch"]), *checked(module))
    request = {"run_id": given["run_id"], "bots": [asked(bot) for bot in given["bots"]]}
    module.exit_json(**call(module, *verb, request=request))


if __name__ == "__main__":
    main()
