"""Module: which bots a host has."""

DOCUMENTATION = """
module: bot_info
author: clawDeploy contributors (@clawdeploy)
short_description: Read which bots a host has
version_added: 0.1.0
description:
  - Returns all bots of the host with their accounts, without any secret.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
"""

EXAMPLES = """
- name: Read which bots there are
  clawdeploy.fleet.bot_info:
  register: found
"""

RETURN = """
bots:
  description:
    - The bots. Each has an C(account), or none while the LLM gateway does not answer.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, **call(module, "list"))


if __name__ == "__main__":
    main()
