"""A host of its own for each test: every path of the package under one temporary directory."""

import asyncio
import configparser
import http.client
import io
import json
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import msgspec
import pytest
from aiohttp import web

from clawdeploy import edge, remotes
from clawdeploy.cli import Machine
from clawdeploy.containers import ContainerSpec
from clawdeploy.engine import ContainerState
from clawdeploy.errors import ClawError
from clawdeploy.host import Host, Paths, load_host
from clawdeploy.ledger_client import LedgerClient
from clawdeploy.llm_gateway.__main__ import check_books
from clawdeploy.llm_gateway.admin import Admin
from clawdeploy.llm_gateway.copies import Copies
from clawdeploy.llm_gateway.ledger import Ledger
from clawdeploy.llm_gateway.prices import Prices, operators_price
from clawdeploy.registry import Registry
from clawdeploy.storage import Homes
from clawdeploy.store import LedgerStore, migrate, migrate_ledger

PLAN = {
    "cpus": 0.5,
    "memory_limit": 64_000_000,
    "memory_reserved": 16_000_000,
    "pids_limit": 64,
    "nofile_limit": 1024,
    "disk_size": 64 << 20,
    "rate_limit_rps": 5,
    "rate_limit_burst": 20,
    "concurrency": 10,
}
HOST = {
    "schema": 1,
    "base_domain": "bots.example.test",
    "public_base_url": "",
    "tls_mode": "internal",
    "tls_ca_file": "",
    "acme_weekly_limit": 50,
    "support_email": "help@example.test",
    "openrouter_model": "vendor/model",
    "bot_pool": "10.200.0.0/16",
    "bot_subnet_prefix": 28,
    "bot_uid_base": 200000,
    "llm_gateway_url": "http://10.201.255.1:8788/api/v1",
    "memory_budget": 900_000_000,
    "disk_floor": 0,
    "reserved_names": ["www", "portal"],
    "cgroup_parent": "",
    "plans": {"small": PLAN, "large": PLAN | {"memory_reserved": 400_000_000}},
}
MODEL = "vendor/model"
RUN = "0123456789abcdef"
NOW = 1_800_000_000
UID = 200007
ROUTES = (
    {"path": "/health", "match": "exact", "port": 3000, "auth": "public"},
    {"path": "/webhook", "match": "exact", "port": 3000, "auth": "token"},
    {"path": "/ws/", "match": "prefix", "port": 32123, "auth": "token"},
)
# Of an agent that checks the gateway token by itself and makes links into its web interface.
UI_EDGE = {
    "body_limit": 3072,
    "health_path": "/healthz",
    "routes": [{"path": "/ui/", "match": "prefix", "port": 3000, "auth": "agent"}],
    "login": {"command": ["agent", "link"], "field": "browserUrl"},
}


def make_host(**changes: Any) -> Host:
    return msgspec.convert(HOST | changes, Host)


def wanted(number: int = 1, **changes: Any) -> dict[str, Any]:
    """One bot as a deploy asks for it."""
    return {
        "telegram_id": 1_000_000 + number,
        "telegram_username": f"bot_{number}_bot",
        "telegram_token": f"{1_000_000 + number}:{'t' * 35}",
        "name": None,
        "agent": "nullclaw",
        "plan": "small",
        "owner": "4242",
        "interface": "api",
        "image": "registry.example.test/agent:v1",
        "edge": {"body_limit": 3072, "routes": list(ROUTES)},
    } | changes


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("registry") / "registry.db"
    migrate(path)
    return path


@pytest.fixture
def paths(tmp_path: Path, empty_registry: Path) -> Paths:
    return make_paths(tmp_path, empty_registry)


def make_paths(place: Path, empty_registry: Path) -> Paths:
    """A host that prepare_host has just made, under one directory."""
    found = Paths(
        host_file=place / "host.json",
        state=place / "state",
        maps=place / "maps",
        haproxy_socket=place / "admin.sock",
        units=place / "units",
        lock=place / "lock",
        upgrade_lock=place / "upgrade_lock",
        ledger_socket=place / "ledger.sock",
        watchdog_file=place / "watchdog.json",
        certificates=place / "certificates",
        maps_group="root",
        llm_group="root",
    )
    for directory in (found.state, found.maps, found.units, found.llm_keys.parent):
        directory.mkdir()
    found.host_file.write_text(json.dumps(HOST))
    shutil.copyfile(empty_registry, found.registry)
    return found


@pytest.fixture
def ledger(paths: Paths) -> Iterator[LedgerClient]:
    with serving_ledger(paths) as client:
        yield client


