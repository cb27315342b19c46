"""Module: remove images of agents that no bot needs."""

DOCUMENTATION = """
module: image_prune
author: clawDeploy contributors (@clawdeploy)
short_description: Remove images that no bot runs or would go back to
version_added: 0.1.0
description:
  - Only images with the name of an image that a bot runs, or ran before its last upgrade, in any version.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
"""

EXAMPLES = """
- name: Remove old images
  clawdeploy.fleet.image_prune:
"""

RETURN = """
images:
  description: The images removed, each with its id, tags and size in bytes.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(**call(module, "images", "prune", *checked(module)))


if __name__ == "__main__":
    main()
