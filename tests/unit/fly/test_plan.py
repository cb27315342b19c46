"""What becomes of a user's settings, before anybody is asked anything."""

from typing import Any

import pytest
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._fly import (
    AUTOSTOP_OFF,
    AUTOSTOP_ON,
    plan,
    render,
    settings,
)

TOKEN = f"123456789:AA{'x' * 33}"
AGENTS = {"nullclaw": {"image": "registry.example.test/nullclaw:v1", "memory_mb": 256, "owner_names": False}}


def planned(remotes: list[dict[str, Any]] | None = None, **entry: Any) -> dict[str, Any]:
    bot, problems = plan({"token": TOKEN, "owner": "4242", **entry}, remotes or [], AGENTS, "nullclaw")
    assert problems == []
    return bot


def remote(bot: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The bot as the host has it after a deploy."""
    row = {"telegram_id": bot["telegram_id"], "name": bot["name"], "agent": bot["agent"]}
    return {**row, "state": "active", "settings": settings(bot), **changes}


def test_a_token_and_an_owner_are_enough() -> None:
    bot = planned()
    assert (bot["name"], bot["app"], bot["region"]) == ("bot-123456789", "claw-bot-123456789", "fra")
    assert bot["guest"] == {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}
    assert (bot["known"], bot["active"]) == (False, False)


@pytest.mark.parametrize(
    ("entry", "autostop", "reason"),
    [
        ({}, "off", AUTOSTOP_OFF),
        ({"reach": "telegram", "open_to_all": True, "owner": ""}, "off", AUTOSTOP_OFF),
        ({"reach": "http"}, "suspend", AUTOSTOP_ON),
        ({"reach": "http", "size": "shared-cpu-2x", "memory_mb": 2560}, "stop", AUTOSTOP_ON),
    ],
)
def test_only_who_is_reached_by_http_alone_may_be_put_to_sleep(
    entry: dict[str, Any], autostop: str, reason: str
) -> None:
    bot = planned(**entry)
    assert (bot["autostop"], bot["autostop_reason"]) == (autostop, reason)
    account = {"balance_dollars": "1.00", "spend_limit": "prepaid"}
    extra = {
        "id": "abcdefghij01",
        "telegram_username": "b",
        "account": account,
        "talk": "",
        "gateway_token": None,
    }
    assert f"{'off' if autostop == 'off' else f'on ({autostop})'}: {reason}" in render({**bot, **extra}, "")


def test_what_is_not_named_again_is_kept() -> None:
    first = planned(region="ams", size="shared-cpu-2x", volume_gb=3, bot_name="support", bot_image="a/b:v2")
    again, problems = plan({"token": TOKEN}, [remote(first)], AGENTS, "nullclaw")
    assert problems == []
    kept = ("name", "app", "region", "guest", "volume_gb", "owner", "bot_image")
    assert {name: again[name] for name in kept} == {name: first[name] for name in kept}
    assert (again["known"], again["active"]) == (True, True)
    assert planned([remote(first, state="deploying")])["active"] is False


def test_an_owner_and_everybody_take_turns() -> None:
    owned = planned()
    opened, problems = plan({"token": TOKEN, "open_to_all": True}, [remote(owned)], AGENTS, "nullclaw")
    assert (problems, opened["owner"], opened["open_to_all"]) == ([], None, True)
    closed = planned([remote(opened)], owner="7")
    assert (closed["owner"], closed["open_to_all"]) == ("7", False)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"token": "nonsense"}, "token: is not a Telegram bot token"),
        ({"owner": None}, "owner: nobody could talk to the bot"),
        ({"owner": "@mallory"}, "owner: nullclaw knows people by their number, not as @mallory"),
        ({"open_to_all": True}, "open_to_all: contradicts owner '4242'"),
        ({"region": "Frankfurt"}, "region: 'Frankfurt' cannot be; write for example fra"),
        ({"size": "shared-cpu-3x"}, "size: 'shared-cpu-3x' does not exist; there are shared-cpu-1x"),
        ({"size": "large"}, "size: 'large' cannot be; write for example shared-cpu-1x"),
        ({"memory_mb": 300}, "memory_mb: 300 does not go with shared-cpu-1x"),
        ({"memory_mb": 4096}, "memory_mb: 4096 does not go with shared-cpu-1x"),
        ({"volume_gb": 0}, "volume_gb: '0' is not a whole number from 1 to 500"),
        (
            {"agent": "openclaw"},
            "agent: 'openclaw' cannot run at Fly.io; agents that can: nullclaw",
        ),
        ({"hostname": "a.example.com"}, "hostname: only a bot with reach=http has one"),
        ({"hostname": "nonsense", "reach": "http"}, "hostname: 'nonsense' cannot be"),
        ({"reach": "both"}, "reach: 'both' is neither telegram nor http"),
        ({"bot_name": "x" * 60}, "can have 58 characters"),
        ({"bot_image": "a/b:latest"}, "names no fixed version"),
        ({"plan": "small"}, "plan: no such setting"),
    ],
)
def test_what_cannot_be_is_said_with_its_fix(entry: dict[str, Any], sentence: str) -> None:
    _, problems = plan({"token": TOKEN, "owner": "4242", **entry}, [], AGENTS, "nullclaw")
    assert sentence in "\n".join(problems)
    assert TOKEN not in "\n".join(problems)


def test_all_problems_are_said_at_once() -> None:
    _, problems = plan(
        {"token": TOKEN, "region": "x", "volume_gb": -1, "reach": "post"}, [], AGENTS, "nullclaw"
    )
    assert len(problems) == 3
