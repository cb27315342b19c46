"""What Prometheus may ask: calls, cost, refusals, holds and latency."""

from collections.abc import Set

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_PREFIX = "clawdeploy_llm"


class Metrics:
    """The gateway's figures. Names of bots come from keys.json only, so their number bounds the labels'."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.calls = Counter(f"{_PREFIX}_calls", "Calls settled.", ["bot"], registry=registry)
        self.cost = Counter(f"{_PREFIX}_cost_dollars", "What bots were charged.", ["bot"], registry=registry)
        self.refusals = Counter(
            f"{_PREFIX}_refusals", "Calls that were not passed on.", ["bot", "reason"], registry=registry
        )
        self.settled = Counter(
            f"{_PREFIX}_settlements", "Calls by how they were settled.", ["how"], registry=registry
        )
        self.upstream = Counter(
            f"{_PREFIX}_upstream_answers", "Answers of OpenRouter.", ["status"], registry=registry
        )
        self.holds = Gauge(f"{_PREFIX}_holds", "Calls that hold money now.", registry=registry)
        self.latency = Histogram(
            f"{_PREFIX}_seconds",
            "Time from a bot's request to the end of its answer.",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
            registry=registry,
        )

    def forget_others(self, bots: Set[str]) -> None:
        """Drop the lines of bots that are not in ``bots``."""
        for counter in (self.calls, self.cost, self.refusals):
            seen = {sample.labels["bot"] for metric in counter.collect() for sample in metric.samples}
            for bot in seen - bots:
                counter.remove_by_labels({"bot": bot})

    async def handle(self, _request: web.Request) -> web.Response:
        """``GET /metrics`` in the text format."""
        text = generate_latest(self._registry)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
