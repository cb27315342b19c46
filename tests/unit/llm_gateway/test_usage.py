"""What an answer says of its cost is found however the network cut it, and without keeping the answer."""

import json
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clawdeploy.llm_gateway.usage import UsageReader, cost_of

USAGE = {"prompt_tokens": 12, "completion_tokens": 34, "cost": 0.00098765}
FOUND = ("gen-1", 987_650, 12, 34)


def whole(usage: Any = USAGE, **fields: Any) -> bytes:
    answer = {"id": "gen-1", "choices": [{"message": {"content": 'my "usage" was {"cost": 9}'}}]}
    return json.dumps(answer | {"usage": usage} | fields).encode()


def stream(usage: Any = USAGE, newline: str = "\n") -> bytes:
    piece = {"id": "gen-1", "choices": [{"delta": {"content": 'data: {"usage": {"cost": 9}}\n'}}]}
    events = [
        ": OPENROUTER PROCESSING",
        f"data: {json.dumps(piece)}",
        f"data: {json.dumps(piece | {'usage': None})}",
        f"data: {json.dumps({'id': 'gen-1', 'choices': [], 'usage': usage})}",
        "data: [DONE]",
    ]
    return "".join(event + 2 * newline for event in events).encode()


def read(
    raw: bytes, cuts: list[int], *, streamed: bool
) -> tuple[str | None, int | None, int | None, int | None]:
    reader = UsageReader(None, stream=streamed)
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    for start, end in pairwise(edges):
        reader.feed(raw[start:end])
    reader.end()
    return reader.generation, reader.cost, reader.prompt_tokens, reader.completion_tokens


CUTS = st.lists(st.integers(0, 2000), max_size=40)


@given(CUTS, st.sampled_from(["\n", "\r\n"]))
@example(list(range(2000)), "\n")
def test_a_streams_usage_is_found_wherever_it_is_cut(cuts: list[int], newline: str) -> None:
    assert read(stream(newline=newline), cuts, streamed=True) == FOUND


@given(CUTS)
@example(list(range(2000)))
def test_a_whole_answers_usage_is_found_wherever_it_is_cut(cuts: list[int]) -> None:
    assert read(whole(), cuts, streamed=False) == FOUND


@given(st.binary(max_size=200), CUTS, st.booleans())
def test_an_answer_that_is_nonsense_says_nothing_of_its_cost(
    raw: bytes, cuts: list[int], streamed: bool
) -> None:
    assert read(raw, cuts, streamed=streamed)[1] is None


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"cost": None},
        {"cost": -0.01},
        {"cost": 1_000_001},
        {"cost": "NaN"},
        {"cost": "sNaN"},
        {"cost": "-Infinity"},
        {"cost": "1e999999"},
        {"cost": "1e99999999999999999999"},
        {"cost": "free"},
        {"cost": [1]},
        {"cost": 1, "prompt_tokens": -1},
        {"cost": 1, "completion_tokens": 10**30},
        [],
        "0",
    ],
    ids=str,
)
@pytest.mark.parametrize("streamed", [True, False])
def test_a_cost_that_nobody_would_believe_is_no_report(usage: Any, streamed: bool) -> None:
    raw = stream(usage) if streamed else whole(usage)
    assert read(raw, [], streamed=streamed)[:2] == ("gen-1" if streamed or _keeps_id(usage) else None, None)


def _keeps_id(usage: Any) -> bool:
    """Whether the answer around it can still be read."""
    return usage is None or (isinstance(usage, dict) and _plain(usage))


def _plain(usage: dict[str, Any]) -> bool:
    odd = ("1e99999999999999999999", "free", [1])
    return usage.get("cost") not in odd and not {"prompt_tokens", "completion_tokens"} & usage.keys()


@given(st.decimals(0, 1_000_000, allow_nan=False))
def test_a_cost_is_nano_dollars_rounded_up(dollars: Decimal) -> None:
    assert cost_of(dollars) == ceil(Fraction(dollars) * 10**9)


@pytest.mark.parametrize("identity", ["", "x" * 201, 5, ["gen"]])
def test_an_id_in_the_headers_counts_before_one_in_the_answer(identity: Any) -> None:
    reader = UsageReader("gen-head", stream=False)
    reader.feed(whole(id=identity))
    reader.end()
    assert reader.generation == "gen-head"


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("size", [1000, 65536, 300_000])
def test_an_endless_answer_without_a_line_end_fills_no_memory(streamed: bool, size: int) -> None:
    reader = UsageReader(None, stream=streamed)
    piece = b"data: " + b"x" * size
    tracemalloc.start()
    try:
        for _ in range(20_000_000 // size):
            reader.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()
    reader.end()
    assert reader.cost is None


def _long_stream(line: int) -> Iterator[bytes]:
    raw = b"data: " + b"x" * line + b"\n\n" + stream()
    for at in range(0, len(raw), 4096):
        yield raw[at : at + 4096]


@pytest.mark.parametrize("line", [10, 65_530, 65_537, 500_000])
def test_a_line_too_long_to_be_kept_hides_no_later_one(line: int) -> None:
    reader = UsageReader(None, stream=True)
    for piece in _long_stream(line):
        reader.feed(piece)
    assert (reader.generation, reader.cost) == FOUND[:2]