@contextmanager
def serving_ledger(paths: Paths) -> Iterator[LedgerClient]:
    """The ledger as the LLM gateway serves it, at work in a thread of its own."""
    ledger_file = paths.state / "ledger.db"
    migrate_ledger(ledger_file)
    prices = Prices(paths.state / "prices.json", MODEL, operators_price({"prompt": "1", "completion": "2"}))
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        books = Ledger(lambda: LedgerStore(ledger_file))
        await books.start()
        copies = Copies(books, ledger_file)
        admin = web.AppRunner(Admin(books, prices, MODEL, lambda: check_books(ledger_file), copies).app())
        await admin.setup()
        await web.UnixSite(admin, str(paths.ledger_socket)).start()
        ready.set()
        await stop.wait()
        await admin.cleanup()
        await books.close()

    with asyncio.Runner() as runner, ThreadPoolExecutor(1) as pool:
        served = pool.submit(runner.run, serve())
        assert ready.wait(10)
        yield LedgerClient(paths.ledger_socket)
        runner.get_loop().call_soon_threadsafe(stop.set)
        served.result(10)


class Systemd:
    """Enables, starts and stops mount units as systemd does, and counts the calls."""

    def __init__(self, units: Path) -> None:
        self.units, self.calls = units, list[tuple[str, ...]]()
        self.down = set[str]()

    def __call__(self, verb: str, *arguments: str) -> None:
        self.calls.append((verb, *arguments))
        if verb == "is-active" and arguments[-1] in self.down:
            raise ClawError("systemd_failed", f"{arguments[-1]} is not active")
        names = [argument for argument in arguments if not argument.startswith("--")]
        for name in names:
            link = self.units / "local-fs.target.wants" / name
            if verb == "enable":
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(self.units / name)
            elif verb == "start" and name.endswith(".mount"):
                unit = self.read(name)
                subprocess.run(["mount", "-o", unit["options"], unit["what"], unit["where"]], check=True)
            elif verb == "disable":
                link.unlink()
                subprocess.run(["umount", self.read(name)["where"]], check=True)

    def read(self, name: str) -> configparser.SectionProxy:
        parser = configparser.ConfigParser()
        parser.read_string((self.units / name).read_text().partition("\n")[2])
        return parser["Mount"]


@pytest.fixture
def systemd(paths: Paths) -> Systemd:
    return Systemd(paths.units)


@pytest.fixture
def homes(paths: Paths, systemd: Systemd) -> Iterator[Homes]:
    yield Homes(paths, systemd)
    unmount_all(paths)


def unmount_all(paths: Paths) -> None:
    """Take down every home, so that the directory can be removed."""
    for mount_point in paths.bots.glob("*"):
        while mount_point.is_mount():
            subprocess.run(["umount", str(mount_point)], check=True)
        subprocess.run(["chattr", "-i", str(mount_point)], check=True)


