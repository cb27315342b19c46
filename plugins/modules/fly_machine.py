"""Module: a machine at Fly.io."""

DOCUMENTATION = """
module: fly_machine
author: clawDeploy contributors (@clawdeploy)
short_description: Run, suspend, stop and remove a machine at Fly.io
version_added: 0.2.0
description:
  - A machine is known by its name in the app. Its configuration is compared with what Fly.io says it is.
  - A machine is changed under a lease, so that nobody else changes it meanwhile.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.fly
options:
  app:
    description: Name of the app.
    type: str
    required: true
  name:
    description: Name of the machine.
    type: str
    required: true
  state:
    description:
      - V(started) runs it with O(config) and waits until all its checks pass. What Fly.io itself
        put to sleep may go on sleeping.
      - V(stopped) and V(suspended) also close it to visitors, who would wake it up again. Nothing is done for
        a machine that does not exist.
    type: str
    choices: [started, stopped, suspended, absent]
    default: started
  region:
    description: Where a new machine runs. It cannot move.
    type: str
  min_secrets_version:
    description: Version of the app's secrets that it has to see; 0 does not matter.
    type: int
    default: 0
  timeout:
    description: Seconds until it must be healthy, or stopped, suspended or gone.
    type: int
    default: 120
  config:
    description: What it is, as the Machines API takes it. V(started) without it only wakes it up.
    type: dict
    suboptions:
      image:
        description: Image with a version.
        type: str
        required: true
      guest:
        description: Its size.
        type: dict
        required: true
        suboptions:
          cpu_kind:
            description: Kind of its CPUs.
            type: str
            choices: [shared, performance]
            default: shared
          cpus:
            description: Number of its CPUs.
            type: int
            default: 1
          memory_mb:
            description: Its memory in MB.
            type: int
            default: 256
      env:
        description: Its environment. Not for secrets.
        type: dict
      metadata:
        description: Words of your own about it.
        type: dict
      init:
        description: What it runs instead of the image's own command.
        type: dict
        suboptions:
          exec:
            description: The command, in place of the image's entrypoint too.
            type: list
            elements: str
          entrypoint:
            description: In place of the image's entrypoint.
            type: list
            elements: str
          cmd:
            description: In place of the image's command.
            type: list
            elements: str
      mounts:
        description: Its volume.
        type: list
        elements: dict
        suboptions:
          volume:
            description: Id of the volume.
            type: str
            required: true
          path:
            description: Where it is mounted.
            type: str
            required: true
      files:
        description: Files that are written when it starts.
        type: list
        elements: dict
        suboptions:
          guest_path:
            description: Where.
            type: str
            required: true
          raw_value:
            description: The content in base64.
            type: str
          secret_name:
            description: Name of the secret that holds the content in base64.
            type: str
          mode:
            description: Permissions, as a number.
            type: int
      services:
        description: What Fly.io's proxy lets in.
        type: list
        elements: dict
        suboptions:
          internal_port:
            description: Port in the machine.
            type: int
            required: true
          protocol:
            description: Protocol.
            type: str
            choices: [tcp, udp]
            default: tcp
          autostop:
            description: Whether it is put to sleep when no requests come in.
            type: str
            choices: ["off", stop, suspend]
            default: "off"
          autostart:
            description: Whether a request wakes it up.
            type: bool
            default: false
          min_machines_running:
            description: How many machines of the app are not put to sleep.
            type: int
            default: 0
          concurrency:
            description: How many requests at once.
            type: dict
            suboptions:
              type:
                description: What is counted.
                type: str
                choices: [requests, connections]
                default: requests
              soft_limit:
                description: From here on other machines are preferred.
                type: int
              hard_limit:
                description: No more than that.
                type: int
          ports:
            description: Public ports.
            type: list
            elements: dict
            suboptions:
              port:
                description: The port.
                type: int
                required: true
              handlers:
                description: What the proxy does there.
                type: list
                elements: str
              force_https:
                description: Whether plain HTTP is redirected.
                type: bool
      checks:
        description: Health checks by name, as the API takes them.
        type: dict
      restart:
        description: What happens when its program ends.
        type: dict
        suboptions:
          policy:
            description: When it is started again.
            type: str
            choices: ["no", always, on-failure]
            default: always
      stop_config:
        description: How it is stopped.
        type: dict
        suboptions:
          signal:
            description: The signal.
            type: str
          timeout:
            description: How long it gets, such as V(5s).
            type: str
"""

