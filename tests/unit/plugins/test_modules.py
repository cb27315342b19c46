"""The modules hand clawctl exactly what it takes, by standard input, and report what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.clawdeploy.fleet.plugins.modules import (
    bot_backup,
    bot_balance,
    bot_home,
    bot_info,
    bot_live,
    bot_registry,
    bot_restore,
    bot_routes,
    bot_top_up,
    host_info,
)

from tests.unit.plugins.conftest import Calls, RunModule

SECRET = "123456789:" + "S" * 35
EDGE = {
    "body_limit": 3072,
    "routes": [{"path": "/health", "match": "exact", "port": 3000, "auth": "public"}],
}
BOT = {
    "telegram_id": 123456789,
    "telegram_username": "my_bot",
    "telegram_token": SECRET,
    "name": None,
    "agent": "nullclaw",
    "plan": "nullclaw-small",
    "owner": "4242",
    "open_to_all": False,
    "rotate_gateway_token": False,
    "interface": "api",
    "llm_refusal": "message",
    "image": "nullclaw:1",
    "edge": EDGE,
}


def test_host_info_returns_host_bots_and_images(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["host"] = {"plans": {}, "bots": [{"id": "a"}], "images": {"x:1": "sha256:1"}}
    result = run_module(host_info)
    assert (result["changed"], result["host"], result["bots"]) == (False, {"plans": {}}, [{"id": "a"}])
    assert result["images"] == {"x:1": "sha256:1"}
    assert [call[0] for call in calls()] == [["host", "--all", "--json"]]


def test_unprepared_host_is_told_to_be_prepared(
    run_module: RunModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_module(host_info)
    assert result["failed"] is True
    assert "run the prepare_host playbook" in result["msg"]


def test_declare_sends_secrets_by_standard_input_only(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["declare"] = {"changed": True, "diff": {"before": "", "after": "x"}, "bots": [{"id": "a"}]}
    result = run_module(bot_registry, run_id="0011aabb", bots=[BOT])
    (argv, request) = calls()[0]
    assert argv == ["declare", "--json"]
    expected = {name: value for name, value in BOT.items() if value is not None}
    assert request == {"run_id": "0011aabb", "bots": [expected]}
    assert result["bots"] == [{"id": "a"}]
    assert result["changed"] is True
    assert result["diff"] == {"before": "", "after": "x"}
    assert SECRET not in json.dumps(result)  # not even among the module's arguments


def test_declare_in_check_mode_only_asks(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["declare"] = {"changed": True, "diff": {}, "bots": []}
    assert run_module(bot_registry, check_mode=True, run_id="0011aabb", bots=[BOT])["changed"] is True
    assert calls()[0][0] == ["declare", "--check", "--json"]


def test_refusal_is_clawctl_s_own_sentence(run_module: RunModule, answers: dict[str, Any]) -> None:
    answers["declare"] = {
        "error": {"code": "name_taken", "message": "bot_name 'x' is taken: choose another."}
    }
    result = run_module(bot_registry, run_id="0011aabb", bots=[BOT])
    assert (result["failed"], result["code"]) == (True, "name_taken")
    assert result["msg"] == "bot_name 'x' is taken: choose another."


def test_crash_shows_only_the_last_line(run_module: RunModule, answers: dict[str, Any]) -> None:
    answers["sync"] = "no json"
    result = run_module(bot_routes)
    assert result["msg"] == "clawctl sync failed (exit 1): last words"


def test_bookkeeping_is_not_done_in_check_mode(
    run_module: RunModule, answers: dict[str, Any], tmp_path: Path
) -> None:
    result = run_module(bot_registry, check_mode=True, state="released", run_id="0011aabb")
    assert result["changed"] is False
    assert not (tmp_path / "calls").exists()


def test_absent_removes_what_is_there_and_is_quiet_about_the_rest(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["list"] = {"bots": [{"id": "a"}, {"id": "b"}]}
    answers["destroy"] = {"changed": True}
    assert run_module(bot_registry, check_mode=True, state="absent", ids=["a", "c"])["changed"] is True
    assert run_module(bot_registry, state="absent", ids=["a", "c"])["changed"] is True
    answers["list"] = {"bots": [{"id": "b"}]}
    assert run_module(bot_registry, check_mode=True, state="absent", ids=["a", "c"])["changed"] is False
    assert run_module(bot_registry, state="absent", ids=["a", "c"])["changed"] is False
    destroyed = [call[0] for call in calls() if call[0][0] == "destroy"]
    assert destroyed == [["destroy", "a", "--purge", "--yes", "--json"]]


def test_absent_keeps_the_data_that_a_bot_began_with(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["list"] = {"bots": [{"id": "a"}, {"id": "b"}]}
    answers["destroy"] = {"changed": True}
    assert run_module(bot_registry, state="absent", ids=["a"], kept_ids=["b"])["changed"] is True
    flags = {call[0][1]: call[0][2] for call in calls() if call[0][0] == "destroy"}
    assert flags == {"a": "--purge", "b": "--keep-data"}


def test_homes_are_handed_over_whole_and_contents_never_come_back(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["home"] = {"changed": True, "diff": {}, "bots": [{"id": "a", "changed": [], "config_hash": "h"}]}
    home = {
        "id": "abcdefghij01",
        "uid": 200000,
        "disk_size": 1 << 30,
        "directories": [{"path": "data", "mode": "0700"}],
        "files": [{"path": "config/config.json", "content": f'{{"t": "{SECRET}"}}', "mode": "0400"}],
        "claim_file": {"path": "config/config.json", "content": "__CLAWDEPLOY_OWNER__"},
    }
    result = run_module(bot_home, bots=[home])
    (argv, request) = calls()[0]
    assert argv == ["home", "apply", "--json"]
    assert request["bots"] == [{**home, "files": [{**home["files"][0], "seed": False}]}]  # type: ignore[index]
    assert SECRET not in json.dumps(result)
    run_module(bot_home, check_mode=True, bots=[home])
    assert calls()[1][0] == ["home", "apply", "--check", "--json"]


def test_routes_follow_the_registry(run_module: RunModule, answers: dict[str, Any], calls: Calls) -> None:
    answers["sync"] = {"changed": True, "diff": {"before": "a", "after": "b"}, "maps": ["hosts.map"]}
    assert run_module(bot_routes)["maps"] == ["hosts.map"]
    run_module(bot_routes, check_mode=True)
    assert [call[0] for call in calls()] == [["sync", "--json"], ["sync", "--check", "--json"]]


def test_unhealthy_bot_is_reported_not_a_failure(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    sick = {"id": "a", "healthy": False, "reason": "exited", "log_tail": ["boom"]}
    answers["live"] = {"changed": True, "diff": {}, "maps": [], "bots": [sick]}
    deployed = [
        {
            "id": "a",
            "config_hash": "h",
            "image_digest": "sha256:1",
            "balance": "1.00",
            "spend_limit": None,
            "container": {"image": "x:1"},
        }
    ]
    result = run_module(bot_live, run_id="0011aabb", bots=deployed, timeout=5)
    assert result.get("failed", False) is False
    assert result["bots"][0]["log_tail"] == ["boom"]
    assert calls() == [[["live", "--timeout", "5", "--json"], {"run_id": "0011aabb", "bots": deployed}]]


def test_a_top_up_changes_something_once_and_says_what(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    payment = {"bot": "support", "amount": "5.00", "ref": "--invoice"}
    paid = {"changed": True, "diff": {"before": "$1.00", "after": "$6.00"}, "balance_dollars": "6.00"}
    answers["top-up"] = paid
    assert run_module(bot_top_up, check_mode=True, **payment)["changed"]
    result = run_module(bot_top_up, **payment)
    assert (result["changed"], result["diff"]["after"], result["balance_dollars"]) == (True, "$6.00", "6.00")
    answers["top-up"] = paid | {"changed": False}
    assert not run_module(bot_top_up, check_mode=True, **payment)["changed"]
    assert not run_module(bot_top_up, **payment)["changed"]
    argv = ["top-up", "--ref=--invoice", "support", "5.00", "--json"]
    assert [call[0] for call in calls()] == [[*argv[:2], "--check", *argv[2:]], argv] * 2


def test_balances_and_bots_are_read(run_module: RunModule, answers: dict[str, Any], calls: Calls) -> None:
    answers["balance"] = {"accounts": [{"id": "a"}]}
    answers["list"] = {"bots": [{"id": "a", "account": None}]}
    assert run_module(bot_balance, bots=["a"])["accounts"] == [{"id": "a"}]
    assert run_module(bot_balance)["changed"] is False
    assert run_module(bot_info)["bots"] == [{"id": "a", "account": None}]
    assert [call[0] for call in calls()] == [
        ["balance", "a", "--json"], ["balance", "--json"], ["list", "--json"]
    ]  # fmt: skip


def test_backups_are_made_of_all_or_of_some(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["backup"] = {"changed": True, "diff": {}, "snapshots": [{"what": "a"}], "skipped": []}
    assert run_module(bot_backup)["snapshots"] == [{"what": "a"}]
    run_module(bot_backup, check_mode=True, bots=["a", "b"])
    answers["backup"] = {"error": {"code": "wrong_password", "message": "another password"}}
    assert run_module(bot_backup)["code"] == "wrong_password"
    assert [call[0] for call in calls()][:2] == [
        ["backup", "run", "--json"], ["backup", "run", "--check", "a", "b", "--json"]
    ]  # fmt: skip


def test_a_restore_is_the_bot_or_why_it_does_not_answer(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    bot = {"id": "a", "label": "support", "healthy": True, "reason": ""}
    answers["restore"] = {"changed": True, "diff": {"before": "", "after": "x"}, "bots": [bot]}
    result = run_module(bot_restore, bot="support", snapshot="1a2b3c4d", with_balance=True)
    assert (result["bot"]["id"], result["changed"]) == ("a", True)
    assert run_module(bot_restore, check_mode=True, bot="support")["diff"]["after"] == "x"
    answers["restore"] = {"changed": True, "bots": [bot | {"healthy": False, "reason": "it exited"}]}
    failed = run_module(bot_restore, bot="support")
    assert failed["msg"] == "support is restored, but does not answer: it exited"
    assert [call[0] for call in calls()][:2] == [
        ["restore", "--timeout=60", "--snapshot=1a2b3c4d", "--with-balance", "support", "--json"],
        ["restore", "--timeout=60", "--check", "support", "--json"],
    ]
