"""Module: what the host is and which bots it has."""

DOCUMENTATION = """
module: host_info
author: clawDeploy contributors (@clawdeploy)
short_description: Read a host's configuration and its bots
version_added: 0.1.0
description:
  - Returns what clawDeploy knows about the host, without any secret, and which images its Docker has.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
"""

EXAMPLES = """
- name: Look at the host
  clawdeploy.fleet.host_info:
  register: look
"""

RETURN = """
host:
  description: The host's configuration, free space in bytes and reserved memory in bytes.
  type: dict
  returned: success
bots:
  description: The bots of the host.
  type: list
  elements: dict
  returned: success
images:
  description: Each name, digest and id of an image that is there, and the reference that pins it.
  type: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    host = call(module, "host", "--all")
    bots, images = host.pop("bots"), host.pop("images")
    module.exit_json(changed=False, host=host, bots=bots, images=images)


if __name__ == "__main__":
    main()
