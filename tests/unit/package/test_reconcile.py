"""A host is brought back to what its registry says."""

import os
import shutil
import subprocess

import msgspec
import pytest

from clawdeploy import backup, edge
from clawdeploy.cli import Machine
from clawdeploy.containers import ContainerSpec
from clawdeploy.models import Running
from clawdeploy.storage import Homes

from .conftest import RUN, Engine, RunningHAProxy, container_spec, wanted
from .harness import ask, declared, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's")

SPEC = msgspec.convert(container_spec(), ContainerSpec)


@pytest.fixture
def bot(machine: Machine, engine: Engine, haproxy: RunningHAProxy, homes: Homes) -> str:
    """The id of a bot that runs, named one, on a host where all is as it should be."""
    found = declared(machine, wanted(1, name="one"))[0]
    home = {"id": found["id"], "uid": found["uid"], "disk_size": 32 << 20}
    ask(machine, "home", "apply", request={"bots": [home]})
    with machine.changing() as registry:
        registry.activate(RUN, [Running(found["id"], "c" * 64, "sha256:1")])
        registry.store.put_container(found["id"], SPEC)
    engine.make(found["id"], SPEC)
    ask(machine, "sync")
    assert not ask(machine, "reconcile")["changed"]
    return str(found["id"])


def repaired(machine: Machine) -> list[tuple[str, str, str]]:
    """What a reconcile does; a check before it says the same, and a second one has nothing to do."""
    said = ask(machine, "reconcile", "--check")
    done = ask(machine, "reconcile")
    assert said == done
    assert not ask(machine, "reconcile")["changed"]
    assert ask(machine, "events")["events"][-1]["details"] == {"done": done["done"]}
    return [(one["what"], one["was"], one["now"]) for one in done["done"]]


def test_maps_and_keys_that_are_gone_or_foreign(machine: Machine, bot: str, haproxy: RunningHAProxy) -> None:
    (machine.paths.maps / "hosts.map").unlink()
    edge.HAProxy(machine.paths.haproxy_socket).swap(machine.paths.maps / "plans.map", {"stranger": "small"})
    machine.paths.llm_keys.write_text("{}")
    names = [what for what, _, _ in repaired(machine)]
    assert names == ["hosts.map", "plans.map", "keys.json"]
    assert haproxy.ask("/one").split(" ")[0] == bot


def test_a_container_that_was_removed_stopped_or_paused(machine: Machine, engine: Engine, bot: str) -> None:
    engine.made.clear()
    assert repaired(machine) == [("container of one", "missing", "made anew")]
    assert engine.made == {bot: SPEC}
    for state in ("exited", "paused", "created"):
        engine.status[bot] = state
        assert repaired(machine) == [("container of one", state, "running")]


def test_a_bot_that_stands_still_for_a_backup_goes_on_only_when_that_is_gone(
    machine: Machine, engine: Engine, bot: str
) -> None:
    mark = machine.paths.backup_room / "work" / bot / "frozen"
    mark.parent.mkdir(parents=True)
    mark.touch()
    engine.status[bot] = "paused"
    with backup.alone(machine.paths):
        assert not ask(machine, "reconcile")["changed"]
    assert repaired(machine) == [("container of one", "paused", "running")]


def test_a_suspended_bot_that_runs_is_killed_and_one_that_does_not_stays_so(
    machine: Machine, engine: Engine, bot: str
) -> None:
    ask(machine, "suspend", "one")
    assert not ask(machine, "reconcile")["changed"]
    engine.status[bot] = "running"
    assert repaired(machine) == [("container of one", "running though suspended", "killed")]
    assert engine.status[bot] == "exited"


def test_containers_and_networks_of_bots_that_are_no_more(machine: Machine, engine: Engine, bot: str) -> None:
    engine.strays = {"zzzzzzzzzzzz"}
    assert repaired(machine) == [("container and network of zzzzzzzzzzzz", "of no bot here", "removed")]
    assert engine.removed == ["zzzzzzzzzzzz"]


def test_a_disk_that_is_not_mounted(machine: Machine, bot: str) -> None:
    subprocess.run(["umount", machine.paths.bots / bot], check=True)
    assert repaired(machine) == [("disk of one", "not mounted", "mounted")]
    assert (machine.paths.bots / bot).is_mount()


def test_an_edge_that_does_not_run_is_started(machine: Machine, bot: str, haproxy: RunningHAProxy) -> None:
    haproxy.process.kill()
    haproxy.process.wait()
    done = ask(machine, "reconcile")["done"]
    assert done == [{"what": "HAProxy", "was": "not running", "now": "started"}]
    assert ("start", "haproxy.service") in machine.systemctl.calls  # type: ignore[attr-defined]


def test_what_a_deploy_works_on_or_never_ended_is_left_to_it(
    machine: Machine, engine: Engine, bot: str
) -> None:
    declared(machine, wanted(2, name="two"))
    ask(machine, "sync")
    ask(machine, "release", request={"run_id": RUN})
    assert not ask(machine, "reconcile")["changed"]


def test_one_repair_that_fails_does_not_keep_the_others(machine: Machine, engine: Engine, bot: str) -> None:
    engine.made.clear()
    engine.broken = {"make"}
    engine.strays = {"zzzzzzzzzzzz"}
    assert ask(machine, "reconcile", code=1)["error"]["code"] == "engine_down"
    assert engine.removed == ["zzzzzzzzzzzz"]


def test_a_bot_of_an_older_release_is_said_to_need_a_deploy(
    machine: Machine, engine: Engine, bot: str
) -> None:
    with machine.changing() as registry:
        registry.store._db.execute("DELETE FROM container")
    engine.made.clear()
    assert "run deploy_bot" in run(machine, "reconcile", code=1).stderr


def test_an_unprepared_host_is_said_so(machine: Machine, bot: str) -> None:
    shutil.rmtree(machine.paths.llm_keys.parent)
    assert ask(machine, "reconcile", code=1)["error"]["code"] == "host_unprepared"
