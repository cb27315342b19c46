"""Real offenders and real innocents in real containers, and the watchdog with windows of half a second."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clawdeploy.cli import Machine
from clawdeploy.containers import ContainerSpec, container_name
from clawdeploy.engine import Engine
from clawdeploy.health import wait_until_healthy, watch_containers
from clawdeploy.ledger_client import LedgerClient
from clawdeploy.models import Running
from clawdeploy.notify import Notifier
from clawdeploy.watchdog.config import Config
from clawdeploy.watchdog.metrics import Metrics
from clawdeploy.watchdog.sensors import Sensors
from clawdeploy.watchdog.service import Watchdog
from tests.ports import free_port

from .conftest import RUN, RunningHAProxy, busybox_image, container_spec, wanted
from .harness import ask, declared
from .watchdog import make_config, swift

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's"),
]

WINDOW = 0.5
Run = Callable[..., str]

BURNER = "while :; do :; done"
# tail keeps the whole of a line that never ends in memory.
HOG = "/bin/busybox tail /dev/zero"
# A shell ends when it may not fork: another one takes its place, so that the limit is reached and stays so.
FORK_BOMB = "while :; do (while :; do /bin/busybox sleep 60 & done) 2>/dev/null; done"
CRASH_LOOP = "/bin/busybox usleep 50000; exit 1"
# Works a quarter of the time, forks, and holds a few megabytes.
INNOCENT = (
    "while :; do i=0; while [ $i -lt 300 ]; do i=$((i+1)); done; "
    "/bin/busybox dd if=/dev/zero of=/scratch/x bs=64k count=16 2>/dev/null; /bin/busybox usleep 100000; done"
)


@pytest.fixture
def machine(paths: Any, systemd: Any) -> Machine:
    """With the real Docker."""
    return Machine(paths=paths, systemctl=systemd, engine=Engine)


@pytest.fixture
def run_bot(client: Any, machine: Machine, haproxy: RunningHAProxy, ledger: LedgerClient) -> Iterator[Run]:
    """Deploys a bot that runs a shell command, with the limits given; returns its id."""
    made: list[str] = []

    def run(name: str, command: str, **changes: Any) -> str:
        number = len(made) + 1
        bot_id: str = declared(machine, wanted(number, name=name))[0]["id"]
        busybox_image(client, bot_id)
        made.append(bot_id)
        spec = container_spec(
            **{
                "image": f"clawdeploy-test:{bot_id}",
                "command": ["/bin/busybox", "sh", "-c", command],
                "mounts": [],
                "tmpfs": {"/scratch": "rw,size=16m,mode=1777"},
                "cpus": 0.2,
                "memory": 16 << 20,
                "pids_limit": 24,
                "network": {
                    "bridge": f"cb-watch{number}",
                    "subnet": f"10.231.79.{16 * number}/28",
                    "gateway": f"10.231.79.{16 * number + 1}",
                    "address": f"10.231.79.{16 * number + 2}",
                },
            }
            | changes
        )
        with machine.changing() as registry, machine.engine() as engine:
            registry.activate(RUN, [Running(bot_id, "c" * 64, "sha256:1")])
            registry.store.put_container(bot_id, msgspec.convert(spec, ContainerSpec))
            engine.make(bot_id, msgspec.convert(spec, ContainerSpec))
        return bot_id

    yield run
    with Engine() as engine:
        for bot_id in made:
            engine.remove(bot_id)
            client.images.remove(f"clawdeploy-test:{bot_id}")


def watch(machine: Machine, config: Config, until: Callable[[], bool], seconds: float) -> None:
    """Let the watchdog work until that is so, or the time is over."""
    notifier = Notifier({}, 3600)
    sensors = Sensors(machine, denials=dict)
    watchdog = Watchdog(config, machine, sensors, notifier, Metrics())
    deadline = time.monotonic() + seconds
    try:
        while not until() and time.monotonic() < deadline:
            began = time.monotonic()
            watchdog.round()
            time.sleep(max(began + WINDOW - time.monotonic(), 0))
    finally:
        sensors.close()
        notifier.close(1)


def quick(directory: Path, **rules: dict[str, Any]) -> Config:
    return make_config(directory, interval=WINDOW, window=WINDOW, rules=swift(**rules))


def decisions(machine: Machine, bot: str) -> list[tuple[str, str]]:
    found = ask(machine, "events", bot)["events"]
    return [
        (event["kind"].removeprefix("watchdog_"), event["details"]["rule"])
        for event in found
        if event["kind"].startswith("watchdog_")
    ]


def state(client: Any, bot: str) -> str:
    return str(client.api.inspect_container(container_name(bot))["State"]["Status"])


def suspended(machine: Machine, bot: str) -> bool:
    return bool(ask(machine, "show", bot)["suspended"])


def test_a_burner_is_throttled_in_fact_and_then_suspended_while_an_innocent_works_on(
    run_bot: Run, machine: Machine, client: Any
) -> None:
    burner, innocent = run_bot("burner", BURNER), run_bot("innocent", INNOCENT, cpus=1.0)
    config = quick(
        machine.paths.state, cpu={"hits": 3, "of": 4}, memory={}, processes={}, oom={}, restarts={}
    )
    watch(machine, config, lambda: len(decisions(machine, burner)) >= 2, 30)
    assert client.api.inspect_container(container_name(burner))["HostConfig"]["NanoCpus"] == 100_000_000
    watch(machine, config, lambda: suspended(machine, burner), 30)
    assert decisions(machine, burner)[:3] == [("warn", "cpu"), ("throttle", "cpu"), ("suspend", "cpu")]
    assert state(client, burner) == "exited"
    assert decisions(machine, innocent) == []
    assert state(client, innocent) == "running"
    watch(machine, config, lambda: False, 3 * WINDOW)
    limits = client.api.inspect_container(container_name(burner))["HostConfig"]
    assert limits["NanoCpus"] == 200_000_000, "a resumed bot begins with what its plan says"


def test_a_memory_hog_is_found_by_what_the_kernel_did(run_bot: Run, machine: Machine) -> None:
    hog = run_bot("hog", f"while :; do {HOG}; done", cpus=1.0)
    config = quick(machine.paths.state, oom={"hits": 2, "of": 10})
    watch(machine, config, lambda: suspended(machine, hog), 40)
    assert decisions(machine, hog) == [("warn", "oom"), ("suspend", "oom")]


def test_a_container_that_ends_for_want_of_memory_is_found_too(run_bot: Run, machine: Machine) -> None:
    """Its control group goes with it, and with that the kernel's count."""
    hog = run_bot("hog", f"exec {HOG}", cpus=1.0, init=False)
    config = quick(machine.paths.state, oom={"hits": 2, "of": 20, "ladder": ["warn"]})
    watch(machine, config, lambda: bool(decisions(machine, hog)), 40)
    assert decisions(machine, hog) == [("warn", "oom")]


