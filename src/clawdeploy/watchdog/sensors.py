"""Reading the host: control groups, the edge, the ledger, Docker and the firewall; milliseconds for all bots.

Whatever cannot be read is None for as long, and named in the look's ``failed``.
"""

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from clawdeploy import cgroups
from clawdeploy.allocation import place
from clawdeploy.clitools import Machine
from clawdeploy.containers import ContainerSpec
from clawdeploy.edge import HAProxy
from clawdeploy.engine import ContainerState, Engine
from clawdeploy.errors import ClawError
from clawdeploy.host import Host
from clawdeploy.models import Bot
from clawdeploy.watchdog.readings import Limits, Reading, grown

Found = TypeVar("Found")

# As haproxy.cfg has it: the window of http_req_rate.
_RATE_SECONDS = 10
_NFT = ("nft", "--json", "list", "set", "inet", "clawdeploy", "bot_denials")
_NFT_SECONDS = 10


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """One bot in one look. container: Docker's id, empty without one; cpus: what its container was made with.

    reading is None at first sight, when there is nothing to compare with. The others are counters as they
    stand: seconds of CPU and of waiting at the limit since its start, restarts, packets refused.
    """

    bot: Bot
    container: str
    state: str
    cpus: float
    reading: Reading | None
    cpu_seconds: float | None
    throttled_seconds: float | None
    oom_kills: int | None
    restarts: int | None
    denied: int | None


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The whole host at one moment. Bytes; ``failed``: sensor -> why it could not be read."""

    host: Host
    sights: list[Sight]
    memory_total: int
    memory_available: int
    disk_total: int
    disk_free: int
    failed: dict[str, str]


class _Memory(msgspec.Struct, frozen=True, kw_only=True):
    at: float
    container: str
    identity: int | None
    sample: cgroups.Sample | None
    restarts: int | None
    spent: int | None
    denied: int | None


class Sensors:
    """Looks at the host, and remembers the look before."""

    def __init__(
        self,
        machine: Machine,
        cgroup_root: Path = cgroups.ROOT,
        denials: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        self._machine, self._root = machine, cgroup_root
        self._denials = denials or read_denials
        self._engine: Engine | None = None
        self._groups: dict[str, cgroups.Group] = {}
        self._before: dict[str, _Memory] = {}
        self._looked = time.time()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.__exit__()
            self._engine = None

    def engine(self) -> Engine:
        """The connection to Docker, kept open from look to look."""
        if self._engine is None:
            self._engine = self._machine.engine()
        return self._engine

    def look(self, throttled: Mapping[str, float]) -> Look:
        """Look at all bots; ``throttled``: bot id -> CPUs of those that have fewer than their plan says.

        ClawError if the registry or Docker cannot be asked: then nothing can be said about anything.
        """
        now, failed = time.time(), dict[str, str]()
        with self._machine.registry() as registry:
            host, bots = registry.host, registry.bots()
            specs = {bot.id: registry.store.container(bot.id) for bot in bots}
        try:
            states = self.engine().states()
        except ClawError:
            self.close()
            raise
        samples = self._samples(states)
        rates = _tried(failed, "edge", self._rates)
        spent = _tried(failed, "ledger", self._spent)
        denied = _tried(failed, "firewall", self._denials)
        ooms = self._ooms(states, samples, now, failed)
        sights, remembered = [], {}
        for bot in bots:
            state = states.get(bot.id)
            container = state.container if state else ""
            before = self._before.get(bot.id)
            identity, sample = samples.get(container, (None, None))
            changed = before is None or before.identity != identity or identity is None
            memory = _Memory(
                at=time.monotonic(),
                container=container,
                identity=identity,
                sample=sample,
                restarts=self._restarts(bot.id, before, failed) if changed and state else _known(before),
                spent=None if spent is None else spent.get(bot.id, 0),
                denied=None if denied is None else denied.get(place(bot.slot, host).address, 0),
            )
            remembered[bot.id] = memory
            limits = _limits(host, bot, specs[bot.id])
            reading = None
            if before is not None and before.container == container and limits is not None:
                requests = None if rates is None else rates.get(bot.id, 0.0)
                in_force = msgspec.structs.replace(limits, cpus=throttled.get(bot.id, limits.cpus))
                reading = _compare(before, memory, in_force, requests, ooms[bot.id])
            sights.append(
                Sight(
                    bot=bot,
                    container=container,
                    state=state.state if state else "missing",
                    cpus=limits.cpus if limits else 0.0,
                    reading=reading,
                    cpu_seconds=sample.cpu if sample else None,
                    throttled_seconds=sample.throttled if sample else None,
                    oom_kills=sample.oom_kills if sample else None,
                    restarts=memory.restarts,
                    denied=memory.denied,
                )
            )
        self._before, self._looked = remembered, now
        total, available = _memory()
        disk = shutil.disk_usage(self._machine.paths.state)
        return Look(
            host=host,
            sights=sights,
            memory_total=total,
            memory_available=available,
            disk_total=disk.total,
            disk_free=disk.free,
            failed=failed,
        )

    def _samples(
        self, states: Mapping[str, ContainerState]
    ) -> dict[str, tuple[int | None, cgroups.Sample | None]]:
        alive = {state.container for state in states.values() if state.alive}
        groups = {container: group for container, group in self._groups.items() if container in alive}
        if lost := {one for one in alive if one not in groups or groups[one].identity() is None}:
            groups = {one: group for one, group in groups.items() if one not in lost}
            groups |= cgroups.find(lost, self._root)
        self._groups = groups
        return {container: (group.identity(), group.sample()) for container, group in groups.items()}

    def _rates(self) -> dict[str, float]:
        table = HAProxy(self._machine.paths.haproxy_socket).table("holders")
        return {bot: row.get("http_req_rate", 0) / _RATE_SECONDS for bot, row in table.items()}

    def _spent(self) -> dict[str, int]:
        return {account.bot: account.spent for account in self._machine.ledger.accounts()}

    def _restarts(self, bot_id: str, before: _Memory | None, failed: dict[str, str]) -> int | None:
        counted = _tried(failed, "docker", lambda: self.engine().restarts(bot_id))
        return _known(before) if counted is None else counted

    def _ooms(
        self,
        states: Mapping[str, ContainerState],
        samples: Mapping[str, tuple[int | None, cgroups.Sample | None]],
        now: float,
        failed: dict[str, str],
    ) -> Counter[str]:
        """Ends for want of memory in containers that were started anew: their groups went with the count."""
        ended = [
            bot_id
            for bot_id, before in self._before.items()
            if bot_id in states
            and before.identity is not None
            and samples.get(states[bot_id].container, (None, None))[0] != before.identity
        ]
        if not ended:
            return Counter()
        found = (
            _tried(failed, "docker", lambda: self.engine().out_of_memory(self._looked, now)) or Counter[str]()
        )
        return Counter({bot_id: found[bot_id] for bot_id in ended})


def _tried(failed: dict[str, str], name: str, read: Callable[[], Found]) -> Found | None:
    try:
        return read()
    except ClawError as error:
        failed[name] = error.message
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        failed[name] = f"{type(error).__name__}: {error}"
    return None


def _known(before: _Memory | None) -> int | None:
    return before.restarts if before else None


def _limits(host: Host, bot: Bot, spec: ContainerSpec | None) -> Limits | None:
    """What the container was made with; before its first deploy is over, what its plan says."""
    plan = host.plans.get(bot.plan)
    if plan is None:
        return None
    if spec is None:
        return Limits(plan.cpus, plan.memory_limit, plan.pids_limit, plan.rate_limit_rps)
    return Limits(spec.cpus, spec.memory, spec.pids_limit, plan.rate_limit_rps)


def _compare(before: _Memory, after: _Memory, limits: Limits, requests: float | None, ooms: int) -> Reading:
    same = before.identity == after.identity
    first, last = before.sample if same else None, after.sample
    cpu = throttled = None
    oom: float | None = ooms
    if last is not None:
        # A group that is new has counted from nothing.
        cpu = grown(first.cpu if first else 0.0, last.cpu)
        throttled = grown(first.throttled if first else 0.0, last.throttled)
        oom = grown(first.oom_kills, last.oom_kills) if first else max(ooms, last.oom_kills)
    return Reading(
        seconds=after.at - before.at,
        limits=limits,
        cpu=cpu,
        throttled=throttled,
        memory=last.memory if last else None,
        processes=last.pids if last else None,
        oom=_whole(oom),
        restarts=_whole(grown(before.restarts, after.restarts)),
        requests=requests,
        spent=_whole(grown(before.spent, after.spent)),
        denied=_whole(grown(before.denied, after.denied)),
    )


def _whole(count: float | None) -> int | None:
    return None if count is None else int(count)


def _memory() -> tuple[int, int]:
    """Total and available memory of the host, in bytes."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    fields = {words[0]: int(words[1]) * 1024 for words in lines}
    return fields["MemTotal:"], fields["MemAvailable:"]


def read_denials() -> dict[str, int]:
    """Bots' address -> packets that the firewall refused; OSError if it has no such counters."""
    done = subprocess.run(_NFT, capture_output=True, timeout=_NFT_SECONDS, check=False)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip())
    return parse_denials(done.stdout)


def parse_denials(listing: bytes) -> dict[str, int]:
    """The same from what ``nft --json list set`` prints."""
    sets = [entry["set"] for entry in json.loads(listing)["nftables"] if "set" in entry]
    elements = [element["elem"] for found in sets for element in found.get("elem", ())]
    return {element["val"]: element["counter"]["packets"] for element in elements}
