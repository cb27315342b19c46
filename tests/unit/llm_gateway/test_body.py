"""What of an agent's request reaches the upstream."""

import json
from typing import Any

import pytest

from clawdeploy.llm_gateway.body import Chat
from clawdeploy.llm_gateway.prices import operators_price
from clawdeploy.llm_gateway.refusal import RefusedError

MODEL = "vendor/fixed-model"
MESSAGES = [{"role": "user", "content": "hi"}]
FUNCTION = {
    "type": "function",
    "function": {"name": "ls", "description": "d", "parameters": {"type": "object"}},
}


PRICE = operators_price({"prompt": "1", "completion": "2"})
OURS = {
    "max_tokens": 777,
    "user": "botaaaaaaaaa",
    "provider": {"max_price": {"prompt": 1.0, "completion": 2.0}},
    "usage": {"include": True},
}


def upstream_body(raw: bytes) -> bytes:
    assert PRICE is not None
    return Chat(raw).upstream(MODEL, "botaaaaaaaaa", 777, PRICE)


def sent(**fields: Any) -> dict[str, Any]:
    """What goes upstream for these fields, less what the gateway says by itself."""
    raw = json.dumps({"messages": MESSAGES} | fields).encode()
    body: dict[str, Any] = json.loads(upstream_body(raw))
    assert {name: body.pop(name) for name in OURS} == OURS
    assert body.pop("stream_options", None) == ({"include_usage": True} if fields.get("stream") else None)
    return body


@pytest.mark.parametrize("model", [None, "openai/gpt-5-pro", "vendor/fixed-model:online", "@preset/rich"])
def test_the_model_is_always_the_fixed_one(model: str | None) -> None:
    assert sent(model=model) == {"model": MODEL, "messages": MESSAGES}


@pytest.mark.parametrize(
    "escape",
    [
        {"models": ["openai/gpt-5-pro"]},
        {"route": "fallback"},
        {"preset": "rich"},
        {"provider": {"order": ["dear"], "sort": "throughput"}},
        {"plugins": [{"id": "web"}]},
        {"web_search_options": {"search_context_size": "high"}},
        {"tools": [{"type": "openrouter:web_search"}]},
        {"tools": [{"type": "web_search_preview"}], "tool_choice": "required"},
        {"stop_server_tools_when": [{"type": "max_steps", "value": 30}]},
        {"service_tier": "priority"},
        {"modalities": ["text", "image"]},
        {"audio": {"voice": "alloy"}},
        {"image_config": {"aspect_ratio": "1:1"}},
        {"n": 50},
        {"transforms": ["middle-out"]},
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"prediction": {"type": "content", "content": "x"}},
        {"user": "someone", "session_id": "s", "metadata": {"a": "b"}, "trace": {"id": "t"}},
        {"stream_options": {"include_usage": False}, "usage": {"include": False}},
        {"max_price": 1, "debug": {"echo_upstream_body": True}},
    ],
    ids=lambda escape: next(iter(escape)),
)
def test_fields_that_could_cost_more_are_dropped(escape: dict[str, Any]) -> None:
    assert sent(**escape) == {"model": MODEL, "messages": MESSAGES}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.5, "top_p": 1.0, "top_k": 40, "min_p": 0.5, "seed": 7},
        {"stream": True, "stop": ["a", "b"]},
        {"stop": "a", "stream": False},
        {
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
            "repetition_penalty": 1.5,
            "logit_bias": {"50": -1.0},
        },
        {"tools": [FUNCTION], "tool_choice": "auto", "parallel_tool_calls": False},
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "ls"}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "object"}},
            }
        },
        {"reasoning": {"effort": "low", "exclude": True}, "reasoning_effort": "low"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_an_agent_may_say_passes_unchanged(fields: dict[str, Any]) -> None:
    assert sent(**fields) == {"model": MODEL, "messages": MESSAGES} | fields


def test_function_tools_stay_when_server_tools_are_dropped() -> None:
    assert sent(tools=[{"type": "openrouter:fusion"}, FUNCTION])["tools"] == [FUNCTION]


def test_extras_hidden_inside_messages_and_tools_are_dropped() -> None:
    cache = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = sent(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "hi"} | cache], "audio": {"id": "x"}}
            | cache
        ],
        tools=[FUNCTION | cache],
    )
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert body["tools"] == [FUNCTION]


def test_a_tool_conversation_passes_whole() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "be kind"},
        {
            "role": "assistant",
            "tool_calls": [call],
            "reasoning_details": [{"type": "reasoning.text", "text": "t"}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a b"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
        },
    ]
    assert sent(messages=messages)["messages"] == messages


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"not json", "chat completion request"),
        (b"\xff\xfe", "chat completion request"),
        (b"[]", "object"),
        (b"{}", "messages"),
        (b'{"messages": []}', "$.messages"),
        (b'{"messages": [{"role": "root", "content": "x"}]}', "$.messages[0].role"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}', "$.temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": {"a": 1}}', "$.max_tokens"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "chat completion request"),
        (b'{"messages": ' + b"[" * 100_000, "chat completion request"),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else None,
)
def test_what_is_no_chat_request_is_refused_by_name(raw: bytes, named: str) -> None:
    with pytest.raises(RefusedError) as caught:
        upstream_body(raw)
    assert caught.value.status == 400
    assert named in caught.value.message


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    ],
    ids=lambda part: part["type"],
)
def test_content_whose_cost_the_size_does_not_show_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        sent(messages=[{"role": "user", "content": [part]}])