EXAMPLES = """
- name: Run it
  clawdeploy.fleet.fly_machine:
    app: claw-support
    name: bot
    region: fra
    config:
      image: registry.example.com/agent:v1
      guest: {cpus: 1, memory_mb: 256}

- name: Stop it, and keep visitors from waking it up
  clawdeploy.fleet.fly_machine:
    app: claw-support
    name: bot
    state: suspended
"""

RETURN = """
id:
  description: Id of the machine; empty if there is none.
  type: str
  returned: success
machine_state:
  description: State the machine is in, as Fly.io names it.
  type: str
  returned: success
status:
  description: HTTP status of Fly.io's refusal, 0 if it was not reached.
  type: int
  returned: failure
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._fly import (
    ARGUMENTS,
    Fly,
    FlyError,
    difference,
    failing,
)

TEXT: dict[str, Any] = {"type": "str"}
TEXTS = {"type": "list", "elements": "str"}
NUMBER: dict[str, Any] = {"type": "int"}
SERVICE: dict[str, Any] = {
    "internal_port": {"type": "int", "required": True},
    "protocol": {"type": "str", "choices": ["tcp", "udp"], "default": "tcp"},
    "autostop": {"type": "str", "choices": ["off", "stop", "suspend"], "default": "off"},
    "autostart": {"type": "bool", "default": False},
    "min_machines_running": {"type": "int", "default": 0},
    "concurrency": {
        "type": "dict",
        "options": {
            "type": {"type": "str", "choices": ["requests", "connections"], "default": "requests"},
            "soft_limit": NUMBER,
            "hard_limit": NUMBER,
        },
    },
    "ports": {
        "type": "list",
        "elements": "dict",
        "options": {
            "port": {"type": "int", "required": True},
            "handlers": TEXTS,
            "force_https": {"type": "bool"},
        },
    },
}
CONFIG: dict[str, Any] = {
    "image": {"type": "str", "required": True},
    "guest": {
        "type": "dict",
        "required": True,
        "options": {
            "cpu_kind": {"type": "str", "choices": ["shared", "performance"], "default": "shared"},
            "cpus": {"type": "int", "default": 1},
            "memory_mb": {"type": "int", "default": 256},
        },
    },
    "env": {"type": "dict"},
    "metadata": {"type": "dict"},
    "init": {"type": "dict", "options": {"exec": TEXTS, "entrypoint": TEXTS, "cmd": TEXTS}},
    "mounts": {
        "type": "list",
        "elements": "dict",
        "options": {
            "volume": {"type": "str", "required": True},
            "path": {"type": "str", "required": True},
        },
    },
    "files": {
        "type": "list",
        "elements": "dict",
        "options": {
            "guest_path": {"type": "str", "required": True},
            "raw_value": TEXT,
            "secret_name": {"type": "str", "no_log": False},
            "mode": NUMBER,
        },
        "required_one_of": [("raw_value", "secret_name")],
        "mutually_exclusive": [("raw_value", "secret_name")],
    },
    "services": {"type": "list", "elements": "dict", "options": SERVICE},
    "checks": {"type": "dict"},
    "restart": {
        "type": "dict",
        "options": {
            "policy": {"type": "str", "choices": ["no", "always", "on-failure"], "default": "always"}
        },
    },
    "stop_config": {"type": "dict", "options": {"signal": TEXT, "timeout": TEXT}},
}
LEASE_SECONDS = 120
LONGEST_WAIT = 60  # what the API waits for a state at most
ASLEEP = ("stopped", "suspended")
# How Fly.io says which service may be put to sleep: with the words of its older API for two of three.
AUTOSTOP = {None: "off", False: "off", True: "stop"}


def given(value: Any) -> Any:
    """``value`` without the keys that Ansible adds as None for what was not given."""
    if isinstance(value, dict):
        return {name: given(part) for name, part in value.items() if part is not None}
    return [given(part) for part in value] if isinstance(value, list) else value


def part_of(actual: Any, wanted: Any) -> Any:
    """``actual`` without what ``wanted`` does not speak of.

    Fly.io adds defaults of its own, and leaves out what is zero, false or empty.
    """
    if isinstance(wanted, dict) and isinstance(actual, dict):
        there = {**actual, "autostop": AUTOSTOP.get(actual.get("autostop"), actual.get("autostop"))}
        return {
            name: part if not part and not there.get(name) else part_of(there[name], part)
            for name, part in wanted.items()
            if there.get(name) or not part
        }
    if isinstance(wanted, list) and isinstance(actual, list) and len(wanted) == len(actual):
        return [part_of(one, other) for one, other in zip(actual, wanted, strict=True)]
    return actual


def left_over(actual: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Parts of CONFIG that the machine has and that are not wanted any more."""
    return {name: actual[name] for name in CONFIG if actual.get(name) and name not in wanted}


