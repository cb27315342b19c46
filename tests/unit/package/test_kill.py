"""The kill switch's hold on containers, and what they use, on a real Docker daemon."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from clawdeploy import cgroups, gauges
from clawdeploy.containers import ContainerSpec, container_name
from clawdeploy.engine import LABEL_BOT, Engine
from clawdeploy.errors import ClawError
from clawdeploy.halter import Halter
from clawdeploy.host import Paths
from clawdeploy.tokens import new_bot_id

from .conftest import busybox_image, container_spec

pytestmark = pytest.mark.docker

# Two processes that count, so that a thaw before the end would show.
COUNT = "i=0; while :; do i=$((i+1)); echo $i; /bin/busybox usleep 20000; done"
WORK = f"({COUNT}) & {COUNT}"
Run = Callable[..., str]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as connected:
        yield connected


@pytest.fixture
def halter() -> Iterator[Halter]:
    with Halter() as connected:
        yield connected


@pytest.fixture
def run_bot(client: Any, engine: Engine) -> Iterator[Run]:
    """Runs a shell command as a bot's container, with the limits and restart policy of a real one."""
    made: list[str] = []

    def run(command: str, number: int = 0, **changes: Any) -> str:
        bot_id = new_bot_id(())
        busybox_image(client, bot_id)
        made.append(bot_id)
        network = {
            "bridge": f"cb-kill{number}",
            "subnet": f"10.231.78.{16 * number}/28",
            "gateway": f"10.231.78.{16 * number + 1}",
            "address": f"10.231.78.{16 * number + 2}",
        }
        spec = container_spec(
            image=f"clawdeploy-test:{bot_id}",
            command=["/bin/busybox", "sh", "-c", command],
            mounts=[],
            network=network,
            **changes,
        )
        engine.make(bot_id, msgspec.convert(spec, ContainerSpec))
        return bot_id

    yield run
    for bot_id in made:
        engine.remove(bot_id)
        client.images.remove(f"clawdeploy-test:{bot_id}")


def inspect(client: Any, bot_id: str) -> Any:
    return client.api.inspect_container(container_name(bot_id))


def test_a_frozen_bot_does_nothing_more_and_is_killed_as_it_stands(
    run_bot: Run, client: Any, engine: Engine, halter: Halter
) -> None:
    bot_id = run_bot(WORK)
    deadline = time.monotonic() + 20
    while not engine.log_tail(bot_id):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert halter.freeze(bot_id)
    assert not halter.freeze(bot_id)
    time.sleep(0.3)  # until Docker has written down what was said before
    frozen = engine.log_tail(bot_id, 10_000)
    assert frozen
    assert halter.kill(bot_id)
    assert not halter.kill(bot_id)
    assert engine.log_tail(bot_id, 10_000) == frozen, "it got to run between freezing and its end"
    state = inspect(client, bot_id)["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 137)
    time.sleep(1)
    assert engine.states()[bot_id].state == "exited", "the restart policy must not bring it back"


def test_a_bot_that_keeps_crashing_is_held_too(
    run_bot: Run, client: Any, engine: Engine, halter: Halter
) -> None:
    bot_id = run_bot("exit 1")
    deadline = time.monotonic() + 20
    while engine.states()[bot_id].state != "restarting":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    halter.freeze(bot_id)
    halter.kill(bot_id)
    restarts = inspect(client, bot_id)["RestartCount"]
    time.sleep(3)
    assert inspect(client, bot_id)["RestartCount"] == restarts
    assert engine.states()[bot_id].state == "exited"


def test_a_killed_bot_starts_again_and_a_paused_one_goes_on(
    run_bot: Run, engine: Engine, halter: Halter
) -> None:
    bot_id = run_bot(WORK)
    halter.freeze(bot_id)
    engine.start(bot_id)
    assert engine.states()[bot_id].state == "running"
    halter.freeze(bot_id)
    halter.kill(bot_id)
    engine.start(bot_id)
    assert engine.states()[bot_id].state == "running"


def test_what_is_not_there_needs_no_killing_and_cannot_be_started(engine: Engine, halter: Halter) -> None:
    assert not halter.freeze("zzzzzzzzzzzz")
    assert not halter.kill("zzzzzzzzzzzz")
    with pytest.raises(ClawError, match="deploy_bot"):
        engine.start("zzzzzzzzzzzz")
    with pytest.raises(ClawError, match="deploy_bot"):
        list(engine.log("zzzzzzzzzzzz", 10))


def test_owners_are_those_of_containers_and_networks(run_bot: Run, client: Any, engine: Engine) -> None:
    bot_id = run_bot("sleep 60")
    assert bot_id in engine.owners()
    client.api.remove_container(container_name(bot_id), force=True)
    assert bot_id in engine.owners(), "its network is still there"
    engine.remove(bot_id)
    assert bot_id not in engine.owners()
    client.networks.create(f"stray-{bot_id}", labels={LABEL_BOT: bot_id}, internal=True)
    engine.remove(bot_id)
    assert bot_id not in engine.owners(), "whatever its name is"


def test_a_log_ends_with_the_newest_lines(run_bot: Run, engine: Engine) -> None:
    bot_id = run_bot("for i in 1 2 3 4; do echo line $i; done; sleep 60")
    deadline = time.monotonic() + 10
    while b"".join(engine.log(bot_id, 2)) != b"line 3\nline 4\n":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_bot_uses_is_read_from_its_control_group(run_bot: Run, paths: Paths, engine: Engine) -> None:
    busy, idle = run_bot("while :; do :; done", cpus=0.5), run_bot("sleep 60", number=1)
    states = {bot_id: state for bot_id, state in engine.states().items() if bot_id in (busy, idle)}
    groups = cgroups.find({state.container for state in states.values()})
    assert len(groups) == 2
    read = gauges.read(paths, states, 1.0)
    assert 0.2 < (read[busy].cpu or 0) < 0.8
    assert (read[idle].cpu or 0) < 0.1
    assert 0 < (read[idle].memory or 0) < 32 << 20
    assert read[idle].pids in (2, 3)
    assert read[idle].oom_kills == 0
    assert read[idle].rps is None, "no HAProxy answers here"


def test_without_a_daemon_the_kill_switch_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with Halter() as halter, pytest.raises(ClawError, match="systemctl status docker") as error:
        halter.freeze("zzzzzzzzzzzz")
    assert error.value.code == "engine_down"
