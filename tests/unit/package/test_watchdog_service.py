"""The watchdog at work: registry, ledger and edge are real, control groups are files."""

import json
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clawdeploy import cgroups
from clawdeploy.cli import Machine
from clawdeploy.containers import ContainerSpec
from clawdeploy.engine import ContainerState
from clawdeploy.errors import ClawError
from clawdeploy.ledger_client import LedgerClient, Opening
from clawdeploy.models import Running
from clawdeploy.notify import Notice, Notifier
from clawdeploy.watchdog.config import Config, load
from clawdeploy.watchdog.metrics import Metrics
from clawdeploy.watchdog.readings import Limits, Reading, grown, values
from clawdeploy.watchdog.sensors import Sensors, parse_denials
from clawdeploy.watchdog.service import Status, Watchdog

from .conftest import RUN, Engine, RunningHAProxy, container_spec, wanted
from .harness import ask, declared, run
from .watchdog import make_config, settings, swift

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's")

RECORDED = Path(__file__).with_name("cgroup_v2")
FIRST, SECOND = "4f" * 32, "a7" * 32
SPEC = msgspec.convert(container_spec(cpus=0.5, memory=64 << 20, pids_limit=64), ContainerSpec)


class Docker(Engine):
    """As the engine of the other tests, with what the watchdog asks it."""

    def __init__(self) -> None:
        super().__init__()
        self.containers: dict[str, str] = {}
        self.restarted: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self.cpus: dict[str, float] = {}
        self.inspected: list[str] = []

    def states(self) -> dict[str, ContainerState]:
        return {
            bot_id: msgspec.convert(vars(state), ContainerState)
            if bot_id not in self.containers
            else ContainerState(state.state, state.status, container=self.containers[bot_id])
            for bot_id, state in super().states().items()
        }

    def restarts(self, bot_id: str) -> int:
        self.inspected.append(bot_id)
        return self.restarted[bot_id]

    def out_of_memory(self, since: float, until: float) -> Counter[str]:
        assert since < until
        found, self.killed = self.killed, Counter()
        return found

    def set_cpus(self, bot_id: str, cpus: float) -> None:
        self._call("set_cpus", bot_id)
        self.cpus[bot_id] = cpus


@pytest.fixture
def engine() -> Docker:
    return Docker()


class World:
    """A host with two bots, each look of the watchdog a second after the one before."""

    def __init__(self, machine: Machine, engine: Docker, tree: Path, bots: list[str]) -> None:
        self.machine, self.engine, self.tree, self.bots = machine, engine, tree, bots
        self.denied: dict[str, int] = {}
        self.told: list[Notice] = []
        self.now = 1_800_000_000.0
        self.metrics = Metrics()
        self.notifier = Notifier({"test": self.told.append}, 3600)
        self.places = {FIRST: f"system.slice/docker-{FIRST}.scope", SECOND: f"docker/{SECOND}"}

    def config(self, **changes: Any) -> Config:
        return make_config(self.machine.paths.state, **changes)

    def watchdog(self, config: Config) -> Watchdog:
        sensors = Sensors(self.machine, self.tree, lambda: self.denied)
        return Watchdog(config, self.machine, sensors, self.notifier, self.metrics, lambda: self.now)

    def use(self, container: str, **fields: int) -> None:
        """Let a counter of a container's group be so much higher, or a plain file have this content."""
        group = self.tree / self.places[container]
        for name, number in fields.items():
            file, field = {
                "cpu": ("cpu.stat", "usage_usec"),
                "oom": ("memory.events", "oom_kill"),
            }.get(name, (name.replace("_", "."), ""))
            if not field:
                (group / file).write_text(f"{number}\n")
                continue
            lines = dict(line.split() for line in (group / file).read_text().splitlines())
            lines[field] = str(int(lines[field]) + number)
            (group / file).write_text("".join(f"{key} {value}\n" for key, value in lines.items()))

    def start_anew(self, container: str) -> None:
        """As Docker does when a container ended: its group goes, and comes back with counters at nothing."""
        group = self.tree / self.places[container]
        # Kept elsewhere, or the file system might give its inode to the new one.
        group.rename(self.tree.with_name(f"gone-{len(list(self.tree.parent.iterdir()))}"))
        shutil.copytree(RECORDED / self.places[container], group)
        self.use(container, memory_current=2 << 20, pids_current=9)
        (group / "cpu.stat").write_text("usage_usec 1000\n")
        (group / "memory.events").write_text("oom_kill 0\n")

    def look(self, watchdog: Watchdog, seconds: float = 1.0) -> None:
        self.now += seconds
        watchdog.round()

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask(self.machine, "events")["events"]
        return [event for event in found if event["kind"] in kinds or not kinds]


