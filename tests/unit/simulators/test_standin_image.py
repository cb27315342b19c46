"""The stand-in's image is made without a registry and runs as hardened as the platform runs it."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.standin import build

MEMORY_LIMIT = 10_000_000
KEY_FILES = {"usr/local/bin/nullclaw", "bin/sh", "bin/wget", "etc/ssl/certs/ca-certificates.crt"}


def contents(archive: str) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """(manifest entry, image configuration, names in the layer) of an archive."""
    with tarfile.open(archive) as tar:

        def member(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file
            return file.read()

        [manifest] = json.loads(member("manifest.json"))
        config = member(manifest["Config"])
        assert manifest["Config"] == f"{hashlib.sha256(config).hexdigest()}.json"
        layer = tar.extractfile(manifest["Layers"][0])
        with tarfile.open(fileobj=layer) as files:
            return manifest, json.loads(config), set(files.getnames())


def test_archive_is_an_image_like_upstreams() -> None:
    image = build.build_image()
    manifest, config, names = contents(image.archive)
    assert manifest["RepoTags"] == [image.tag]
    assert (config["config"]["Entrypoint"], config["config"]["User"]) == (["nullclaw"], "65534:65534")
    assert names >= KEY_FILES


def test_same_input_gives_the_same_image_and_another_ca_another(tmp_path: Path) -> None:
    other = tmp_path / "ca.pem"
    other.write_text("another")
    first, again = build.build_image(), build.build_image()
    assert first == again
    assert build.build_image(other).image_id != first.image_id


def test_variant_has_its_own_tag() -> None:
    image = build.build_image(variant="sick")
    assert image.tag == "clawdeploy/standin-nullclaw:1-sick"
    assert "STANDIN_VARIANT=sick" in contents(image.archive)[1]["config"]["Env"]


def test_release_has_its_own_tag_and_id() -> None:
    first, second = build.build_image(), build.build_image(release=2)
    assert second.tag == "clawdeploy/standin-nullclaw:2"
    assert second.image_id != first.image_id


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of healthy, crash, sick, late, picky, hostile"):
        build.build_image(variant="tired")


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Any]:
    """The image, running with the platform's restrictions and little memory."""
    config = {
        "models": {"providers": {"gw": {"base_url": "http://127.0.0.1:9/api/v1"}}},
        "agents": {"defaults": {"model": {"primary": "gw/vendor/model"}}},
        "gateway": {"paired_tokens": ["ci_token"], "webhook_sync_for_workers": True},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)  # a bot's own uid owns it on a real host
    image = build.build_image()
    client = docker.from_env()
    present = any(known["Id"] == image.image_id for known in client.api.images())
    client.images.load(Path(image.archive).read_bytes())
    container = client.containers.run(
        image.image_id,
        ["gateway", "--port", "3000", "--host", "0.0.0.0"],
        detach=True,
        init=True,
        read_only=True,
        tmpfs={"/tmp": "rw,noexec,nosuid,size=4m"},
        user="200000:200000",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        pids_limit=64,
        mem_limit="16m",
        memswap_limit="16m",
        network_mode="none",
        environment={"NULLCLAW_HOME": "/config", "NULLCLAW_WORKSPACE": "/nullclaw-data/workspace"},
        volumes=[
            f"{tmp_path}/data:/nullclaw-data",
            f"{tmp_path}/config.json:/config/config.json:ro",
        ],
        healthcheck={
            "test": ["CMD-SHELL", "wget -qO- http://127.0.0.1:3000/ready >/dev/null"],
            "interval": 200_000_000,
            "retries": 3,
        },
    )
    yield container
    container.remove(force=True)
    if not present:
        client.images.remove(image.image_id, force=True)
    client.close()


def peak_memory(pid: int) -> int:
    """The most memory, page cache included, that a process's control group (v1 or v2) ever used."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            return int(Path(f"/sys/fs/cgroup/memory{path}/memory.max_usage_in_bytes").read_text())
        if not controllers and (file := Path(f"/sys/fs/cgroup{path}/memory.peak")).exists():
            return int(file.read_text())
    raise AssertionError("this process has no memory control group")


@pytest.mark.docker
def test_hardened_container_is_healthy_answers_and_stays_under_ten_megabytes(container: Any) -> None:
    events = container.client.api.events(
        decode=True, since=0, filters={"container": container.id, "event": "health_status"}
    )
    assert next(iter(events))["status"] == "health_status: healthy"
    request = "wget -qO- --header 'Authorization: Bearer ci_token' --post-data '{\"message\":\"!sh id -u\"}'"
    status, output = container.exec_run(["sh", "-c", f"{request} http://127.0.0.1:3000/webhook"])
    assert status == 0
    assert json.loads(output)["response"] == "200000\n[exit 0]"
    container.reload()
    assert peak_memory(container.attrs["State"]["Pid"]) < MEMORY_LIMIT
    container.stop(timeout=10)
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 143  # the init passed SIGTERM on; nothing else would have
