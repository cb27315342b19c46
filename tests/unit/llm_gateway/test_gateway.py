"""The running gateway on loopback: bots are told apart by their address 127.0.0.x."""

import asyncio
import gzip
import logging
import socket
from ipaddress import IPv4Network
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.simulators import openrouter
from tests.unit.llm_gateway.harness import (
    BOT,
    BOT_KEY,
    CHAT,
    MODEL,
    SERVER_KEY,
    Bots,
    Start,
    Upstream,
    chat,
    post,
    refusal,
    status_of,
)

# What a bot gets


async def test_a_call_reaches_the_upstream_with_the_fixed_model_and_the_servers_key(
    bots: Bots, upstream: Upstream
) -> None:
    headers = {"Accept": "text/event-stream", "X-Title": "spy", "HTTP-Referer": "spy", "Cookie": "a=b"}
    body = chat(models=["dear/one"], temperature=1)
    async with bots.session() as bot, bot.post(CHAT, json=body, headers=headers) as response:
        assert response.status == 200
        assert (await response.json())["choices"][0]["message"]["content"] == "hello"
    assert upstream.bodies == [
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 1.0,
            "max_tokens": 1000,
            "user": BOT,
            "provider": {"max_price": {"prompt": 1.0, "completion": 2.0}},
            "usage": {"include": True},
        }
    ]
    sent = upstream.headers[0]
    assert sent["Authorization"] == f"Bearer {SERVER_KEY}"
    assert sent["Accept"] == "text/event-stream"
    assert set(sent) == {
        "Host", "Authorization", "Accept", "Content-Type", "Content-Length", "User-Agent", "Accept-Encoding"
    }  # fmt: skip
    assert "aiohttp" not in sent["User-Agent"]


async def test_the_models_list_is_the_one_fixed_model(bots: Bots) -> None:
    async with bots.session() as bot, bot.get("/api/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == [MODEL]


async def test_a_stream_arrives_piece_by_piece_while_the_upstream_still_waits(
    bots: Bots, upstream: Upstream
) -> None:
    arrived = [asyncio.Event() for _ in range(4)]
    pieces = [b": OPENROUTER PROCESSING\n\n", b'data: {"a":', b'1}\n\ndata: {"b":2}\n\n', b"data: [DONE]\n\n"]

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Generation-Id": "gen-1"}
        )
        await response.prepare(request)
        for piece, event in zip(pieces, arrived, strict=True):
            await response.write(piece)
            await event.wait()
        return response

    upstream.answer = answer
    async with bots.session() as bot, bot.post(CHAT, json=chat(stream=True)) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["X-Generation-Id"] == "gen-1"
        for piece, event in zip(pieces, arrived, strict=True):
            assert await asyncio.wait_for(response.content.readexactly(len(piece)), 2) == piece
            event.set()
        assert await response.content.read() == b""


async def test_health_needs_no_key_and_tells_nothing(bots: Bots) -> None:
    async with bots.session("127.0.0.9", key=None) as anyone, anyone.get("/healthz") as response:
        assert (response.status, await response.text()) == (200, "ok\n")


async def test_it_works_with_the_openrouter_simulator(start: Start) -> None:
    simulator = TestServer(openrouter.make_app(), host="127.0.0.1")
    await simulator.start_server()
    try:
        bots = await start(model="openai/gpt-4o-mini", base_url=str(simulator.make_url("/api/v1")))
        async with bots.session() as bot, bot.post(CHAT, json=chat(stream=True)) as response:
            raw = await response.text()
            assert '"cost"' in raw
            assert raw.endswith("data: [DONE]\n\n")
        async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == "ECHO: hi"
    finally:
        await simulator.close()


# Who may call


async def test_no_key_a_wrong_key_and_a_stolen_key_get_the_same_answer(
    bots: Bots, upstream: Upstream
) -> None:
    answers = {
        await post(bots, key=None),
        await post(bots, key="sk-claw-wrong"),
        await post(bots, address="127.0.0.3"),
    }
    assert answers == {(401, "No valid LLM key was sent.")}
    assert upstream.bodies == []


async def test_the_address_a_header_claims_counts_for_nothing(bots: Bots) -> None:
    claim = {"X-Forwarded-For": "127.0.0.2", "Forwarded": "for=127.0.0.2", "X-Real-IP": "127.0.0.2"}
    async with bots.session("127.0.0.3") as thief, thief.post(CHAT, json=chat(), headers=claim) as response:
        assert response.status == 401


