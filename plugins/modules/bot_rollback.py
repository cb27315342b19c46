"""Module: let bots be what they were before their last upgrade."""

DOCUMENTATION = """
module: bot_rollback
author: clawDeploy contributors (@clawdeploy)
short_description: Give bots back the image and configuration they had before their last upgrade
version_added: 0.1.0
description:
  - Can be done once after each upgrade, until a deploy changes the bot. What a bot has learned since stays.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
attributes:
  idempotent:
    support: none
    details: There is one way back from each upgrade. A second run says that there is none any more.
options:
  bots:
    description: Ids or names of the bots.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds to wait until they answer through TLS.
    type: int
    default: 60
"""

EXAMPLES = """
- name: Go back
  clawdeploy.fleet.bot_rollback:
    bots: [support-bot]
"""

RETURN = """
bots:
  description: As M(clawdeploy.fleet.bot_upgrade) returns them. It is a failure if one is not healthy.
  type: list
  elements: dict
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "bots": {"type": "list", "elements": "str", "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    given = module.params
    answer = call(
        module, "rollback", "--yes", "--timeout", str(given["timeout"]), *checked(module), *given["bots"]
    )
    if sick := [f"{bot['label']}: {bot['reason']}" for bot in answer["bots"] if bot["result"] == "failed"]:
        module.fail_json(msg="\n".join(sick), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