class Engine:
    """Remembers what it was told to make, to remove and to stop; ``broken`` makes it refuse to do that."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.made: dict[str, ContainerSpec] = {}
        self.ran: list[tuple[str, ...]] = []
        self.output = b""
        self.status: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.strays: set[str] = set()
        self.broken: set[str] = set()
        self.missing_images: set[str] = set()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _call(self, verb: str, bot_id: str) -> None:
        if verb in self.broken:
            raise ClawError("engine_down", f"Docker did not {verb} {bot_id}.")
        self.calls.append((verb, bot_id))

    def remove(self, bot_id: str) -> None:
        self._call("remove", bot_id)
        self.removed.append(bot_id)
        self.made.pop(bot_id, None)
        self.strays.discard(bot_id)

    def freeze(self, bot_id: str) -> bool:
        self._call("freeze", bot_id)
        running = bot_id in self.made and self.status.get(bot_id, "running") == "running"
        if running:
            self.status[bot_id] = "paused"
        return running

    def kill(self, bot_id: str) -> bool:
        self._call("kill", bot_id)
        alive = bot_id in self.made and self.status.get(bot_id, "running") != "exited"
        if alive:
            self.status[bot_id] = "exited"
        return alive

    def state(self, bot_id: str) -> str:
        return self.status.get(bot_id, "running") if bot_id in self.made else ""

    def start(self, bot_id: str) -> None:
        if bot_id not in self.made:
            raise ClawError("no_container", f"bot {bot_id} has no container: run deploy_bot for it again.")
        self._call("start", bot_id)
        self.status[bot_id] = "running"

    def owners(self) -> set[str]:
        return {*self.made, *self.strays}

    def log(self, bot_id: str, lines: int, follow: bool = False) -> Iterator[bytes]:
        yield from (b"first li", b"ne\nsecond\nlast")

    def states(self) -> dict[str, ContainerState]:
        if "states" in self.broken:
            raise ClawError("engine_down", "Docker did not answer.")
        return {
            bot_id: ContainerState(
                self.status.get(bot_id, "running"), "Up 2 seconds", spec=spec.fingerprint()
            )
            for bot_id, spec in self.made.items()
        }

    def out_of_memory(self, since: float, until: float) -> Counter[str]:
        return Counter()

    def restart(self, bot_id: str) -> None:
        pass

    def stop(self, bot_id: str) -> None:
        self._call("stop", bot_id)

    def restarts(self, bot_id: str) -> int:
        return 0

    def run(self, bot_id: str, command: Sequence[str]) -> bytes:
        self.ran.append((bot_id, *command))
        return self.output

    def make(self, bot_id: str, spec: ContainerSpec) -> None:
        self._call("make", bot_id)
        self.made[bot_id] = spec
        self.status[bot_id] = "running"

    def log_tail(self, bot_id: str) -> list[str]:
        return []

    @property
    def frozen(self) -> set[str]:
        return {bot_id for bot_id, status in self.status.items() if status == "paused"}

    def thaw(self, bot_id: str) -> None:
        self._call("thaw", bot_id)
        if bot_id in self.frozen:
            self.status[bot_id] = "running"

    def fetch(self, reference: str) -> None:
        if reference in self.missing_images:
            raise ClawError("image_missing", f"image {reference} is not on this host.")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def machine(paths: Paths, systemd: Systemd, engine: Engine) -> Machine:
    return Machine(
        paths=paths,
        systemctl=systemd,
        engine=lambda: engine,  # type: ignore[arg-type, return-value]
        halter=lambda: engine,  # type: ignore[arg-type, return-value]
    )


@pytest.fixture
def registry(machine: Machine) -> Iterator[Registry]:
    with machine.registry() as opened:
        yield opened


@dataclass
class RunningHAProxy:
    """A HAProxy whose one frontend answers with what it finds in the maps."""

    front: Path
    process: subprocess.Popen[bytes]

    def ask(self, path: str) -> str:
        connection = http.client.HTTPConnection("edge.test")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.front))
        connection.request("GET", path)
        answer = connection.getresponse().read().decode()
        connection.close()
        return answer


@pytest.fixture
def haproxy(paths: Paths, tmp_path: Path) -> Iterator[RunningHAProxy]:
    binary = shutil.which("haproxy") or "/usr/sbin/haproxy"
    front, maps = tmp_path / "front.sock", paths.maps
    names = [*edge.render([], {}, make_host())]
    names.insert(-1, remotes.KEYS_MAP)
    for name in names:
        (maps / name).touch()
    looked_up = " ".join(f"%[path,field(2,/),map_str({maps / name},-)]" for name in names)
    config = tmp_path / "haproxy.cfg"
    config.write_text(f"""
global
  stats socket {paths.haproxy_socket} mode 600 level admin
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend test
  bind unix@{front}
  http-request return status 200 content-type text/plain lf-string "{looked_up}"
""")
    process = subprocess.Popen([binary, "-f", str(config)])
    try:
        _wait_until(lambda: front.exists() and edge.HAProxy(paths.haproxy_socket).running())
        yield RunningHAProxy(front, process)
    finally:
        process.kill()
        process.wait()


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "HAProxy did not start"
        time.sleep(0.02)


def set_host(paths: Paths, **changes: Any) -> None:
    """Change host.json, as prepare_host would."""
    paths.host_file.write_text(json.dumps(HOST | changes))
    load_host(paths)


@pytest.fixture
def client() -> Iterator[Any]:
    """The real Docker."""
    connected = docker.from_env()
    yield connected
    connected.close()


def busybox_image(client: Any, tag: str) -> None:
    """Make image clawdeploy-test:``tag``, which holds busybox and nothing else."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for name in ("tmp", "mnt"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
    client.api.import_image_from_data(archive.getvalue(), repository="clawdeploy-test", tag=tag)


def container_spec(**changes: Any) -> dict[str, Any]:
    """What the role hands over for one container."""
    network = {
        "bridge": "cb-unittest",
        "subnet": "10.231.77.0/28",
        "gateway": "10.231.77.1",
        "address": "10.231.77.2",
    }
    healthcheck = {
        "test": ["CMD", "/bin/busybox", "true"],
        "interval": 30,
        "timeout": 5,
        "retries": 3,
        "start_period": 30,
        "start_interval": 1,
    }
    return {
        "image": "clawdeploy-test:none",
        "hostname": "bot-test",
        "command": ["/bin/busybox", "sleep", "60"],
        "env": {"NAME": "value"},
        "user": "200000:200000",
        "network": network,
        "mounts": [{"source": "/etc", "target": "/mnt", "read_only": True}],
        "tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=16m"},
        "healthcheck": healthcheck,
        "stop_timeout": 5,
        "cpus": 0.5,
        "memory": 32 << 20,
        "pids_limit": 64,
        "ulimits": {"nofile": 1024, "core": 0},
        "cgroup_parent": "",
        "cap_drop": ["ALL"],
        "security_opts": ["no-new-privileges:true"],
        "read_only": True,
        "init": True,
        "restart_policy": "unless-stopped",
    } | changes
