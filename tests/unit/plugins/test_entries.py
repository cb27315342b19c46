"""What users may ask for: every mistake is found at once, named, and told how to mend, without a secret."""

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.clawdeploy.fleet.plugins.filter.bot_entries import bot_entries
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._entries import check_result_file, read_entries

TOKEN = "123456789:" + "A" * 35
OTHER = "987654321:" + "B" * 35


def problems(*entries: Any, **known: Any) -> list[str]:
    known = {"agents": ["nullclaw"], "plans": ["nullclaw-small"], "reserved": ["www"], **known}
    return read_entries(entries, **known)[1]


def test_a_token_is_enough() -> None:
    bots, found = read_entries([{"token": f" {TOKEN}\n"}], agents=["nullclaw"])
    assert found == []
    assert bots == [
        {
            "token": TOKEN,
            "telegram_id": 123456789,
            "bot_name": None,
            "plan": None,
            "owner": None,
            "agent": None,
            "bot_image": None,
            "bot_image_archive": None,
            "bot_env": None,
            "bot_config": None,
            "open_to_all": None,
            "balance": None,
            "spend_limit": None,
            "rotate_gateway_token": False,
            "skills": None,
            "tools": None,
            "migrate_from": None,
        }
    ]


def test_values_from_the_command_line_get_their_types() -> None:
    entry = {"token": TOKEN, "owner": 4242, "open_to_all": "", "rotate_gateway_token": "True", "bot_name": ""}
    bot = read_entries([entry])[0][0]
    assert (bot["owner"], bot["open_to_all"], bot["rotate_gateway_token"]) == ("4242", None, True)
    assert bot["bot_name"] is None


def test_environment_values_become_text() -> None:
    bot = read_entries([{"token": TOKEN, "bot_env": {"TZ": "UTC", "LEVEL": 3, "FAST": True}}])[0][0]
    assert bot["bot_env"] == {"TZ": "UTC", "LEVEL": "3", "FAST": "true"}


@pytest.mark.parametrize(
    "token",
    ["", "hello", "55555555", TOKEN[:-10], f"{TOKEN}/x", TOKEN.replace(":", ""), "bot" + TOKEN, None, ["x"]],
)
def test_malformed_token_is_described_but_never_shown(token: Any) -> None:
    (problem,) = problems({"token": token})
    assert problem.startswith("token: ")
    assert not token or str(token) not in problem


def test_shape_of_a_malformed_token_is_told() -> None:
    (problem,) = problems({"token": "not a token"})
    assert "11 characters, no colon, characters that no token has" in problem


@pytest.mark.parametrize(
    ("setting", "value", "part"),
    [
        ("bot_name", "My Bot", "'My Bot' is not a DNS label"),
        ("bot_name", "-x", "not a DNS label"),
        ("bot_name", "a" * 64, "not a DNS label"),
        ("bot_name", "a.b", "not a DNS label"),
        ("bot_name", "www", "reserved"),
        ("bot_name", True, "is a bool"),
        ("plan", "nulclaw-small", "did you mean nullclaw-small?"),
        ("plan", "zzz", "plans there are: nullclaw-small"),
        ("agent", "nullclow", "did you mean nullclaw?"),
        ("owner", "alice", "neither a Telegram user id"),
        ("owner", "@al", "neither a Telegram user id"),
        ("owner", "-5", "neither a Telegram user id"),
        ("bot_image", "nullclaw", "names no fixed version"),
        ("bot_image", "registry.example.com:5000/nullclaw", "names no fixed version"),
        ("bot_image", "nullclaw:latest", "not :latest"),
        ("bot_image_archive", "/nowhere/x.tar", "no such file on this machine: /nowhere/x.tar"),
        ("bot_env", "TZ=UTC", "is a str, expected a dictionary"),
        ("bot_env", {"A B": 1}, "is not a name"),
        ("bot_env", {"SEARCH_API_KEY": "hunter2"}, "SEARCH_API_KEY looks like a secret"),
        ("bot_env", {"DB_PASSWORD": "hunter2"}, "bot_config"),
        ("bot_env", {"LIST": [1]}, "LIST is a list"),
        ("bot_config", "[]", "expected a dictionary"),
        ("open_to_all", "maybe", "'maybe' is neither true nor false"),
        ("rotate_gateway_token", 7, "7 is neither true nor false"),
    ],
)
def test_value_that_cannot_be_used_is_one_problem_of_that_setting(
    setting: str, value: Any, part: str
) -> None:
    (problem,) = problems({"token": TOKEN, setting: value})
    assert problem.startswith(f"{setting}: ")
    assert part in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("bot_name", "my-bot-7"),
        ("bot_name", "a"),
        ("owner", "@alice_w"),
        ("plan", "nullclaw-small"),
        ("bot_image", "localhost:5000/x/nullclaw:v1"),
        ("bot_image", "nullclaw@sha256:" + "0" * 64),
        ("bot_env", {}),
    ],
)
def test_good_value_passes(setting: str, value: Any) -> None:
    assert problems({"token": TOKEN, setting: value}) == []


