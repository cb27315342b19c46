"""The bound of a call: no tokenizer can make more tokens of what is sent than it pays for."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawdeploy.ledger import FEMTO
from clawdeploy.llm_gateway.body import Chat
from clawdeploy.llm_gateway.prices import Price

# One femto-dollar a token: a bound's ``fixed`` is the number of tokens it pays for.
PER_TOKEN = Price(prompt=1, completion=3, request=0, image=0, cap_prompt=1)
DEAR_EXTRAS = Price(prompt=0, completion=0, request=7 * FEMTO, image=11 * FEMTO, cap_prompt=0)
MARKS_PER_MESSAGE = 4  # what a chat template puts around each message, in tokens (OpenAI: 3 and a name)

# Whatever can be in a message: control characters and quotes grow in JSON, CJK and emoji have many bytes.
TEXT = st.text(
    st.sampled_from('a \n\t\0\x01\x1f"\\/\x7f\u2028é中文字한글😀👩\u200d🚀\U0010ffff')
    | st.characters(codec="utf-8"),
    max_size=60,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
DATA = st.binary(max_size=40).map(lambda raw: f"data:image/png;base64,{raw.hex()}")
PART = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}) | st.fixed_dictionaries(
    {
        "type": st.just("image_url"),
        "image_url": st.fixed_dictionaries({"url": DATA}, optional={"detail": TEXT}),
    }
)
CALL = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXT, "arguments": TEXT})},
    optional={"id": TEXT},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={
        "content": TEXT | st.lists(PART, max_size=3),
        "name": TEXT,
        "tool_call_id": TEXT,
        "reasoning": TEXT,
        "refusal": TEXT,
        "tool_calls": st.lists(CALL, max_size=2),
        "reasoning_details": st.lists(st.dictionaries(TEXT, JSON, max_size=2), max_size=2),
    },
)
TOOL = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": TEXT},
            optional={"description": TEXT, "parameters": st.dictionaries(TEXT, JSON, max_size=3)},
        ),
    }
)
REQUEST = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, min_size=1, max_size=4)},
    optional={
        "tools": st.lists(TOOL, max_size=2),
        "response_format": st.fixed_dictionaries(
            {"type": st.just("json_schema"), "json_schema": st.dictionaries(TEXT, JSON, max_size=3)}
        ),
    },
)


def strings(value: Any) -> list[str]:
    """Every text in a JSON value, names of members included."""
    match value:
        case str():
            return [value]
        case list():
            return [text for item in value for text in strings(item)]
        case dict():
            return [text for name, item in value.items() for text in (name, *strings(item))]
        case None | bool():
            return []
        case _:
            return [str(value)]


def parts(body: dict[str, Any]) -> list[dict[str, Any]]:
    contents = [message.get("content") for message in body["messages"]]
    return [part for content in contents if isinstance(content, list) for part in content]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(REQUEST, st.booleans())
def test_the_bound_pays_a_token_for_every_byte_that_the_model_can_see(
    request: dict[str, Any], escaped: bool
) -> None:
    chat = Chat(json.dumps(request, ensure_ascii=escaped).encode())
    sent = json.loads(chat.upstream("m", "bot", 5, PER_TOKEN))
    images = [part for part in parts(sent) if part["type"] == "image_url"]
    for image in images:
        del image["image_url"]["url"]
    seen = [sent["messages"], sent.get("tools"), sent.get("response_format")]
    in_bytes = sum(len(text.encode()) for text in strings(seen))
    paid = chat.bound(PER_TOKEN).fixed
    assert paid >= in_bytes + MARKS_PER_MESSAGE * len(sent["messages"]) + 50_000 * len(images)
    if not images:  # not absurdly more either: the raw JSON and constants
        raw = len(json.dumps(seen, ensure_ascii=False, separators=(",", ":")).encode())
        assert paid <= raw + 64 + 16 * len(sent["messages"]) + 1000


@given(REQUEST)
def test_the_bound_pays_for_each_picture_and_for_the_request(request: dict[str, Any]) -> None:
    chat = Chat(json.dumps(request).encode())
    images = sum(part["type"] == "image_url" for part in parts(request))
    assert chat.bound(DEAR_EXTRAS).fixed == (7 + 11 * images) * FEMTO
    assert chat.bound(PER_TOKEN).per_token == 3


@given(st.integers(1, 2**31) | st.none(), st.integers(1, 2**31) | st.none(), st.integers(1, 100_000))
def test_the_answer_is_no_longer_than_asked_and_allowed(
    most: int | None, newer: int | None, allowed: int
) -> None:
    request = {
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": most, "max_completion_tokens": newer
    }  # fmt: skip
    tokens = Chat(json.dumps(request).encode()).tokens(allowed)
    assert tokens == min(number for number in (most, newer, allowed) if number is not None)


@given(st.integers(-5, 10_000), st.integers(1, 5000))
def test_thinking_is_cut_down_with_the_answer(thinking: int, tokens: int) -> None:
    request = {"messages": [{"role": "user", "content": "hi"}], "reasoning": {"max_tokens": thinking}}
    sent = json.loads(Chat(json.dumps(request).encode()).upstream("m", "bot", tokens, PER_TOKEN))
    assert sent["max_tokens"] == tokens
    assert sent["reasoning"]["max_tokens"] <= tokens
