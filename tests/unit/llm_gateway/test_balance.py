"""What a bot may spend: never more than it was given, and what cautious bounds leave over stays usable."""

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from clawdeploy.money import NANO
from tests.unit.llm_gateway.harness import (
    BOT,
    BOT_KEY,
    CHAT,
    MODEL,
    NEIGHBOUR,
    SIMULATED,
    Billed,
    Bots,
    Simulator,
    Start,
    Upstream,
    chat,
    disagreements,
    post,
    refusal,
)

# With 300 tokens of answer, a call whose real cost is more than half of its bound, as a long answer's is.
LONG: dict[str, Any] = {"messages": [{"role": "user", "content": "x" * 1200}], "max_tokens": 300}
SPENT = "This bot's prepaid balance is used up. Write to help@example.test."


async def answered(bots: Bots, **fields: Any) -> str:
    """What a call's answer says."""
    async with bots.session() as bot, bot.post(CHAT, json=chat(**fields)) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["choices"][0]["message"]["content"])


# Many calls at once


async def cost_of_one(billed: Billed, simulator: Simulator, **changes: Any) -> int:
    """Nano-dollars that the simulator charges for LONG."""
    bots = await billed(**changes)
    await answered(bots, **LONG)
    assert bots.stop is not None
    await bots.stop()
    return int((await simulator.charges())[-1]["nano"])


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_two_hundred_calls_at_once_never_overspend_and_what_is_left_serves_those_who_retry(
    billed: Billed, simulator: Simulator, tmp_path: Any, stream: bool
) -> None:
    cost = await cost_of_one(billed, simulator, ledger_file=tmp_path / "other.db")
    budget = 20 * cost
    before = len(await simulator.charges())
    await simulator.order("latency", first=0.05)
    limits: dict[str, Any] = {"calls_per_bot": 200, "calls_per_minute": 100_000}
    limits |= {"connect_timeout": 30.0, "read_timeout": 30.0, "call_timeout": 30.0}
    bots = await billed(balance=f"{budget // NANO}.{budget % NANO:09d}", **limits)
    served = 0

    async def keep_asking(session: aiohttp.ClientSession) -> int:
        """Ask until served, or refused while nothing was under way that could give money back."""
        nonlocal served
        while True:
            before = await bots.account()
            async with session.post(CHAT, json=chat(stream=stream, **LONG)) as response:
                await response.read()
                if response.status == 200:
                    served += 1
                    return 200
                assert response.status == 402
            if before["held"] == 0 and await bots.account() == before:
                return 402
            await asyncio.sleep(0.2)  # a client's own pause

    session = aiohttp.ClientSession(
        bots.url,
        connector=aiohttp.TCPConnector(local_addr=("127.0.0.2", 0), limit=0),
        headers={"Authorization": f"Bearer {BOT_KEY}"},
    )
    async with session:
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*(keep_asking(session) for _ in range(200)))
    assert len(outcomes) == 200
    calls = await bots.settled(served)
    charges = (await simulator.charges())[before:]
    assert disagreements(charges, calls) == []
    spent = sum(charge["nano"] for charge in charges)
    print(f"{served} of 20 served with {len(charges)} calls, {budget - spent} of {budget} nano-dollars left")
    account = await bots.account()
    assert (account["balance"], account["held"]) == (budget - spent, 0)
    assert spent <= budget
    assert 19 <= served <= 20
    await bots.verify()


async def test_operators_bots_are_never_refused_for_money(billed: Billed, simulator: Simulator) -> None:
    bots = await billed(balance="0", limit="unlimited")
    for _ in range(3):
        await answered(bots)
    calls = await bots.settled(3)
    assert disagreements(await simulator.charges(), calls) == []
    account = await bots.account()
    assert (account["balance"], account["available"]) == (0, None)
    assert account["spent"] == sum(charge["nano"] for charge in await simulator.charges())