def sleeps_by_itself(machine: dict[str, Any]) -> bool:
    """Whether it was Fly.io that put the machine to sleep; a visitor wakes it up."""
    services = machine["config"].get("services") or []
    wakes = any(one.get("autostop") not in (None, False, "off") and one.get("autostart") for one in services)
    return machine["state"] in ASLEEP and wakes and not machine.get("cordoned")


class Machine:
    """One machine of an app, by its name."""

    def __init__(self, fly: Fly, app: str, name: str) -> None:
        self._fly = fly
        self._base = f"/apps/{app}/machines"
        self._called = f"machine {name} of {app}"
        self._name = name

    def find(self) -> dict[str, Any] | None:
        """The machine, None if there is none. FlyError if there are several of its name."""
        machines = self._fly.get(self._base) or []
        found = [
            one for one in machines if one["name"] == self._name and not one["state"].startswith("destroy")
        ]
        if len(found) > 1:
            raise FlyError(409, f"there is more than one {self._called}: remove all but the right one")
        return found[0] if found else None

    def create(self, region: str, config: dict[str, Any], secrets: int) -> dict[str, Any]:
        request: dict[str, Any] = {"name": self._name, "region": region, "config": config}
        request |= {"min_secrets_version": secrets} if secrets else {}
        made: dict[str, Any] = self._fly.create(self._base, request, self.find)
        return made

    def update(self, machine: dict[str, Any], config: dict[str, Any], secrets: int) -> dict[str, Any]:
        """Another configuration; that restarts the machine."""
        path = f"{self._base}/{machine['id']}"
        request: dict[str, Any] = {"config": config}
        request |= {"min_secrets_version": secrets} if secrets else {}
        with self._lease(path) as nonce:
            changed: dict[str, Any] = self._fly.act(path, request, nonce=nonce)
        return changed

    def wake(self, machine: dict[str, Any]) -> None:
        path = f"{self._base}/{machine['id']}"
        with self._lease(path) as nonce:
            if machine.get("cordoned"):
                self._fly.act(f"{path}/uncordon", nonce=nonce)
            if machine["state"] in (*ASLEEP, "created"):
                self._fly.act(f"{path}/start", nonce=nonce)

    def rest(self, machine: dict[str, Any], state: str, timeout: float) -> None:
        """Close it to visitors, then stop or suspend it."""
        path = f"{self._base}/{machine['id']}"
        with self._lease(path) as nonce:
            if not machine.get("cordoned"):
                self._fly.act(f"{path}/cordon", nonce=nonce)
            if machine["state"] != state:
                self._fly.act(f"{path}/{'suspend' if state == 'suspended' else 'stop'}", nonce=nonce)
                self._await(machine, state, timeout)

    def remove(self, machine: dict[str, Any], timeout: float) -> None:
        self._fly.ask("DELETE", f"{self._base}/{machine['id']}", force="true")
        if not self._fly.wait_until(lambda: self.find() is None, timeout):
            raise FlyError(0, f"{self._called} is still there after {timeout:.0f} s; run this again")

    def await_health(self, machine: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Wait until it runs and all its checks pass."""
        end = time.monotonic() + timeout
        self._await(machine, "started", timeout)
        path, seen = f"{self._base}/{machine['id']}", machine

        def healthy() -> bool:
            nonlocal seen
            seen = self._fly.ask("GET", path)
            checks = seen.get("checks") or []
            passing = [one for one in checks if one["status"] == "passing"]
            return seen["state"] == "started" and len(passing) == len(checks) >= len(
                seen["config"].get("checks") or ()
            )

        if not self._fly.wait_until(healthy, max(end - time.monotonic(), 0)):
            bad = [one for one in seen.get("checks") or [] if one["status"] != "passing"]
            said = "; ".join(f"{one['name']}: {one['status']} {one.get('output', '')}".strip() for one in bad)
            why = said or f"its state is {seen['state']}"
            raise FlyError(0, f"{self._called} did not become healthy in {timeout:.0f} s: {why}")
        return seen

    def _await(self, machine: dict[str, Any], state: str, timeout: float) -> None:
        """The API's own wait, again and again until ``timeout`` seconds are over."""
        end = time.monotonic() + timeout
        instance = {"instance_id": machine["instance_id"]} if machine.get("instance_id") else {}
        while (left := end - time.monotonic()) > 0:
            try:
                seconds = max(1, min(int(left), LONGEST_WAIT))
                self._fly.ask(
                    "GET", f"{self._base}/{machine['id']}/wait", state=state, timeout=seconds, **instance
                )
                return
            except FlyError as error:
                if error.status != 408:
                    raise
        raise FlyError(408, f"{self._called} was not {state} after {timeout:.0f} s")

    @contextmanager
    def _lease(self, path: str) -> Iterator[str]:
        try:
            lease = self._fly.ask("POST", f"{path}/lease?ttl={LEASE_SECONDS}")
        except FlyError as error:
            if error.status != 409:
                raise
            raise FlyError(409, f"{self._called} is being changed by somebody else ({error})") from None
        nonce = lease["data"]["nonce"]
        try:
            yield nonce
        finally:
            self._fly.ask("DELETE", f"{path}/lease", nonce=nonce)


def run(machine: Machine, asked: dict[str, Any], check: bool) -> dict[str, Any]:
    """Let it run as ``config`` says and be healthy."""
    there, wanted = machine.find(), given(asked["config"])
    if there is None and wanted is None:
        raise FlyError(404, f"app {asked['app']} has no machine {asked['name']}: deploy it again")
    if there is None:
        if not check:
            there = machine.await_health(
                machine.create(asked["region"], wanted, asked["min_secrets_version"]), asked["timeout"]
            )
        return {**difference(None, {"state": "started", "config": wanted}), **outcome(there)}
    if asked["region"] and there["region"] != asked["region"]:
        raise FlyError(
            422,
            f"region: machine {asked['name']} of {asked['app']} runs in {there['region']} and cannot move to "
            f"{asked['region']}; destroy the bot first, or keep its region",
        )
    if wanted is None:
        wanted = actual = {"image": there["config"]["image"]}
    else:
        actual = part_of(there["config"], wanted) | left_over(there["config"], wanted)
    awake = (there["state"] == "started" and not there.get("cordoned")) or sleeps_by_itself(there)
    before = {"state": "started" if awake else there["state"], "config": actual}
    result = difference(before, {"state": "started", "config": wanted})
    if not check:
        if actual != wanted:
            there = {
                **machine.update(there, wanted, asked["min_secrets_version"]),
                "cordoned": there.get("cordoned"),
            }
        if not awake:
            machine.wake(there)
        if result["changed"] or there["state"] == "started":
            there = machine.await_health(there, asked["timeout"])
    return {**result, **outcome(there)}


def rest(machine: Machine, asked: dict[str, Any], check: bool) -> dict[str, Any]:
    """Let it be stopped or suspended, and closed to visitors."""
    there, state = machine.find(), asked["state"]
    if there is None:
        return {"changed": False, **outcome(None)}
    before = {"state": there["state"], "open": not there.get("cordoned")}
    result = difference(before, {"state": state, "open": False})
    if result["changed"] and not check:
        machine.rest(there, state, asked["timeout"])
        there = machine.find()
    return {**result, **outcome(there)}


def remove(machine: Machine, asked: dict[str, Any], check: bool) -> dict[str, Any]:
    """Let it be gone."""
    there = machine.find()
    if there is not None and not check:
        machine.remove(there, asked["timeout"])
    return {**difference(there and {"state": there["state"]}, None), **outcome(None)}


def outcome(machine: dict[str, Any] | None) -> dict[str, str]:
    return {"id": machine["id"] if machine else "", "machine_state": machine["state"] if machine else ""}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "app": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["started", "stopped", "suspended", "absent"],
                "default": "started",
            },
            "region": {"type": "str"},
            "min_secrets_version": {"type": "int", "default": 0, "no_log": False},
            "timeout": {"type": "int", "default": 120},
            "config": {"type": "dict", "options": CONFIG},
        },
        required_by={"config": ["region"]},
        supports_check_mode=True,
    )
    asked = module.params
    work = {"started": run, "absent": remove}.get(asked["state"], rest)
    with failing(module) as fly:
        result = work(Machine(fly, asked["app"], asked["name"]), asked, module.check_mode)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
