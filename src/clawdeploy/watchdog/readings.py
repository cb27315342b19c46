"""From what was read of a bot, look after look, to the values that rules judge. Pure.

Values: cpu, memory and processes are shares of the container's limits (1.0: at the limit); oom and restarts
are numbers in the window; requests is the rate of token holders as a multiple of the plan's; spend is dollars
an hour; denied is packets a second that the firewall refused. None is what could not be read.
"""

from collections.abc import Iterable, Sequence

import msgspec

from clawdeploy.money import NANO
from clawdeploy.watchdog.config import Measure

Values = dict[Measure, float | None]


class Limits(msgspec.Struct, frozen=True):
    """What a bot may have: CPUs now in force, bytes, processes, requests a second of token holders."""

    cpus: float
    memory: int
    processes: int
    requests: float


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a bot. ``cpu`` and ``throttled`` are seconds, ``spent`` nano-dollars; they and ``oom``,
    ``restarts`` and ``denied`` count what came since the look before, ``seconds`` earlier.

    ``memory`` is bytes, ``requests`` a rate per second.
    """

    seconds: float
    limits: Limits
    cpu: float | None = None
    throttled: float | None = None
    memory: int | None = None
    processes: int | None = None
    oom: int | None = None
    restarts: int | None = None
    requests: float | None = None
    spent: int | None = None
    denied: int | None = None


def grown(before: float | None, after: float | None) -> float | None:
    """How much a counter has counted; one that is smaller than before has begun anew. None: unknown."""
    if before is None or after is None:
        return None
    return after - before if after >= before else after


def values(readings: Sequence[Reading]) -> Values:
    """What the looks of one window amount to."""
    return {
        "cpu": _ratio((r.cpu, r.seconds * r.limits.cpus) for r in readings),
        "memory": _ratio((r.memory, r.limits.memory) for r in readings),
        "processes": _ratio((r.processes, r.limits.processes) for r in readings),
        "oom": _sum(r.oom for r in readings),
        "restarts": _sum(r.restarts for r in readings),
        "requests": _ratio((r.requests, r.limits.requests) for r in readings),
        "spend": _ratio((r.spent, r.seconds * NANO / 3600) for r in readings),
        "denied": _ratio((r.denied, r.seconds) for r in readings),
    }


def _ratio(parts: Iterable[tuple[float | None, float]]) -> float | None:
    known = [(part, whole) for part, whole in parts if part is not None]
    whole = sum(whole for _, whole in known)
    return sum(part for part, _ in known) / whole if whole > 0 else None


def _sum(counts: Iterable[int | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return float(sum(known)) if known else None
