"""Bots that run elsewhere: keys that are good from this host's edge alone, and money like any other bot's."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.llm_gateway.harness import BOT, BOT_KEY, NEIGHBOUR, Bots, Upstream, refusal, status_of

REMOTE_KEY = "sk-claw-of-a-bot-at-fly"
EDGE, ELSEWHERE = "127.0.0.1", "127.0.0.2"


def write_remote(settings: dict[str, Any], **changes: Any) -> None:
    """The file as clawctl writes it: NEIGHBOUR runs elsewhere."""
    digest = hashlib.sha256(REMOTE_KEY.encode()).hexdigest()
    entry = {"bot": NEIGHBOUR, "subnet": None, "suspended": False, "refusal": "error"} | changes
    path: Path = settings["remote_keys_file"]
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"keys": {digest: entry}}))
    new.rename(path)


async def test_a_key_of_a_bot_elsewhere_is_good_from_the_edge_only(
    bots: Bots, settings: dict[str, Any], upstream: Upstream
) -> None:
    write_remote(settings)
    async with bots.session(EDGE, REMOTE_KEY) as edge, bots.session(ELSEWHERE, REMOTE_KEY) as bot:
        assert await status_of(edge) == 200
        assert await status_of(bot) == 401
    (call,) = await bots.settled(bot=NEIGHBOUR)
    assert call["charged"] > 0
    assert await bots.calls(BOT) == []
    assert upstream.bodies[0]["user"] == NEIGHBOUR


async def test_a_key_of_a_bot_of_this_host_is_not_good_from_the_edge(
    bots: Bots, settings: dict[str, Any]
) -> None:
    write_remote(settings)
    async with bots.session(EDGE, BOT_KEY) as edge, bots.session(ELSEWHERE, BOT_KEY) as bot:
        assert await status_of(edge) == 401
        assert await status_of(bot) == 200


async def test_suspended_is_suspended_and_a_key_that_was_taken_back_is_unknown(
    bots: Bots, settings: dict[str, Any]
) -> None:
    write_remote(settings, suspended=True)
    async with bots.session(EDGE, REMOTE_KEY) as edge:
        assert await status_of(edge) == 403
        settings["remote_keys_file"].write_text('{"keys": {}}')
        assert await status_of(edge) == 401


@pytest.mark.parametrize("subnet", ["127.0.0.0/8", "0.0.0.0/0"])
async def test_a_file_that_opens_such_a_key_to_a_subnet_is_broken(
    bots: Bots, settings: dict[str, Any], subnet: str
) -> None:
    write_remote(settings, subnet=subnet)
    async with bots.session(EDGE, REMOTE_KEY) as edge, bots.session(ELSEWHERE, REMOTE_KEY) as bot:
        assert [await status_of(edge), await status_of(bot)] == [401, 401]
    async with bots.session(ELSEWHERE, BOT_KEY) as bot:
        assert await status_of(bot) == 200


async def test_a_bot_of_this_host_without_a_subnet_makes_its_file_broken(bots: Bots) -> None:
    digest = hashlib.sha256(BOT_KEY.encode()).hexdigest()
    bots.write(json.dumps({"keys": {digest: {"bot": BOT, "subnet": None, "suspended": False}}}))
    async with bots.session(EDGE, BOT_KEY) as edge:
        assert await status_of(edge) == 401


async def test_an_empty_balance_is_refused_there_too(start: Any, settings: dict[str, Any]) -> None:
    bots = await start(balance="0")
    write_remote(settings)
    async with bots.session(EDGE, REMOTE_KEY) as edge, edge.post("/api/v1/chat/completions", json={
        "model": "any/model", "messages": [{"role": "user", "content": "hi"}]
    }) as response:  # fmt: skip
        status, message = await refusal(response)
    assert (status, "used up" in message) == (402, True)
