"""The OpenRouter simulator speaks the documented wire format."""

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ServerDisconnectedError

from tests.simulators.openrouter import PRICES

from .conftest import Client

MODEL = "anthropic/claude-sonnet-4"
HELLO = {
    "model": MODEL,
    "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}],
}
CHAT = "/api/v1/chat/completions"


async def events(client: Client, body: dict[str, Any]) -> list[str]:
    """The blocks of a streamed answer."""
    async with client.post(CHAT, json=body | {"stream": True}) as reply:
        assert reply.status == 200
        assert reply.headers["X-Generation-Id"].startswith("gen-")
        return (await reply.text()).strip().split("\n\n")


def parsed(blocks: list[str]) -> list[dict[str, Any]]:
    """The JSON chunks among them."""
    return [json.loads(block[6:]) for block in blocks if block.startswith("data: {")]


async def test_models_have_prices_as_decimal_strings(openrouter_api: Client) -> None:
    models = (await (await openrouter_api.get("/api/v1/models")).json())["data"]
    assert {model["id"] for model in models} == set(PRICES)
    assert all(Decimal(model["pricing"]["prompt"]) > 0 for model in models)


@pytest.mark.parametrize(
    "authorization", ["Bearer sk-or-v1-short", "Bearer sk-claw-0123456789abcdefgh", "Basic x"]
)
async def test_wrong_key_is_401(openrouter_api: Client, authorization: str) -> None:
    reply = await openrouter_api.post(CHAT, json=HELLO, headers={"Authorization": authorization})
    assert (reply.status, (await reply.json())["error"]["code"]) == (401, 401)


async def test_revoked_key_is_401(openrouter_api: Client) -> None:
    key = openrouter_api.session.headers["Authorization"].removeprefix("Bearer ")
    await openrouter_api.post("/_sim/revoke", json={"key": key})
    assert (await openrouter_api.post(CHAT, json=HELLO)).status == 401


async def test_answer_echoes_and_its_cost_is_charged_to_the_key(openrouter_api: Client) -> None:
    reply = await openrouter_api.post(CHAT, json=HELLO)
    answer = await reply.json()
    assert answer["choices"][0]["message"]["content"] == "ECHO: hello"
    usage = answer["usage"]
    prompt, completion = (Decimal(price) for price in PRICES[MODEL][1:3])
    cost = usage["prompt_tokens"] * prompt + usage["completion_tokens"] * completion
    assert usage["cost"] == pytest.approx(float(cost))

    identity = reply.headers["X-Generation-Id"]
    generation = await openrouter_api.get("/api/v1/generation", params={"id": identity})
    assert (await generation.json())["data"]["total_cost"] == usage["cost"]
    key = await (await openrouter_api.get("/api/v1/key")).json()
    assert key["data"]["usage"] == usage["cost"]


async def test_unknown_generation_is_404(openrouter_api: Client) -> None:
    assert (await openrouter_api.get("/api/v1/generation", params={"id": "gen-x"})).status == 404


async def test_the_model_says_what_it_is_told_until_it_is_told_otherwise(openrouter_api: Client) -> None:
    said = []
    for text in ("Certainly.", None):
        await openrouter_api.post("/_sim/say", json={"text": text})
        reply = await openrouter_api.post(CHAT, json=HELLO)
        said.append((await reply.json())["choices"][0]["message"]["content"])
    assert said == ["Certainly.", "ECHO: hello"]


