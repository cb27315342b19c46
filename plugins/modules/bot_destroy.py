"""Module: the end of bots."""

DOCUMENTATION = """
module: bot_destroy
author: clawDeploy contributors (@clawdeploy)
short_description: Remove bots
version_added: 0.1.0
description:
  - Removes bots with their containers, networks, routes, keys, disks and secrets.
  - What is not there is not missed.
  - The account stays in the ledger, where nothing is ever removed.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  bots:
    description: Ids or names of bots.
    type: list
    elements: str
    required: true
  keep_data:
    description:
      - Leave the bots' disks. Deploying a bot's token again gives it back its disk, id and account.
      - When V(false), disks that were left by an earlier run are removed too.
    type: bool
    default: false
"""

EXAMPLES = """
- name: Remove a bot, but not what it remembers
  clawdeploy.fleet.bot_destroy:
    bots: [support-bot]
    keep_data: true
"""

RETURN = """
bots:
  description:
    - Each removed bot with its C(id), C(name), C(telegram_username), its C(data) (V(gone) or V(kept)) and the
      C(statement) of its account, which is null if the ledger does not answer.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, references


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "bots": {"type": "list", "elements": "str", "required": True},
            "keep_data": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    asked, keep = references(module, module.params["bots"]), module.params["keep_data"]
    there = call(module, "list")["bots"]
    if not keep:
        there += call(module, "list", "--kept")["kept"]
    found = [bot for bot in there if bot["id"] in asked or bot["name"] in asked]
    flag = "--keep-data" if keep else "--purge"
    gone = []
    if not module.check_mode:
        gone = [call(module, "destroy", bot["id"], flag, "--yes") for bot in found]
    diff = {"before": "".join(f"{bot['name'] or bot['id']}\n" for bot in found), "after": ""}
    module.exit_json(changed=bool(found), diff=diff, bots=gone)


if __name__ == "__main__":
    main()
