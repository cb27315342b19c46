"""The deploy card shows what a person needs, and a secret only when it is new."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._card import KEPT, render
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._files import write_private

LINK = "https://t.me/my_bot?start=code"
BOT: dict[str, Any] = {
    "id": "abcdefghij01",
    "label": "mybot",
    "url": "https://mybot.bots.example.com/",
    "telegram_username": "my_bot",
    "agent": "nullclaw",
    "plan": "nullclaw-small",
    "limits": {
        "cpus": 0.5,
        "memory_limit": 64 << 20,
        "disk_size": 1 << 30,
        "rate_limit_rps": 5,
        "rate_limit_burst": 20,
    },
    "owner": None,
    "open_to_all": False,
    "gateway_token": "cg_secret",
    "claim": {"state": "issued", "link": LINK, "expires": "2026-11-23T10:00:00+00:00"},
    "account": {"balance_dollars": "1.00", "spend_limit": "prepaid"},
    "talk": "curl https://mybot.bots.example.com/webhook\n",
}
AGAIN = {**BOT, "gateway_token": None, "claim": {"state": "pending", "link": None, "expires": "tomorrow"}}


def test_first_card_has_everything_to_begin_with() -> None:
    text = render([BOT], "help@example.com")
    assert "0.5 CPU, 64 MiB memory, 1024 MiB disk, 5 requests/s (burst 20)" in text
    parts = (
        BOT["url"],
        "cg_secret",
        LINK,
        "2026-11-23",
        "curl https://",
        "help@example.com",
        "@my_bot",
        "$1.00",
    )
    assert [part for part in parts if part not in text] == []


def test_second_card_has_no_secret_but_the_way_to_new_ones() -> None:
    text = render([AGAIN], "")
    assert KEPT in text
    assert "clawctl claims new abcdefghij01" in text
    assert "code" not in text.replace("claim", "")


@pytest.mark.parametrize(
    ("changes", "who"),
    [
        ({"owner": "4242"}, "only 4242"),
        ({"open_to_all": True}, "everybody"),
        ({}, "nobody until it is claimed"),
    ],
)
def test_card_says_who_may_talk_on_telegram(changes: dict[str, Any], who: str) -> None:
    text = render([{**BOT, **changes}], "")
    assert who in text
    assert (LINK in text) is (not changes)


def test_several_bots_become_a_list() -> None:
    text = render([BOT, {**AGAIN, "label": "other"}], "help@example.com")
    assert "2 bots" in text
    assert text.count("cg_secret") == 1
    assert text.count("help@example.com") == 1
    assert "other (@my_bot)" in text


def test_result_file_is_private_and_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "cards.json"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, json.dumps({"a": 1}))
    assert json.loads(path.read_text()) == {"a": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_private(tmp_path / "taken", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("spend_limit", "told"),
    [("2.00/day", "you pay for its model, up to $2.00/day"), ("unlimited", "whatever")],
)
def test_a_card_says_who_pays(spend_limit: str, told: str) -> None:
    text = render([{**BOT, "account": {"balance_dollars": "0.00", "spend_limit": spend_limit}}], "")
    assert told in text
    assert "$0.00" not in text
