"""Bots that run elsewhere, in registry, ledger, edge and LLM gateway."""

import json
import os
import stat
from typing import Any

import pytest

from clawdeploy import edge, remotes
from clawdeploy.cli import Machine
from clawdeploy.host import Paths
from clawdeploy.ledger_client import LedgerClient
from clawdeploy.tokens import sha256_hex

from .conftest import RUN, RunningHAProxy, make_host, set_host, wanted
from .harness import ask, declared, run

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's"),
    pytest.mark.usefixtures("ledger"),
]

URL = "https://llm.bots.example.test/api/v1"


def request(number: int = 1, **changes: Any) -> dict[str, Any]:
    bot = wanted(number)
    shared = {name: bot[name] for name in ("telegram_id", "telegram_username", "telegram_token", "agent")}
    return {
        **shared,
        "name": f"fly-{number}",
        "target": "fly",
        "settings": {"app": f"claw-fly-{number}", "region": "fra"},
        "balance": "2.00",
        "llm_refusal": "message",
    } | changes


@pytest.fixture(autouse=True)
def door(paths: Paths) -> None:
    """A host that was prepared with platform_remote_bots."""
    set_host(paths, llm_public_url=URL)


def declare(machine: Machine, *arguments: str, code: int = 0, **changes: Any) -> Any:
    return ask(machine, "remote", "declare", *arguments, request=request(**changes), code=code)


def keys(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.paths.remote_llm_keys.read_text())["keys"]
    return found


def test_a_bot_gets_a_key_that_edge_and_gateway_know_and_an_account(
    machine: Machine, ledger: LedgerClient
) -> None:
    told = declare(machine, "--check")
    assert (told["changed"], ask(machine, "remote", "list")["bots"]) == (True, [])
    assert ledger.accounts() == []
    made = declare(machine)["bot"]
    digest = sha256_hex(made["llm_key"])
    assert (made["created"], made["state"]) == (True, "deploying")
    assert keys(machine) == {
        digest: {"bot": made["id"], "subnet": None, "suspended": False, "refusal": "message"}
    }
    assert (machine.paths.maps / remotes.KEYS_MAP).read_text() == f"{digest} {made['id']}\n"
    assert ledger.account(made["id"]).balance == 2 * 10**9
    secret = machine.paths.secrets / f"{made['id']}.json"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    (listed,) = ask(machine, "remote", "list")["bots"]
    assert listed["settings"] == {"app": "claw-fly-1", "region": "fra"}
    assert made["llm_key"] not in json.dumps(listed)


def test_the_same_bot_again_changes_nothing_and_keeps_its_key(machine: Machine) -> None:
    first = declare(machine)["bot"]
    for check in ((), ("--check",)):
        again = declare(machine, *check)
        assert (again["changed"], again["bot"]["created"]) == (False, False)
        assert again["bot"]["llm_key"] == first["llm_key"]
    moved = declare(machine, settings={"app": "other"})
    assert (moved["changed"], moved["bot"]["id"]) == (True, first["id"])


def test_its_deploy_ends_once(machine: Machine) -> None:
    bot = declare(machine)["bot"]
    assert [ask(machine, "remote", "settle", "fly-1")["changed"] for _ in range(2)] == [True, False]
    assert declare(machine)["bot"]["state"] == "active"
    kinds = [event["kind"] for event in ask(machine, "events", bot["id"])["events"]]
    assert kinds == ["deployed"]


def test_a_suspended_bot_is_known_and_refused(machine: Machine) -> None:
    declare(machine)
    arguments = ("remote", "suspend", "fly-1", "--reason", "abuse report 4711")
    assert [ask(machine, *arguments)["changed"] for _ in range(2)] == [True, False]
    assert [one["suspended"] for one in keys(machine).values()] == [True]
    assert "abuse report 4711" in run(machine, "remote", "list").stdout
    assert declare(machine, code=1)["error"]["code"] == "suspended"
    assert ask(machine, "remote", "resume", "fly-1")["changed"]
    assert [one["suspended"] for one in keys(machine).values()] == [False]


