"""The kill switch and the way back, on a real registry and a real HAProxy."""

import json
import os
from typing import Any

import msgspec
import pytest

from clawdeploy import claims, edge
from clawdeploy.claim_service import ClaimService
from clawdeploy.cli import Machine
from clawdeploy.containers import ContainerSpec
from clawdeploy.models import Running
from clawdeploy.storage import Homes

from .conftest import RUN, Engine, RunningHAProxy, container_spec, wanted
from .harness import ask, declared, live_request, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's")

SPEC = msgspec.convert(container_spec(), ContainerSpec)


@pytest.fixture
def bots(machine: Machine, engine: Engine, haproxy: RunningHAProxy) -> list[str]:
    """Ids of two bots that run, named one and two."""
    found = declared(machine, wanted(1, name="one"), wanted(2, name="two"))
    ids = [bot["id"] for bot in found]
    with machine.changing() as registry:
        registry.activate(RUN, [Running(bot_id, "c" * 64, "sha256:1") for bot_id in ids])
        for bot_id in ids:
            registry.store.put_container(bot_id, SPEC)
            engine.make(bot_id, SPEC)
    ask(machine, "sync")
    engine.calls.clear()
    return ids


def flags(machine: Machine) -> list[str]:
    """Bots that the running HAProxy refuses."""
    entries = edge.HAProxy(machine.paths.haproxy_socket).entries(machine.paths.maps / "flags.map")
    return [key for key, value in entries if value == "suspended"]


def refused_keys(machine: Machine) -> set[str]:
    keys = json.loads(machine.paths.llm_keys.read_text())["keys"].values()
    return {key["bot"] for key in keys if key["suspended"]}


def test_one_call_closes_route_and_key_and_kills(machine: Machine, engine: Engine, bots: list[str]) -> None:
    result = ask(machine, "suspend", "one", "--reason", "abuse report 4711")
    assert result["changed"]
    assert [step["step"] for step in result["steps"]] == [
        "registry",
        "edge",
        "llm",
        "freeze",
        "kill",
        "event",
    ]
    assert all(step["ms"] <= step["done_ms"] for step in result["steps"])
    assert flags(machine) == [bots[0]]
    assert refused_keys(machine) == {bots[0]}
    assert engine.calls == [("freeze", bots[0]), ("kill", bots[0])]
    shown = ask(machine, "show", "one")
    assert shown["suspended"]
    assert shown["suspension"]["reason"] == "abuse report 4711"
    assert not ask(machine, "show", "two")["suspended"]
    assert "suspended" in run(machine, "list").stdout
    assert (machine.paths.maps / "hosts.map").read_text().splitlines() == [f"one {bots[0]}", f"two {bots[1]}"]


def test_a_second_call_changes_nothing_and_keeps_the_reason(machine: Machine, bots: list[str]) -> None:
    first = ask(machine, "suspend", "one", "--reason", "abuse")
    assert not ask(machine, "suspend", "one")["changed"]
    assert not ask(machine, "suspend", "one", "--reason", "abuse")["changed"]
    assert ask(machine, "suspend", "one", "--reason", "more of it")["changed"]
    last = ask(machine, "suspend", "one")
    assert last["bots"][0] == first["bots"][0] | {"reason": "more of it"}
    kinds = [event["kind"] for event in ask(machine, "events", "one")["events"]]
    assert kinds == ["deployed", "suspended", "suspended"]


def test_a_bot_that_came_back_by_hand_is_killed_again(
    machine: Machine, engine: Engine, bots: list[str]
) -> None:
    ask(machine, "suspend", "one")
    engine.status[bots[0]] = "running"
    assert ask(machine, "suspend", "one", "--check")["changed"]
    assert engine.status[bots[0]] == "running"
    assert ask(machine, "suspend", "one")["changed"]
    assert engine.status[bots[0]] == "exited"
    assert not ask(machine, "suspend", "one", "--check")["changed"]


def test_the_whole_host_is_stopped_at_once(machine: Machine, engine: Engine, bots: list[str]) -> None:
    assert run(machine, "suspend", code=2).stdout == ""
    assert run(machine, "suspend", "one", "--all", code=2).stdout == ""
    ask(machine, "suspend", "--all")
    assert flags(machine) == sorted(bots)
    assert refused_keys(machine) == set(bots)
    verbs = [verb for verb, _ in engine.calls]
    assert verbs == ["freeze", "freeze", "kill", "kill"], "all are frozen before the first one is killed"


def test_nobody_is_stopped_if_one_is_unknown(machine: Machine, engine: Engine, bots: list[str]) -> None:
    assert ask(machine, "suspend", "one", "nobody", code=1)["error"]["code"] == "unknown_bot"
    assert engine.calls == []
    assert flags(machine) == []


