"""A simulator of Fly.io's Machines API.

Run: `python -m tests.simulators.fly --host H --port P [--cert C --key K]`

Wire format after https://docs.machines.dev and https://fly.io/docs/machines/api/. Requests need a token that
begins with `fo1_` or `FlyV1 `; others are refused with 401. Every payload is checked against the structs
below, which know only what is documented: anything else is answered with 400 and the reason.

A machine that is started runs at once; its checks pass when they were looked at once.

Control endpoints:

* `POST /_sim/order` `{"method", "path", "status": 500, "times": 1, "retry_after": null, "done": false}`: the
  next `times` requests of this method whose path matches this regular expression are answered with `status`.
  With `done` they take effect all the same: the answer got lost.
* `POST /_sim/health` `{"app", "status": "critical", "output"}`: what the checks of the app's machines say.
* `POST /_sim/sleep` `{"app"}`: Fly.io's proxy stops or suspends the machines that have `autostop`.
* `POST /_sim/visit` `{"app"}`: a visitor comes. Returns `{"answered": whether a machine runs then}`.
* `POST /_sim/take` `{"name"}`: an app of that name belongs to somebody else.
* `GET /_sim/state`: apps, volumes, machines, names and values of secrets, certificates.
* `GET /_sim/calls`: `{"calls": [[method, path, body]]}`, all requests to the API so far.
* `POST /_sim/reset`: nothing is there any more.
"""

import hashlib
import itertools
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from aiohttp import web

from tests.simulators.common import Changes, json_object, query_number, run

REGIONS = {"ams", "arn", "cdg", "fra", "iad", "lhr", "nrt", "ord", "sin", "sjc", "syd"}
ORGS = {"personal", "acme"}
NAME = r"^[a-z0-9][a-z0-9-]*$"
NONCE = "fly-machine-lease-nonce"
SUSPENDABLE_MB = 2048
LONGEST_WAIT = 60


