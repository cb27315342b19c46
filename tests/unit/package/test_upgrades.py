"""Upgrades on a real registry and real disks; only containers are pretended."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clawdeploy import claims, rollbacks
from clawdeploy.cli import Machine
from clawdeploy.containers import ContainerSpec
from clawdeploy.engine import ContainerState, Image
from clawdeploy.models import Bot, Running
from clawdeploy.storage import HomeFile, Homes, claimed_files
from clawdeploy.upgrades import image_name

from .conftest import RUN, Engine, container_spec, wanted
from .harness import ask, declared, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's")

OLD, NEW = "registry.example.test/agent:v1", "registry.example.test/agent:v2"
OTHER_RUN = "fedcba9876543210"
# No public health path: a bot is well once its container is.
EDGE = {
    "body_limit": 3072,
    "routes": [{"path": "/webhook", "match": "exact", "port": 3000, "auth": "token"}],
}


class Docker(Engine):
    """Containers of ``broken_images`` end at once; ``on_make`` is called as one is made."""

    def __init__(self) -> None:
        super().__init__()
        self.broken_images: set[str] = set()
        self.restarted: dict[str, int] = {}
        self.on_make: Callable[[str, ContainerSpec], None] = lambda bot_id, spec: None
        self.images: list[Image] = []

    def make(self, bot_id: str, spec: ContainerSpec) -> None:
        super().make(bot_id, spec)
        self.on_make(bot_id, spec)

    def states(self) -> dict[str, ContainerState]:
        return {
            bot_id: ContainerState("exited", "Exited (1)", spec=state.spec)
            if self.made[bot_id].image in self.broken_images
            else state
            for bot_id, state in super().states().items()
        }

    def log_tail(self, bot_id: str) -> list[str]:
        return ["last words"]

    def restarts(self, bot_id: str) -> int:
        return self.restarted.get(self.made[bot_id].image, 0)

    def unused_images(self) -> list[Image]:
        return list(self.images)

    def remove_image(self, image: Image) -> bool:
        self.images.remove(image)
        return True


@pytest.fixture
def engine() -> Docker:
    return Docker()


def home(bot: dict[str, Any], config: str, *more: dict[str, Any]) -> dict[str, Any]:
    files = [{"path": "config/config.json", "content": config, "mode": "0400"}, *more]
    claim = {"path": "config/config.json", "content": f'{config}["__CLAWDEPLOY_OWNER__"]'}
    unclaimed = not (bot["owner"] or bot["open_to_all"])
    return {
        **{"id": bot["id"], "uid": bot["uid"], "disk_size": 32 << 20, "files": files},
        "claim_file": claim if unclaimed else None,
    }


def deploy(machine: Machine, engine: Docker, *bots: dict[str, Any]) -> list[dict[str, Any]]:
    """Bots that run release 1 with the configuration "old"."""
    found = declared(machine, *(one | {"image": OLD, "edge": EDGE} for one in bots))
    made = ask(machine, "home", "apply", request={"bots": [home(bot, "old") for bot in found]})["bots"]
    with machine.changing() as registry:
        registry.activate(RUN, [Running(one["id"], one["config_hash"], OLD) for one in made])
        for bot in found:
            spec = msgspec.convert(container_spec(image=OLD), ContainerSpec)
            registry.store.put_container(bot["id"], spec)
            engine.make(bot["id"], spec)
    ask(machine, "sync")
    engine.calls.clear()
    return found


def request(
    *bots: dict[str, Any], run_id: str = RUN, image: str = NEW, config: str = "new"
) -> dict[str, Any]:
    """What the role asks for: release 2, another configuration, one more file and one more path."""
    more = {"path": "data/added", "content": "seed", "mode": "0600", "seed": True}
    routes = [*EDGE["routes"], {"path": "/v2", "match": "exact", "port": 3000, "auth": "token"}]  # type: ignore[misc]
    return {
        "run_id": run_id,
        "bots": [
            {
                **{"id": bot["id"], "image": image, "image_digest": image},
                **{"interface": "api", "llm_refusal": "message", "edge": EDGE | {"routes": routes}},
                **{"home": home(bot, "new", more), "container": container_spec(image=image)},
            }
            for bot in bots
        ],
    }


def row(machine: Machine, bot: dict[str, Any]) -> Bot:
    with machine.registry() as registry:
        return registry.find(bot["id"])


def config(machine: Machine, bot: dict[str, Any]) -> str:
    path: Path = machine.paths.bots / bot["id"] / "config/config.json"
    return path.read_text()


def added(machine: Machine, bot: dict[str, Any]) -> bool:
    path: Path = machine.paths.bots / bot["id"] / "data/added"
    return path.exists()


@pytest.fixture
def bot(machine: Machine, engine: Docker, homes: Homes) -> dict[str, Any]:
    return deploy(machine, engine, wanted(1, name="one"))[0]


def assert_as_before(machine: Machine, engine: Docker, before: Bot, bot: dict[str, Any]) -> None:
    assert row(machine, bot) == before
    assert config(machine, bot) == "old"
    assert not added(machine, bot)
    assert engine.made[bot["id"]].image == OLD
    with machine.registry() as registry:
        assert registry.store.container(bot["id"]) == engine.made[bot["id"]]
    assert rollbacks.load(machine.paths, bot["id"]) is None
    assert "/v2" not in (machine.paths.maps / "routes.map").read_text()


def test_a_healthy_bot_is_upgraded_and_a_second_time_nothing_is_done(
    machine: Machine, engine: Docker, bot: dict[str, Any]
) -> None:
    before = row(machine, bot)
    (told,) = ask(machine, "upgrade", request=request(bot))["bots"]
    assert (told["result"], told["reason"]) == ("upgraded", "")
    assert (told["from"]["image"], told["to"]["image"]) == (OLD, NEW)
    assert told["downtime"] <= told["seconds"]
    after = row(machine, bot)
    assert (after.image, after.image_digest, after.lease_run) == (NEW, NEW, None)
    assert after.config_hash == told["to"]["config_hash"] != before.config_hash
    assert config(machine, bot) == "new"
    assert added(machine, bot)
    assert "/v2" in (machine.paths.maps / "routes.map").read_text()
    assert engine.calls == [("stop", bot["id"]), ("make", bot["id"])], "the old one ends first"
    assert ask(machine, "events", "one")["events"][-1]["kind"] == "upgraded"
    engine.calls.clear()
    again = ask(machine, "upgrade", request=request(bot, run_id=OTHER_RUN))
    assert (again["changed"], again["bots"][0]["result"]) == (False, "unchanged")
    assert engine.calls == []


def test_check_only_says_what_would_be_begun(machine: Machine, engine: Docker, bot: dict[str, Any]) -> None:
    before = row(machine, bot)
    told = ask(machine, "upgrade", "--check", request=request(bot))
    assert (told["changed"], told["bots"][0]["result"]) == (True, "pending")
    assert NEW in told["diff"]["after"]
    assert engine.calls == []
    assert_as_before(machine, engine, before, bot)


def test_a_bot_that_does_not_become_healthy_gets_back_all_it_had(
    machine: Machine, engine: Docker, bot: dict[str, Any]
) -> None:
    before = row(machine, bot)
    engine.broken_images = {NEW}
    (told,) = ask(machine, "upgrade", request=request(bot), code=1)["bots"]
    assert told["result"] == "rolled_back"
    assert "exited" in told["reason"]
    assert told["log_tail"] == ["last words"]
    assert told["downtime"] > 0
    assert_as_before(machine, engine, before, bot)
    assert ask(machine, "events", "one")["events"][-1]["kind"] == "rolled_back"


def test_a_bot_that_is_not_well_even_as_before_is_told_apart(
    machine: Machine, engine: Docker, bot: dict[str, Any]
) -> None:
    engine.broken_images = {NEW, OLD}
    (told,) = ask(machine, "upgrade", request=request(bot), code=1)["bots"]
    assert told["result"] == "failed"
    assert "Then, as it was before" in told["reason"]
    assert (row(machine, bot).image, row(machine, bot).lease_run) == (OLD, None)


def test_a_bot_that_ends_by_itself_while_it_is_watched_goes_back(
    machine: Machine, engine: Docker, bot: dict[str, Any]
) -> None:
    before = row(machine, bot)
    engine.restarted = {NEW: 2}
    (told,) = ask(machine, "upgrade", "--watch", "5", request=request(bot), code=1)["bots"]
    assert (told["result"], "ended by itself (2 times)" in told["reason"]) == ("rolled_back", True)
    assert_as_before(machine, engine, before, bot)


def test_bots_of_a_batch_are_judged_each_by_itself(machine: Machine, engine: Docker, homes: Homes) -> None:
    bots = deploy(machine, engine, wanted(1, name="one"), wanted(2, name="two"))
    engine.broken_images = {"agent:sick"}
    both = request(*bots)
    both["bots"][1] |= request(bots[1], image="agent:sick")["bots"][0]
    told = ask(machine, "upgrade", request=both, code=1)["bots"]
    assert [one["result"] for one in told] == ["upgraded", "rolled_back"]
    assert [config(machine, one) for one in bots] == ["new", "old"]


@pytest.mark.parametrize(
    ("error", "code"), [(OSError("disk on fire"), 1), (SystemExit(143), 143)], ids=["error", "signal"]
)
def test_whatever_ends_it_in_the_middle_the_way_back_is_taken_first(
    machine: Machine, engine: Docker, bot: dict[str, Any], error: BaseException, code: int
) -> None:
    before = row(machine, bot)

    def fail(bot_id: str, spec: ContainerSpec) -> None:
        if spec.image == NEW:
            raise error

    engine.on_make = fail
    run(machine, "upgrade", request=request(bot), code=code)
    assert_as_before(machine, engine, before, bot)


def cut_off(machine: Machine, engine: Docker, bot: dict[str, Any]) -> None:
    """An upgrade that dies, as from SIGKILL, when the old container is gone and the new one is made."""
    child = os.fork()
    if child == 0:
        engine.on_make = lambda bot_id, spec: os._exit(9)
        run(machine, "upgrade", request=request(bot))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_an_upgrade_that_was_cut_off_goes_on_at_once(
    machine: Machine, engine: Docker, bot: dict[str, Any]
) -> None:
    cut_off(machine, engine, bot)
    assert row(machine, bot).image == OLD, "recorded only when healthy"
    assert config(machine, bot) == "new"
    (told,) = ask(machine, "upgrade", request=request(bot, run_id=OTHER_RUN))["bots"]
    assert told["result"] == "upgraded"
    assert row(machine, bot).lease_run is None


def test_an_upgrade_that_was_cut_off_and_fails_goes_back_all_the_way(
    machine: Machine, engine: Docker, bot: dict[str, Any]
) -> None:
    before = row(machine, bot)
    cut_off(machine, engine, bot)
    engine.broken_images = {NEW}
    (told,) = ask(machine, "upgrade", request=request(bot, run_id=OTHER_RUN), code=1)["bots"]
    assert told["result"] == "rolled_back"
    assert_as_before(machine, engine, before, bot)


def test_what_was_cut_off_can_be_undone_by_hand(
    machine: Machine, engine: Docker, bot: dict[str, Any]
) -> None:
    before = row(machine, bot)
    cut_off(machine, engine, bot)
    (told,) = ask(machine, "rollback", "one", "--yes")["bots"]
    assert told["result"] == "rolled_back"
    assert_as_before(machine, engine, before, bot)


def test_what_was_cut_off_is_undone_by_repairs_too(
    machine: Machine, engine: Docker, bot: dict[str, Any], haproxy: object
) -> None:
    before = row(machine, bot)
    cut_off(machine, engine, bot)
    found = ask(machine, "reconcile", "--check")
    assert ("one", "cut off in an upgrade") in [(one["what"], one["was"]) for one in found["done"]]
    assert config(machine, bot) == "new"
    with machine.paths.upgrade_lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        ask(machine, "reconcile")
        assert config(machine, bot) == "new", "an upgrade is at work: left to it"
    assert ask(machine, "reconcile")["changed"]
    assert_as_before(machine, engine, before, bot)
    assert not ask(machine, "reconcile")["changed"]


@pytest.mark.parametrize("image", [NEW, "agent:sick"], ids=["upgraded", "rolled back"])
def test_an_owner_who_claims_the_bot_meanwhile_is_kept(
    machine: Machine, engine: Docker, homes: Homes, image: str
) -> None:
    bot = deploy(machine, engine, wanted(1, name="one", owner=None))[0]
    engine.broken_images = {"agent:sick"}

    def claim(bot_id: str, spec: ContainerSpec) -> None:
        found = claims.load_claim(machine.paths, bot_id)
        if spec.image == OLD or found is None or found.file is None:
            return
        files = claimed_files(found.files, found.file.path, found.file.for_owner("4711"))
        with machine.changing() as registry:
            registry.set_owner(bot_id, "4711", claims.config_hash(files))
            machine.homes.write_file(
                bot_id, HomeFile(path=found.file.path, content=found.file.for_owner("4711"), mode="0400")
            )
            claims.remove_claim(machine.paths, bot_id)

    engine.on_make = claim
    well = image == NEW
    (told,) = ask(machine, "upgrade", request=request(bot, image=image), code=0 if well else 1)["bots"]
    assert told["result"] == ("upgraded" if well else "rolled_back")
    assert row(machine, bot).owner == "4711"
    assert config(machine, bot) == ('new["4711"]' if well else 'old["4711"]')
    # What is recorded is what is there: nothing is left for a deploy to change.
    claimed = home(bot | {"owner": "4711"}, config(machine, bot))
    (there,) = ask(machine, "home", "apply", "--check", request={"bots": [claimed]})["bots"]
    assert there["changed"] == []
    assert row(machine, bot).config_hash == there["config_hash"]


def test_an_unclaimed_bot_that_goes_back_becomes_what_it_was_when_it_is_claimed(
    machine: Machine, engine: Docker, homes: Homes
) -> None:
    bot = deploy(machine, engine, wanted(1, name="one", owner=None))[0]
    before = claims.load_claim(machine.paths, bot["id"])
    engine.broken_images = {NEW}
    ask(machine, "upgrade", request=request(bot), code=1)
    assert claims.load_claim(machine.paths, bot["id"]) == before


def test_a_bot_that_is_suspended_meanwhile_stays_so_and_is_what_it_was(
    machine: Machine, engine: Docker, bot: dict[str, Any], haproxy: object
) -> None:
    before = row(machine, bot)

    def suspend(bot_id: str, spec: ContainerSpec) -> None:
        if spec.image == NEW:
            ask(machine, "suspend", "one")

    engine.on_make = suspend
    (told,) = ask(machine, "upgrade", request=request(bot), code=1)["bots"]
    assert (told["result"], told["reason"]) == ("rolled_back", "suspended meanwhile")
    assert row(machine, bot) == msgspec.structs.replace(before, suspended=True)
    assert engine.status[bot["id"]] == "exited"
    assert config(machine, bot) == "old"
    engine.on_make = lambda bot_id, spec: None
    ask(machine, "resume", "one")
    assert engine.made[bot["id"]].image == OLD


def test_a_bot_that_is_destroyed_meanwhile_leaves_nothing_behind(
    machine: Machine, engine: Docker, bot: dict[str, Any]
) -> None:
    def destroy(bot_id: str, spec: ContainerSpec) -> None:
        ask(machine, "destroy", "one", "--yes")
        engine.made[bot_id] = spec  # as if it had been destroyed a moment before

    engine.on_make = destroy
    (told,) = ask(machine, "upgrade", request=request(bot), code=1)["bots"]
    assert (told["result"], "destroyed" in told["reason"]) == ("failed", True)
    assert engine.made == {}
    assert [path for path in machine.paths.state.rglob(f"*{bot['id']}*")] == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"suspended": True}, "resume it"),
        ({"state": "deploying"}, "deploy it again"),
        ({"lease_run": OTHER_RUN, "lease_at": 2**40}, "another deploy or upgrade"),
    ],
    ids=["suspended", "never deployed", "in other hands"],
)
def test_bots_that_cannot_be_upgraded_now_are_left_alone(
    machine: Machine, engine: Docker, bot: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    with machine.changing() as registry:
        registry.store.put(msgspec.structs.replace(registry.find(bot["id"]), **change))
    told = ask(machine, "upgrade", request=request(bot))
    assert (told["changed"], told["bots"][0]["result"]) == (False, "skipped")
    assert reason in told["bots"][0]["reason"]
    assert engine.calls == []


def test_one_upgrade_at_a_time(machine: Machine, engine: Docker, bot: dict[str, Any]) -> None:
    with machine.paths.upgrade_lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        error = ask(machine, "upgrade", request=request(bot), code=1)["error"]
        assert error["code"] == "upgrade_busy"
        assert ask(machine, "upgrade", "--check", request=request(bot))["changed"]
    assert engine.calls == []


def test_the_way_back_is_there_once_and_until_a_deploy_changes_the_bot(
    machine: Machine, engine: Docker, bot: dict[str, Any], ledger: object
) -> None:
    before = row(machine, bot)
    assert ask(machine, "rollback", "one", "--yes", code=1)["error"]["code"] == "no_way_back"
    ask(machine, "upgrade", request=request(bot))
    assert ask(machine, "rollback", "one", "--check")["changed"]
    assert row(machine, bot).image == NEW
    seed = machine.paths.bots / bot["id"] / "data/added"
    seed.write_text("what the bot has made of it")
    ask(machine, "rollback", "one", "--yes")
    assert seed.read_text() == "what the bot has made of it"
    seed.unlink()
    assert_as_before(machine, engine, before, bot)
    assert ask(machine, "rollback", "one", "--yes", code=1)["error"]["code"] == "no_way_back"

    ask(machine, "upgrade", request=request(bot))
    running = {
        **{"id": bot["id"], "config_hash": "c" * 64, "image_digest": NEW, "balance": "1.00"},
        "container": container_spec(image=NEW, cpus=1),
    }
    declared(machine, wanted(1, image=NEW, edge=EDGE))
    ask(machine, "live", request={"run_id": RUN, "bots": [running]})
    assert ask(machine, "rollback", "one", "--yes", code=1)["error"]["code"] == "no_way_back"


def test_destroy_leaves_no_way_back_behind(machine: Machine, engine: Docker, bot: dict[str, Any]) -> None:
    ask(machine, "upgrade", request=request(bot))
    ask(machine, "destroy", "one", "--yes")
    assert list(machine.paths.rollbacks.iterdir()) == []


def test_only_images_of_agents_that_nobody_needs_are_removed(
    machine: Machine, engine: Docker, bot: dict[str, Any]
) -> None:
    third = "registry.example.test/other:v3"
    ask(machine, "upgrade", request=request(bot))
    engine.images = [
        Image("sha256:1", (OLD,), (), 7),
        Image("sha256:2", (NEW,), (), 7),
        Image("sha256:3", ("registry.example.test/agent:v0",), (), 7),
        Image("sha256:4", (), ("registry.example.test/agent@sha256:ab",), 7),
        Image("sha256:5", ("registry.example.test/agent-tools:v0", "postgres:17"), (), 7),
        Image("sha256:6", (), (), 7),
    ]
    assert len(ask(machine, "images", "prune", "--check")["images"]) == 2
    assert len(engine.images) == 6
    removed = ask(machine, "images", "prune")["images"]
    assert [one["id"] for one in removed] == ["sha256:3", "sha256:4"], "the one before stays for the way back"
    assert not ask(machine, "images", "prune")["changed"]

    # An image that went out of use two upgrades ago goes, even if its name is used by nobody any more.
    ask(machine, "upgrade", request=request(bot, image=third))
    ask(machine, "upgrade", request=request(bot, image="registry.example.test/other:v4"))
    removed = ask(machine, "images", "prune")["images"]
    assert [one["id"] for one in removed] == ["sha256:2"]


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("agent:v1", "agent"),
        ("agent", "agent"),
        ("host:5000/agent", "host:5000/agent"),
        ("host:5000/agent:v1", "host:5000/agent"),
        ("host:5000/agent@sha256:abc", "host:5000/agent"),
        ("agent:v1@sha256:abc", "agent"),
    ],
)
def test_an_image_has_the_same_name_in_all_its_versions(reference: str, name: str) -> None:
    assert image_name(reference) == name


# --- what bots were deployed with -------------------------------------------------------------------


def test_what_a_deploy_asked_for_is_remembered_and_kept_by_one_that_does_not_ask(
    machine: Machine, engine: Docker, homes: Homes
) -> None:
    asked: dict[str, Any] = {"bot_env": {"TZ": "UTC"}, "bot_config": {"key": "hunter22", "off": None}}
    bot = deploy(machine, engine, wanted(1, name="one", **asked))[0]
    (found,) = ask(machine, "recall")["bots"]
    assert {name: found[name] for name in asked} == asked
    assert (found["token"], found["reason"]) == (wanted(1)["telegram_token"], "")
    assert found["llm_key"] == bot["llm_key"]

    again = ask(machine, "declare", request={"run_id": RUN, "bots": [wanted(1, image=OLD, edge=EDGE)]})
    assert (again["changed"], again["bots"][0]["bot_config"]) == (False, asked["bot_config"])
    other = wanted(1, image=OLD, edge=EDGE, bot_config={"key": "hunter23"}, bot_env={})
    changed = ask(machine, "declare", request={"run_id": RUN, "bots": [other]})
    assert changed["changed"]
    assert "bot_config replaced" in changed["diff"]["after"]
    assert "hunter" not in str(changed["diff"])
    (found,) = ask(machine, "recall")["bots"]
    assert (found["bot_env"], found["bot_config"]) == ({}, {"key": "hunter23"})
    assert "hunter" not in run(machine, "recall").stdout
    assert "key" in run(machine, "recall").stdout


def test_secrets_of_bots_that_cannot_be_shaped_are_not_told(
    machine: Machine, engine: Docker, homes: Homes
) -> None:
    bots = deploy(machine, engine, *(wanted(number, name=f"bot{number}") for number in range(1, 4)))
    with machine.changing() as registry:
        suspended = msgspec.structs.replace(registry.find(bots[0]["id"]), suspended=True)
        registry.store.put(suspended)
        registry.store.put(msgspec.structs.replace(registry.find(bots[1]["id"]), plan="gone"))
    (machine.paths.secrets / f"{bots[2]['id']}.json").unlink()
    found = ask(machine, "recall")["bots"]
    assert ["suspended" in found[0]["reason"], "plan 'gone'" in found[1]["reason"]] == [True, True]
    assert "secrets are lost" in found[2]["reason"]
    assert [bot["token"] for bot in found] == ["", "", ""]
    assert not any("llm_key" in bot for bot in found)