def test_forgetting_a_bot_takes_its_key_back_and_leaves_its_books(
    machine: Machine, ledger: LedgerClient
) -> None:
    bot = declare(machine)["bot"]
    assert ask(machine, "remote", "forget", "fly-1", "--check")["changed"]
    assert len(keys(machine)) == 1
    gone = ask(machine, "remote", "forget", "fly-1")
    assert gone["statement"]["balance_dollars"] == "2.00"
    assert (keys(machine), list(machine.paths.secrets.iterdir())) == ({}, [])
    assert (machine.paths.maps / remotes.KEYS_MAP).read_text() == ""
    assert ledger.account(bot["id"]).balance == 2 * 10**9
    assert not ask(machine, "remote", "forget", "fly-1")["changed"]


def test_money_verbs_find_it_by_its_name(machine: Machine) -> None:
    bot = declare(machine)["bot"]
    assert ask(machine, "top-up", "fly-1", "3.00", "--ref", "invoice-1")["balance_dollars"] == "5.00"
    assert [one["label"] for one in ask(machine, "balance")["accounts"]] == ["fly-1"]
    assert ask(machine, "usage", "fly-1")["id"] == bot["id"]
    assert ask(machine, "spend-limit", "fly-1", "2/day")["spend_limit"] == "2.00/day"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "No Name"}, "name_invalid"),
        ({"name": "taken"}, "name_taken"),
        ({"number": 7}, "token_in_use"),
        ({"number": 2, "name": "other"}, "token_in_use"),
        ({"number": 2, "agent": "openclaw"}, "agent_change"),
        ({"balance": "-1"}, "amount_invalid"),
        ({"spend_limit": "2/week"}, "spend_limit_invalid"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_changed(
    machine: Machine, changes: dict[str, Any], code: str
) -> None:
    declared(machine, wanted(7, name="taken"))
    declare(machine, number=2)
    before = ask(machine, "remote", "list")
    assert declare(machine, code=1, **changes)["error"]["code"] == code
    assert ask(machine, "remote", "list") == before


def test_a_host_without_the_door_takes_no_such_bot(machine: Machine, paths: Paths) -> None:
    set_host(paths)
    error = declare(machine, code=1)["error"]
    assert (error["code"], "platform_remote_bots" in error["message"]) == ("door_closed", True)


def test_one_token_runs_in_one_place(machine: Machine) -> None:
    declare(machine)
    here = {"run_id": RUN, "bots": [wanted(1)]}
    assert ask(machine, "declare", request=here, code=1)["error"]["code"] == "token_in_use"
    here = {"run_id": RUN, "bots": [wanted(2, name="fly-1")]}
    assert ask(machine, "declare", request=here, code=1)["error"]["code"] == "name_taken"


def test_a_running_edge_learns_the_key_at_once_and_sync_restores_what_was_lost(
    machine: Machine, haproxy: RunningHAProxy, paths: Paths
) -> None:
    made = declare(machine)["bot"]
    path, digest = paths.maps / remotes.KEYS_MAP, sha256_hex(made["llm_key"])
    assert edge.HAProxy(paths.haproxy_socket).entries(path) == [(digest, made["id"])]
    edge.HAProxy(paths.haproxy_socket).swap(path, {})
    paths.remote_llm_keys.unlink()
    assert ask(machine, "sync")["changed"]
    assert edge.HAProxy(paths.haproxy_socket).entries(path) == [(digest, made["id"])]
    assert digest in keys(machine)
    assert make_host().llm_public_url == ""


def test_an_edge_that_cannot_take_the_key_leaves_no_bot(machine: Machine) -> None:
    machine.paths.maps.rename(machine.paths.maps.with_name("away"))
    assert declare(machine, code=1)["error"]["code"] == "host_unprepared"
    assert ask(machine, "remote", "list")["bots"] == []