class Payload(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Something a client sends."""


class CreateApp(Payload):
    app_name: Annotated[str, msgspec.Meta(pattern=NAME, max_length=63)]
    org_slug: str
    network: str = ""


class AssignAddress(Payload):
    type: Literal["v4", "v6", "shared_v4", "private_v6"]


class CreateVolume(Payload):
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,30}$")]
    region: str
    size_gb: Annotated[int, msgspec.Meta(ge=1, le=500)]
    encrypted: bool = True


class ExtendVolume(Payload):
    size_gb: Annotated[int, msgspec.Meta(ge=1, le=500)]


class SetSecrets(Payload):
    values: dict[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str | None]


class CreateCertificate(Payload):
    hostname: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$")]


class Guest(Payload):
    cpu_kind: Literal["shared", "performance"]
    cpus: Literal[1, 2, 4, 6, 8, 10, 12, 14, 16]
    memory_mb: int


class Mount(Payload):
    volume: str
    path: Annotated[str, msgspec.Meta(pattern="^/")]


class File(Payload):
    guest_path: Annotated[str, msgspec.Meta(pattern="^/")]
    raw_value: str | None = None
    secret_name: str | None = None
    mode: int = 0


class Port(Payload):
    port: int
    handlers: list[Literal["http", "tls", "proxy_proto", "pg_tls"]] = []
    force_https: bool = False


class Concurrency(Payload):
    type: Literal["requests", "connections"]
    soft_limit: int = 0
    hard_limit: int = 0


class Service(Payload):
    protocol: Literal["tcp", "udp"]
    internal_port: int
    ports: list[Port] = []
    autostop: Literal["off", "stop", "suspend"] | bool = False
    autostart: bool = False
    min_machines_running: int = 0
    concurrency: Concurrency | None = None


class Check(Payload):
    type: Literal["http", "tcp"]
    port: int
    interval: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(ms|s|m)$")]
    timeout: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(ms|s|m)$")]
    grace_period: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(ms|s|m)$")] = "1s"
    method: str = ""
    path: str = ""


class Init(Payload):
    exec: list[str] = []
    entrypoint: list[str] = []
    cmd: list[str] = []


class Restart(Payload):
    policy: Literal["no", "always", "on-failure"]


class StopConfig(Payload):
    signal: str = ""
    timeout: str = ""


class MachineConfig(Payload):
    image: Annotated[str, msgspec.Meta(min_length=1)]
    guest: Guest
    env: dict[str, str] = {}
    metadata: dict[str, str] = {}
    init: Init = msgspec.field(default_factory=Init)
    mounts: list[Mount] = []
    files: list[File] = []
    services: list[Service] = []
    checks: dict[str, Check] = {}
    restart: Restart = msgspec.field(default_factory=lambda: Restart("on-failure"))
    stop_config: StopConfig | None = None


class LaunchMachine(Payload):
    config: MachineConfig
    name: str = ""
    region: str = ""
    min_secrets_version: int = 0


class UpdateMachine(Payload):
    config: MachineConfig
    min_secrets_version: int = 0


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class Volume:
    id: str
    name: str
    region: str
    size_gb: int
    encrypted: bool
    machine: str | None = None

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "state": "created",
            "size_gb": self.size_gb,
            "region": self.region,
            "encrypted": self.encrypted,
            "attached_machine_id": self.machine,
        }


@dataclass
class Machine:
    id: str
    name: str
    region: str
    config: MachineConfig
    secrets: dict[str, str]
    state: str = "started"
    instance: int = 1
    cordoned: bool = False
    looks: int = 0
    nonce: str = ""
    leased_until: float = 0

    def shown(self, status: str, output: str) -> dict[str, Any]:
        """As the API tells it: with defaults of its own, and two of three `autostop`s in its older words."""
        config = {"dns": {}, "init": {}, **msgspec.to_builtins(self.config)}
        for service in config.get("services", []):
            service["autostop"] = {"off": False, "stop": True}.get(service["autostop"], service["autostop"])
            service["force_instance_key"] = None
        config["guest"] = {**config["guest"], "kernel_args": []}
        said = status or ("passing" if self.looks else "warning")
        self.looks += 1
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "region": self.region,
            "instance_id": f"01{self.id}{self.instance:04}",
            "cordoned": self.cordoned,
            "config": config,
            "checks": [
                {"name": name, "status": said if self.state == "started" else "critical", "output": output}
                for name in self.config.checks
            ],
        }

    @property
    def leased(self) -> bool:
        return bool(self.nonce) and time.time() < self.leased_until

    def autostop(self) -> str:
        """What the proxy does to the machine when nobody comes; empty for nothing."""
        words = {False: "", "off": "", True: "stop"}
        return next((w for s in self.config.services if (w := str(words.get(s.autostop, s.autostop)))), "")


@dataclass
class App:
    name: str
    org: str
    network: str
    volumes: dict[str, Volume] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    certificates: set[str] = field(default_factory=set)
    addresses: dict[str, str] = field(default_factory=dict)
    version: int = 0
    health: str = ""
    output: str = ""


@dataclass
class Order:
    method: str
    path: re.Pattern[str]
    status: int
    times: int
    retry_after: int | None
    done: bool


@dataclass
class State:
    """Everything the simulator remembers."""

    changes: Changes = field(default_factory=Changes)
    apps: dict[str, App] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    orders: list[Order] = field(default_factory=list)
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def app(self, request: web.Request) -> App:
        name = request.match_info["app"]
        if name not in self.apps:
            raise ApiError(404, "App not found")
        return self.apps[name]

    def machine(self, request: web.Request) -> tuple[App, Machine]:
        app = self.app(request)
        machine = app.machines.get(request.match_info["machine"])
        if machine is None:
            raise ApiError(404, "machine not found")
        return app, machine

    def changeable(self, request: web.Request) -> tuple[App, Machine]:
        """The machine, unless somebody else holds its lease."""
        app, machine = self.machine(request)
        if machine.leased and request.headers.get(NONCE) != machine.nonce:
            raise ApiError(409, f"machine ID {machine.id} lease currently held by somebody@example.com")
        return app, machine


STATE = web.AppKey("state", State)
Sent = TypeVar("Sent", bound=Payload)


async def payload(request: web.Request, kind: type[Sent]) -> Sent:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except msgspec.DecodeError as error:
        raise ApiError(400, f"invalid request: {error}") from error


# --- apps ---------------------------------------------------------------------------------------------


async def create_app(request: web.Request) -> web.Response:
    state, asked = request.app[STATE], await payload(request, CreateApp)
    if asked.org_slug not in ORGS:
        raise ApiError(422, f"organization {asked.org_slug} not found")
    if asked.app_name in state.apps or asked.app_name in state.taken:
        raise ApiError(422, "Validation failed: Name has already been taken")
    state.apps[asked.app_name] = App(asked.app_name, asked.org_slug, asked.network)
    return web.json_response({"id": asked.app_name, "created_at": int(time.time() * 1000)}, status=201)


async def get_app(request: web.Request) -> web.Response:
    app = request.app[STATE].app(request)
    return web.json_response(
        {
            "id": app.name,
            "name": app.name,
            "status": "deployed" if app.machines else "pending",
            "network": app.network,
            "organization": {"name": app.org, "slug": app.org},
            "machine_count": len(app.machines),
            "volume_count": len(app.volumes),
        }
    )


async def delete_app(request: web.Request) -> web.Response:
    state = request.app[STATE]
    app = state.app(request)
    if any(machine.state == "started" for machine in app.machines.values()) and "force" not in request.query:
        raise ApiError(422, "app has running machines; use force")
    del state.apps[app.name]
    return web.Response(status=202)


async def list_addresses(request: web.Request) -> web.Response:
    app = request.app[STATE].app(request)
    ips = [{"ip": ip, "shared": kind == "shared_v4", "egress": False} for kind, ip in app.addresses.items()]
    return web.json_response({"ips": ips})


async def assign_address(request: web.Request) -> web.Response:
    app, asked = request.app[STATE].app(request), await payload(request, AssignAddress)
    if asked.type in app.addresses:
        raise ApiError(422, f"the app has an address of type {asked.type} already")
    number = next(request.app[STATE].numbers)
    app.addresses[asked.type] = f"2001:db8::{number:x}" if "v6" in asked.type else f"192.0.2.{number % 250}"
    return web.json_response({"ip": app.addresses[asked.type], "shared": asked.type == "shared_v4"})


async def release_address(request: web.Request) -> web.Response:
    app, ip = request.app[STATE].app(request), request.match_info["ip"]
    if ip not in app.addresses.values():
        raise ApiError(404, "ip address not found")
    app.addresses = {kind: one for kind, one in app.addresses.items() if one != ip}
    return web.Response(status=204)


# --- volumes, secrets, certificates ---------------------------------------------------------------------


async def list_volumes(request: web.Request) -> web.Response:
    return web.json_response([one.shown() for one in request.app[STATE].app(request).volumes.values()])


async def create_volume(request: web.Request) -> web.Response:
    app, asked = request.app[STATE].app(request), await payload(request, CreateVolume)
    if asked.region not in REGIONS:
        raise ApiError(422, f"region {asked.region} not found")
    number = next(request.app[STATE].numbers)
    volume = Volume(f"vol_{number:016x}", asked.name, asked.region, asked.size_gb, asked.encrypted)
    app.volumes[volume.id] = volume
    return web.json_response(volume.shown())


def _volume(request: web.Request) -> tuple[App, Volume]:
    app = request.app[STATE].app(request)
    volume = app.volumes.get(request.match_info["volume"])
    if volume is None:
        raise ApiError(404, "volume not found")
    return app, volume


async def extend_volume(request: web.Request) -> web.Response:
    (_, volume), asked = _volume(request), await payload(request, ExtendVolume)
    if asked.size_gb < volume.size_gb:
        raise ApiError(422, "volumes cannot shrink")
    volume.size_gb = asked.size_gb
    return web.json_response({"volume": volume.shown(), "needs_restart": False})


async def delete_volume(request: web.Request) -> web.Response:
    app, volume = _volume(request)
    if volume.machine in app.machines:
        raise ApiError(409, f"volume {volume.id} is attached to machine {volume.machine}")
    return web.json_response(app.volumes.pop(volume.id).shown())


def _secrets(app: App) -> list[dict[str, str]]:
    """Names and digests; no value is ever told."""
    digest = {
        name: hashlib.blake2b(value.encode(), digest_size=8).hexdigest()
        for name, value in app.secrets.items()
    }
    return [{"name": name, "digest": digest[name]} for name in sorted(app.secrets)]


async def list_secrets(request: web.Request) -> web.Response:
    return web.json_response({"secrets": _secrets(request.app[STATE].app(request))})


async def set_secrets(request: web.Request) -> web.Response:
    app, asked = request.app[STATE].app(request), await payload(request, SetSecrets)
    for name, value in asked.values.items():
        if value is None:
            app.secrets.pop(name, None)
        else:
            app.secrets[name] = value
    app.version += 1
    return web.json_response({"secrets": _secrets(app), "version": app.version})


async def get_certificate(request: web.Request) -> web.Response:
    app, hostname = request.app[STATE].app(request), request.match_info["hostname"]
    if hostname not in app.certificates:
        raise ApiError(404, "certificate not found")
    return web.json_response({"hostname": hostname, "configured": False, "status": "Awaiting configuration"})


async def create_certificate(request: web.Request) -> web.Response:
    app, asked = request.app[STATE].app(request), await payload(request, CreateCertificate)
    if asked.hostname in app.certificates:
        raise ApiError(422, "hostname already exists on app")
    app.certificates.add(asked.hostname)
    return web.json_response({"hostname": asked.hostname, "configured": False}, status=201)


async def delete_certificate(request: web.Request) -> web.Response:
    app, hostname = request.app[STATE].app(request), request.match_info["hostname"]
    if hostname not in app.certificates:
        raise ApiError(404, "certificate not found")
    app.certificates.remove(hostname)
    return web.Response(status=204)


# --- machines -------------------------------------------------------------------------------------------


def _review(app: App, config: MachineConfig, version: int, region: str) -> None:
    """What the API refuses of a configuration that is well-formed."""
    guest = config.guest
    least, most = (256, 2048) if guest.cpu_kind == "shared" else (2048, 8192)
    if guest.memory_mb % 256 or not least * guest.cpus <= guest.memory_mb <= most * guest.cpus:
        raise ApiError(422, f"invalid memory size {guest.memory_mb} for {guest.cpus} {guest.cpu_kind} CPUs")
    for mount in config.mounts:
        volume = app.volumes.get(mount.volume)
        if volume is None or volume.region != region:
            raise ApiError(422, f"volume {mount.volume} not found in region {region}")
    for file in config.files:
        if (file.raw_value is None) == (file.secret_name is None):
            raise ApiError(422, f"file {file.guest_path}: one of raw_value and secret_name must be set")
        if file.secret_name is not None and file.secret_name not in app.secrets:
            raise ApiError(422, f"secret {file.secret_name} not found")
    if version > app.version:
        raise ApiError(412, f"secrets version {version} is not there yet")


async def list_machines(request: web.Request) -> web.Response:
    app = request.app[STATE].app(request)
    return web.json_response([one.shown(app.health, app.output) for one in app.machines.values()])


async def create_machine(request: web.Request) -> web.Response:
    state = request.app[STATE]
    app, asked = state.app(request), await payload(request, LaunchMachine)
    if asked.region not in REGIONS:
        raise ApiError(422, f"region {asked.region} not found")
    if any(asked.name == machine.name for machine in app.machines.values()):
        raise ApiError(409, f"already_exists: unique machine name violation, machine {asked.name} exists")
    _review(app, asked.config, asked.min_secrets_version, asked.region)
    for mount in asked.config.mounts:
        if app.volumes[mount.volume].machine in app.machines:
            raise ApiError(409, f"volume {mount.volume} is already attached")
    number = next(state.numbers)
    machine = Machine(f"{number:014x}", asked.name, asked.region, asked.config, dict(app.secrets))
    app.machines[machine.id] = machine
    for mount in asked.config.mounts:
        app.volumes[mount.volume].machine = machine.id
    await state.changes.notify()
    return web.json_response(machine.shown(app.health, app.output))


async def get_machine(request: web.Request) -> web.Response:
    app, machine = request.app[STATE].machine(request)
    return web.json_response(machine.shown(app.health, app.output))


async def update_machine(request: web.Request) -> web.Response:
    app, machine = request.app[STATE].changeable(request)
    asked = await payload(request, UpdateMachine)
    _review(app, asked.config, asked.min_secrets_version, machine.region)
    machine.config, machine.secrets = asked.config, dict(app.secrets)
    machine.state, machine.looks, machine.instance = "started", 0, machine.instance + 1
    await request.app[STATE].changes.notify()
    return web.json_response(machine.shown(app.health, app.output))


async def delete_machine(request: web.Request) -> web.Response:
    app, machine = request.app[STATE].changeable(request)
    if machine.state == "started" and "force" not in request.query:
        raise ApiError(
            412, "failed_precondition: unable to destroy machine, not currently stopped or suspended"
        )
    del app.machines[machine.id]
    for volume in app.volumes.values():
        volume.machine = None if volume.machine == machine.id else volume.machine
    return web.json_response({"ok": True})


def _turn(to: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def turn(request: web.Request) -> web.Response:
        _, machine = request.app[STATE].changeable(request)
        if to == "suspended" and machine.config.guest.memory_mb > SUSPENDABLE_MB:
            raise ApiError(412, "machines with more than 2GB of memory cannot be suspended")
        if to == "suspended" and machine.state != "started":
            raise ApiError(412, f"machine is {machine.state}")
        before, machine.state = machine.state, to
        await request.app[STATE].changes.notify()
        return web.json_response({"ok": True, "previous_state": before})

    return turn


def _cordon(closed: bool) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def cordon(request: web.Request) -> web.Response:
        request.app[STATE].changeable(request)[1].cordoned = closed
        return web.json_response({"ok": True})

    return cordon


async def wait(request: web.Request) -> web.Response:
    state, (_, machine) = request.app[STATE], request.app[STATE].machine(request)
    wanted = request.query.get("state", "started")
    seconds = query_number(request, "timeout", LONGEST_WAIT)
    if seconds > LONGEST_WAIT:
        raise ApiError(400, f"timeout must be at most {LONGEST_WAIT}")
    if wanted == "stopped" and "instance_id" not in request.query:
        raise ApiError(400, "instance_id is required to wait for stopped")
    if not await state.changes.wait_for(lambda: machine.state == wanted, seconds):
        raise ApiError(408, f"deadline_exceeded: machine failed to reach desired state, {wanted}")
    return web.json_response({"ok": True})


async def take_lease(request: web.Request) -> web.Response:
    _, machine = request.app[STATE].changeable(request)
    number = next(request.app[STATE].numbers)
    machine.nonce, machine.leased_until = f"{number:012x}", time.time() + query_number(request, "ttl", 30)
    return web.json_response(
        {"status": "success", "data": {"nonce": machine.nonce, "expires_at": int(machine.leased_until)}},
        status=201,
    )


async def give_lease_back(request: web.Request) -> web.Response:
    _, machine = request.app[STATE].changeable(request)
    machine.nonce = ""
    return web.json_response({"status": "success"})


# --- control --------------------------------------------------------------------------------------------


async def order(request: web.Request) -> web.Response:
    asked = await json_object(request)
    request.app[STATE].orders.append(
        Order(
            asked["method"],
            re.compile(asked["path"]),
            asked.get("status", 500),
            asked.get("times", 1),
            asked.get("retry_after"),
            asked.get("done", False),
        )
    )
    return web.json_response({})


async def set_health(request: web.Request) -> web.Response:
    asked = await json_object(request)
    app = request.app[STATE].apps[asked["app"]]
    app.health, app.output = asked["status"], asked.get("output", "")
    return web.json_response({})


async def sleep(request: web.Request) -> web.Response:
    asked = await json_object(request)
    for machine in request.app[STATE].apps[asked["app"]].machines.values():
        if how := machine.autostop():
            machine.state = "suspended" if how == "suspend" else "stopped"
    return web.json_response({})


async def visit(request: web.Request) -> web.Response:
    asked = await json_object(request)
    app = request.app[STATE].apps[asked["app"]]
    open_ones = [one for one in app.machines.values() if one.config.services and not one.cordoned]
    for machine in open_ones:
        if any(service.autostart for service in machine.config.services):
            machine.state = "started"
    running = any(machine.state == "started" for machine in open_ones)
    return web.json_response({"answered": bool(app.addresses) and running})


async def take(request: web.Request) -> web.Response:
    request.app[STATE].taken.add((await json_object(request))["name"])
    return web.json_response({})


async def show_state(request: web.Request) -> web.Response:
    apps = {
        app.name: {
            "org": app.org,
            "network": app.network,
            "addresses": app.addresses,
            "secrets": app.secrets,
            "certificates": sorted(app.certificates),
            "volumes": [volume.shown() for volume in app.volumes.values()],
            "machines": [
                {
                    **{
                        name: getattr(machine, name) for name in ("id", "name", "state", "region", "cordoned")
                    },
                    "config": msgspec.to_builtins(machine.config),
                    "secrets": machine.secrets,
                    "leased": machine.leased,
                    "instance": machine.instance,
                }
                for machine in app.machines.values()
            ],
        }
        for app in request.app[STATE].apps.values()
    }
    return web.json_response({"apps": apps})


async def show_calls(request: web.Request) -> web.Response:
    return web.json_response({"calls": request.app[STATE].calls})


async def reset(request: web.Request) -> web.Response:
    state = request.app[STATE]
    for part in (state.apps, state.taken, state.orders, state.calls):
        part.clear()
    return web.json_response({})


# --- the application --------------------------------------------------------------------------------------


def _ordered(state: State, request: web.Request) -> Order | None:
    for one in state.orders:
        if one.times > 0 and one.method == request.method and one.path.search(request.path):
            one.times -= 1
            return one
    return None


@web.middleware
async def api(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The token, the orders, and the shape of errors."""
    if request.path.startswith("/_sim/"):
        return await handler(request)
    state, raw = request.app[STATE], await request.read()
    path = request.path + (f"?{request.query_string}" if request.query_string else "")
    state.calls.append((request.method, path, json.loads(raw) if raw else None))
    authorization = request.headers.get("Authorization", "")
    if not re.match(r"Bearer fo1_|FlyV1 fm2_", authorization):
        return web.json_response({"error": "unauthorized"}, status=401)
    wanted = _ordered(state, request)
    if wanted is None or wanted.done:
        try:
            answer = await handler(request)
        except ApiError as error:
            answer = web.json_response({"error": error.message}, status=error.status)
        if wanted is None:
            return answer
    headers = {} if wanted.retry_after is None else {"Retry-After": str(wanted.retry_after)}
    return web.json_response({"error": "as ordered"}, status=wanted.status, headers=headers)


def make_app() -> web.Application:
    """A simulator that knows nothing yet."""
    app = web.Application(middlewares=[api])
    app[STATE] = State()
    base, machine = "/v1/apps/{app}", "/v1/apps/{app}/machines/{machine}"
    app.add_routes(
        [
            web.post("/v1/apps", create_app),
            web.get(base, get_app),
            web.delete(base, delete_app),
            web.get(f"{base}/ip_assignments", list_addresses),
            web.post(f"{base}/ip_assignments", assign_address),
            web.delete(base + "/ip_assignments/{ip}", release_address),
            web.get(f"{base}/volumes", list_volumes),
            web.post(f"{base}/volumes", create_volume),
            web.put(base + "/volumes/{volume}/extend", extend_volume),
            web.delete(base + "/volumes/{volume}", delete_volume),
            web.get(f"{base}/secrets", list_secrets),
            web.post(f"{base}/secrets", set_secrets),
            web.post(f"{base}/certificates/acme", create_certificate),
            web.get(base + "/certificates/{hostname}", get_certificate),
            web.delete(base + "/certificates/{hostname}", delete_certificate),
            web.get(f"{base}/machines", list_machines),
            web.post(f"{base}/machines", create_machine),
            web.get(machine, get_machine),
            web.post(machine, update_machine),
            web.delete(machine, delete_machine),
            web.get(f"{machine}/wait", wait),
            web.post(f"{machine}/lease", take_lease),
            web.delete(f"{machine}/lease", give_lease_back),
            web.post(f"{machine}/start", _turn("started")),
            web.post(f"{machine}/stop", _turn("stopped")),
            web.post(f"{machine}/suspend", _turn("suspended")),
            web.post(f"{machine}/cordon", _cordon(True)),
            web.post(f"{machine}/uncordon", _cordon(False)),
            web.post("/_sim/order", order),
            web.post("/_sim/health", set_health),
            web.post("/_sim/sleep", sleep),
            web.post("/_sim/visit", visit),
            web.post("/_sim/take", take),
            web.get("/_sim/state", show_state),
            web.get("/_sim/calls", show_calls),
            web.post("/_sim/reset", reset),
        ]
    )
    return app


if __name__ == "__main__":
    run("Simulator of Fly.io's Machines API", make_app)
