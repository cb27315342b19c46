"""Module: the secrets of an app at Fly.io."""

DOCUMENTATION = """
module: fly_secrets
author: clawDeploy contributors (@clawdeploy)
short_description: Set the secrets of an app at Fly.io
version_added: 0.2.0
description:
  - The app has exactly these secrets afterwards, set in one request. A machine sees them once it is updated.
  - Fly.io shows no secret to anybody. What was set is known again by one more secret, whose name holds a part
    of the hash of all of them. Give at least one that nobody can guess.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.fly
options:
  app:
    description: Name of the app.
    type: str
    required: true
  values:
    description: Name and value of each secret.
    type: dict
    required: true
"""

EXAMPLES = """
- name: Give the app its configuration
  clawdeploy.fleet.fly_secrets:
    app: claw-support
    values:
      AGENT_CONFIG: "{{ configuration | to_json | b64encode }}"
  no_log: true
"""

RETURN = """
fingerprint:
  description: What tells this set of secrets from another one.
  type: str
  returned: success
version:
  description: Version of the secrets that a machine should wait for; 0 if nothing was set.
  type: int
  returned: success
status:
  description: HTTP status of Fly.io's refusal, 0 if it was not reached.
  type: int
  returned: failure
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._fly import (
    ARGUMENTS,
    Fly,
    difference,
    failing,
)

MARK = "CLAWDEPLOY_SET_"


def fingerprint(app: str, values: Mapping[str, str]) -> str:
    """64 bits of the hash of all secrets; the app's name keeps two apps' from being compared."""
    return hashlib.sha256(json.dumps([app, values], sort_keys=True).encode()).hexdigest()[:16].upper()


def ensure(fly: Fly, app: str, values: Mapping[str, str], check: bool) -> dict[str, Any]:
    """Let the app have exactly these secrets."""
    answer = fly.get(f"/apps/{app}/secrets")
    there = sorted(one["name"] for one in (answer or {}).get("secrets") or [])
    mark = fingerprint(app, values)
    wanted = sorted([*values, MARK + mark])
    version = 0
    if there != wanted and not check:
        gone: dict[str, str | None] = {name: None for name in there if name not in wanted}
        done = fly.act(f"/apps/{app}/secrets", {"values": {**gone, **values, MARK + mark: "1"}})
        version = done.get("version", 0)
    result = difference({"secrets": there} if there else None, {"secrets": wanted})
    return {**result, "fingerprint": mark, "version": version}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "app": {"type": "str", "required": True},
            "values": {"type": "dict", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    asked = module.params
    with failing(module) as fly:
        values = {name: str(value) for name, value in asked["values"].items()}
        result = ensure(fly, asked["app"], values, module.check_mode)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