async def test_a_suspended_bot_is_refused_and_resumed_at_once(bots: Bots) -> None:
    bots.add(BOT_KEY, bot="botaaaaaaaaa", subnet="127.0.0.2/32", suspended=True)
    status, message = await post(bots)
    assert status == 403
    assert "suspended" in message
    bots.add(BOT_KEY, bot="botaaaaaaaaa", subnet="127.0.0.2/32", suspended=False)
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "[]",
        '{"keys": {"x": {"bot": "b"}}}',
        '{"keys": {"x": {"bot": "b", "subnet": "nonsense", "suspended": false}}}',
        '{"keys": {"x": {"bot": "b", "subnet": "0.0.0.0/0", "suspended": false}}}',
    ],
)
async def test_nobody_is_allowed_while_the_key_file_is_broken(
    bots: Bots, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    bots.write(broken)
    assert (await post(bots))[0] == 401
    assert (await post(bots))[0] == 401
    assert caplog.text.count("clawctl sync") == 1  # told once, not at each call
    bots.add("sk-claw-other", bot="botbbbbbbbbb", subnet="127.0.0.3/32")
    async with bots.session("127.0.0.3", "sk-claw-other") as bot, bot.post(CHAT, json=chat()) as response:
        assert response.status == 200


async def test_nobody_is_allowed_while_the_key_file_is_missing(
    bots: Bots, caplog: pytest.LogCaptureFixture
) -> None:
    bots.path.unlink()
    assert (await post(bots))[0] == 401
    assert (await post(bots))[0] == 401
    assert caplog.text.count("No such file") == 1


async def test_a_bot_cannot_hold_more_calls_than_allowed(bots: Bots, upstream: Upstream) -> None:
    bots.add("sk-claw-other", bot="botbbbbbbbbb", subnet="127.0.0.3/32")
    release, running = asyncio.Event(), asyncio.Semaphore(0)

    async def answer(_request: web.Request) -> web.Response:
        running.release()
        await release.wait()
        return web.json_response({"usage": {"cost": 0}})

    upstream.answer = answer
    async with bots.session() as bot, bots.session("127.0.0.3", "sk-claw-other") as neighbour:
        calls = [asyncio.create_task(status_of(bot)) for _ in range(2)]
        for _ in calls:
            await running.acquire()
        async with bot.post(CHAT, json=chat()) as third:
            assert (await refusal(third))[0] == 429
            assert third.headers["Retry-After"] == "1"
        calls.append(asyncio.create_task(status_of(neighbour)))
        await running.acquire()
        release.set()
        assert await asyncio.gather(*calls) == [200, 200, 200]
        async with bot.post(CHAT, json=chat()) as later:
            assert later.status == 200


# What is refused


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/responses"),
        ("POST", "/api/v1/messages"),
        ("POST", "/api/v1/completions"),
        ("POST", "/api/v1/embeddings"),
        ("GET", "/api/v1/keys"),
        ("GET", "/api/v1/credits"),
        ("POST", "/api/v1/presets/x/chat/completions"),
        ("GET", "/api/v1/chat/completions"),
        ("POST", "/api/v1/chat/completions/"),
        ("DELETE", "/api/v1/models"),
        ("GET", "/"),
    ],
)
async def test_every_other_path_and_method_is_refused(
    bots: Bots, upstream: Upstream, method: str, path: str
) -> None:
    async with bots.session() as bot, bot.request(method, path, json=chat()) as response:
        assert (await refusal(response))[0] == 404
    assert upstream.bodies == []


async def test_a_body_over_the_limit_is_refused_with_and_without_a_length(
    bots: Bots, upstream: Upstream
) -> None:
    async def endless() -> Any:
        for _ in range(20):
            yield b" " * 8192

    async with bots.session() as bot:
        for data in (b" " * 70_000, endless()):
            async with bot.post(CHAT, data=data) as response:
                assert (await refusal(response))[0] == 413
    assert upstream.bodies == []


async def test_a_compressed_body_is_refused_unopened(bots: Bots) -> None:
    data, headers = gzip.compress(b" " * 10_000_000), {"Content-Encoding": "gzip"}
    async with bots.session() as bot, bot.post(CHAT, data=data, headers=headers) as response:
        assert (await refusal(response))[0] == 415


async def test_a_broken_body_is_refused_by_name(bots: Bots) -> None:
    status, message = await post(bots, temperature="hot")
    assert status == 400
    assert "temperature" in message


# Upstream failures


