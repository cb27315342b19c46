"""The table of prices: the dearest counts, nonsense is left out, and the last good table is kept."""

import asyncio
import contextlib
import json
from decimal import Decimal
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from clawdeploy.ledger import FEMTO
from clawdeploy.llm_gateway.prices import Price, Prices, operators_price, read_table
from tests.unit.llm_gateway.harness import MODEL, Start, Upstream, chat, eventually, post

DOLLARS = st.decimals(0, 1, places=15)
KINDS = ("prompt", "completion", "request", "input_cache_write", "internal_reasoning")
STEPS = st.fixed_dictionaries({}, optional={kind: DOLLARS for kind in KINDS})


def table(**pricing: Any) -> bytes:
    return json.dumps({"data": [{"id": MODEL, "pricing": pricing}]}, default=str).encode()


def femto(dollars: str) -> int:
    return ceil(Fraction(dollars) * FEMTO)


@given(STEPS, st.lists(STEPS, max_size=3), DOLLARS, DOLLARS)
def test_the_dearest_of_all_steps_caches_and_reasoning_counts(
    first: dict[str, Decimal], overrides: list[dict[str, Decimal]], prompt: Decimal, completion: Decimal
) -> None:
    first = first | {"prompt": prompt, "completion": completion}
    price = read_table(table(**first, overrides=overrides))[MODEL]

    def dearest(*kinds: str) -> int:
        said = [step[kind] for step in (first, *overrides) for kind in kinds if kind in step]
        return max((femto(str(dollars)) for dollars in said), default=0)

    assert price == Price(
        prompt=dearest("prompt", "input_cache_write"),
        completion=dearest("completion", "internal_reasoning"),
        request=dearest("request"),
        image=0,
        cap_prompt=dearest("prompt"),
    )


@pytest.mark.parametrize("kind", [*KINDS, "image"])
@pytest.mark.parametrize("odd", ["-1", "NaN", "sNaN", "Infinity", "-0.1", "101", "1e999999", 1e300, [], "x"])
def test_a_model_with_an_odd_price_is_left_out_and_the_others_stay(kind: str, odd: Any) -> None:
    good = {"prompt": "0.000001", "completion": "0.000002"}
    models = [{"id": "odd", "pricing": good | {kind: odd}}, {"id": "good", "pricing": good}]
    assert set(read_table(json.dumps({"data": models}).encode())) == {"good"}
    if kind != "image":
        models[0]["pricing"] = good | {"overrides": [{kind: odd}]}
        assert set(read_table(json.dumps({"data": models}).encode())) == {"good"}


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"id": 5},
        {"id": "odd"},
        {"id": "odd", "pricing": None},
        {"id": "odd", "pricing": {"prompt": "1"}},
        {"id": "odd", "pricing": {"completion": "1"}},
        [],
        None,
    ],
    ids=str,
)
def test_a_model_without_both_prices_is_left_out(model: Any) -> None:
    assert read_table(json.dumps({"data": [model]}).encode()) == {}


@given(
    st.binary(max_size=60) | st.recursive(st.none() | st.text(max_size=5), st.lists).map(repr).map(str.encode)
)
def test_what_is_no_table_is_an_error_of_value(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert read_table(raw) == {}


def test_a_price_of_more_digits_than_fit_is_rounded_up() -> None:
    price = read_table(table(prompt="0.00000000000000000000000000000000000001", completion="0"))[MODEL]
    assert (price.prompt, price.completion) == (1, 0)


def test_the_operators_price_wins_for_the_fixed_model_only(tmp_path: Path) -> None:
    kept = {"fetched": 7, "prices": {name: dict.fromkeys(KEPT, 3) for name in (MODEL, "other/model")}}
    (tmp_path / "prices.json").write_text(json.dumps(kept))
    own = operators_price({"prompt": "0.5", "completion": "1.5", "request": "0.01"})
    prices = Prices(tmp_path / "prices.json", MODEL, own)
    assert prices.find(MODEL) == own
    assert own is not None
    assert (own.prompt, own.completion, own.request) == (femto("5e-7"), femto("15e-7"), femto("0.01"))
    assert prices.describe(MODEL) == {
        "model": MODEL, "source": "operator", "fetched": None,
        "prompt": "0.5", "completion": "1.5", "request": "0.01",
    }  # fmt: skip
    assert (prices.describe("other/model") or {})["source"] == "table"
    assert (prices.find("no/such"), prices.describe("no/such")) == (None, None)


KEPT = ("prompt", "completion", "request", "image", "cap_prompt")


@pytest.mark.parametrize("text", ["", "[]", '{"fetched": 0, "prices": {"a": {}}}', "\ufffd"])
def test_a_broken_copy_of_the_table_is_no_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "prices.json").write_text(text)
    assert Prices(tmp_path / "prices.json", MODEL, None).find(MODEL) is None


async def test_a_fetched_table_outlives_a_restart_and_a_broken_one_replaces_nothing(tmp_path: Path) -> None:
    answers = [
        web.Response(body=table(prompt="0.000001", completion="0.000002")),
        web.Response(status=500),
        web.Response(body=b"<html>"),
        web.Response(body=b'{"data": []}'),
    ]

    async def models(_request: web.Request) -> web.Response:
        return answers.pop(0)

    app = web.Application()
    app.router.add_get("/models", models)
    async with TestServer(app) as server, ClientSession() as session:
        prices, url = Prices(tmp_path / "prices.json", MODEL, None), str(server.make_url("/models"))
        await prices.refresh(session, url)
        fetched = prices.find(MODEL)
        assert fetched is not None
        for error in ("500", "malformed", "no model with a price"):
            with pytest.raises(Exception, match=error):
                await prices.refresh(session, url)
        assert prices.find(MODEL) == fetched
    assert Prices(tmp_path / "prices.json", MODEL, None).find(MODEL) == fetched


async def test_a_model_without_a_price_is_refused_until_the_table_has_one(
    start: Start, upstream: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.models = {"data": [{"id": "other/model", "pricing": {"prompt": "1e999999", "completion": "0"}}]}
    bots = await start(price=None, price_refresh=0.01)
    status, message = await post(bots)
    assert (status, "the operator has been told" in message) == (503, True)
    assert "event=no_price" in caplog.text
    assert (await bots.ask("/price"))[0] == 404
    assert upstream.bodies == []
    upstream.models = json.loads(table(prompt="0.000001", completion="0.000002"))

    async def priced() -> bool:
        return (await bots.ask("/price"))[0] == 200

    await eventually(priced)
    async with bots.session() as bot, bot.post("/api/v1/chat/completions", json=chat()) as response:
        assert response.status == 200
    assert upstream.bodies[0]["provider"] == {"max_price": {"prompt": 1.0, "completion": 2.0}}
    assert (await asyncio.to_thread((tmp_path / "prices.json").read_bytes)).count(b"cap_prompt") == 1
