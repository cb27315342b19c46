"""Module: restore a bot from a backup."""

DOCUMENTATION = """
module: bot_restore
author: clawDeploy contributors (@clawdeploy)
short_description: Bring a bot back from a backup
version_added: 0.1.0
description:
  - Brings back a bot's registration, secrets, disk and container, on the host where it was or on another one,
    with whatever addresses and uid are free, and waits until it answers.
  - Nothing is overwritten. A bot that is on the host must be destroyed first.
  - A bot whose account the host has keeps that. Any other one begins with nothing on it, unless
    O(with_balance) says otherwise.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
attributes:
  idempotent:
    support: none
    details: A second run fails, for the bot is there by then, maybe with newer memories than the backup's.
options:
  bot:
    description: Id of the bot, or the name that it had when it was backed up.
    type: str
    required: true
  snapshot:
    description: Id of a backup. The newest if not given.
    type: str
  with_balance:
    description: >-
      Open its account with the balance of the backup. What was spent after it was made is then paid twice.
    type: bool
    default: false
  timeout:
    description: Seconds to wait until the bot answers.
    type: int
    default: 60
"""

EXAMPLES = """
- name: Bring a bot back
  clawdeploy.fleet.bot_restore:
    bot: support-bot
"""

RETURN = """
bot:
  description: The bot as it is now, with C(snapshot), C(taken_at) and C(money).
  type: dict
  returned: success
code:
  description: Machine-readable name of the refusal.
  type: str
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "bot": {"type": "str", "required": True},
            "snapshot": {"type": "str"},
            "with_balance": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    asked = module.params
    options = [f"--timeout={asked['timeout']}", *checked(module)]
    if asked["snapshot"]:
        options.append(f"--snapshot={asked['snapshot']}")
    if asked["with_balance"]:
        options.append("--with-balance")
    answer = call(module, "restore", *options, asked["bot"])
    (bot,) = answer.pop("bots")
    if not bot.get("healthy", True):
        module.fail_json(
            msg=f"{bot['label']} is restored, but does not answer: {bot['reason']}", code="unhealthy", bot=bot
        )
    module.exit_json(**answer, bot=bot)


if __name__ == "__main__":
    main()