def test_no_step_is_left_out_because_another_failed(
    machine: Machine, engine: Engine, bots: list[str], haproxy: RunningHAProxy
) -> None:
    machine.paths.llm_keys.unlink()
    machine.paths.llm_keys.parent.rmdir()
    engine.broken = {"freeze"}
    error = ask(machine, "suspend", "one", code=1)["error"]
    assert [problem["code"] for problem in error["problems"]] == ["host_unprepared", "engine_down"]
    assert flags(machine) == [bots[0]]
    assert engine.calls == [("kill", bots[0])]
    (event,) = ask(machine, "events", "one", "--json")["events"][-1:]
    assert [step["step"] for step in event["details"]["steps"] if "failed" in step] == ["llm", "freeze"]


def test_a_flag_works_even_if_its_file_cannot_be_written(
    machine: Machine, bots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(edge, "write_atomic", full)
    error = ask(machine, "suspend", "one", code=1)["error"]
    assert "No space left" in error["message"]
    assert flags(machine) == [bots[0]]


def test_check_mode_says_what_would_happen(machine: Machine, engine: Engine, bots: list[str]) -> None:
    result = ask(machine, "suspend", "one", "--reason", "abuse", "--check")
    assert result["diff"] == {"before": "one: running\n", "after": "one: suspended (abuse)\n"}
    assert engine.calls == []
    assert flags(machine) == []
    assert not ask(machine, "resume", "one", "--check")["changed"]
    ask(machine, "suspend", "one")
    assert ask(machine, "resume", "one", "--check")["diff"]["after"] == "one: running\n"
    assert flags(machine) == [bots[0]]


def test_a_resumed_bot_has_key_container_and_route(machine: Machine, engine: Engine, bots: list[str]) -> None:
    ask(machine, "suspend", "--all")
    engine.calls.clear()
    # Nothing answers for it at this machine's port 443, which is said and is exit code 1.
    (health,) = ask(machine, "resume", "one", "--timeout", "0.5", code=1)["bots"]
    assert (health["label"], health["healthy"]) == ("one", False)
    assert engine.calls == [("start", bots[0])]
    assert flags(machine) == [bots[1]]
    assert refused_keys(machine) == {bots[1]}
    assert ask(machine, "show", "one")["suspension"] is None
    again = ask(machine, "resume", "one")
    assert (again["changed"], again["bots"]) == (False, [])
    run(machine, "resume", "--all", "--timeout", "0.5", code=1)
    assert flags(machine) == []


def test_a_bot_that_cannot_be_started_stays_suspended(
    machine: Machine, engine: Engine, bots: list[str]
) -> None:
    ask(machine, "suspend", "one")
    engine.broken = {"start"}
    assert ask(machine, "resume", "one", code=1)["error"]["code"] == "engine_down"
    assert flags(machine) == [bots[0]]
    assert refused_keys(machine) == {bots[0]}
    assert ask(machine, "show", "one")["suspended"]


@pytest.mark.usefixtures("ledger")
def test_a_deploy_leaves_a_suspended_bot_alone_and_its_resume_runs_what_was_deployed(
    machine: Machine, engine: Engine, bots: list[str]
) -> None:
    ask(machine, "suspend", "one")
    declared(machine, wanted(1, name="one"))
    request = live_request(bots[0], memory=16 << 20)
    assert ask(machine, "live", "--timeout", "0.5", request=request)["actions"] == {bots[0]: "keep"}
    assert engine.made[bots[0]] == SPEC
    assert engine.status[bots[0]] == "exited"
    run(machine, "resume", "one", "--timeout", "0.5", code=1)
    assert engine.made[bots[0]].memory == 16 << 20


@pytest.mark.usefixtures("ledger")
def test_a_suspension_that_comes_while_a_deploy_starts_the_container_wins(
    machine: Machine, engine: Engine, bots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declared(machine, wanted(1, name="one"))
    make = engine.make

    def make_slowly(bot_id: str, spec: ContainerSpec) -> None:
        ask(machine, "suspend", "one")
        make(bot_id, spec)

    monkeypatch.setattr(engine, "make", make_slowly)
    ask(machine, "live", "--timeout", "0.5", request=live_request(bots[0], memory=16 << 20))
    assert engine.status[bots[0]] == "exited"
    assert flags(machine) == [bots[0]]


def test_a_claim_of_a_suspended_bot_starts_nothing(machine: Machine, engine: Engine, homes: Homes) -> None:
    bot_id = declared(machine, wanted(1, name="one", owner=None))[0]["id"]
    home = {
        "id": bot_id,
        "uid": 200000,
        "disk_size": 32 << 20,
        "files": [{"path": "config.json", "content": "{}", "mode": "0400"}],
        "claim_file": {"path": "config.json", "content": '["__CLAWDEPLOY_OWNER__"]'},
    }
    ask(machine, "home", "apply", request={"bots": [home]})
    ask(machine, "suspend", "one")
    claim = claims.load_claim(machine.paths, bot_id)
    assert claim is not None
    claims.save_claim(machine.paths, msgspec.structs.replace(claim, claimed_by="4711"))
    restarted: list[str] = []
    service = ClaimService(machine.paths, machine.registry, homes, restarted.append)
    assert service.give(bot_id) == "4711"
    assert restarted == []
    assert (machine.paths.bots / bot_id / "config.json").read_text() == '["4711"]'
    assert ask(machine, "events", "one")["events"][-1]["kind"] == "claimed"
