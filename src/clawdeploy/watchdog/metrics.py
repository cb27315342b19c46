"""What Prometheus may ask of the watchdog: bots and host as they were at the last look, and its own work."""

import time
from collections.abc import Callable, Iterator
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clawdeploy.watchdog.readings import Reading
from clawdeploy.watchdog.sensors import Look, Sight

_BOT = "clawdeploy_bot"
_HOST = "clawdeploy_host"
_OWN = "clawdeploy_watchdog"
_LABELS = ("bot", "name")


class Metrics(Collector):
    """Bots' lines are made from the last look alone, so a bot that is gone is gone here too."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        # One attribute, so that a scrape in another thread never sees halves of two looks.
        self._seen: tuple[Look | None, dict[str, str]] = (None, {})
        self.decisions = Counter(
            f"{_OWN}_decisions", "Steps taken or taken back.", ["rule", "action"], registry=self.registry
        )
        self.failures = Counter(
            f"{_OWN}_sensor_failures", "Looks without one of the sensors.", ["sensor"], registry=self.registry
        )
        self.notices = Counter(
            f"{_OWN}_notices", "What the operator was told.", ["way", "outcome"], registry=self.registry
        )
        self.last = Gauge(f"{_OWN}_last_look_timestamp_seconds", "Last whole look.", registry=self.registry)
        self.seconds = Gauge(f"{_OWN}_look_seconds", "How long the last look took.", registry=self.registry)

    def serve(self, port: int) -> tuple[WSGIServer, Thread]:
        """Answer on 127.0.0.1; OSError if the port is taken."""
        return start_http_server(port, addr="127.0.0.1", registry=self.registry)

    def see(self, look: Look, states: dict[str, str], seconds: float) -> None:
        """Show this look from now on. states: bot id -> the state to show; seconds: how long it took."""
        self._seen = (look, states)
        self.last.set(time.time())
        self.seconds.set(seconds)
        for sensor in look.failed:
            self.failures.labels(sensor).inc()

    def notified(self, way: str, delivered: bool) -> None:
        self.notices.labels(way, "delivered" if delivered else "failed").inc()

    def collect(self) -> Iterator[Metric]:
        look, states = self._seen
        yield from _bots(look.sights if look else [])
        state = GaugeMetricFamily(
            f"{_BOT}_state", "1 for the state that the bot is in.", labels=(*_LABELS, "state")
        )
        count = GaugeMetricFamily(f"{_HOST}_bots", "Bots by state.", labels=("state",))
        for sight in look.sights if look else []:
            state.add_metric((sight.bot.id, sight.bot.label, states[sight.bot.id]), 1)
        for name in sorted(set(states.values())):
            count.add_metric((name,), list(states.values()).count(name))
        yield state
        yield count
        memory = GaugeMetricFamily(f"{_HOST}_memory_bytes", "Memory of the host.", labels=("kind",))
        disk = GaugeMetricFamily(f"{_HOST}_disk_bytes", "Disk that bots are on.", labels=("kind",))
        if look:
            memory.add_metric(("total",), look.memory_total)
            memory.add_metric(("available",), look.memory_available)
            disk.add_metric(("total",), look.disk_total)
            disk.add_metric(("free",), look.disk_free)
        yield memory
        yield disk


def _bots(sights: list[Sight]) -> Iterator[Metric]:
    counters: dict[str, tuple[str, Callable[[Sight], float | None]]] = {
        "cpu_seconds": ("CPU time since the container's start.", lambda s: s.cpu_seconds),
        "cpu_throttled_seconds": ("Time kept waiting at the CPU limit.", lambda s: s.throttled_seconds),
        "oom_kills": ("Processes ended for want of memory, since start.", lambda s: s.oom_kills),
        "restarts": ("Starts that nobody asked for.", lambda s: s.restarts),
        "denied_packets": ("Packets that the firewall refused.", lambda s: s.denied),
    }
    gauges: dict[str, tuple[str, Callable[[Reading], float | None]]] = {
        "memory_bytes": ("Memory in use.", lambda r: r.memory),
        "memory_limit_bytes": ("Memory it may use.", lambda r: r.limits.memory),
        "cpu_limit_cores": ("CPUs it may use now.", lambda r: r.limits.cpus),
        "processes": ("Processes and threads.", lambda r: r.processes),
        "requests_per_second": ("Requests of holders of its token.", lambda r: r.requests),
    }
    for name, (text, count) in counters.items():
        family = CounterMetricFamily(f"{_BOT}_{name}", text, labels=_LABELS)
        for sight in sights:
            if (value := count(sight)) is not None:
                family.add_metric((sight.bot.id, sight.bot.label), value)
        yield family
    for name, (text, read) in gauges.items():
        gauge = GaugeMetricFamily(f"{_BOT}_{name}", text, labels=_LABELS)
        for sight in sights:
            if sight.reading is not None and (value := read(sight.reading)) is not None:
                gauge.add_metric((sight.bot.id, sight.bot.label), value)
        yield gauge
