"""The engine against a real Docker daemon; containers are made but need not run."""

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clawdeploy.containers import ContainerSpec, LiveBot, MountSpec, container_name, next_action
from clawdeploy.engine import LABEL_BOT, LABEL_ONCE, ContainerState, Engine, Image, network_name
from clawdeploy.errors import ClawError
from clawdeploy.halter import Halter
from clawdeploy.tokens import new_bot_id

from .conftest import busybox_image, container_spec

pytestmark = pytest.mark.docker


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as connected:
        yield connected


@pytest.fixture
def bot_id(client: Any, engine: Engine) -> Iterator[str]:
    """A bot with a container that was never started, and a network."""
    bot_id = new_bot_id(())
    tag = bot_id
    busybox_image(client, tag)
    client.containers.create(
        f"clawdeploy-test:{tag}", ["/none"], name=container_name(bot_id), labels={LABEL_BOT: bot_id}
    )
    client.networks.create(network_name(bot_id), internal=True)
    yield bot_id
    engine.remove(bot_id)
    client.images.remove(f"clawdeploy-test:{tag}")


def test_a_container_is_seen_with_its_state(bot_id: str, engine: Engine) -> None:
    state = engine.states()[bot_id]
    assert state.state == "created"
    assert state.dead
    assert not state.running
    assert engine.log_tail(bot_id) == []


def test_removal_takes_container_and_network_and_can_be_repeated(
    bot_id: str, client: Any, engine: Engine
) -> None:
    engine.remove(bot_id)
    engine.remove(bot_id)
    assert bot_id not in engine.states()
    assert client.networks.list(names=[network_name(bot_id)]) == []


def test_a_bot_without_container_cannot_be_restarted(engine: Engine) -> None:
    with pytest.raises(ClawError, match="deploy_bot") as error:
        engine.restart("zzzzzzzzzzzz")
    assert error.value.code == "no_container"


def test_a_container_that_will_not_start_says_so(bot_id: str, engine: Engine) -> None:
    with pytest.raises(ClawError) as error:
        engine.restart(bot_id)
    assert error.value.code == "engine_down"


