"""What bots use right now, from control groups and the edge's counters: milliseconds for all of them."""

import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec

from clawdeploy import cgroups
from clawdeploy.edge import HAProxy
from clawdeploy.host import Paths

if TYPE_CHECKING:
    from clawdeploy.engine import ContainerState

# As haproxy.cfg has them: the tables' expiry, and the window of http_req_rate.
_TABLES = ("holders", "strangers")
_EXPIRE_MS = 3_600_000
_WINDOW_SECONDS = 10


class Gauge(msgspec.Struct, frozen=True, kw_only=True):
    """One bot; None is what could not be read.

    cpu: share of one CPU (1.0 is all of it); memory: bytes; oom_kills: since the container started; rps:
    requests a second over the last ten; open: requests and WebSockets open now; last_seen: Unix seconds of
    the newest request at the edge, None if that was more than an hour ago.
    """

    cpu: float | None = None
    memory: int | None = None
    pids: int | None = None
    oom_kills: int | None = None
    rps: float | None = None
    open: int | None = None
    last_seen: float | None = None


def read(paths: Paths, states: "Mapping[str, ContainerState]", seconds: float) -> dict[str, Gauge]:
    """Bot id -> gauge for each of these containers; CPU is measured over so many ``seconds``."""
    groups = cgroups.find({state.container for state in states.values() if state.alive})
    before = {container: group.sample() for container, group in groups.items()}
    if groups:
        time.sleep(seconds)
    traffic = _traffic(paths, states.keys())
    gauges = {}
    for bot_id, state in states.items():
        first = before.get(state.container)
        last = groups[state.container].sample() if first else None
        used = Gauge()
        if first and last:
            used = Gauge(
                cpu=round((last.cpu - first.cpu) / (last.at - first.at), 3),
                memory=last.memory,
                pids=last.pids,
                oom_kills=last.oom_kills,
            )
        gauges[bot_id] = msgspec.structs.replace(used, **traffic.get(bot_id, {}))
    return gauges


def _traffic(paths: Paths, bot_ids: Collection[str]) -> dict[str, dict[str, float | int | None]]:
    haproxy, now = HAProxy(paths.haproxy_socket), time.time()
    if not haproxy.running():
        return {}
    tables = [haproxy.table(name) for name in _TABLES]
    found: dict[str, dict[str, float | int | None]] = {}
    for bot_id in bot_ids:
        rows = [table[bot_id] for table in tables if bot_id in table]
        ages = [(_EXPIRE_MS - row["exp"]) / 1000 for row in rows]
        found[bot_id] = {
            "rps": sum(row.get("http_req_rate", 0) for row in rows) / _WINDOW_SECONDS,
            "open": sum(row.get("conn_cur", 0) for row in rows),
            "last_seen": round(now - min(ages), 1) if ages else None,
        }
    return found
