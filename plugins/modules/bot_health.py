"""Module: wait until bots answer."""

DOCUMENTATION = """
module: bot_health
author: clawDeploy contributors (@clawdeploy)
short_description: Wait until bots answer through TLS
version_added: 0.1.0
description:
  - Waits for all bots at the same time, until each one's container runs and its public URL answers.
  - A bot that does not answer in time is reported, not a failure; the caller decides what becomes of it.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
options:
  ids:
    description: Ids of the bots.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds to wait.
    type: int
    default: 60
"""

EXAMPLES = """
- name: Wait for a bot
  clawdeploy.fleet.bot_health:
    ids: [abcdefghij01]
"""

RETURN = """
bots:
  description:
    - For each bot its id, whether it is healthy, the seconds it took or the reason and its last log lines.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "ids": {"type": "list", "elements": "str", "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    ids, timeout = module.params["ids"], module.params["timeout"]
    answer = call(module, "wait", "--timeout", str(timeout), *ids) if ids else {"bots": []}
    module.exit_json(changed=False, bots=answer["bots"])


if __name__ == "__main__":
    main()
