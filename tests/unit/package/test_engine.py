"""The engine against a real Docker daemon; containers are made but need not run."""

import gc
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import docker
import msgspec
import pytest

from clawdeploy.containers import ContainerSpec, LiveBot, next_action
from clawdeploy.engine import LABEL_BOT, ContainerState, Engine, container_name, network_name
from clawdeploy.errors import ClawError
from clawdeploy.tokens import new_bot_id

from .conftest import container_spec

pytestmark = pytest.mark.docker


@pytest.fixture
def client() -> Iterator[Any]:
    connected = docker.from_env()
    yield connected
    connected.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as connected:
        yield connected


@pytest.fixture
def bot_id(client: Any, engine: Engine) -> Iterator[str]:
    """A bot with a container that was never started, and a network."""
    bot_id = new_bot_id(())
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for name in ("tmp", "mnt"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
    tag = bot_id
    client.api.import_image_from_data(archive.getvalue(), repository="clawdeploy-test", tag=tag)
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