def test_archive_becomes_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.tar").touch()
    bots, found = read_entries([{"token": TOKEN, "bot_image_archive": "image.tar"}])
    assert found == []
    assert bots[0]["bot_image_archive"] == str(tmp_path / "image.tar")


def test_misspelt_setting_gets_a_suggestion() -> None:
    assert problems({"token": TOKEN, "bot_nmae": "x"}) == [
        "bot_nmae: no such setting; did you mean bot_name?"
    ]


def test_problems_of_all_bots_are_reported_together() -> None:
    assert problems({"token": TOKEN, "plan": "x"}, {"token": "x"}, "y") == [
        "bots[0].plan: 'x' does not exist; plans there are: nullclaw-small",
        next(text for text in problems({"token": TOKEN}, {"token": "x"})),
        "bots[2]: is a str, expected a dictionary with a token",
    ]


def test_same_token_twice_names_both_places() -> None:
    assert problems({"token": TOKEN}, {"token": OTHER}, {"token": TOKEN}) == [
        "bots[2].token: same as in bots[0]; each bot needs its own"
    ]


def test_same_name_twice_names_both_places() -> None:
    assert problems({"token": TOKEN, "bot_name": "a"}, {"token": OTHER, "bot_name": "a"}) == [
        "bots[1].bot_name: same as in bots[0]; each bot needs its own"
    ]


def test_owner_contradicts_open_to_all() -> None:
    (problem,) = problems({"token": TOKEN, "owner": "4242", "open_to_all": True})
    assert problem == "open_to_all: contradicts owner '4242'; give one of the two"


def test_no_bot_at_all_is_a_problem() -> None:
    assert problems() == ["no bot to deploy: give token=… or a list of bots"]


def test_filter_refuses_what_the_check_refuses() -> None:
    assert bot_entries([{"token": TOKEN}])[0]["telegram_id"] == 123456789
    with pytest.raises(AnsibleFilterError, match="bot_name"):
        bot_entries([{"token": TOKEN, "bot_name": "A"}])


def test_result_file_needs_a_directory(tmp_path: Path) -> None:
    assert check_result_file("") == []
    assert check_result_file(str(tmp_path / "cards.json")) == []
    assert check_result_file(str(tmp_path)) == [f"result_file: {tmp_path} is a directory; name a file in it"]
    assert check_result_file(str(tmp_path / "no" / "cards.json")) == [
        f"result_file: no directory {tmp_path / 'no'} on this machine; create it first"
    ]


@pytest.mark.parametrize(
    ("given", "read"), [("5.00", "5.00"), (5, "5"), (5.5, "5.5"), ("0.000000001", "0.000000001")]
)
def test_amounts_are_taken_as_people_and_yaml_write_them(given: object, read: str) -> None:
    bots, found = read_entries([{"token": TOKEN, "balance": given}])
    assert found == []
    assert bots[0]["balance"] == read


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("balance", "5,00"),
        ("balance", "-1"),
        ("balance", 1e-12),
        ("balance", True),
        ("balance", "12345678"),
        ("spend_limit", "2.00/week"),
        ("spend_limit", "much"),
        ("spend_limit", 2),
    ],
)
def test_money_that_makes_no_sense_is_refused_by_name(setting: str, value: object) -> None:
    _, (problem,) = read_entries([{"token": TOKEN, setting: value}])
    assert problem.startswith(f"{setting}: ")
    assert "5.00" in problem or "2.00/day" in problem or "expected text" in problem