async def test_max_tokens_cuts_the_answer(openrouter_api: Client) -> None:
    reply = await openrouter_api.post(CHAT, json=HELLO | {"max_tokens": 2})
    choice = (await reply.json())["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("ECHO: he", "length")


@pytest.mark.parametrize(
    "body", [{"model": "no/such", "messages": [{"role": "user", "content": "x"}]}, {"model": MODEL}, []]
)
async def test_invalid_request_is_400(openrouter_api: Client, body: Any) -> None:
    assert (await openrouter_api.post(CHAT, json=body)).status == 400


async def test_stream_ends_with_usage_in_a_chunk_without_choices(openrouter_api: Client) -> None:
    blocks = await events(openrouter_api, HELLO)
    assert blocks[0] == ": OPENROUTER PROCESSING"
    assert blocks[-1] == "data: [DONE]"
    *pieces, last = parsed(blocks)
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == "ECHO: hello"
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"]["cost"] > 0


async def test_ordered_tool_call_is_streamed_in_pieces_to_whoever_offers_the_tool(
    openrouter_api: Client,
) -> None:
    order = {"name": "read", "arguments": {"path": "a file of some name"}}
    await openrouter_api.post("/_sim/call", json=order)
    other, offered = ({"tools": [{"function": {"name": name}}]} for name in ("write", "read"))
    assert all("tool_calls" not in block for block in await events(openrouter_api, HELLO | other))
    chunks = parsed(await events(openrouter_api, HELLO | offered))
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert choices[-1]["finish_reason"] == "tool_calls"
    (first, *rest) = [part for choice in choices for part in choice["delta"].get("tool_calls", [])]
    assert (first["index"], first["function"]["name"]) == (0, "read")
    assert first["id"].startswith("call_")
    pieces = [part["function"]["arguments"] for part in rest]
    assert len(pieces) > 1
    assert json.loads("".join(pieces)) == order["arguments"]
    assert all("tool_calls" not in block for block in await events(openrouter_api, HELLO | offered))


async def test_slow_stream_is_kept_alive_by_comments(openrouter_api: Client) -> None:
    await openrouter_api.post("/_sim/latency", json={"first": 0.3})
    assert (await events(openrouter_api, HELLO)).count(": OPENROUTER PROCESSING") > 1


@pytest.mark.parametrize(
    ("order", "status", "source", "retry_after"),
    [
        ({"kind": "credits"}, 402, "openrouter_credits", None),
        ({"kind": "key_limit"}, 402, "openrouter_key_limit", None),
        ({"kind": "in_flight", "retry_after": 3}, 402, "openrouter_in_flight_budget", "3"),
        ({"kind": "rate_limit", "retry_after": 7}, 429, None, "7"),
        ({"kind": "server_error", "status": 503}, 503, None, None),
    ],
)
async def test_ordered_failure_comes_once(
    openrouter_api: Client, order: dict[str, Any], status: int, source: str | None, retry_after: str | None
) -> None:
    await openrouter_api.post("/_sim/fail", json=order)
    reply = await openrouter_api.post(CHAT, json=HELLO)
    error = (await reply.json())["error"]
    assert (reply.status, error["code"]) == (status, status)
    assert error["metadata"].get("limit_source") == source
    assert reply.headers.get("Retry-After") == retry_after
    assert (await openrouter_api.post(CHAT, json=HELLO)).status == 200


async def test_failure_hits_only_the_requests_it_names(openrouter_api: Client) -> None:
    await openrouter_api.post("/_sim/fail", json={"kind": "credits", "contains": "other"})
    assert (await openrouter_api.post(CHAT, json=HELLO)).status == 200
    other = HELLO | {"messages": [{"role": "user", "content": "the other one"}]}
    assert (await openrouter_api.post(CHAT, json=other)).status == 402


async def test_unknown_failure_is_refused(openrouter_api: Client) -> None:
    assert (await openrouter_api.post("/_sim/fail", json={"kind": "earthquake"})).status == 400


async def test_error_in_mid_stream_ends_it_without_done(openrouter_api: Client) -> None:
    await openrouter_api.post("/_sim/fail", json={"kind": "mid_stream", "after": 1})
    first, last = parsed(await events(openrouter_api, HELLO))
    assert first["choices"][0]["delta"]["content"] == "ECHO: he"
    assert last["error"]["code"] == 502
    assert last["choices"][0]["finish_reason"] == "error"


async def test_late_provider_error_without_streaming_is_a_200_without_charge(openrouter_api: Client) -> None:
    await openrouter_api.post("/_sim/fail", json={"kind": "mid_stream"})
    reply = await openrouter_api.post(CHAT, json=HELLO)
    answer = await reply.json()
    assert reply.status == 200
    assert answer["choices"][0]["finish_reason"] == "error"
    assert answer["usage"]["cost"] == 0


async def test_cut_connection_breaks_both_kinds_of_answer(openrouter_api: Client) -> None:
    await openrouter_api.post("/_sim/fail", json={"kind": "cut", "times": 2, "after": 1})
    with pytest.raises(ClientPayloadError):
        await events(openrouter_api, HELLO)
    with pytest.raises(ServerDisconnectedError):
        await openrouter_api.post(CHAT, json=HELLO)


async def test_recorded_requests_can_be_awaited(openrouter_api: Client) -> None:
    waiting = asyncio.ensure_future(
        openrouter_api.get("/_sim/requests", params={"count": 1, "wait": 5, "contains": "hello"})
    )
    await openrouter_api.post(CHAT, json=HELLO)
    recorded = (await (await waiting).json())["requests"]
    assert [entry["body"] for entry in recorded] == [HELLO]
    assert recorded[0]["headers"]["authorization"].startswith("Bearer ")
    await openrouter_api.post("/_sim/reset")
    assert (await (await openrouter_api.get("/_sim/requests")).json())["requests"] == []


async def charges(client: Client) -> list[dict[str, Any]]:
    """The simulator's books."""
    return list((await (await client.get("/_sim/charges")).json())["charges"])


@pytest.mark.parametrize("stream", [True, False])
async def test_books_hold_each_call_once_in_nano_dollars_rounded_up(
    openrouter_api: Client, stream: bool
) -> None:
    body = HELLO | {"model": "meta-llama/llama-3.3-70b-instruct", "user": "bot", "stream": stream}
    reply = await openrouter_api.post(CHAT, json=body)
    text = await reply.text()
    answer = parsed(text.strip().split("\n\n"))[-1] if stream else json.loads(text)
    usage = answer["usage"]
    (charge,) = await charges(openrouter_api)
    assert (charge["generation"], charge["user"]) == (answer["id"], "bot")
    assert charge["nano"] == usage["prompt_tokens"] * 42 + usage["completion_tokens"] * 280


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", ["no_usage", "no_cost"])
async def test_answer_that_hides_its_cost_is_charged(openrouter_api: Client, kind: str, stream: bool) -> None:
    await openrouter_api.post("/_sim/fail", json={"kind": kind})
    text = await (await openrouter_api.post(CHAT, json=HELLO | {"stream": stream})).text()
    answers = parsed(text.strip().split("\n\n")) if stream else [json.loads(text)]
    usages = [answer["usage"] for answer in answers if "usage" in answer]
    assert [usage["cost"] for usage in usages] == ([] if kind == "no_usage" else [None])
    assert (await charges(openrouter_api))[0]["nano"] > 0


@pytest.mark.parametrize("stream", [True, False])
async def test_answer_that_never_arrives_is_charged(openrouter_api: Client, stream: bool) -> None:
    await openrouter_api.post("/_sim/fail", json={"kind": "cut_before"})
    with pytest.raises(ServerDisconnectedError):
        await openrouter_api.post(CHAT, json=HELLO | {"stream": stream})
    await openrouter_api.post("/_sim/fail", json={"kind": "gave_up", "status": 524})
    assert (await openrouter_api.post(CHAT, json=HELLO | {"stream": stream})).status == 524
    assert [charge["nano"] > 0 for charge in await charges(openrouter_api)] == [True, True]


async def test_dear_answer_says_what_it_costs(openrouter_api: Client) -> None:
    await openrouter_api.post("/_sim/fail", json={"kind": "dear"})
    answers = [await (await openrouter_api.post(CHAT, json=HELLO)).json() for _ in range(2)]
    dear, normal = (charge["nano"] for charge in await charges(openrouter_api))
    assert dear == 1000 * normal
    assert [answer["usage"]["cost"] for answer in answers] == [dear / 1e9, normal / 1e9]


async def test_generation_can_be_known_late(openrouter_api: Client) -> None:
    await openrouter_api.post("/_sim/generation", json={"unknown": 2})
    answer = await (await openrouter_api.post(CHAT, json=HELLO)).json()
    asked = [
        (await openrouter_api.get("/api/v1/generation", params={"id": answer["id"]})).status for _ in range(3)
    ]
    assert asked == [404, 404, 200]


@pytest.mark.parametrize(("prompt", "status"), [(2.99, 404), (3, 200)])
async def test_model_above_the_max_price_has_no_provider(
    openrouter_api: Client, prompt: float, status: int
) -> None:
    limited = HELLO | {"provider": {"max_price": {"prompt": prompt, "completion": 15}}}
    assert (await openrouter_api.post(CHAT, json=limited)).status == status