@pytest.mark.parametrize(
    ("status", "source", "retry_after", "told"),
    [
        (401, None, None, "30"),
        (402, "openrouter_credits", None, "30"),
        (402, "openrouter_in_flight_budget", "7", "7"),
        (403, "openrouter_key_limit", None, "30"),
    ],
)
async def test_trouble_with_our_own_account_is_the_operators_not_the_bots(
    bots: Bots,
    upstream: Upstream,
    caplog: pytest.LogCaptureFixture,
    status: int,
    source: str | None,
    retry_after: str | None,
    told: str,
) -> None:
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    error = {"code": status, "message": f"no: {SERVER_KEY}", "metadata": {"limit_source": source}}
    upstream.answers(status, {"error": error}, **headers)
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        assert (await refusal(response))[0] == 503
        assert response.headers["Retry-After"] == told
        assert SERVER_KEY not in await response.text()
    errors = [line for line in caplog.messages if "event=account_refused" in line]
    assert len(errors) == 1
    assert f"status={status}" in errors[0]
    assert source is None or source in errors[0]
    assert SERVER_KEY not in caplog.text


async def test_moderation_of_the_prompt_passes_to_the_bot(bots: Bots, upstream: Upstream) -> None:
    error = {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"], "flagged_input": "hi"}}
    upstream.answers(403, {"error": error})
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        assert (response.status, await response.json()) == (403, {"error": error})


@pytest.mark.parametrize("status", [400, 404, 408, 429, 500, 502, 503, 529])
async def test_other_upstream_errors_pass_as_they_are(bots: Bots, upstream: Upstream, status: int) -> None:
    error = {"error": {"code": status, "message": "as it is", "metadata": {"x": 1}}}
    upstream.answers(status, error, Retry_After="9", Set_Cookie="a=b")
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        assert (response.status, await response.json()) == (status, error)
        assert response.headers["Retry-After"] == "9"
        assert "Set-Cookie" not in response.headers


async def test_an_upstream_that_redirects_never_sees_the_key_elsewhere(
    bots: Bots, upstream: Upstream
) -> None:
    upstream.answers(307, {}, Location=f"{upstream.url}/chat/completions?again")
    assert (await post(bots))[0] == 502
    assert len(upstream.bodies) == 1


async def test_an_upstream_that_cannot_be_reached_is_a_502(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/api/v1"
    assert (await post(await start(base_url=nobody)))[0] == 502


async def test_an_upstream_that_does_not_answer_is_a_504(start: Start, upstream: Upstream) -> None:
    bots = await start(read_timeout=0.5)

    async def answer(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError("never")

    upstream.answer = answer
    assert (await post(bots))[0] == 504


@pytest.mark.parametrize("ends", ["abort", "silence"])
async def test_half_an_answer_never_looks_whole(start: Start, upstream: Upstream, ends: str) -> None:
    bots = await start(read_timeout=0.5)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        if ends == "silence":
            await asyncio.Event().wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    upstream.answer = answer
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        assert await response.content.readexactly(4) == b"half"
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(response.content.read(), 5)


# Memory, cancellation, logs


async def test_a_bot_that_reads_slowly_stops_the_upstream_instead_of_filling_memory(
    start: Start, upstream: Upstream
) -> None:
    bots = await start(read_timeout=30.0)
    piece, pieces = b"x" * 65536, 2048  # 128 MiB; the kernel's buffers on the way take a few
    sent = 0

    async def answer(http: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(http)
        for _ in range(pieces):
            await response.write(piece)
            sent += len(piece)
        return response

    upstream.answer = answer
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        await response.content.readexactly(1)
        before = -1
        while before != sent:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 40 * 1024 * 1024
        received = 1
        async for chunk in response.content.iter_any():
            received += len(chunk)
        assert received == pieces * len(piece)


async def test_logs_hold_numbers_but_no_prompt_answer_or_key(
    bots: Bots, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with bots.session() as bot:
        async with bot.post(CHAT, json=chat(messages=[{"role": "user", "content": "PROMPT"}])) as response:
            size = len(await response.read())
        async with bot.post(CHAT, data=b'{"messages": "PROMPT') as response:
            assert response.status == 400
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("clawdeploy")]
    assert any(line.startswith(f"bot=botaaaaaaaaa status=200 bytes={size} ms=") for line in lines)
    for secret in ("PROMPT", "hello", BOT_KEY, SERVER_KEY):
        assert secret not in "\n".join(lines)


async def test_a_key_from_outside_the_pool_is_never_good(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    bots = await start(bot_pool=IPv4Network("127.0.0.64/26"))
    assert (await post(bots))[0] == 401
    assert "outside of the pool 127.0.0.64/26" in caplog.text
