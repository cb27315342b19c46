"""Module: an app at Fly.io."""

DOCUMENTATION = """
module: fly_app
author: clawDeploy contributors (@clawdeploy)
short_description: Make and remove an app at Fly.io
version_added: 0.2.0
description:
  - An app holds machines, volumes and secrets. Removing it removes all of them.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.fly
options:
  name:
    description: Name of the app, unique in all of Fly.io.
    type: str
    required: true
  state:
    description: Whether the app is there.
    type: str
    choices: [present, absent]
    default: present
  org:
    description: Slug of the organisation a new app belongs to.
    type: str
    default: personal
  network:
    description: Name of a private network of its own, which no other app can reach. Only for a new app.
    type: str
  public:
    description: Whether the internet can reach it, at a shared IPv4 address and an IPv6 address of its own.
    type: bool
    default: false
  timeout:
    description: Seconds until a removed app must be gone.
    type: int
    default: 60
"""

EXAMPLES = """
- name: An app that nobody can reach
  clawdeploy.fleet.fly_app:
    name: claw-support
    network: claw-support
"""

RETURN = """
created:
  description: Whether this run made the app, or would.
  type: bool
  returned: success
status:
  description: HTTP status of Fly.io's refusal, 0 if it was not reached.
  type: int
  returned: failure
"""

import functools
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._fly import (
    ARGUMENTS,
    Fly,
    FlyError,
    difference,
    failing,
)

KINDS = ("shared_v4", "v6")


def kind(address: dict[str, Any]) -> str:
    """Which of KINDS an address is; empty for another one (an own IPv4 address, one within Fly.io)."""
    if address.get("egress") or address["ip"].startswith("fdaa:"):
        return ""
    if ":" in address["ip"]:
        return "v6"
    return "shared_v4" if address.get("shared") else ""


def addresses(fly: Fly, name: str) -> dict[str, str]:
    """Kind -> address, of those that this module gives."""
    answer = fly.get(f"/apps/{name}/ip_assignments")
    found = (answer or {}).get("ips") or []
    return {kind(one): one["ip"] for one in found if kind(one)}


def address(fly: Fly, name: str, wanted: str) -> str | None:
    return addresses(fly, name).get(wanted)


def ensure(fly: Fly, asked: dict[str, Any], check: bool) -> dict[str, Any]:
    """Let the app and its addresses be there."""
    name = asked["name"]
    there = fly.get(f"/apps/{name}")
    if there and (owner := (there.get("organization") or {}).get("slug", asked["org"])) != asked["org"]:
        raise FlyError(422, f"app {name} belongs to organisation {owner}, not {asked['org']}")
    held = addresses(fly, name) if there else {}
    wanted = KINDS if asked["public"] else ()
    after = {"name": name, "org": asked["org"], "addresses": sorted(wanted)}
    before = {**after, "addresses": sorted(held)} if there else None
    if not check:
        if not there:
            request = {"app_name": name, "org_slug": asked["org"]}
            request |= {"network": asked["network"]} if asked["network"] else {}
            fly.create("/apps", request, lambda: fly.get(f"/apps/{name}"))
        for missing in (one for one in wanted if one not in held):
            find = functools.partial(address, fly, name, missing)
            fly.create(f"/apps/{name}/ip_assignments", {"type": missing}, find)
        for spare in (ip for one, ip in held.items() if one not in wanted):
            fly.ask("DELETE", f"/apps/{name}/ip_assignments/{spare}")
    return {**difference(before, after), "created": there is None}


def remove(fly: Fly, asked: dict[str, Any], check: bool) -> dict[str, Any]:
    """Let the app be gone, with all that is in it."""
    name = asked["name"]
    there = fly.get(f"/apps/{name}")
    if there and not check:
        fly.ask("DELETE", f"/apps/{name}", force="true")
        if not fly.wait_until(lambda: fly.get(f"/apps/{name}") is None, asked["timeout"]):
            raise FlyError(0, f"app {name} is still there after {asked['timeout']} s; run this again")
    return {**difference({"name": name} if there else None, None), "created": False}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "org": {"type": "str", "default": "personal"},
            "network": {"type": "str"},
            "public": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    with failing(module) as fly:
        work = ensure if module.params["state"] == "present" else remove
        result = work(fly, module.params, module.check_mode)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
