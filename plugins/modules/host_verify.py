"""Module: is a host well?"""

DOCUMENTATION = """
module: host_verify
author: clawDeploy contributors (@clawdeploy)
short_description: Check everything that has to be right on a host
version_added: 0.1.0
description:
  - Looks at services, the watchdog's readings, the registry, the books, the model's price, free space and
    every bot's certificate.
  - Then lets three offenders run into small limits, in containers of their own, to see whether the kernel's
    figures say what the watchdog takes them to say. In check mode it only looks.
  - Does not fail when something is wrong.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
"""

EXAMPLES = """
- name: Verify the host
  clawdeploy.fleet.host_verify:
  register: verified
  failed_when: not verified.good
"""

RETURN = """
good:
  description: Whether nothing is wrong.
  type: bool
  returned: success
findings:
  description: Each C(check), whether it is C(good), and in C(message) what was seen or has to be done.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    looks = [call(module, "doctor")]
    if not module.check_mode:
        looks.append(call(module, "watch", "trial"))
    findings = [finding for look in looks for finding in look["findings"]]
    module.exit_json(changed=False, good=all(look["good"] for look in looks), findings=findings)


if __name__ == "__main__":
    main()