@pytest.mark.parametrize("init", [True, False])
def test_whoever_waits_for_a_bot_or_looks_on_is_told_that_memory_ran_out(
    run_bot: Run, machine: Machine, init: bool
) -> None:
    hog = run_bot("hog", f"exec {HOG}", cpus=1.0, init=init)
    with machine.registry() as registry:
        bot, host = registry.find(hog), registry.host
    with machine.engine() as engine:
        (health,) = asyncio.run(wait_until_healthy([bot], host, engine, 2, free_port()))
        seen = asyncio.run(watch_containers([bot], engine, 10))
    for reason in (health.reason, seen[hog]):
        assert reason.startswith("hog ran out of memory: the kernel ended "), reason


def test_a_fork_bomb_is_found_at_its_limit(run_bot: Run, machine: Machine, client: Any) -> None:
    bomb = run_bot("bomb", FORK_BOMB)
    config = quick(machine.paths.state, processes={})
    watch(machine, config, lambda: suspended(machine, bomb), 30)
    assert decisions(machine, bomb) == [("warn", "processes"), ("suspend", "processes")]
    assert state(client, bomb) == "exited"


def test_a_crash_loop_is_found_and_ended(run_bot: Run, machine: Machine, client: Any) -> None:
    looper = run_bot("looper", CRASH_LOOP)
    config = quick(machine.paths.state, restarts={"hits": 2, "of": 12}, cpu={}, memory={})
    watch(machine, config, lambda: suspended(machine, looper), 40)
    assert decisions(machine, looper) == [("warn", "restarts"), ("suspend", "restarts")]
    assert state(client, looper) == "exited"


def test_a_restart_by_people_is_no_crash(run_bot: Run, machine: Machine, client: Any) -> None:
    bot = run_bot("honest", "exec /bin/busybox sleep 100")
    config = quick(machine.paths.state, restarts={"hits": 1, "of": 20})

    def restart() -> None:
        for _ in range(3):
            time.sleep(1)
            client.api.restart(container_name(bot), timeout=0)

    with ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(restart)
        watch(machine, config, restarting.done, 30)
        restarting.result()
    watch(machine, config, lambda: False, 2)
    assert decisions(machine, bot) == []


def test_one_look_at_many_bots_takes_milliseconds(run_bot: Run, machine: Machine) -> None:
    for number in range(4):
        run_bot(f"idle-{number}", "exec /bin/busybox sleep 100")
    sensors = Sensors(machine, denials=dict)
    try:
        sensors.look({})
        began = time.monotonic()
        look = sensors.look({})
        took = time.monotonic() - began
    finally:
        sensors.close()
    assert all(sight.reading is not None for sight in look.sights)
    assert took < 0.5, f"{took:.3f} s"
