"""Background processes of the simulated internet: the DNS server, the ACME CA and the simulators.

A process of the lab is known by a variable in its environment, so that it is found again, and stopped, even
when the directory that started it is gone.
"""

import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab import settings
from tests.lab.acme import acme_command
from tests.lab.engine import stop
from tests.lab.pki import ensure_certificate
from tests.lab.settings import LOGS, ROOT, STATE, LabError

MARK = "CLAW_LAB_SERVICE"
SIMULATORS = {"openrouter": "openrouter.ai", "telegram": "api.telegram.org", "fly": "api.machines.dev"}
NAMES = ("dns", "acme", *SIMULATORS)


@dataclass(frozen=True)
class Service:
    """One process: its name, where it listens (TCP), its command, and the directory of its code."""

    name: str
    address: str
    port: int
    command: tuple[str, ...]
    source: Path

    @property
    def mark(self) -> str:
        """What the process carries in its environment: its name, and a digest that changes with its code."""
        digest = hashlib.sha256(repr((str(ROOT), self.command)).encode())
        for path in sorted(self.source.rglob("*.py")):
            digest.update(path.read_bytes())
        return f"{self.name} {digest.hexdigest()[:16]}"


def services() -> list[Service]:
    """Return what the simulated internet consists of, in the order in which it must start."""
    dns = ("tests.lab.dns", "--host", settings.DNS_ADDRESS, "--forward", machine_resolver())
    found = [
        Service("dns", settings.DNS_ADDRESS, 53, (sys.executable, "-m", *dns), Path(__file__).parent),
        Service("acme", settings.ACME_ADDRESS, 443, acme_command(), Path(__file__).parent),
    ]
    for name, domain in SIMULATORS.items():
        module = f"tests.simulators.{name}"
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise LabError(f"the simulator {module} is missing from this checkout")
        address = settings.ZONE[domain]
        chain, key = ensure_certificate(domain)
        where = ("--host", address, "--port", "443", "--cert", str(chain), "--key", str(key))
        command = (sys.executable, "-m", module, *where)
        found.append(Service(name, address, 443, command, Path(spec.origin).parent))
    return found


def machine_resolver() -> str:
    """Return the address of the first resolver that the machine itself uses."""
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            return words[1]
    raise LabError("/etc/resolv.conf names no nameserver: the lab's DNS server has nobody to ask")


def running() -> dict[str, int]:
    """Return mark and process id of every process of a lab on this machine, whichever checkout started it."""
    return dict(_processes())


def _processes() -> Iterator[tuple[str, int]]:
    mark = f"{MARK}=".encode()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            variables = (directory / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile, or is not ours to read
            continue
        for variable in variables:
            if variable.startswith(mark):
                yield variable[len(mark) :].decode(), int(directory.name)


def ensure_services() -> list[str]:
    """Start what does not run, and restart what runs old code; return the names of what was started.

    Raises LabError with the end of the log of a service that does not listen within 20 seconds.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    wanted = {service.mark: service for service in services()}
    present = running()
    for mark, pid in present.items():
        if mark not in wanted:
            stop(pid)
    missing = [service for mark, service in wanted.items() if mark not in present]
    started = [(service, _start(service)) for service in missing]
    for service, process in started:
        _await_port(service, process)
    return [service.name for service, _ in started]


def stop_services() -> list[str]:
    """Stop every process of a lab on this machine; return their names."""
    present = running()
    for pid in present.values():
        stop(pid)
    return sorted(mark.partition(" ")[0] for mark in present)


def _start(service: Service) -> subprocess.Popen[bytes]:
    with (LOGS / f"{service.name}.log").open("ab") as log:
        return subprocess.Popen(
            service.command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "HOME": str(STATE), "PYTHONUNBUFFERED": "1", MARK: service.mark},
        )


def _await_port(service: Service, process: subprocess.Popen[bytes], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((service.address, service.port), timeout=2).close()
        except OSError:
            if process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            log = LOGS / f"{service.name}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise LabError(
                f"{service.name} does not listen on {service.address}:{service.port}, see {log}:\n{tail}"
            ) from None
        return
