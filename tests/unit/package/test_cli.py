"""clawctl as playbooks and operators call it."""

import json
import os
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from clawdeploy import claims, verbs
from clawdeploy.cli import Machine, main
from clawdeploy.models import Running
from clawdeploy.storage import Homes

from .conftest import HOST, RUN, Engine, wanted
from .harness import ask, declared, live_request, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's")


def home_of(bot: dict[str, Any], content: str = "{}") -> dict[str, Any]:
    return {
        "id": bot["id"],
        "uid": bot["uid"],
        "disk_size": 32 << 20,
        "directories": [{"path": "data/workspace", "mode": "0700"}],
        "files": [{"path": "config/config.json", "content": content, "mode": "0400", "seed": False}],
        "claim_file": {"path": "config/config.json", "content": '["__CLAWDEPLOY_OWNER__"]'},
    }


def test_a_bots_whole_life(machine: Machine, engine: Engine, homes: Homes) -> None:
    bot = declared(machine, wanted(1, name="support", owner=None))[0]
    assert bot["uid"] == HOST["bot_uid_base"]
    made = ask(machine, "home", "apply", request={"bots": [home_of(bot)]})
    assert "claim" in made["bots"][0]["changed"]
    assert not ask(machine, "home", "apply", request={"bots": [home_of(bot)]})["changed"]
    assert "hosts.map" in ask(machine, "sync")["maps"]
    assert ("start", "--no-block", verbs.CLAIMS_UNIT) in machine.systemctl.calls  # type: ignore[attr-defined]
    with machine.changing() as registry:
        registry.activate(RUN, [Running(bot["id"], made["bots"][0]["config_hash"], "sha256:1")])
    assert ask(machine, "show", "support")["state"] == "active"
    gone = ask(machine, "destroy", "support", "--yes")
    assert gone["changed"]
    assert engine.removed == [bot["id"]]
    assert ask(machine, "list") == {"bots": []}
    left = [file for file in machine.paths.state.rglob(f"*{bot['id']}*")]
    assert left == []
    assert (machine.paths.maps / "hosts.map").read_text() == ""


def test_a_bot_claimed_meanwhile_keeps_the_claimed_file(machine: Machine, homes: Homes) -> None:
    bot = declared(machine, wanted(1, owner=None))[0]
    with machine.changing() as registry:
        registry.set_owner(bot["id"], "4711", "x")
        claims.remove_claim(machine.paths, bot["id"])
    ask(machine, "home", "apply", request={"bots": [home_of(bot)]})
    assert (machine.paths.bots / bot["id"] / "config/config.json").read_text() == '["4711"]'


def test_homes_are_refused_together_before_anything_is_made(machine: Machine) -> None:
    bots = declared(machine, wanted(1), wanted(2, owner=None))
    claims.remove_claim(machine.paths, bots[1]["id"])
    batch = [home_of(bots[0]) | {"uid": 4242}, home_of(bots[1]), home_of(bots[0]) | {"id": "zzzzzzzzzzzz"}]
    error = ask(machine, "home", "apply", request={"bots": batch}, code=1)["error"]
    assert [problem["code"] for problem in error["problems"]] == ["wrong_uid", "claim_missing", "unknown_bot"]
    assert not machine.paths.disks.exists()


def test_check_mode_of_a_whole_deploy_changes_nothing(machine: Machine) -> None:
    before = sorted(machine.paths.state.rglob("*.img"))
    bot = ask(machine, "declare", "--check", request={"run_id": RUN, "bots": [wanted(owner=None)]})["bots"][0]
    assert ask(machine, "home", "apply", "--check", request={"bots": [home_of(bot)]})["changed"]
    assert ask(machine, "sync", "--check")["changed"]
    assert sorted(machine.paths.state.rglob("*.img")) == before
    assert list(machine.paths.maps.iterdir()) == []
    assert ask(machine, "list") == {"bots": []}


def test_refusals_are_one_json_object_or_lines_for_people(machine: Machine) -> None:
    request = {"run_id": RUN, "bots": [wanted(1, name="www"), wanted(2, plan="x")]}
    error = ask(machine, "declare", request=request, code=1)["error"]
    assert [problem["code"] for problem in error["problems"]] == ["name_reserved", "unknown_plan"]
    lines = run(machine, "declare", request=request, code=1).stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("clawctl: ") for line in lines)


def test_people_never_see_secrets(machine: Machine) -> None:
    request = {"run_id": RUN, "bots": [wanted(1, owner=None)]}
    text = run(machine, "declare", request=request).output
    for verb in (
        ["list"],
        ["list", "--json"],
        ["host", "--json"],
        ["sync"],
        ["show", wanted()["telegram_username"]],
    ):
        text += CliRunner().invoke(main, verb, obj=machine).output
    stored = json.loads(next(machine.paths.secrets.iterdir()).read_text())
    for secret in stored.values():
        assert secret not in text


def test_a_bad_request_names_the_field_and_not_its_value(machine: Machine) -> None:
    request = {"run_id": RUN, "bots": [wanted(1, telegram_token="not-a-token-but-secret")]}
    error = ask(machine, "declare", request=request, code=1)["error"]
    assert error["code"] == "bad_request"
    assert "telegram_token" in error["message"]
    assert "not-a-token" not in error["message"]


