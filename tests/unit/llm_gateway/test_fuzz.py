"""Whatever a stranger sends: a right status or a closed connection, nothing malformed passed on, no crash."""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawdeploy.ledger import FEMTO, Bound
from clawdeploy.llm_gateway.body import Chat
from clawdeploy.llm_gateway.prices import Price
from clawdeploy.llm_gateway.refusal import RefusedError
from tests.unit.llm_gateway.harness import BOT_KEY, CHAT, MODEL, Bots, Start, Upstream, chat

PRICE = Price(prompt=FEMTO, completion=FEMTO, request=0, image=0, cap_prompt=FEMTO)
NUMBERS = (
    st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**31 + 1, 2**63, 10**400, 1e308, 5e-324])
)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
NAMES = st.sampled_from(
    [
        *("role", "content", "name", "type", "text", "function", "arguments", "image_url", "url", "tools"),
        *("messages", "model", "models", "stream", "max_tokens", "max_completion_tokens", "provider", "user"),
        *("reasoning", "effort", "tool_choice", "response_format", "json_schema", "logit_bias", "stop", "n"),
        *("usage", "stream_options", "plugins", "parameters", "reasoning_details", "tool_calls", "id"),
    ]
) | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS
    | st.sampled_from(
        ["user", "assistant", "function", "text", "image_url", "data:image/png;base64,", "auto"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.just([{"role": "user", "content": "hi"}]) | st.lists(
    st.dictionaries(NAMES, VALUES, max_size=3).map(lambda extra: {"role": "user", "content": "hi"} | extra),
    min_size=1,
    max_size=2,
)
NEAR = st.fixed_dictionaries({"messages": MESSAGES | VALUES}).flatmap(
    lambda base: st.dictionaries(NAMES, VALUES, max_size=4).map(lambda extra: extra | base)
)
SENT = {
    *("messages", "model", "stream", "max_tokens", "temperature", "top_p", "top_k", "top_a", "min_p", "seed"),
    *("stop", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "logprobs"),
    *("top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning"),
    *("reasoning_effort", "include_reasoning", "verbosity", "user", "provider", "usage", "stream_options"),
}


def passes(raw: bytes) -> tuple[Bound, int, bytes] | None:
    """Bound, answer's length and body of a request that is good; None if it is refused as one that is not."""
    try:
        request = Chat(raw)
        tokens = request.tokens(1000)
        return request.bound(PRICE), tokens, request.upstream(MODEL, "bot", tokens, PRICE)
    except RefusedError as refusal:
        if refusal.status != 400:
            raise
        return None


def through(raw: bytes) -> dict[str, Any] | None:
    """What goes upstream for a request, or None if it is refused, which is always a 400."""
    if (passed := passes(raw)) is None:
        return None
    bound, tokens, sent = passed
    body: dict[str, Any] = json.loads(sent)
    assert body.keys() <= SENT
    assert (body["model"], body["user"], body["max_tokens"]) == (MODEL, "bot", tokens)
    assert body["provider"] == {"max_price": PRICE.max_price()}
    assert bound.fixed >= FEMTO * len(json.dumps(body["messages"]).encode()) // 6  # \\uXXXX is six for one
    return body


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(NEAR)
def test_a_body_near_the_schema_is_sent_within_the_allow_list_or_refused(body: dict[str, Any]) -> None:
    through(json.dumps(body).encode())


@given(st.binary(max_size=100) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_other_body_is_refused(raw: bytes) -> None:
    assert through(raw) is None


FIELDS = [b'"tools":[{"type":"function","function":{"name":"f","parameters":%s}}]',
          b'"response_format":{"type":"json_schema","json_schema":%s}',
          b'"unknown":%s', b'"logit_bias":%s', b'"provider":%s']  # fmt: skip


@pytest.mark.parametrize("field", [*FIELDS, b'"messages":[{"role":"user","reasoning_details":[%s]}]'])
def test_deep_nesting_is_sent_or_refused_at_every_depth(field: bytes) -> None:
    for depth in (*range(1, 1200, 7), *range(900, 1010), 20_000):
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        passes(b'{"messages":[{"role":"user","content":"hi"}],' + field % nested + b"}")


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"\\udc00\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":1e400}',
        b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":0}',
        b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":-1}',
        b'{"messages":[{"role":"user","content":"hi"}],"temperature":-Infinity}',
        b'{"messages":[{"role":"user","content":"hi"}],"seed":' + b"9" * 5000 + b"}",
        b'{"messages":[{"role":"user","content":"hi"}]}{"messages":[]}',
        b'{"messages":[{"role":"user","content":"hi"}],}',
        b'\xef\xbb\xbf{"messages":[{"role":"user","content":"hi"}]}',
        b'{"messages":[{"role":"user","content":"h\x00i"}]}',
    ],
    ids=lambda raw: repr(raw[:70]),
)
def test_what_is_no_clean_json_is_refused(raw: bytes) -> None:
    assert through(raw) is None


