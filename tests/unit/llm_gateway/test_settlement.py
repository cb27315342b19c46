"""Every way in which a call can end is settled by its rule, and OpenRouter's books agree with ours."""

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from clawdeploy.ledger import FEMTO, Bound, Hold, Wanted
from clawdeploy.money import NANO
from clawdeploy.store import LedgerStore
from tests.unit.llm_gateway.conftest import open_accounts
from tests.unit.llm_gateway.harness import (
    BOT,
    CHAT,
    SIMULATED,
    Billed,
    Bots,
    Simulator,
    Start,
    Upstream,
    chat,
    disagreements,
    eventually,
    status_of,
)

# Enough for the simulator, which sees at its next word that nobody listens any more.
LATE = (0.05, 0.2, 0.5, 1.0, 3.0)


async def spend(bots: Bots, **fields: Any) -> int:
    """Make a call and read what comes of it; its status, or 0 if the answer broke off."""
    try:
        async with bots.session() as bot, bot.post(CHAT, json=chat(**fields)) as response:
            await response.read()
            return response.status
    except aiohttp.ClientError:
        return 0


async def agreed(bots: Bots, simulator: Simulator, count: int = 1) -> list[dict[str, Any]]:
    """The settled calls, after a check that both books say the same."""
    calls = await bots.settled(count)
    assert len(calls) == count
    assert disagreements(await simulator.charges(), calls) == []
    await bots.verify()
    account = await bots.account()
    assert account["held"] == 0
    assert account["balance"] == 100 * NANO - sum(call["charged"] for call in calls)
    return calls


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("failure", "status", "how"),
    [
        (None, 200, "usage"),
        ({"kind": "no_usage"}, 200, "generation"),
        ({"kind": "no_cost"}, 200, "generation"),
        ({"kind": "cut_before"}, 504, "bound"),
        ({"kind": "gave_up", "status": 408}, 408, "generation"),
        ({"kind": "gave_up", "status": 504}, 504, "generation"),
        ({"kind": "gave_up", "status": 524}, 524, "generation"),
        ({"kind": "server_error", "status": 500}, 500, "released"),
        ({"kind": "rate_limit"}, 429, "released"),
        ({"kind": "credits"}, 503, "released"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
async def test_a_call_is_settled_by_its_rule_however_it_ends(
    billed: Billed, simulator: Simulator, failure: dict[str, Any] | None, status: int, how: str, stream: bool
) -> None:
    bots = await billed()
    if failure:
        await simulator.order("fail", **failure)
    assert await spend(bots, stream=stream) == status
    (call,) = await agreed(bots, simulator)
    assert call["how"] == how
    assert (call["charged"] > 0) == (how != "released")
    assert (call["prompt_tokens"] is not None) == (how in ("usage", "generation"))


@pytest.mark.parametrize(
    ("failure", "stream", "status", "how", "free"),
    [
        ({"kind": "cut"}, True, 0, "generation", False),
        ({"kind": "cut", "after": 0}, True, 0, "generation", False),
        ({"kind": "cut"}, False, 504, "bound", False),
        # A provider's error in the middle costs nothing, which only the second of these answers says itself.
        ({"kind": "mid_stream"}, True, 200, "generation", True),
        ({"kind": "mid_stream"}, False, 200, "usage", True),
    ],
)
async def test_an_answer_that_breaks_off_costs_what_openrouter_charged_for_it(
    billed: Billed,
    simulator: Simulator,
    failure: dict[str, Any],
    stream: bool,
    status: int,
    how: str,
    free: bool,
) -> None:
    bots = await billed()
    await simulator.order("fail", **failure)
    words = [{"role": "user", "content": "many words " * 20}]
    assert await spend(bots, stream=stream, messages=words) == status
    (call,) = await agreed(bots, simulator)
    assert (call["how"], call["charged"] == 0) == (how, free)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_cost_above_the_bound_is_charged_up_to_it_and_told(
    billed: Billed, simulator: Simulator, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bots = await billed()
    await simulator.order("fail", kind="dear")
    assert await spend(bots, stream=stream) == 200
    (call,) = await agreed(bots, simulator)
    assert call["charged"] == call["held"] < call["cost"]
    assert "event=bound_exceeded" in caplog.text


@pytest.mark.parametrize(("unknown", "how"), [(1, "generation"), (2, "generation"), (99, "bound")])
async def test_openrouter_is_asked_again_while_it_does_not_know_a_call_and_then_the_bound_is_charged(
    billed: Billed, simulator: Simulator, unknown: int, how: str
) -> None:
    bots = await billed(lookup_delays=(0.01, 0.03, 0.06))
    await simulator.order("generation", unknown=unknown)
    await simulator.order("fail", kind="no_usage")
    assert await spend(bots) == 200
    (call,) = await agreed(bots, simulator)
    assert call["how"] == how
    assert call["generation"] is not None


# The bot hangs up


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_bot_that_hangs_up_before_the_answer_pays_exactly_what_it_cost(
    billed: Billed, simulator: Simulator, stream: bool
) -> None:
    bots = await billed(drain_timeout=5.0)
    await simulator.order("latency", first=1.0)  # long enough to hang up in, on a busy machine too
    async with bots.session() as bot:
        call = asyncio.create_task(status_of(bot, stream=stream))
        await simulator.asked(1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    (settled,) = await agreed(bots, simulator)
    assert settled["how"] == "usage"


@pytest.mark.parametrize(("patience", "how"), [(5.0, "usage"), (0.05, "generation")])
async def test_a_bot_that_hangs_up_in_mid_stream_pays_exactly_what_it_cost(
    billed: Billed, simulator: Simulator, patience: float, how: str
) -> None:
    bots = await billed(drain_timeout=patience, lookup_delays=LATE)
    await simulator.order("latency", chunk=0.05)
    asked = chat(stream=True, messages=[{"role": "user", "content": "many words " * 10}])
    async with bots.session() as bot, bot.post(CHAT, json=asked) as response:
        await response.content.readuntil(b"choices")
    (settled,) = await agreed(bots, simulator)
    assert settled["how"] == how


async def test_an_answer_that_never_ends_is_cut_and_looked_up(billed: Billed, simulator: Simulator) -> None:
    bots = await billed(call_timeout=0.3, lookup_delays=LATE)
    await simulator.order("latency", chunk=0.05)
    words = [{"role": "user", "content": "many words " * 20}]
    assert await spend(bots, stream=True, messages=words) == 0
    (settled,) = await agreed(bots, simulator)
    assert settled["how"] == "generation"


# The gateway ends


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_call_cut_off_by_the_gateways_end_is_settled_by_the_next_one(
    billed: Billed, simulator: Simulator, stream: bool
) -> None:
    first = await billed(lookup_delays=LATE)
    await simulator.order("latency", first=0.3, chunk=0.05)
    call = asyncio.create_task(spend(first, stream=stream))
    await simulator.asked(1)
    assert first.stop is not None
    await first.stop()
    assert await call == 0
    bots = await billed(lookup_delays=LATE)
    (settled,) = await agreed(bots, simulator)
    # Headers come at once with a stream, and with them the name by which the call can be looked up.
    assert settled["how"] == ("generation" if stream else "bound")


def left_open(ledger: Path, generation: str | None) -> Hold:
    """A call of an earlier gateway, of which nothing more is known than its name."""
    open_accounts(ledger, "100")
    store = LedgerStore(ledger)
    with store.transaction():
        held = store.reserve(Wanted(BOT, SIMULATED, Bound(FEMTO, 0), 1, 1), time.time() - 3600)
        assert isinstance(held, Hold)
        if generation:
            store.note_generation(held.call, generation)
    store.close()
    return held


@pytest.mark.parametrize(
    ("generation", "how", "charged"),
    [(None, "bound", NANO), ("gen-unknown", "bound", NANO), ("gen-known", "generation", 7_000_000)],
)
async def test_a_call_left_open_by_a_crash_is_settled_at_the_start(
    start: Start, upstream: Upstream, settings: dict[str, Any], generation: str | None, how: str, charged: int
) -> None:
    upstream.generations["gen-known"] = {"total_cost": 0.007, "native_tokens_prompt": 3}
    left_open(settings["ledger_file"], generation)
    bots = await start()
    (call,) = await bots.settled()
    assert (call["how"], call["charged"], call["generation"]) == (how, charged, generation)
    await bots.verify()


@pytest.mark.parametrize(
    "answer",
    [
        b"{",
        b"[]",
        b'{"data": {"total_cost": null}}',
        b'{"data": {"total_cost": -1}}',
        b'{"data": {"id": "x"}}',
    ],
    ids=bytes.decode,
)
async def test_an_answer_about_a_call_that_names_no_cost_is_none(
    start: Start, upstream: Upstream, settings: dict[str, Any], answer: bytes
) -> None:
    asked = 0

    async def odd(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(body=answer)

    upstream.look_up = odd
    left_open(settings["ledger_file"], None)
    upstream.answers(200, {"choices": []}, X_Generation_Id="gen-1")
    bots = await start()
    assert await spend(bots) == 200
    calls = await bots.settled(2)
    assert [call["how"] for call in calls] == ["bound", "bound"]
    assert asked == 3


async def test_a_call_is_not_held_longer_than_its_rule_allows(billed: Billed, simulator: Simulator) -> None:
    bots = await billed(lookup_delays=(0.02, 0.1))
    await simulator.order("generation", unknown=99)
    await simulator.order("fail", kind="no_usage")
    started = time.monotonic()
    await spend(bots)

    async def free() -> bool:
        return bool((await bots.account())["held"] == 0)

    await eventually(free)
    assert time.monotonic() - started < 2