@pytest.mark.parametrize(("kind", "word"), [("day", "today"), ("month", "this month")])
async def test_a_spend_limit_lets_calls_through_up_to_it_whatever_the_balance(
    billed: Billed, simulator: Simulator, kind: str, word: str
) -> None:
    bots = await billed(balance="100", limit=f"0.15/{kind}")
    status, charged = 200, 0
    while status == 200:
        async with bots.session() as bot, bot.post(CHAT, json=chat(**LONG)) as response:
            status = response.status
            text = await response.text()
        charged += status == 200
    assert status == 402
    assert f"reached its spend limit for {word}" in text
    account = await bots.account()
    assert account["balance"] == 100 * NANO
    spent = sum(charge["nano"] for charge in await simulator.charges())
    assert 0 < account["period_spent"] == spent <= 150_000_000
    assert disagreements(await simulator.charges(), await bots.settled(charged)) == []
    await bots.ask("/accounts", {"accounts": [{"bot": BOT, "spend_limit": f"5/{kind}"}]})
    await answered(bots, **LONG)


async def test_a_new_day_brings_a_new_limit(billed: Billed, monkeypatch: pytest.MonkeyPatch) -> None:
    bots = await billed(limit="0.07/day")
    await answered(bots, **LONG)
    assert (await post(bots, **LONG))[0] == 402
    tomorrow = datetime.now(UTC).timestamp() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    await answered(bots, **LONG)


# What a refusal looks like


async def test_a_refusal_as_an_error_is_openrouters_402(start: Start, upstream: Upstream) -> None:
    bots = await start("0.0001")
    assert await post(bots, stream=True) == (402, SPENT)
    assert upstream.bodies == []


async def test_a_refusal_as_a_message_is_a_normal_answer(start: Start, upstream: Upstream) -> None:
    bots = await start("0.0001")
    bots.add(BOT_KEY, bot=BOT, subnet="127.0.0.2/32", refusal="message")
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        answer = await response.json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == MODEL
    assert answer["usage"]["cost"] == 0
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {"role": "assistant", "content": SPENT}
    assert upstream.bodies == []


async def test_a_refusal_as_a_message_is_a_normal_stream(start: Start, upstream: Upstream) -> None:
    bots = await start("0.0001")
    bots.add(BOT_KEY, bot=BOT, subnet="127.0.0.2/32", refusal="message")
    async with bots.session() as bot, bot.post(CHAT, json=chat(stream=True)) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        *events, done, rest = (await response.text()).split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == SPENT
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["cost"] == 0
    assert upstream.bodies == []


async def test_other_refusals_are_errors_for_every_agent(bots: Bots, upstream: Upstream) -> None:
    bots.add(BOT_KEY, bot=BOT, subnet="127.0.0.2/32", refusal="message", suspended=True)
    assert (await post(bots))[0] == 403
    bots.add(BOT_KEY, bot=BOT, subnet="127.0.0.2/32", refusal="message")
    assert (await post(bots, messages=[]))[0] == 400
    assert upstream.bodies == []


async def test_the_first_call_after_a_top_up_goes_through(start: Start) -> None:
    bots = await start("0")
    assert (await post(bots))[0] == 402
    await bots.top_up(1, "payment")
    assert await answered(bots) == "hello"
    await bots.top_up(1, "payment")  # the same one again
    (call,) = await bots.settled()
    assert (await bots.account())["balance"] == NANO - call["charged"]


async def test_a_bot_without_an_account_is_refused_like_one_without_money(
    bots: Bots, upstream: Upstream
) -> None:
    bots.add("sk-claw-new", bot="botccccccccc", subnet="127.0.0.4/32")
    assert (await post(bots, address="127.0.0.4", key="sk-claw-new"))[0] == 402
    assert upstream.bodies == []
    await bots.ask("/accounts", {"accounts": [{"bot": "botccccccccc", "opening": NANO}]})
    async with bots.session("127.0.0.4", "sk-claw-new") as bot, bot.post(CHAT, json=chat()) as response:
        assert response.status == 200


