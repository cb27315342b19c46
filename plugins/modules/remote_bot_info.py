"""Module: the bots that run elsewhere."""

DOCUMENTATION = """
module: remote_bot_info
author: clawDeploy contributors (@clawdeploy)
short_description: List the bots that run elsewhere and call their model through this host
version_added: 0.2.0
description:
  - Asks clawctl. No secret is returned.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
"""

EXAMPLES = """
- name: List them
  clawdeploy.fleet.remote_bot_info:
  register: elsewhere
"""

RETURN = """
bots:
  description: The bots.
  type: list
  elements: dict
  returned: success
llm_public_url:
  description: Where they find the LLM gateway. Empty if the host serves none.
  type: str
  returned: success
openrouter_model:
  description: The one model.
  type: str
  returned: success
support_email:
  description: Where people can ask.
  type: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, **call(module, "remote", "list"))


if __name__ == "__main__":
    main()