@pytest.fixture
def world(
    machine: Machine, engine: Docker, haproxy: RunningHAProxy, ledger: LedgerClient, tmp_path: Path
) -> Iterator[World]:
    found = declared(machine, wanted(1, name="one"), wanted(2, name="two"))
    bots = [bot["id"] for bot in found]
    with machine.changing() as registry:
        registry.activate(RUN, [Running(bot_id, "c" * 64, "sha256:1") for bot_id in bots])
        for bot_id, container in zip(bots, (FIRST, SECOND), strict=True):
            registry.store.put_container(bot_id, SPEC)
            engine.make(bot_id, SPEC)
            engine.containers[bot_id] = container
    ledger.open([Opening(bot, 5_000_000_000, "prepaid") for bot in bots], False)
    ask(machine, "sync")
    tree = tmp_path / "cgroup"
    shutil.copytree(RECORDED, tree)
    world = World(machine, engine, tree, bots)
    for container in (FIRST, SECOND):
        world.use(container, memory_current=8 << 20, pids_current=9)
    yield world
    world.notifier.close(5)


@pytest.fixture
def fake_seconds(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """One second between looks for the sensors too."""
    monkeypatch.setattr(time, "monotonic", lambda: world.now)


def details(event: dict[str, Any]) -> Any:
    return event["details"]


# --- reading ----------------------------------------------------------------------------------------


def test_recorded_groups_of_version_2_are_read_with_what_rules_need() -> None:
    groups = cgroups.find({FIRST, SECOND}, RECORDED)
    for container, cpu, throttled, memory in (
        (FIRST, 7.559633, 0.214894, 32415744),
        (SECOND, 7.725246, 0.25675, 43524096),
    ):
        sample = groups[container].sample()
        assert sample is not None
        assert (sample.cpu, sample.throttled, sample.memory) == (cpu, throttled, memory)
        assert (sample.pids, sample.oom_kills) == (64, 5)
        assert groups[container].identity() is not None


def test_memory_that_the_kernel_can_drop_is_not_counted(tmp_path: Path) -> None:
    tree = tmp_path / "cgroup"
    shutil.copytree(RECORDED, tree)
    group = cgroups.find({FIRST}, tree)[FIRST]
    stat = group.memory / "memory.stat"
    stat.write_text(stat.read_text().replace("inactive_file 0\n", "inactive_file 1638400\n"))
    sample = group.sample()
    assert sample is not None
    assert sample.memory == 32415744 - 1638400


def test_counters_that_begin_anew_lose_nothing() -> None:
    assert grown(5, 8) == 3
    assert grown(5, 2) == 2
    assert grown(None, 2) is grown(2, None) is None


def test_a_window_is_made_of_all_its_looks() -> None:
    limits = Limits(0.5, 100, 50, 5.0)
    quiet = Reading(seconds=1, limits=limits, cpu=0.1, memory=20, processes=5, oom=0, restarts=0, requests=1)
    busy = msgspec.structs.replace(
        quiet, seconds=3.0, cpu=1.5, memory=100, oom=1, restarts=2, requests=9, spent=10**9, denied=8
    )
    found = values([quiet, busy])
    assert found["cpu"] == pytest.approx(1.6 / (4 * 0.5))
    assert found["memory"] == pytest.approx(0.6)
    assert found["processes"] == pytest.approx(0.1)
    assert (found["oom"], found["restarts"]) == (1, 2)
    assert found["requests"] == pytest.approx(1.0)
    assert found["spend"] == pytest.approx(1200), "a dollar in three seconds; the first look knew nothing"
    assert found["denied"] == pytest.approx(8 / 3)
    assert set(values([]).values()) == {None}


def test_the_firewall_s_listing_is_read() -> None:
    elements = [
        {"elem": {"val": "10.200.0.2", "expires": 86000, "counter": {"packets": 41, "bytes": 2460}}},
        {"elem": {"val": "10.200.0.18", "expires": 80000, "counter": {"packets": 1, "bytes": 60}}},
    ]
    listing = {"nftables": [{"metainfo": {}}, {"set": {"name": "bot_denials", "elem": elements}}]}
    assert parse_denials(json.dumps(listing).encode()) == {"10.200.0.2": 41, "10.200.0.18": 1}
    empty = {"nftables": [{"metainfo": {}}, {"set": {"name": "bot_denials"}}]}
    assert parse_denials(json.dumps(empty).encode()) == {}


# --- deciding and acting ----------------------------------------------------------------------------


@pytest.mark.usefixtures("fake_seconds")
def test_a_burner_is_warned_throttled_and_suspended_and_its_neighbour_left_alone(world: World) -> None:
    watchdog = world.watchdog(world.config(rules=swift(cpu={})))
    world.look(watchdog)
    course = []
    for _ in range(8):
        world.use(FIRST, cpu=round(1e6 * world.engine.cpus.get(world.bots[0], 0.5)))
        world.use(SECOND, cpu=200_000)
        world.look(watchdog)
        course.append(len(world.events("watchdog_warn", "watchdog_throttle", "watchdog_suspend")))
    warned, throttled, condemned = world.events("watchdog_warn", "watchdog_throttle", "watchdog_suspend")
    assert course == [0, 1, 1, 2, 2, 3, 3, 3]
    assert {event["bot"] for event in (warned, throttled, condemned)} == {world.bots[0]}
    assert details(warned)["samples"] == pytest.approx([1.0, 1.0])
    assert details(warned)["values"]["memory"] == pytest.approx((8 << 20) / (64 << 20), abs=0.05)
    assert world.engine.calls.count(("set_cpus", world.bots[0])) == 2, "throttled, then given back"
    assert world.engine.cpus[world.bots[0]] == 0.5
    shown = ask(world.machine, "show", "one")
    assert shown["suspended"]
    assert shown["suspension"]["reason"].startswith(
        "watchdog: cpu 100% (2 of the last 2 windows of 1 s at 90%"
    )
    assert world.engine.status[world.bots[0]] == "exited"
    assert not ask(world.machine, "show", "two")["suspended"]
    (suspended,) = world.events("suspended")
    assert suspended["bot"] == world.bots[0]


@pytest.mark.usefixtures("fake_seconds")
def test_a_throttled_bot_that_calms_down_gets_its_cpus_back(world: World) -> None:
    watchdog = world.watchdog(world.config(rules=swift(cpu={"ladder": ["throttle"]}), throttle=0.25))
    world.look(watchdog)
    for _ in range(2):
        world.use(FIRST, cpu=500_000)
        world.look(watchdog)
    assert world.engine.cpus == {world.bots[0]: 0.125}
    for _ in range(3):
        world.look(watchdog)
    assert world.engine.cpus == {world.bots[0]: 0.5}
    (recovered,) = world.events("watchdog_recover")
    assert details(recovered)["step"] == "throttle"


@pytest.mark.usefixtures("fake_seconds")
def test_a_bot_suspended_by_hand_gets_its_cpus_back_at_once(world: World) -> None:
    watchdog = world.watchdog(world.config(rules=swift(cpu={"ladder": ["throttle"]}), window=2.0))
    for _ in range(5):
        world.use(FIRST, cpu=500_000)
        world.look(watchdog)
    assert world.engine.cpus == {world.bots[0]: 0.25}
    ask(world.machine, "suspend", "one")
    world.look(watchdog)
    assert world.engine.cpus == {world.bots[0]: 0.5}


@pytest.mark.usefixtures("fake_seconds")
def test_a_container_that_was_made_anew_is_not_the_one_that_was_throttled(world: World) -> None:
    config = world.config(rules=swift(cpu={"ladder": ["throttle"]}))
    watchdog = world.watchdog(config)
    for _ in range(3):
        world.use(FIRST, cpu=500_000)
        world.look(watchdog)
    world.engine.containers[world.bots[0]] = SECOND
    for _ in range(4):
        world.look(watchdog)
    assert world.engine.calls.count(("set_cpus", world.bots[0])) == 1
    assert json.loads(config.state_file.read_text())["throttled"] == {}


@pytest.mark.usefixtures("fake_seconds")
def test_a_burner_that_crashes_all_the_time_is_measured_all_the_same(world: World) -> None:
    watchdog = world.watchdog(world.config(rules=swift(cpu={"ladder": ["warn"]})))
    for _ in range(4):
        world.start_anew(FIRST)
        world.use(FIRST, cpu=480_000)
        world.look(watchdog)
    assert [details(event)["rule"] for event in world.events("watchdog_warn")] == ["cpu"]


@pytest.mark.usefixtures("fake_seconds")
def test_a_dry_run_says_everything_and_does_nothing(world: World) -> None:
    watchdog = world.watchdog(world.config(rules=swift(cpu={}), dry_run=True))
    world.look(watchdog)
    world.engine.calls.clear()
    for _ in range(6):
        world.use(FIRST, cpu=500_000)
        world.look(watchdog)
    (condemned,) = world.events("watchdog_suspend")
    assert "dry run" in condemned["message"]
    assert details(condemned)["dry_run"]
    assert world.engine.calls == []
    assert not ask(world.machine, "show", "one")["suspended"]


@pytest.mark.parametrize(
    ("measure", "act"),
    [
        ("memory", lambda world: world.use(FIRST, memory_current=66 << 20)),
        ("processes", lambda world: world.use(FIRST, pids_current=64)),
        ("oom", lambda world: world.use(FIRST, oom=1)),
        ("restarts", lambda world: (world.start_anew(FIRST), world.engine.restarted.update([world.bots[0]]))),
        ("denied", lambda world: world.denied.update({"10.200.0.2": world.denied.get("10.200.0.2", 0) + 9})),
    ],
)
@pytest.mark.usefixtures("fake_seconds")
def test_every_measure_reaches_its_rule(world: World, measure: str, act: Any) -> None:
    watchdog = world.watchdog(world.config(rules=swift(**{measure: {"ladder": ["warn"]}})))
    world.look(watchdog)
    for _ in range(3):
        act(world)
        world.look(watchdog)
    (warned,) = world.events("watchdog_warn")
    assert (warned["bot"], details(warned)["rule"]) == (world.bots[0], measure)
    assert measure in warned["message"]


@pytest.mark.usefixtures("fake_seconds")
def test_an_end_for_want_of_memory_counts_though_its_group_is_gone(world: World) -> None:
    watchdog = world.watchdog(world.config(rules=swift(oom={"ladder": ["warn"]})))
    world.look(watchdog)
    for _ in range(2):
        world.start_anew(FIRST)
        world.engine.killed.update([world.bots[0]])
        world.look(watchdog)
    assert [details(event)["rule"] for event in world.events("watchdog_warn")] == ["oom"]
    (oom,) = world.events("oom")
    assert oom["message"] == "one ran out of memory: the kernel ended 1 of its processes"


@pytest.mark.usefixtures("fake_seconds")
def test_docker_is_asked_about_restarts_only_when_a_container_was_started_anew(world: World) -> None:
    watchdog = world.watchdog(world.config(rules=swift()))
    for _ in range(4):
        world.look(watchdog)
    assert sorted(world.engine.inspected) == sorted(world.bots)
    world.start_anew(SECOND)
    world.look(watchdog)
    assert world.engine.inspected[2:] == [world.bots[1]]


@pytest.mark.usefixtures("fake_seconds")
def test_what_a_bot_spends_is_judged_by_the_hour(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog = world.watchdog(world.config(rules=swift(spend={"ladder": ["warn"]})))
    accounts, spent = LedgerClient.accounts, 0

    def spending(client: LedgerClient) -> Any:
        return [
            msgspec.structs.replace(one, spent=spent if one.bot == world.bots[0] else 0)
            for one in accounts(client)
        ]

    monkeypatch.setattr(LedgerClient, "accounts", spending)
    for _ in range(3):
        world.look(watchdog)
        spent += 3_000_000  # $0.003 a second: $10.80 an hour
    assert [details(event)["rule"] for event in world.events("watchdog_warn")] == ["spend"]


@pytest.mark.usefixtures("fake_seconds")
def test_a_suspension_that_fails_is_tried_again_even_after_a_restart_of_the_service(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    config = world.config(rules=swift(cpu={"ladder": ["suspend"]}))
    watchdog = world.watchdog(config)
    world.engine.broken = {"kill"}
    world.look(watchdog)
    for _ in range(3):
        world.use(FIRST, cpu=500_000)
        world.look(watchdog)
    assert "could not be suspended" in caplog.text
    assert world.engine.status[world.bots[0]] == "paused"
    world.engine.broken = set()
    world.look(world.watchdog(config))
    assert world.engine.status[world.bots[0]] == "exited"
    assert len(world.events("watchdog_suspend")) == 1


@pytest.mark.usefixtures("fake_seconds")
def test_steps_outlive_a_restart_of_the_service(world: World) -> None:
    config = world.config(rules=swift(cpu={}))
    watchdog = world.watchdog(config)
    for restart in (False, False, False, True, False, True, False):
        if restart:
            watchdog = world.watchdog(config)
        world.use(FIRST, cpu=500_000)
        world.look(watchdog)
    kinds = [event["kind"] for event in world.events("watchdog_warn", "watchdog_throttle")]
    assert kinds == ["watchdog_warn", "watchdog_throttle"]
    assert world.engine.calls.count(("set_cpus", world.bots[0])) == 1


@pytest.mark.usefixtures("fake_seconds")
def test_a_sensor_that_fails_is_said_once_and_its_rule_rests(
    world: World, haproxy: RunningHAProxy, caplog: pytest.LogCaptureFixture
) -> None:
    watchdog = world.watchdog(world.config(rules=swift(requests={}, cpu={"ladder": ["warn"]})))
    world.look(watchdog)
    world.machine.paths.haproxy_socket.rename(world.machine.paths.haproxy_socket.with_suffix(".away"))
    for _ in range(3):
        world.use(FIRST, cpu=500_000)
        world.look(watchdog)
    world.machine.paths.haproxy_socket.with_suffix(".away").rename(world.machine.paths.haproxy_socket)
    world.look(watchdog)
    assert caplog.text.count("edge cannot be read") == 1
    assert "edge can be read again" in caplog.text
    assert len(world.events("watchdog_warn")) == 1


@pytest.mark.usefixtures("fake_seconds")
def test_without_docker_nothing_is_judged_and_nothing_forgotten(world: World) -> None:
    watchdog = world.watchdog(world.config(rules=swift(cpu={})))
    world.look(watchdog)
    for broken in (False, False, True, False, False):
        world.engine.broken = {"states"} if broken else set()
        world.use(FIRST, cpu=500_000)
        if broken:
            with pytest.raises(ClawError, match="Docker did not answer"):
                world.look(watchdog)
        else:
            world.look(watchdog)
    kinds = [event["kind"] for event in world.events("watchdog_warn", "watchdog_throttle")]
    assert kinds == ["watchdog_warn", "watchdog_throttle"]


# --- telling ----------------------------------------------------------------------------------------


def wait_for(told: list[Notice], count: int) -> None:
    deadline = time.time() + 5
    while len(told) < count and time.time() < deadline:
        threading.Event().wait(0.01)


def test_the_operator_is_told_what_anybody_wrote_into_the_events(world: World) -> None:
    watchdog = world.watchdog(world.config(rules=swift(), notify={"kinds": ["suspended", "disk_low"]}))
    ask(world.machine, "suspend", "two", "--reason", "before the first look")
    world.look(watchdog)
    ask(world.machine, "suspend", "one", "--reason", "abuse")
    ask(world.machine, "resume", "one", "--timeout", "0", code=1)
    world.look(watchdog)
    wait_for(world.told, 1)
    assert [(notice.event, notice.bot, notice.message) for notice in world.told] == [
        ("suspended", world.bots[0], "one suspended: abuse")
    ]
    world.look(world.watchdog(world.config(rules=swift(), notify={"kinds": ["suspended"]})))
    wait_for(world.told, 2)
    assert len(world.told) == 1, "a restart of the service repeats nothing"


def test_a_disk_that_fills_up_is_told_once_until_there_is_room_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog = world.watchdog(
        world.config(rules=swift(), disk_low=10**9, notify={"kinds": ["disk_low"], "repeat": 0})
    )
    usage = shutil.disk_usage(world.tree)
    for free in (2e9, 9e8, 8e8, 1.05e9, 9e8, 2e9):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=int(free)))
        world.look(watchdog)
    assert [event["kind"] for event in world.events("disk_low", "disk_ok")] == ["disk_low", "disk_ok"]
    wait_for(world.told, 1)
    assert "0.9 GB of" in world.told[0].message


# --- showing ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake_seconds")
def test_status_shows_how_near_each_bot_is_to_each_rule(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file = world.machine.paths.watchdog_file
    monkeypatch.setattr(time, "time", lambda: world.now)
    config_file.write_text(json.dumps(settings(world.machine.paths.state, rules=swift(cpu={}, memory={}))))
    watchdog = world.watchdog(load(config_file))
    assert ask(world.machine, "watch", "status", code=1)["error"]["code"] == "watchdog_down"
    for _ in range(3):
        world.use(FIRST, cpu=480_000)
        world.look(watchdog)
    found = msgspec.convert(ask(world.machine, "watch", "status"), Status)
    one, two = found.bots
    assert set(one.rules) == {"cpu", "memory"}
    assert one.rules["cpu"].value == pytest.approx(0.96)
    assert (one.rules["cpu"].taken, one.rules["cpu"].next) == ("warn", "throttle")
    assert two.rules["cpu"].value == 0
    text = run(world.machine, "watch", "status").stdout
    assert "96% 0/2 warn" in text
    world.now += 60
    error = run(world.machine, "watch", "status", code=1).stderr
    assert "has seen nothing for 60 s" in error


def test_wrong_settings_are_named(world: World) -> None:
    path = world.machine.paths.watchdog_file
    for change, said in (
        ({"window": 0.5}, "window (0.5 s) cannot be shorter than interval"),
        ({"throttle": 1.5}, "throttle"),
        ({"rules": swift(cpu={"hits": 9})}, "hits (9) cannot be more than of (3)"),
        ({"rules": swift(cpu={"ladder": ["suspend", "warn"]})}, "in this order"),
        ({"plan_rules": {"small": {"cpu": {"hits": 99}}}}, "hits (99)"),
        ({"plan_rules": {"small": {"gpu": {}}}}, "gpu"),
        ({"typo": 1}, "typo"),
    ):
        path.write_text(json.dumps(settings(world.machine.paths.state) | change))
        error = ask(world.machine, "watch", "status", code=1)["error"]
        assert error["code"] == "watchdog_config"
        assert said in error["message"], error["message"]


@pytest.mark.usefixtures("fake_seconds")
def test_prometheus_gets_the_last_look(world: World) -> None:
    from prometheus_client import generate_latest
    from prometheus_client.parser import text_string_to_metric_families as parse

    watchdog = world.watchdog(world.config(rules=swift(cpu={"ladder": ["warn"]})))
    for _ in range(3):
        world.use(FIRST, cpu=500_000)
        world.look(watchdog)
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in parse(generate_latest(world.metrics.registry).decode())
        for sample in family.samples
    }
    bot = world.bots[0]
    assert found["clawdeploy_bot_cpu_seconds_total", *sorted((bot, "one"))] == pytest.approx(7.559633 + 1.5)
    assert found["clawdeploy_bot_oom_kills_total", *sorted((bot, "one"))] == 5
    assert found["clawdeploy_bot_memory_limit_bytes", *sorted((bot, "one"))] == 64 << 20
    assert found["clawdeploy_bot_state", *sorted((bot, "one", "running"))] == 1
    assert found["clawdeploy_host_bots", "running"] == 2
    assert found["clawdeploy_watchdog_decisions_total", "cpu", "warn"] == 1
    ask(world.machine, "destroy", "one", "--yes")
    world.look(watchdog)
    assert bot not in generate_latest(world.metrics.registry).decode()


def test_the_service_works_until_it_is_told_to_stop(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stop = threading.Event()
    watchdog = world.watchdog(world.config(interval=0.2, window=0.2, rules=swift()))
    thread = threading.Thread(target=watchdog.run, args=(stop,))
    thread.start()
    deadline = time.time() + 10
    status = world.machine.paths.state / "status.json"
    while not status.exists() and time.time() < deadline:
        threading.Event().wait(0.05)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert status.exists()
    assert (world.machine.paths.state / "watchdog.json").exists()