# The answer is cut down to what is affordable


async def bound_of_question(bots: Bots, upstream: Upstream) -> int:
    """Nano-dollars of a small call's bound without any answer (a token of it costs 2000)."""
    await answered(bots)
    return int((await bots.settled())[0]["held"]) - 2000 * int(upstream.bodies[-1]["max_tokens"])


@pytest.mark.parametrize(
    ("affordable", "asked", "sent"),
    [
        (1000, None, 1000),
        (999, None, 999),
        (256, None, 256),
        (255, None, None),
        (255, 255, 255),
        (10, 11, None),
        (10, 10, 10),
        (300, 5000, 300),
    ],
)
async def test_an_answer_is_cut_down_to_what_is_affordable_but_not_to_a_useless_stump(
    start: Start, upstream: Upstream, tmp_path: Any, affordable: int, asked: int | None, sent: int | None
) -> None:
    first = await start(ledger_file=tmp_path / "other.db", admin_socket=tmp_path / "other.sock")
    question = await bound_of_question(first, upstream)
    nano = question + 2000 * affordable
    bots = await start(f"0.{nano:09d}")
    fields = {} if asked is None else {"max_tokens": asked}
    async with bots.session() as bot, bot.post(CHAT, json=chat(**fields)) as response:
        assert response.status == (402 if sent is None else 200)
    assert [body["max_tokens"] for body in upstream.bodies[1:]] == ([] if sent is None else [sent])
    if sent is not None:
        (call,) = await bots.settled()
        assert question + 2000 * sent == call["held"] <= nano


async def test_the_answer_is_as_long_as_promised_and_no_dearer_provider_is_allowed(
    billed: Billed, simulator: Simulator
) -> None:
    bots = await billed()
    await answered(bots, max_tokens=7)
    (asked,) = await simulator.asked(1)
    assert asked["body"]["max_tokens"] == 7
    assert asked["body"]["provider"] == {"max_price": {"prompt": 15.0, "completion": 120.0}}
    assert asked["body"]["model"] == SIMULATED


# Rates


@pytest.mark.parametrize("form", ["error", "message"])
async def test_a_bot_that_asks_too_often_is_told_so_and_its_neighbour_is_not(
    start: Start, upstream: Upstream, form: str
) -> None:
    bots = await start(calls_per_minute=3)
    bots.add(BOT_KEY, bot=BOT, subnet="127.0.0.2/32", refusal=form)
    bots.add("sk-claw-other", bot=NEIGHBOUR, subnet="127.0.0.3/32")
    for _ in range(3):
        assert await answered(bots) == "hello"
    if form == "message":
        assert "too often" in await answered(bots)
    else:
        async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
            assert (await refusal(response))[0] == 429
            assert response.headers["Retry-After"] == "20"
    async with bots.session("127.0.0.3", "sk-claw-other") as bot, bot.post(CHAT, json=chat()) as response:
        assert response.status == 200
    assert len(upstream.bodies) == 4
    assert len(await bots.settled(3)) == 3


async def test_refused_calls_use_up_neither_rate_nor_money(start: Start, upstream: Upstream) -> None:
    bots = await start(calls_per_minute=2)
    for _ in range(5):
        assert (await post(bots, messages=[]))[0] == 400
    assert await answered(bots) == "hello"
    (call,) = await bots.settled()
    assert (await bots.account())["balance"] == 100 * NANO - call["charged"]


async def test_a_call_that_pays_for_nothing_holds_nothing_afterwards(
    start: Start, upstream: Upstream
) -> None:
    """A free model: bounds and costs are 0, and a balance of 0 is enough."""

    async def free(_request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "free"}}], "usage": {"cost": 0}})

    upstream.answer = free
    bots = await start("0", price={"prompt": "0", "completion": "0"})
    assert await answered(bots) == "free"
    (call,) = await bots.settled()
    assert (call["held"], call["charged"], call["how"]) == (0, 0, "usage")
    await bots.verify()
