"""Module: routes, limits and flags of all bots at the edge."""

DOCUMENTATION = """
module: bot_routes
author: clawDeploy contributors (@clawdeploy)
short_description: Bring the edge in line with the registry
version_added: 0.1.0
description:
  - Renders all that the edge and the LLM gateway know about bots from the registry and swaps it in at once.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
"""

EXAMPLES = """
- name: Bring the edge in line with the registry
  clawdeploy.fleet.bot_routes:
"""

RETURN = """
maps:
  description: Names of the maps that changed.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(**call(module, "sync", *checked(module)))


if __name__ == "__main__":
    main()
