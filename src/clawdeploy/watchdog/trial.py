"""Do the kernel's figures on this host say what the watchdog takes them to say? Three offenders show it.

They run in containers of their own, without network and with small limits, for some seconds. The image they
run from is empty: they are this host's Python, mounted read-only.
"""

import io
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import docker
from docker.errors import DockerException
from docker.types import Mount
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from clawdeploy import cgroups
from clawdeploy.doctor import Finding
from clawdeploy.errors import ClawError

CPUS = 0.2
MEMORY = 64 << 20
PROCESSES = 32
_IMAGE = "clawdeploy-trial"
_LABEL = "clawdeploy.trial"
_SECONDS = 15
_PAUSE = 0.5
# The scheduler deals CPU time out in pieces of a tenth of a second.
_CPU_ERROR = 0.25

_BURNER = "while True: pass"
_HOG = """
import os
while True:
    if os.fork() == 0:
        eaten = [b"x" * (1 << 20) for _ in range(1 << 12)]
    os.wait()
"""
_FORKS = """
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(60)
    except BlockingIOError:
        time.sleep(60)
"""


@dataclass(frozen=True)
class _Offender:
    measure: str
    name: str
    code: str
    limit: str
    read: Callable[[cgroups.Sample, cgroups.Sample], tuple[str, bool]]


def _cpu(before: cgroups.Sample, now: cgroups.Sample) -> tuple[str, bool]:
    used = (now.cpu - before.cpu) / (now.at - before.at)
    good = abs(used / CPUS - 1) < _CPU_ERROR and now.throttled > before.throttled
    return f"{used:.2f} CPUs, kept waiting for {now.throttled:.1f} s", good


def _memory(_before: cgroups.Sample, now: cgroups.Sample) -> tuple[str, bool]:
    return f"{now.oom_kills} processes ended by the kernel", now.oom_kills > 0


def _processes(_before: cgroups.Sample, now: cgroups.Sample) -> tuple[str, bool]:
    return f"{now.pids} processes", now.pids == PROCESSES


_OFFENDERS = (
    _Offender("cpu", "endless loop", _BURNER, f"{CPUS} CPUs", _cpu),
    _Offender("memory", "memory hog", _HOG, f"{MEMORY >> 20} MB", _memory),
    _Offender("processes", "fork bomb", _FORKS, f"{PROCESSES} processes", _processes),
)


def run() -> Iterator[Finding]:
    """Try one offender after the other; ``check`` is what it overuses. Nothing is left behind.

    ClawError("trial_failed") if Docker refuses.
    """
    try:
        client = docker.from_env(timeout=60)
        try:
            client.api.import_image_from_data(_empty_image(), repository=_IMAGE, tag="latest")
            for offender in _OFFENDERS:
                with _running(client, offender.code) as container:
                    yield _judged(offender, container)
        finally:
            _clear(client)
            client.close()
    except DockerException as error:
        raise ClawError("trial_failed", f"Docker did not run the offenders: {error}") from None


def _judged(offender: _Offender, container: str) -> Finding:
    """Look until the limit shows, or for a while."""
    seen = ("nothing", False)

    def look() -> bool:
        nonlocal seen
        group = cgroups.find({container}).get(container)
        before = group.sample() if group else None
        time.sleep(_PAUSE)  # what is measured is what happens meanwhile
        now = group.sample() if group else None
        if before is not None and now is not None:
            seen = offender.read(before, now)
        return seen[1]

    patient = Retrying(
        retry=retry_if_result(lambda good: not good), stop=stop_after_delay(_SECONDS), wait=wait_fixed(0)
    )
    with suppress(RetryError):  # what was seen last says it
        patient(look)
    read, good = seen
    return Finding(offender.measure, good, f"{offender.name}, limit {offender.limit}: {read}")


@contextmanager
def _running(client: Any, code: str) -> Iterator[str]:
    container = client.containers.run(
        _IMAGE,
        ["/usr/bin/python3", "-I", "-c", code],
        detach=True,
        labels={_LABEL: "yes"},
        mounts=[Mount("/usr", "/usr", type="bind", read_only=True)],
        read_only=True,
        network_mode="none",
        user="65534:65534",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        nano_cpus=int(CPUS * 1e9),
        mem_limit=MEMORY,
        memswap_limit=MEMORY,
        pids_limit=PROCESSES,
        oom_score_adj=1000,
    )
    try:
        yield str(container.id)
    finally:
        container.remove(force=True)


def _clear(client: Any) -> None:
    for container in client.containers.list(all=True, filters={"label": _LABEL}):
        container.remove(force=True)
    for image in client.images.list(_IMAGE):
        client.images.remove(image.id, force=True)


def _empty_image() -> bytes:
    """Nothing but the links by which Debian's programs find their libraries in /usr."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("bin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        folder = tarfile.TarInfo("usr")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
    return archive.getvalue()
