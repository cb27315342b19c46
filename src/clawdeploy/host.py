"""Facts about this host: where things are, what the operator configured, and the lock all changes share."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

import msgspec

from clawdeploy.errors import ClawError


@dataclass(frozen=True)
class Paths:
    """Every path the package touches; tests put them all under one directory."""

    host_file: Path = Path("/etc/clawdeploy/host.json")
    state: Path = Path("/var/lib/clawdeploy")
    maps: Path = Path("/etc/haproxy/maps")
    haproxy_socket: Path = Path("/run/haproxy/admin.sock")
    units: Path = Path("/etc/systemd/system")
    lock: Path = Path("/run/lock/clawdeploy.lock")
    upgrade_lock: Path = Path("/run/lock/clawdeploy-upgrade.lock")
    ledger_socket: Path = Path("/run/clawdeploy-llm/admin.sock")
    watchdog_file: Path = Path("/etc/clawdeploy/watchdog.json")
    certificates: Path = Path("/var/lib/caddy/.local/share/caddy/certificates")
    maps_group: str = "haproxy"
    llm_group: str = "clawdeploy-llm"

    @property
    def registry(self) -> Path:
        return self.state / "registry.db"

    @property
    def secrets(self) -> Path:
        return self.state / "secrets"

    @property
    def rollbacks(self) -> Path:
        return self.state / "rollbacks"

    @property
    def claims(self) -> Path:
        return self.state / "claims"

    @property
    def disks(self) -> Path:
        return self.state / "disks"

    @property
    def bots(self) -> Path:
        return self.state / "bots"

    @property
    def backup_settings(self) -> Path:
        return self.host_file.parent / "backup.json"

    @property
    def backup_password(self) -> Path:
        return self.host_file.parent / "secrets" / "backup_password"

    @property
    def backup_environment(self) -> Path:
        return self.host_file.parent / "secrets" / "backup_environment.json"

    @property
    def backup_room(self) -> Path:
        """Where copies are put together, and restic keeps its cache; private to root."""
        return self.state / "backup"

    @property
    def llm_keys(self) -> Path:
        return self.state / "llm_gateway" / "keys.json"

    @property
    def remote_llm_keys(self) -> Path:
        return self.llm_keys.with_name("remote_keys.json")


class Plan(msgspec.Struct, frozen=True):
    """A named set of limits. Sizes are bytes, rates are requests per second."""

    cpus: float
    memory_limit: int
    memory_reserved: int
    pids_limit: int
    nofile_limit: int
    disk_size: int
    rate_limit_rps: int
    rate_limit_burst: int
    concurrency: int


class Host(msgspec.Struct, frozen=True):
    """``/etc/clawdeploy/host.json``, written by the platform role. Sizes are bytes."""

    schema: Literal[1]
    base_domain: str
    public_base_url: str
    tls_mode: Literal["acme", "dns01", "internal", "files"]
    tls_ca_file: str
    acme_weekly_limit: int
    support_email: str
    openrouter_model: str
    bot_pool: str
    bot_subnet_prefix: int
    bot_uid_base: int
    llm_gateway_url: str
    memory_budget: int
    disk_floor: int
    reserved_names: tuple[str, ...]
    plans: dict[str, Plan]
    cgroup_parent: str = ""
    bot_runtime: str = ""
    skills_library: str = "/var/lib/clawdeploy/skills"
    # Where bots that run elsewhere find the LLM gateway; empty: it serves none.
    llm_public_url: str = ""

    @property
    def pool(self) -> IPv4Network:
        return IPv4Network(self.bot_pool)

    def origin(self, label: str) -> str:
        """Public URL of the bot with that label, ending in ``/``."""
        if self.base_domain:
            return f"https://{label}.{self.base_domain}/"
        return f"{self.public_base_url.rstrip('/')}/{label}/"


def load_host(paths: Paths) -> Host:
    """Read host.json; ClawError("host_unprepared") if it is missing, "host_invalid" if it makes no sense."""
    try:
        return msgspec.json.decode(paths.host_file.read_bytes(), type=Host)
    except FileNotFoundError:
        raise ClawError(
            "host_unprepared",
            f"{paths.host_file} is missing: run the prepare_host playbook on this host first.",
        ) from None
    except msgspec.DecodeError as error:
        raise ClawError(
            "host_invalid", f"{paths.host_file} cannot be used ({error}): run prepare_host again."
        ) from None


def free_bytes(paths: Paths) -> int:
    """Free bytes for further bots' disks: less what the sparse ones that are there may still grow by."""
    disks = [path.stat() for path in paths.disks.glob("*.img")]
    promised = sum(max(disk.st_size - disk.st_blocks * 512, 0) for disk in disks)
    return shutil.disk_usage(paths.state).free - promised


@contextmanager
def locked(paths: Paths) -> Iterator[None]:
    """Hold the host's lock; every verb that changes something runs inside it, one after the other."""
    paths.lock.parent.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
