"""Module: add to a bot's balance."""

DOCUMENTATION = """
module: bot_top_up
author: clawDeploy contributors (@clawdeploy)
short_description: Add to the balance of a bot
version_added: 0.1.0
description:
  - Pays an amount into a bot's account, once for each reference.
  - The bot goes on with its next message. Nothing is restarted.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  bot:
    description: Id or name of the bot.
    type: str
    required: true
  amount:
    description: US dollars, such as V(5.00).
    type: str
    required: true
  ref:
    description:
      - Name of the payment, such as the number of an invoice. The same one again changes nothing.
      - It is an error if it stands for another bot or amount.
    type: str
    required: true
"""

EXAMPLES = """
- name: Enter a payment
  clawdeploy.fleet.bot_top_up:
    bot: support-bot
    amount: "5.00"
    ref: invoice-17
"""

RETURN = """
id:
  description: Id of the bot.
  type: str
  returned: success
label:
  description: First label of the bot's host name.
  type: str
  returned: success
balance_dollars:
  description: What the account has now, or would have in check mode.
  type: str
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
    text = {"type": "str", "required": True}
    module = AnsibleModule(argument_spec={"bot": text, "amount": text, "ref": text}, supports_check_mode=True)
    asked = module.params
    module.exit_json(
        **call(module, "top-up", f"--ref={asked['ref']}", *checked(module), asked["bot"], asked["amount"])
    )


if __name__ == "__main__":
    main()
