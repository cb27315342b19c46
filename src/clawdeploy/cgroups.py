"""What containers use, read from the kernel's control groups: version 2, or version 1 on older hosts.

Far cheaper than asking Docker, which takes a second or more for each round of its own statistics.
"""

import os
import re
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")

# A directory is called <id> by Docker's own driver and docker-<id>.scope by systemd's.
_CONTAINER = re.compile(r"(?:docker-)?([0-9a-f]{64})(?:\.scope)?")


@dataclass(frozen=True)
class Sample:
    """One look at a group: ``at`` on the monotonic clock and CPU time used so far, both in seconds; memory
    (bytes) without what the kernel can drop at any time; processes and threads; how often memory ran out.

    throttled: seconds so far that it was kept waiting at its CPU limit.
    """

    at: float
    cpu: float
    memory: int
    pids: int
    oom_kills: int
    throttled: float = 0.0


@dataclass(frozen=True)
class Group:
    """The directories of one container's group; all the same in version 2."""

    cpu: Path
    memory: Path
    pids: Path
    unified: bool
    quota: Path

    def identity(self) -> int | None:
        """Another number after each start of the container; None if it is gone."""
        try:
            return self.memory.stat().st_ino
        except OSError:
            return None

    def sample(self) -> Sample | None:
        """Read it; None if it is gone."""
        try:
            return self._read_v2() if self.unified else self._read_v1()
        except OSError:
            return None

    def _read_v2(self) -> Sample:
        memory, cpu = _fields(self.memory / "memory.stat"), _fields(self.cpu / "cpu.stat")
        return Sample(
            at=time.monotonic(),
            cpu=cpu["usage_usec"] / 1e6,
            throttled=cpu.get("throttled_usec", 0) / 1e6,
            memory=_number(self.memory / "memory.current") - memory.get("inactive_file", 0),
            pids=_number(self.pids / "pids.current"),
            oom_kills=_fields(self.memory / "memory.events").get("oom_kill", 0),
        )

    def _read_v1(self) -> Sample:
        memory = _fields(self.memory / "memory.stat")
        return Sample(
            at=time.monotonic(),
            cpu=_number(self.cpu / "cpuacct.usage") / 1e9,
            throttled=_fields(self.quota / "cpu.stat").get("throttled_time", 0) / 1e9,
            memory=_number(self.memory / "memory.usage_in_bytes") - memory.get("total_inactive_file", 0),
            pids=_number(self.pids / "pids.current"),
            oom_kills=_fields(self.memory / "memory.oom_control").get("oom_kill", 0),
        )


def find(containers: Collection[str], root: Path = ROOT) -> dict[str, Group]:
    """Docker's id -> the group of that container, for those that have one."""
    if _unified(root):
        found = _paths(containers, root)
        return {container: Group(*3 * (path,), unified=True, quota=path) for container, path in found}
    top = root / "memory"
    places = {container: path.relative_to(top) for container, path in _paths(containers, top)}
    return {
        container: Group(
            *(root / "cpuacct" / place, top / place, root / "pids" / place),
            unified=False,
            quota=root / "cpu" / place,
        )
        for container, place in places.items()
    }


def doom_frozen(container: str, root: Path = ROOT) -> None:
    """Send SIGKILL to all processes of a frozen container, so that none of them ever runs again.

    Version 1 only: there a frozen process dies when it is thawed, and Docker, which kills just the first one,
    thaws them all to let it die. In version 2 they die frozen, the others with the first.
    """
    if _unified(root):
        return
    for _, path in _paths({container}, root / "freezer"):
        if (path / "freezer.state").read_text().strip() == "FROZEN":
            for pid in (path / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


def _unified(root: Path) -> bool:
    return (root / "cgroup.controllers").exists()


def _paths(containers: Collection[str], top: Path) -> Iterator[tuple[str, Path]]:
    left = set(containers)
    for folder, children, _ in os.walk(top):
        for child in list(children):
            match = _CONTAINER.fullmatch(child)
            if match and match[1] in left:
                children.remove(child)
                left.remove(match[1])
                yield match[1], Path(folder, child)
        if not left:
            return


def _number(path: Path) -> int:
    return int(path.read_text())


def _fields(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}
