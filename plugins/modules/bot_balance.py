"""Module: what bots have left."""

DOCUMENTATION = """
module: bot_balance
author: clawDeploy contributors (@clawdeploy)
short_description: Read the balances of bots
version_added: 0.1.0
description:
  - Returns the accounts of bots, as the host's LLM gateway keeps them.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
options:
  bots:
    description: Ids or names of bots. All bots of the host if not given.
    type: list
    elements: str
    default: []
"""

EXAMPLES = """
- name: Read one bot's balance
  clawdeploy.fleet.bot_balance:
    bots: [support-bot]
  register: support
"""

RETURN = """
accounts:
  description:
    - For each bot its C(id), C(label), C(spend_limit), C(balance_dollars) and C(calls); and in nano-dollars
      C(balance), C(held) by open calls, C(available) (none where nothing limits it), C(spent) in all and
      C(period_spent) in the day or month of its limit.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={"bots": {"type": "list", "elements": "str", "default": []}}, supports_check_mode=True
    )
    module.exit_json(changed=False, **call(module, "balance", *module.params["bots"]))


if __name__ == "__main__":
    main()
