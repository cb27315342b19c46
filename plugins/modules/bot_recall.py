"""Module: what bots were deployed with."""

DOCUMENTATION = """
module: bot_recall
author: clawDeploy contributors (@clawdeploy)
short_description: Read what bots were deployed with, secrets included
version_added: 0.1.0
description:
  - Returns all that the role P(clawdeploy.fleet.bot#role) needs to shape the bots of the host anew.
  - To be used with C(no_log).
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
"""

EXAMPLES = """
- name: Recall the bots
  clawdeploy.fleet.bot_recall:
  register: recalled
  no_log: true
"""

RETURN = """
bots:
  description:
    - The bots. Each has a C(reason) if it cannot be shaped anew now, and no secrets then.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, **call(module, "recall"))


if __name__ == "__main__":
    main()
