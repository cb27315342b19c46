"""Reserve, then settle: exactly one settlement for every call, whatever happens to it.

While a call runs, the ledger has it as open. Whoever finds out what it cost settles it; a call whose cost
nobody knew at its end is looked up at OpenRouter (``GET /generation``, which knows a call some time after it
ended), and what cannot be found out there is charged at its bound. A gateway that starts does the same with
what an earlier one left open.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from decimal import Decimal
from typing import Any

import aiohttp
import msgspec
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    RetryError,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    wait_chain,
    wait_exponential,
    wait_fixed,
)

from clawdeploy.ledger import Call, Hold, NotCovered, Outcome, Settled, Wanted
from clawdeploy.llm_gateway.events import Events
from clawdeploy.llm_gateway.ledger import Ledger, LedgerUnavailableError
from clawdeploy.llm_gateway.metrics import Metrics
from clawdeploy.llm_gateway.usage import Tokens, UsageReader, cost_of
from clawdeploy.money import format_dollars

log = logging.getLogger(__name__)


class _Generation(msgspec.Struct):
    total_cost: Decimal | None = None
    native_tokens_prompt: Tokens | None = None
    native_tokens_completion: Tokens | None = None


class _Found(msgspec.Struct):
    data: _Generation


Ask = Callable[[str], Awaitable[tuple[int, bytes]]]


class Meter:
    """The money of all running calls."""

    def __init__(
        self, ledger: Ledger, events: Events, metrics: Metrics, ask: Ask, lookup_delays: tuple[float, ...]
    ) -> None:
        """``ask``: status and body of ``GET /generation`` for an id; ``lookup_delays``: when (seconds)."""
        self._ledger = ledger
        self._events = events
        self._metrics = metrics
        self._ask = ask
        self._delays = lookup_delays
        self._tasks: set[asyncio.Task[None]] = set()

    async def recover(self) -> None:
        """Settle what an earlier gateway left open, each call by the rule for what is known of it."""
        left: list[Call] = await self._ledger.run(lambda store: store.unsettled())
        if left:
            log.warning("%d calls were open when the gateway ended: finding out what they cost", len(left))
        self._metrics.holds.inc(len(left))
        for call in left:
            self.finish(call.id, call.generation, call.at)

    async def close(self) -> None:
        """Leave the rest to the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def reserve(self, wanted: Wanted) -> "Bill | NotCovered":
        """Set the money for a call aside. Raises LedgerUnavailableError; then nothing was set aside."""
        now = time.time()
        held = await self._ledger.run(lambda store: store.reserve(wanted, now))
        if isinstance(held, Hold):
            self._metrics.holds.inc()
            return Bill(self, held)
        if held.first:
            self._events.tell("balance_used_up", "its next call would cost more than it has left", wanted.bot)
        return held

    def note(self, call: int, generation: str) -> None:
        """Remember OpenRouter's name of a running call, for the case that this process ends before it."""
        future = self._ledger.begin(lambda store: store.note_generation(call, generation))
        future.add_done_callback(_forget)

    def settle(self, call: int, outcome: Outcome) -> None:
        """The call is over and this is what it cost."""
        now = time.time()
        future = self._ledger.begin(lambda store: store.settle(call, outcome, now))
        future.add_done_callback(lambda done: self._settled(call, outcome, done))

    def finish(self, call: int, generation: str | None, ended: float) -> None:
        """The call is over and nobody here knows what it cost. ``ended``: Unix seconds, or its start."""
        if generation is None:
            self.settle(call, Outcome("bound"))
            return
        self._ledger.begin(lambda store: store.mark_unknown(call, generation)).add_done_callback(_forget)
        self._spawn(self._look_up(call, generation, ended))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _settled(self, call: int, outcome: Outcome, done: "asyncio.Future[Settled | None]") -> None:
        if done.cancelled():
            return
        if isinstance(done.exception(), LedgerUnavailableError):
            self._spawn(self._settle_later(call, outcome))
            return
        if (settled := done.result()) is None:
            return
        self._metrics.holds.dec()
        self._metrics.calls.labels(settled.bot).inc()
        self._metrics.cost.labels(settled.bot).inc(settled.charged / 1e9)
        self._metrics.settled.labels(outcome.how).inc()
        if settled.excess:
            excess = format_dollars(settled.excess)
            self._events.tell("bound_exceeded", f"call {call} cost {excess} more than its bound", settled.bot)
        if settled.low:
            self._events.tell("low_balance", f"{format_dollars(settled.balance)} left", settled.bot)

    async def _settle_later(self, call: int, outcome: Outcome) -> None:
        """The disk is full or broken: the settlement waits until it can be written."""
        now = time.time()
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(LedgerUnavailableError), wait=wait_exponential(0.5, max=30)
        ):
            with attempt:
                future = self._ledger.begin(lambda store: store.settle(call, outcome, now))
                await future
        self._settled(call, outcome, future)

    async def _look_up(self, call: int, generation: str, ended: float) -> None:
        last = ended + self._delays[-1]

        def stop(state: RetryCallState) -> bool:
            return stop_after_attempt(len(self._delays))(state) or time.time() >= last

        gaps = [later - earlier for earlier, later in zip(self._delays, self._delays[1:], strict=False)]
        await asyncio.sleep(self._delays[0])
        try:
            outcome: Outcome = await AsyncRetrying(
                retry=retry_if_result(lambda found: found is None),
                wait=wait_chain(*map(wait_fixed, gaps)) if gaps else wait_fixed(0),
                stop=stop,
            )(self._look_up_once, generation)
        except RetryError:
            log.error("call=%d OpenRouter does not know generation %s: charging the bound", call, generation)
            outcome = Outcome("bound")
        self.settle(call, outcome)

    async def _look_up_once(self, generation: str) -> Outcome | None:
        try:
            status, body = await self._ask(generation)
            found = msgspec.json.decode(body, type=_Found).data if status == 200 else None
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        cost = cost_of(found.total_cost) if found else None
        if found is None or cost is None:
            return None
        return Outcome(
            "generation", cost, found.native_tokens_prompt, found.native_tokens_completion, generation
        )


class Bill:
    """One running call's money. The first word about its cost counts; without any it is unknown."""

    def __init__(self, meter: Meter, hold: Hold) -> None:
        self._meter = meter
        self._call = hold.call
        self._closed = False
        self.tokens = hold.tokens
        self.generation: str | None = None

    def note(self, generation: str) -> None:
        """OpenRouter's name of the call, as soon as it is known."""
        self.generation = generation
        self._meter.note(self._call, generation)

    def free(self) -> None:
        """The call certainly cost nothing."""
        self._close(Outcome("released"))

    def read(self, reader: UsageReader) -> None:
        """The answer is complete: what it says of its cost counts; if it says nothing, that is unknown."""
        reader.end()
        self.generation = reader.generation
        if reader.cost is None:
            self.unknown()
        else:
            self._close(
                Outcome(
                    *("usage", reader.cost, reader.prompt_tokens, reader.completion_tokens, reader.generation)
                )
            )

    def unknown(self) -> None:
        """The call is over; unless its cost has been told before, it has to be found out."""
        if not self._closed:
            self._closed = True
            self._meter.finish(self._call, self.generation, time.time())

    def _close(self, outcome: Outcome) -> None:
        if not self._closed:
            self._closed = True
            self._meter.settle(self._call, outcome)


def _forget(done: "asyncio.Future[None]") -> None:
    """What could not be noted is made good by the rules for what is not known."""
    if not done.cancelled():
        done.exception()