@pytest.mark.filterwarnings(
    "ignore:.*unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_without_a_daemon_the_error_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(ClawError, match="systemctl status docker") as error:
        Engine()
    assert error.value.code == "engine_down"
    del error  # it holds the SDK's socket, which is never closed: let that be seen here, not in another test
    gc.collect()


@pytest.mark.parametrize(
    ("state", "status", "running", "dead"),
    [
        ("running", "Up 2 seconds", True, False),
        ("running", "Up 2 seconds (health: starting)", True, False),
        ("running", "Up 2 minutes (healthy)", True, False),
        ("running", "Up 2 minutes (unhealthy)", False, False),
        ("restarting", "Restarting (1) 3 seconds ago", False, False),
        ("exited", "Exited (137) 1 second ago", False, True),
    ],
)
def test_states_are_read_as_docker_words_them(state: str, status: str, running: bool, dead: bool) -> None:
    seen = ContainerState(state, status)
    assert (seen.running, seen.dead) == (running, dead)


def test_a_check_that_starts_early_is_awaited() -> None:
    status = "Up 1 second (health: starting)"
    assert ContainerState("running", status).running
    assert not ContainerState("running", status, checked_early=True).running
    assert ContainerState("running", "Up 2 seconds (healthy)", checked_early=True).running


def test_a_container_gets_the_runtime_of_its_specification_and_no_other(
    bot_id: str, client: Any, engine: Engine
) -> None:
    spec = msgspec.convert(container_spec(image=f"clawdeploy-test:{bot_id}"), ContainerSpec)
    with pytest.raises(ClawError, match="runsc") as error:  # which this machine does not have
        engine.make(bot_id, msgspec.structs.replace(spec, runtime="runsc"))
    assert error.value.code == "container_failed"
    engine.make(bot_id, msgspec.structs.replace(spec, runtime="runc"))
    assert client.api.inspect_container(container_name(bot_id))["HostConfig"]["Runtime"] == "runc"


def test_a_command_runs_once_beside_the_bot_as_locked_up_as_it_is_and_without_any_network(
    bot_id: str, client: Any, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "note").write_text("remember me")
    tmp_path.chmod(0o755)
    spec = msgspec.convert(container_spec(image=f"clawdeploy-test:{bot_id}"), ContainerSpec)
    mount = MountSpec(source=str(tmp_path), target="/source", read_only=True)

    def once(script: str, seconds: int = 60) -> tuple[int, str]:
        return engine.once(bot_id, spec, ("/bin/busybox", "sh", "-c", script), mount, seconds)

    looks = ("cat /source/note", "id -u", "ls /sys/class/net", "grep CapEff /proc/self/status")
    code, said = once("; ".join(f"busybox {look}" for look in looks))
    assert code == 0
    assert said.split() == ["remember", "me200000", "lo", "CapEff:", "0000000000000000"]
    for place in ("/source/x", "/x"):
        code, said = once(f"echo no > {place}")
        assert code != 0
        assert "Read-only file system" in said
    assert once("echo out; echo bad >&2; exit 7")[0] == 7
    with pytest.raises(ClawError) as error:
        once("busybox sleep 60", seconds=1)
    assert error.value.code == "container_failed"
    assert client.containers.list(all=True, filters={"label": f"{LABEL_ONCE}={bot_id}"}) == []
    assert engine.states()[bot_id].state == "created", "the bot's own is left alone"


def test_a_container_is_made_as_specified_and_replaced_when_that_changes(
    bot_id: str, client: Any, engine: Engine
) -> None:
    image = f"clawdeploy-test:{bot_id}"
    spec = msgspec.convert(container_spec(image=image), ContainerSpec)
    request = LiveBot(id=bot_id, config_hash="c", image_digest=image, container=spec, balance="0")
    engine.make(bot_id, spec)
    assert next_action(engine.states()[bot_id], request, "c") == "keep"
    assert next_action(engine.states()[bot_id], request, "b") == "restart"
    seen = client.api.inspect_container(container_name(bot_id))
    limits = seen["HostConfig"]
    assert seen["State"]["Running"]
    assert seen["Config"]["User"] == "200000:200000"
    assert limits["ReadonlyRootfs"]
    assert limits["Init"]
    assert limits["CapDrop"] == ["ALL"]
    assert limits["SecurityOpt"] == ["no-new-privileges:true"]
    assert (limits["Memory"], limits["MemorySwap"]) == (32 << 20, 32 << 20)
    assert (limits["NanoCpus"], limits["PidsLimit"]) == (500_000_000, 64)
    assert {limit["Name"]: limit["Hard"] for limit in limits["Ulimits"]} == {"nofile": 1024, "core": 0}
    assert limits["RestartPolicy"]["Name"] == "unless-stopped"
    assert seen["NetworkSettings"]["Networks"][network_name(bot_id)]["IPAddress"] == "10.231.77.2"

    smaller = msgspec.structs.replace(spec, memory=16 << 20)
    assert (
        next_action(engine.states()[bot_id], msgspec.structs.replace(request, container=smaller), "c")
        == "replace"
    )
    engine.make(bot_id, smaller)
    assert client.api.inspect_container(container_name(bot_id))["HostConfig"]["Memory"] == 16 << 20


def test_images_are_pinned_by_their_id_where_no_registry_gave_a_digest(
    bot_id: str, client: Any, engine: Engine
) -> None:
    name = f"clawdeploy-test:{bot_id}"
    assert engine.images()[name] == client.api.inspect_image(name)["Id"]


def test_an_image_that_is_not_there_is_named(bot_id: str, engine: Engine) -> None:
    spec = msgspec.convert(container_spec(image="clawdeploy-test:nosuch"), ContainerSpec)
    with pytest.raises(ClawError, match="clawdeploy-test:nosuch") as error:
        engine.make(bot_id, spec)
    assert error.value.code == "container_failed"


def test_a_frozen_bot_stands_still_until_it_is_thawed(bot_id: str, client: Any, engine: Engine) -> None:
    def state() -> str:
        return str(client.api.inspect_container(container_name(bot_id))["State"]["Status"])

    with Halter() as halter:
        assert not halter.freeze(bot_id), "it never ran"
        engine.make(bot_id, msgspec.convert(container_spec(image=f"clawdeploy-test:{bot_id}"), ContainerSpec))
        assert halter.freeze(bot_id)
        assert state() == "paused"
        assert not halter.freeze(bot_id), "whoever froze it thaws it"
        engine.thaw(bot_id)
        assert state() == "running"
        engine.thaw(bot_id)
        assert state() == "running"
        for verb in (halter.freeze, engine.thaw):
            assert not verb("zzzzzzzzzzzz")


def test_an_image_is_here_or_must_be_brought(bot_id: str, client: Any, engine: Engine) -> None:
    engine.fetch(client.images.get(f"clawdeploy-test:{bot_id}").id)
    for reference in ("sha256:" + "0" * 64, "registry.invalid/agent@sha256:" + "0" * 64):
        with pytest.raises(ClawError, match="docker load") as error:
            engine.fetch(reference)
        assert error.value.code == "image_missing"


def test_a_container_ends_when_told_and_restarts_by_itself_are_counted(
    bot_id: str, client: Any, engine: Engine
) -> None:
    engine.stop("zzzzzzzzzzzz")
    assert engine.restarts("zzzzzzzzzzzz") is None
    image = f"clawdeploy-test:{bot_id}"
    engine.make(bot_id, msgspec.convert(container_spec(image=image), ContainerSpec))
    assert engine.restarts(bot_id) == 0
    engine.stop(bot_id)
    assert engine.states()[bot_id].dead
    command = ["/bin/busybox", "false"]
    engine.make(bot_id, msgspec.convert(container_spec(image=image, command=command), ContainerSpec))
    deadline = time.monotonic() + 20
    while engine.restarts(bot_id) == 0:
        assert time.monotonic() < deadline, "Docker never started it again"


def test_only_an_image_without_containers_is_unused_and_goes_with_all_its_names(
    bot_id: str, client: Any, engine: Engine
) -> None:
    name = f"clawdeploy-test:{bot_id}"
    used = client.api.inspect_image(name)["Id"]
    archive = client.api.export(container_name(bot_id))
    tags = {f"clawdeploy-test:{bot_id}-{part}" for part in ("a", "b")}
    client.api.import_image_from_data(b"".join(archive), repository="clawdeploy-test", tag=f"{bot_id}-a")
    client.api.tag(f"clawdeploy-test:{bot_id}-a", "clawdeploy-test", f"{bot_id}-b")
    (found,) = [image for image in engine.unused_images() if tags & set(image.tags)]
    assert (set(found.tags), found.id == used) == (tags, False)
    assert engine.remove_image(found)
    assert not tags & {tag for image in engine.unused_images() for tag in image.tags}
    assert not engine.remove_image(Image(used, (), (), 0)), "its bot's container needs it"


def test_a_replaced_container_is_asked_to_end_before_it_is_made_to(
    bot_id: str, client: Any, engine: Engine
) -> None:
    image = f"clawdeploy-test:{bot_id}"
    waits = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    command = ["/bin/busybox", "sh", "-c", waits.replace("sleep", "/bin/busybox sleep")]
    spec = msgspec.convert(container_spec(image=image, command=command), ContainerSpec)
    engine.make(bot_id, spec)
    deadline = time.monotonic() + 20
    while engine.log_tail(bot_id) != ["ready"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (first,) = client.containers.list(filters={"label": f"{LABEL_BOT}={bot_id}"})
    events = client.events(decode=True, filters={"container": first.id, "event": "die"})
    engine.make(bot_id, msgspec.structs.replace(spec, memory=16 << 20))
    assert next(events)["Actor"]["Attributes"]["exitCode"] == "7"
    events.close()


def test_a_command_runs_as_the_bot_and_its_output_comes_back(bot_id: str, engine: Engine) -> None:
    image = f"clawdeploy-test:{bot_id}"
    command = ["/bin/busybox", "sleep", "60"]
    spec = msgspec.convert(container_spec(image=image, command=command), ContainerSpec)
    with pytest.raises(ClawError) as stopped:
        engine.run(bot_id, ["/bin/busybox", "true"])
    assert stopped.value.code == "no_container"
    engine.make(bot_id, spec)
    assert engine.run(bot_id, ["/bin/busybox", "id", "-u"]) == b"200000\n"
    with pytest.raises(ClawError, match="ended with code 3: because") as failed:
        engine.run(bot_id, ["/bin/busybox", "sh", "-c", "echo because >&2; exit 3"])
    assert failed.value.code == "command_failed"
