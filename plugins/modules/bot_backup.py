"""Module: back up bots."""

DOCUMENTATION = """
module: bot_backup
author: clawDeploy contributors (@clawdeploy)
short_description: Back up bots, or all of a host
version_added: 0.1.0
description:
  - Makes a backup of each bot, and, unless bots are named, of the platform (registry, ledger, secrets).
  - A bot stands still while its files are copied on the host's own disk, usually for a fraction of a second.
  - Fails if anything was not saved, after everything else was.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
attributes:
  idempotent:
    support: none
    details: Every run makes new backups; what did not change takes no room in the repository.
options:
  bots:
    description: Ids or names of bots. All bots and the platform if empty.
    type: list
    elements: str
    default: []
"""

EXAMPLES = """
- name: Back up everything before an upgrade
  clawdeploy.fleet.bot_backup:
"""

RETURN = """
snapshots:
  description: What was made. C(what), C(snapshot), C(bytes_added) and, of bots, C(id) and C(stood_still_ms).
  type: list
  elements: dict
  returned: success
skipped:
  description: Labels of bots whose first deploy has not got to their disk.
  type: list
  elements: str
  returned: success
code:
  description: Machine-readable name of the failure.
  type: str
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={"bots": {"type": "list", "elements": "str", "default": []}}, supports_check_mode=True
    )
    module.exit_json(**call(module, "backup", "run", *checked(module), *module.params["bots"]))


if __name__ == "__main__":
    main()
