"""A call is asked for again only where nothing was billed and the bot has seen nothing yet."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from clawdeploy.money import NANO
from tests.unit.llm_gateway.harness import CHAT, Bots, Start, Upstream, chat

GOOD: dict[str, Any] = {"choices": [], "usage": {"cost": 0.001}}
IN_FLIGHT = {
    "error": {"code": 402, "message": "m", "metadata": {"limit_source": "openrouter_in_flight_budget"}}
}


def script(upstream: Upstream, *statuses: int, retry_after: str | None = "0", body: Any = None) -> None:
    """Answer with these, one after the other; 200 is a good answer that costs a tenth of a cent."""
    answers = iter(statuses)

    async def answer(_request: web.Request) -> web.Response:
        status = next(answers)
        if status == 200:
            return web.json_response(GOOD)
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        error = body or {"error": {"code": status, "message": "as it is"}}
        return web.json_response(error, status=status, headers=headers)

    upstream.answer = answer


async def ask(bots: Bots, **fields: Any) -> int:
    async with bots.session() as bot, bot.post(CHAT, json=chat(**fields)) as response:
        await response.read()
        return response.status


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
async def test_what_may_pass_soon_is_asked_for_again_and_billed_once(
    start: Start, upstream: Upstream, status: int, stream: bool
) -> None:
    bots = await start(attempts=3)
    script(upstream, status, status, 200)
    assert await ask(bots, stream=stream) == 200
    assert len(upstream.bodies) == 3
    assert upstream.bodies[0] == upstream.bodies[1] == upstream.bodies[2]
    if not stream:
        (call,) = await bots.settled()
        assert (call["how"], call["charged"]) == ("usage", 1_000_000)


async def test_an_account_busy_with_other_calls_is_asked_again(start: Start, upstream: Upstream) -> None:
    bots = await start(attempts=2)
    script(upstream, 402, 200, body=IN_FLIGHT)
    assert await ask(bots) == 200


async def test_after_the_last_attempt_the_bot_is_told_and_nothing_is_charged(
    start: Start, upstream: Upstream
) -> None:
    bots = await start(attempts=3)
    script(upstream, 503, 502, 529, 200)
    assert await ask(bots) == 529
    assert len(upstream.bodies) == 3
    (call,) = await bots.settled()
    assert (call["how"], call["charged"]) == ("released", 0)
    assert (await bots.account())["balance"] == 100 * NANO


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 413, 422, 504, 524])
async def test_what_would_not_pass_or_may_be_billed_is_not_asked_again(
    start: Start, upstream: Upstream, status: int
) -> None:
    bots = await start(attempts=3)
    script(upstream, status, 200)
    await ask(bots)
    assert len(upstream.bodies) == 1
    (call,) = await bots.settled()
    assert call["how"] == ("bound" if status in (408, 504, 524) else "released")


@pytest.mark.parametrize("wait", ["11", "999999"])
async def test_a_wait_that_is_too_long_is_left_to_the_bot(
    start: Start, upstream: Upstream, wait: str
) -> None:
    bots = await start(attempts=3)
    script(upstream, 429, 200, retry_after=wait)
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == wait
    assert len(upstream.bodies) == 1


@pytest.mark.parametrize("wait", ["1", None, "Thu, 01 Jan 2026 00:00:00 GMT", "-5", "\u0663"])
async def test_the_next_attempt_waits_as_long_as_it_is_asked_to(
    start: Start, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, wait: str | None
) -> None:
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float, result: Any = None) -> Any:
        if 0.1 < seconds < 30:  # others' are shorter, or for ever
            slept.append(seconds)
            seconds = 0
        return await real(seconds, result)

    bots = await start(attempts=2)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    script(upstream, 429, 200, retry_after=wait)
    assert await ask(bots) == 200
    (seconds,) = slept
    assert seconds == 1 if wait == "1" else 0.5 <= seconds <= 1


Break = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def _before(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _after_the_first_byte(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"data: {")
    assert request.transport is not None
    request.transport.abort()
    return response


@pytest.mark.parametrize("broken", [_before, _after_the_first_byte])
async def test_an_answer_that_breaks_off_is_never_asked_for_again(
    start: Start, upstream: Upstream, broken: Break
) -> None:
    """It may have been billed."""
    bots = await start(attempts=3)
    upstream.answer = broken
    try:
        assert await ask(bots, stream=True) == 504
    except aiohttp.ClientError:
        assert broken is _after_the_first_byte
    assert len(upstream.bodies) == 1
    (call,) = await bots.settled()
    assert (call["how"], call["charged"]) == ("bound", call["held"])


async def test_keep_alive_comments_reach_the_bot_before_the_answer(bots: Bots, upstream: Upstream) -> None:
    seen = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": OPENROUTER PROCESSING\n\n")
        await seen.wait()
        await response.write(b'data: {"id": "gen-1", "usage": {"cost": 0.001}}\n\ndata: [DONE]\n\n')
        return response

    upstream.answer = answer
    async with bots.session() as bot, bot.post(CHAT, json=chat(stream=True)) as response:
        assert await asyncio.wait_for(response.content.readline(), 5) == b": OPENROUTER PROCESSING\n"
        seen.set()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
    (call,) = await bots.settled()
    assert (call["how"], call["charged"], call["generation"]) == ("usage", 1_000_000, "gen-1")


async def test_calls_of_one_bot_share_one_ledger_in_order(start: Start, upstream: Upstream) -> None:
    """What a call gave back is there for the next one, as soon as the bot has its answer."""
    numbers = itertools.count()

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(GOOD | {"id": f"gen-{next(numbers)}"})

    upstream.answer = answer
    bots = await start("0.0041")  # a call holds up to 0.0022 and costs 0.001: never room for two holds
    assert [await ask(bots) for _ in range(3)] == [200, 200, 200]
    assert (await bots.account())["balance"] == 1_100_000