def test_of_members_that_come_twice_only_one_is_sent() -> None:
    raw = b'{"messages":[{"role":"user","content":"a"}],"max_tokens":5,"max_tokens":900,"n":1,"n":2}'
    body = through(raw)
    assert body is not None
    assert body["max_tokens"] in (5, 900)


# Through the socket


@pytest_asyncio.fixture
async def door(start: Start, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bots]:
    """A gateway that must live on, and must not have stumbled, after whatever a test sends."""
    bots = await start(calls_per_bot=100, calls_per_minute=100_000)
    yield bots
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        assert response.status == 200
    assert "internal error" not in caplog.text
    assert not [
        line for line in caplog.records if line.name.startswith("asyncio") and line.levelno > logging.INFO
    ]
    await bots.verify()


@asynccontextmanager
async def connection(
    bots: Bots, address: str = "127.0.0.2"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bot's connection to the gateway, which either side may close."""
    port = int(bots.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        with contextlib.suppress(ConnectionError, TimeoutError):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def talk(bots: Bots, raw: bytes, answers: int = 0) -> list[int]:
    """The statuses that a raw connection gets: so many, or what comes before it is closed or silent."""
    answer, statuses = b"", list[int]()
    async with connection(bots) as (reader, writer):
        writer.write(raw)
        while piece := await asyncio.wait_for(reader.read(65536), 10 if len(statuses) < answers else SILENCE):
            answer += piece
            statuses = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", answer)]
    return statuses


SILENCE = 0.1  # seconds; of a request that never ends nothing can be awaited but this


BODY = json.dumps(chat()).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
HEAD = b"POST %s HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer %s\r\n" % (
    CHAT.encode(),
    BOT_KEY.encode(),
)
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
GOOD = HEAD + LENGTH + b"\r\n" + BODY

MALFORMED = {
    "length and chunks": HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunks and length": HEAD + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + CHUNKED,
    "two lengths": HEAD + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY,
    "the same length twice": HEAD + LENGTH + LENGTH + b"\r\n" + BODY,
    "a list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    "a signed length": HEAD + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY,
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length in hex": HEAD + b"Content-Length: 0x10\r\n\r\n" + BODY,
    "an absurd length": HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n" + BODY,
    "a space before the colon": HEAD + b"Content-Length : %d\r\n\r\n" % len(BODY) + BODY,
    "a folded header": HEAD + b"X-Long: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY,
    "a folded length": HEAD + b"Content-Length:\r\n %d\r\n\r\n" % len(BODY) + BODY,
    "a null byte in a header": HEAD + b"X-A: a\0b\r\n" + LENGTH + b"\r\n" + BODY,
    "a carriage return in a header": HEAD + b"X-A: a\rb\r\n" + LENGTH + b"\r\n" + BODY,
    "bare line feeds": GOOD.replace(b"\r\n", b"\n"),
    "chunks that are no numbers": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    + BODY
    + b"\r\n0\r\n\r\n",
    "a negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "an absurd chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n" + BODY,
    "a chunk longer than it says": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n5\r\n"
    + BODY
    + b"\r\n0\r\n\r\n",
    "no last chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED[:-5],
    "another coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + BODY,
    "chunks that are not last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "an unknown chunk coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "a body shorter than its length": HEAD + b"Content-Length: 5000\r\n\r\n" + BODY,
    "no end of the headers": HEAD + LENGTH,
    "a header without a colon": HEAD + b"nonsense\r\n" + LENGTH + b"\r\n" + BODY,
    "a header without a name": HEAD + b": x\r\n" + LENGTH + b"\r\n" + BODY,
    "too long a header": HEAD + b"X-A: " + b"a" * 100_000 + b"\r\n" + LENGTH + b"\r\n" + BODY,
    "too many headers": HEAD + b"X-A: a\r\n" * 5000 + LENGTH + b"\r\n" + BODY,
    "too long a path": b"POST /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "no version": b"POST /api/v1/chat/completions\r\n\r\n",
    "another version": GOOD.replace(b"HTTP/1.1", b"HTTP/3.7"),
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100a5010000a1030300010203"),
    "a space in the path": GOOD.replace(b"/chat/", b"/ chat/"),
    "an invented method": GOOD.replace(b"POST", b"P\x00ST"),
    "nothing but ends of lines": b"\r\n" * 1000,
}


INCOMPLETE = {
    MALFORMED[name]
    for name in (
        "no last chunk",
        "a body shorter than its length",
        "no end of the headers",
        "nothing but ends of lines",
        "no version",
    )
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_request_is_refused_and_never_passed_on(
    door: Bots, upstream: Upstream, raw: bytes
) -> None:
    statuses = await talk(door, raw, 0 if raw in INCOMPLETE else 1)
    assert upstream.bodies == []
    assert all(400 <= status < 500 or status == 505 for status in statuses), statuses
    assert statuses or raw in INCOMPLETE


async def test_a_request_hidden_in_anothers_body_is_never_seen(door: Bots, upstream: Upstream) -> None:
    hidden = HEAD + LENGTH + b"\r\n" + BODY
    for lie in (
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding : chunked\r\n",
    ):
        await talk(
            door, HEAD + b"Content-Length: %d\r\n" % len(hidden) + lie + b"\r\n" + b"0\r\n\r\n" + hidden
        )
    assert upstream.bodies == []


async def test_requests_in_one_connection_are_each_answered(door: Bots, upstream: Upstream) -> None:
    assert await talk(door, GOOD + HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED, 2) == [200, 200]
    assert len(upstream.bodies) == 2


async def test_a_request_after_a_refused_body_is_not_read_out_of_it(door: Bots, upstream: Upstream) -> None:
    """The rest of a body that was too large must not be taken for a request."""
    large = GOOD * 400
    statuses = await talk(door, HEAD + b"Content-Length: %d\r\n\r\n" % len(large) + large, 1)
    assert statuses[:1] == [413]
    assert upstream.bodies == []


@pytest.mark.parametrize(("expect", "status", "answers"), [(b"100-continue", 100, 2), (b"a-miracle", 417, 1)])
async def test_an_expectation_is_met_or_refused(
    door: Bots, upstream: Upstream, expect: bytes, status: int, answers: int
) -> None:
    statuses = await talk(door, HEAD + b"Expect: " + expect + b"\r\n" + LENGTH + b"\r\n" + BODY, answers)
    assert statuses[0] == status
    assert len(upstream.bodies) == (1 if status == 100 else 0)


async def test_a_slow_bot_holds_up_nobody_else(door: Bots, upstream: Upstream) -> None:
    async with AsyncExitStack() as slow:
        for number in range(100):
            _, writer = await slow.enter_async_context(connection(door, "127.0.0.3"))
            writer.write(GOOD[: 5 + number])
        async with door.session() as bot, bot.post(CHAT, json=chat()) as response:
            assert response.status == 200
    assert len(upstream.bodies) == 1


async def test_a_bot_that_never_ends_its_body_gives_its_place_back(start: Start, upstream: Upstream) -> None:
    bots = await start(calls_per_bot=1, read_timeout=1.0)
    status = b""
    async with connection(bots) as (reader, writer):
        writer.write(GOOD[:-5])
        status = await asyncio.wait_for(reader.readline(), 10)
        async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
            assert response.status == 200
    assert b" 408 " in status
    assert len(upstream.bodies) == 1


PIECES = st.lists(
    st.sampled_from(
        [
            *(HEAD, LENGTH, BODY, CHUNKED, GOOD, b"\r\n", b"\n", b"\r\n\r\n", b"\r", b" ", b"\0", b":"),
            *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 0\r\n", b"Connection: close\r\n"),
            *(b"Content-Encoding: gzip\r\n", b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n"),
            *(b"GET / HTTP/1.1\r\n", b"Host: a\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n"),
        ]
    )
    | st.binary(max_size=20),
    min_size=1,
    max_size=8,
).map(b"".join)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=PIECES)
async def test_any_bytes_get_a_right_status_or_a_closed_connection(
    door: Bots, upstream: Upstream, raw: bytes
) -> None:
    statuses = await talk(door, raw)
    assert all(status < 500 or status == 505 for status in statuses), statuses
    assert all(body["messages"] == chat()["messages"] for body in upstream.bodies)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=NEAR.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200))
async def test_any_body_is_answered_or_refused_by_the_running_gateway(
    door: Bots, upstream: Upstream, body: bytes
) -> None:
    before = len(upstream.bodies)
    async with door.session() as bot, bot.post(CHAT, data=body) as response:
        assert response.status in (200, 400, 413)
        await response.read()
        assert len(upstream.bodies) - before == (response.status == 200)


async def test_an_upstream_that_talks_nonsense_breaks_nothing(start: Start, upstream: Upstream) -> None:
    bots = await start()

    async def nonsense(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello")
        transport.close()
        return web.Response()

    upstream.answer = nonsense
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        assert response.status == 504
    (call,) = await bots.settled()
    assert (call["how"], call["charged"]) == ("bound", call["held"])
