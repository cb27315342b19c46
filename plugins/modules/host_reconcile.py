"""Module: a host that is what its registry says."""

DOCUMENTATION = """
module: host_reconcile
author: clawDeploy contributors (@clawdeploy)
short_description: Bring a host back to what its registry says
version_added: 0.1.0
description:
  - Repairs routes, flags and keys, disks that are not mounted, containers that were stopped or removed or run
    though suspended, and removes containers and networks of bots that are no more.
  - Every host does the same by itself when it boots.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
"""

EXAMPLES = """
- name: Repair what differs
  clawdeploy.fleet.host_reconcile:
"""

RETURN = """
done:
  description: Each repair with C(what) was repaired, how it C(was) and how it is C(now).
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(**call(module, "reconcile", *checked(module)))


if __name__ == "__main__":
    main()
