"""The lab: a simulated internet on this machine, and VPSs in containers on it.

    from tests import lab

    lab.up("vps1")                    # idempotent; starts what is missing, returns the VPS
    lab.vps("vps1").ssh("uptime")     # real ssh, host key checked
    lab.vps("vps1").reboot()
    lab.down()

The command line is `python -m tests.lab`. State is in build/lab/, the inventory in build/lab/inventory.yml.
"""

import fcntl
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import internet, rootfs, services
from tests.lab.engine import docker, ensure_docker, inspect, stop_engine
from tests.lab.internet import cut_off, website
from tests.lab.inventory import write_inventory
from tests.lab.pki import CA_CERT as CA_BUNDLE
from tests.lab.pki import ensure_ca
from tests.lab.settings import (
    ACME_ADDRESS,
    ACME_DIRECTORY,
    CACHE,
    DNS_ADDRESS,
    FLY_ADDRESS,
    HOSTS,
    INVENTORY,
    LABEL,
    METADATA_ADDRESS,
    NETWORK,
    OPENROUTER_ADDRESS,
    OTHER_PRIVATE_ADDRESSES,
    PRIVATE_ADDRESS,
    SSH_KEY,
    STATE,
    TELEGRAM_ADDRESS,
    WEBSITE_ADDRESS,
    LabError,
)
from tests.lab.vps import Vps

__all__ = [
    "ACME_ADDRESS",
    "ACME_DIRECTORY",
    "CA_BUNDLE",
    "DNS_ADDRESS",
    "FLY_ADDRESS",
    "INVENTORY",
    "METADATA_ADDRESS",
    "OPENROUTER_ADDRESS",
    "OTHER_PRIVATE_ADDRESSES",
    "PRIVATE_ADDRESS",
    "SSH_KEY",
    "TELEGRAM_ADDRESS",
    "WEBSITE_ADDRESS",
    "LabError",
    "Vps",
    "cut_off",
    "down",
    "ensure_docker",
    "inventory",
    "status",
    "up",
    "vps",
    "website",
]

LOCK = Path("/run/lock/claw-lab.lock")


def say(text: str) -> None:
    """Print one line of progress on standard error: standard output is for results."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def vps(name: str = "vps1", memory: int | None = None, cpus: float | None = None) -> Vps:
    """Return the handle of a VPS by its inventory name; LabError names the known ones."""
    if name not in HOSTS:
        raise LabError(f"there is no VPS {name!r} in the lab: it has {', '.join(HOSTS)}")
    return Vps(HOSTS[name], memory, cpus)


def up(name: str = "vps1", memory: int | None = None, cpus: float | None = None) -> Vps:
    """Bring up the simulated internet and one VPS on it, as far as they are not up; return the VPS.

    `memory` is the VPS's limit in bytes, swap excluded, `cpus` in cores (None: no limit). A VPS that was made
    with other limits, or from another recipe, is made anew. Raises LabError with one line that says what to
    do.
    """
    wanted = vps(name, memory, cpus)
    with _lock():
        _step("looking for a Docker engine", "engine started", ensure_docker)
        if other := internet.foreign_root():
            say(f"another checkout's lab is up ({other}): taking it down")
            _remove_all()
        release = wanted.host.release
        _step(
            f"root file system of Debian {release} (the first time made of packages: a minute or two)",
            "made",
            lambda: rootfs.ensure_image(release),
        )
        ensure_ca()
        _step("simulated internet", "network made", internet.ensure_network)
        _step("its servers", "started", lambda: bool(services.ensure_services()))
        _step("its website", "started", lambda: internet.ensure_website(rootfs.image_name(release)))
        _step(f"VPS {name} at {wanted.host.address}", "booted, ssh answers", wanted.ensure)
        inventory()
    return wanted


def inventory() -> Path:
    """Write the Ansible inventory of the VPSs that are there; return its path (build/lab/inventory.yml)."""
    return write_inventory([host for host in HOSTS.values() if inspect("container", host.container)])


def down(name: str | None = None, caches: bool = False) -> None:
    """Throw away one VPS, or (no name) all of the lab: containers, volumes, network, processes, state.

    `caches` also removes the images and root file systems, which take a minute to make. The Docker engine is
    stopped if the lab had to start it and nobody else has put a container into it.
    """
    with _lock():
        if name is not None:
            _step(f"removing VPS {name}", "removed", vps(name).remove)
            inventory()
            return
        _step("looking for a Docker engine", "engine started", ensure_docker)
        _step("removing what is up", "removed", _remove_all)
        if caches:
            _step("removing images and root file systems", "removed", _remove_caches)
        _step("stopping the Docker engine if the lab started it", "stopped", stop_engine)
        if STATE.exists():
            shutil.rmtree(STATE)


def status() -> dict[str, str]:
    """Return the state of each part of the lab: `running`, `exited`, `absent`, … by name."""
    parts = {host.name: host.container for host in HOSTS.values()} | {"website": internet.WEBSITE_CONTAINER}
    found = {}
    for name, container in parts.items():
        present = inspect("container", container)
        found[name] = present["State"]["Status"] if present else "absent"
    present_services = {mark.partition(" ")[0] for mark in services.running()}
    return found | {name: "running" if name in present_services else "absent" for name in services.NAMES}


@contextmanager
def _lock() -> Iterator[None]:
    """Let one process at a time change the lab: its names and addresses are the machine's."""
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _step(what: str, done: str, act: Callable[[], bool]) -> None:
    began = time.monotonic()
    say(what)
    if act():
        say(f"  {done} ({time.monotonic() - began:.1f} s)")


def _remove_all() -> bool:
    """Remove every container, volume, network and process of a lab, whichever checkout made it."""
    stopped = services.stop_services()
    containers = docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}").split()
    if containers:
        docker("rm", "--force", *containers)
    volumes = docker("volume", "ls", "--quiet", "--filter", f"label={LABEL}").split()
    if volumes:
        docker("volume", "rm", *volumes)
    network = inspect("network", NETWORK)
    if network:
        docker("network", "rm", NETWORK)
    return bool(stopped or containers or volumes or network)


def _remove_caches() -> bool:
    images = docker("image", "ls", "--quiet", "--filter", "reference=claw-lab/vps").split()
    if images:
        docker("image", "rm", "--force", *images)
    archives = list(CACHE.glob("vps-*.tar"))
    for archive in archives:
        archive.unlink()
    return bool(images or archives)
