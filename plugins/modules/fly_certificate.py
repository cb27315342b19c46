"""Module: a certificate at Fly.io."""

DOCUMENTATION = """
module: fly_certificate
author: clawDeploy contributors (@clawdeploy)
short_description: Have Fly.io fetch a certificate for a host name of an app
version_added: 0.2.0
description:
  - Fly.io gets and renews the certificate by ACME once the name points to the app. That is not waited for.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.fly
options:
  app:
    description: Name of the app.
    type: str
    required: true
  hostname:
    description: The host name.
    type: str
    required: true
  state:
    description: Whether the app answers to that name.
    type: str
    choices: [present, absent]
    default: present
"""

EXAMPLES = """
- name: Answer at a name of our own
  clawdeploy.fleet.fly_certificate:
    app: claw-support
    hostname: support.example.com
"""

RETURN = """
issued:
  description: Whether there is a certificate by now. If not, the name does not point to the app yet.
  type: bool
  returned: success
status:
  description: HTTP status of Fly.io's refusal, 0 if it was not reached.
  type: int
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._fly import (
    ARGUMENTS,
    difference,
    failing,
)


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "app": {"type": "str", "required": True},
            "hostname": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    app, hostname = module.params["app"], module.params["hostname"]
    path = f"/apps/{app}/certificates"
    wanted = module.params["state"] == "present"
    with failing(module) as fly:
        there = fly.get(f"{path}/{hostname}")
        shown = {"hostname": hostname}
        result = difference(shown if there else None, shown if wanted else None)
        if result["changed"] and not module.check_mode:
            if wanted:
                request = {"hostname": hostname}
                there = fly.create(f"{path}/acme", request, lambda: fly.get(f"{path}/{hostname}"))
            else:
                fly.ask("DELETE", f"{path}/{hostname}")
    module.exit_json(**result, issued=wanted and bool(there and there.get("configured")))


if __name__ == "__main__":
    main()