def test_the_table_shows_bots_and_owners(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "deploy_bot" in run(machine, "list").stdout
    declared(
        machine, wanted(1, name="support"), wanted(2, owner=None), wanted(3, owner=None, open_to_all=True)
    )
    table = run(machine, "list").stdout
    for text in ("support", "4242", "waiting to be claimed", "everyone", "10.200.0.18"):
        assert text in table


def test_host_tells_what_is_left(machine: Machine) -> None:
    declared(machine, wanted(1), wanted(2))
    facts = ask(machine, "host")
    assert {key: facts[key] for key in HOST} == HOST
    assert facts["memory_reserved_sum"] == 32_000_000
    assert facts["free_bytes"] > 0


def test_a_new_claim_code_starts_the_listener(machine: Machine) -> None:
    bot = declared(machine, wanted(1, owner=None))[0]
    claim = claims.load_claim(machine.paths, bot["id"])
    assert claim is not None
    assert ask(machine, "claims", "new", bot["id"], code=1)["error"]["code"] == "claim_missing"
    claims.save_claim(machine.paths, msgspec.structs.replace(claim, file=claims.ClaimFile("c", "x")))
    answer = ask(machine, "claims", "new", bot["id"])
    assert answer["link"] == f"https://t.me/bot_1_bot?start={answer['code']}"
    assert machine.systemctl.calls == [("start", "--no-block", verbs.CLAIMS_UNIT)]  # type: ignore[attr-defined]


def test_migrate_creates_the_registry_once(machine: Machine) -> None:
    machine.paths.registry.unlink()
    assert ask(machine, "list", code=1)["error"]["code"] == "host_unprepared"
    assert ask(machine, "migrate", "--check")["changed"]
    assert not machine.paths.registry.exists()
    assert ask(machine, "migrate")["changed"]
    assert not ask(machine, "migrate")["changed"]
    assert machine.paths.registry.stat().st_mode & 0o777 == 0o600


def test_an_unprepared_host_is_said_so(machine: Machine) -> None:
    machine.paths.host_file.unlink()
    assert ask(machine, "list", code=1)["error"]["code"] == "host_unprepared"
    machine.paths.host_file.write_text("{}")
    assert ask(machine, "list", code=1)["error"]["code"] == "host_invalid"


def test_an_unknown_bot_is_refused_by_every_verb_on_one(machine: Machine) -> None:
    for verb in (
        ["show", "nobody"],
        ["destroy", "nobody", "--yes"],
        ["wait", "nobody"],
        ["claims", "new", "nobody"],
    ):
        assert ask(machine, *verb, code=1)["error"]["code"] == "unknown_bot"


def test_destroy_asks_first(machine: Machine) -> None:
    declared(machine, wanted(1, name="support"))
    assert CliRunner().invoke(main, ["destroy", "support"], obj=machine, input="n\n").exit_code == 1
    assert len(ask(machine, "list")["bots"]) == 1


def test_release_frees_the_bots_of_a_failed_run(machine: Machine) -> None:
    bot = declared(machine, wanted(1))[0]
    assert ask(machine, "release", request={"run_id": RUN})["bots"] == [bot["id"]]


def test_wrong_usage_is_exit_code_two(machine: Machine) -> None:
    run(machine, "declare", "--no-such-option", code=2)
    run(machine, "wait", code=2)


def test_only_root_may(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert ask(machine, "list", code=1)["error"]["code"] == "not_root"


def test_every_verb_explains_itself_with_an_example() -> None:
    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(child, (*path, name))
        else:
            text = CliRunner().invoke(main, [*path, "--help"]).stdout
            assert "Example:" in text, path
            assert "--json" in text, path

    walk(main, ())


def test_a_second_claims_run_ends_when_nobody_waits(machine: Machine) -> None:
    assert ask(machine, "claims", "serve") == {"changed": False}


@pytest.mark.usefixtures("ledger")
def test_a_bot_nobody_reaches_has_its_container_but_keeps_its_lease(machine: Machine, engine: Engine) -> None:
    bot = declared(machine, wanted(1))[0]
    request = live_request(bot["id"])
    assert ask(machine, "live", "--check", request=request)["actions"] == {bot["id"]: "create"}
    assert engine.made == {}
    answer = ask(machine, "live", "--timeout", "0.5", request=request)
    assert answer["changed"]
    assert list(engine.made) == [bot["id"]]
    assert not answer["bots"][0]["healthy"]
    assert ask(machine, "show", bot["id"])["state"] == "deploying"


@pytest.mark.usefixtures("ledger")
def test_a_container_that_is_right_is_kept(machine: Machine, engine: Engine) -> None:
    bot = declared(machine, wanted(1))[0]
    request = live_request(bot["id"])
    ask(machine, "live", "--timeout", "0.5", request=request)
    with machine.changing() as registry:
        registry.activate(RUN, [Running(bot["id"], "c" * 64, "sha256:1")])
    assert ask(machine, "live", "--check", request=request)["actions"] == {bot["id"]: "keep"}
    changed = live_request(bot["id"], memory=16 << 20)
    assert ask(machine, "live", "--check", request=changed)["actions"] == {bot["id"]: "replace"}


def test_a_misspelt_limit_is_no_container(machine: Machine, engine: Engine) -> None:
    bot = declared(machine, wanted(1))[0]
    request = live_request(bot["id"], memry=1)
    assert "memry" in ask(machine, "live", request=request, code=1)["error"]["message"]
    assert engine.made == {}
