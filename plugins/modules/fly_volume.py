"""Module: a volume at Fly.io."""

DOCUMENTATION = """
module: fly_volume
author: clawDeploy contributors (@clawdeploy)
short_description: Make, extend and remove a volume at Fly.io
version_added: 0.2.0
description:
  - A volume is known by its name in the app. There is never more than one of that name.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.fly
options:
  app:
    description: Name of the app.
    type: str
    required: true
  name:
    description: Name of the volume, small letters, digits and underscores.
    type: str
    required: true
  state:
    description: Whether the volume is there.
    type: str
    choices: [present, absent]
    default: present
  region:
    description: Where it is. It cannot move.
    type: str
  size_gb:
    description: Size in GB. It can grow only.
    type: int
    default: 1
"""

EXAMPLES = """
- name: A disk in Frankfurt
  clawdeploy.fleet.fly_volume:
    app: claw-support
    name: data
    region: fra
"""

RETURN = """
id:
  description: Id of the volume; empty where check mode would make it.
  type: str
  returned: when O(state=present)
status:
  description: HTTP status of Fly.io's refusal, 0 if it was not reached.
  type: int
  returned: failure
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._fly import (
    ARGUMENTS,
    Fly,
    FlyError,
    difference,
    failing,
)

# States of a volume that is on its way out (fly-go's volume states).
GOING = (
    "scheduling_destroy",
    "fork_cleanup",
    "waiting_for_detach",
    "pending_destroy",
    "destroying",
    "destroyed",
)


def find(fly: Fly, app: str, name: str) -> list[dict[str, Any]]:
    """All living volumes of that name."""
    volumes = fly.get(f"/apps/{app}/volumes") or []
    return [one for one in volumes if one["name"] == name and one["state"] not in GOING]


def shown(volume: dict[str, Any] | None) -> dict[str, Any] | None:
    return volume and {name: volume[name] for name in ("name", "region", "size_gb")}


def ensure(fly: Fly, asked: dict[str, Any], check: bool) -> dict[str, Any]:
    """Let there be one volume of that name, region and size."""
    app, name = asked["app"], asked["name"]
    there = find(fly, app, name)
    if len(there) > 1:
        ids = ", ".join(one["id"] for one in there)
        raise FlyError(
            409, f"app {app} has {len(there)} volumes {name} ({ids}): remove all but the right one"
        )
    wanted = {"name": name, "region": asked["region"], "size_gb": asked["size_gb"]}
    if not there:
        made: dict[str, Any] = {"id": ""}
        if not check:
            request = {**wanted, "encrypted": True}
            made = fly.create(f"/apps/{app}/volumes", request, lambda: next(iter(find(fly, app, name)), None))
        return {**difference(None, wanted), "id": made["id"]}
    volume = there[0]
    if volume["region"] != asked["region"]:
        raise FlyError(
            422,
            f"region: volume {name} of {app} is in {volume['region']} and cannot move to {asked['region']}",
        )
    if volume["size_gb"] > asked["size_gb"]:
        raise FlyError(
            422,
            f"size: volume {name} of {app} has {volume['size_gb']} GB, cannot shrink to {asked['size_gb']}",
        )
    if volume["size_gb"] < asked["size_gb"] and not check:
        fly.ask("PUT", f"/apps/{app}/volumes/{volume['id']}/extend", {"size_gb": asked["size_gb"]})
    return {**difference(shown(volume), wanted), "id": volume["id"]}


def remove(fly: Fly, asked: dict[str, Any], check: bool) -> dict[str, Any]:
    """Let there be no volume of that name."""
    there = find(fly, asked["app"], asked["name"])
    if not check:
        for volume in there:
            fly.ask("DELETE", f"/apps/{asked['app']}/volumes/{volume['id']}")
    return difference(shown(there[0]) if there else None, None)


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "app": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "region": {"type": "str"},
            "size_gb": {"type": "int", "default": 1},
        },
        required_if=[("state", "present", ["region"])],
        supports_check_mode=True,
    )
    with failing(module) as fly:
        work = ensure if module.params["state"] == "present" else remove
        result = work(fly, module.params, module.check_mode)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
