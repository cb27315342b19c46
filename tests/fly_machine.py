"""A machine of the simulated Fly.io, run for real: a container on the simulated internet, made of the
machine's configuration, its secrets and its volume, as docs.machines.dev says.
"""

import base64
import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab.engine import LABEL_ARGS, docker
from tests.lab.settings import DNS_ADDRESS, FLY_MACHINE_ADDRESS, NETWORK

NAME = "claw-fly-machine"


@contextmanager
def running(machine: dict[str, Any], archive: str) -> Iterator[None]:
    """Run `machine`, as the simulator's /_sim/state has it, with the image of that `docker save` archive."""
    config, secrets = machine["config"], machine["secrets"]
    docker("load", "--input", archive)
    _remove()
    environment = config["env"] | secrets
    volumes = [f"{NAME}-{number}:{mount['path']}" for number, mount in enumerate(config["mounts"])]
    program, *arguments = config["init"]["exec"]
    docker(
        *("create", "--name", NAME, *LABEL_ARGS, "--entrypoint", program),
        *("--network", NETWORK, "--ip", FLY_MACHINE_ADDRESS, "--dns", DNS_ADDRESS),
        *("--memory", f"{config['guest']['memory_mb']}m"),
        *(word for name, value in environment.items() for word in ("--env", f"{name}={value}")),
        *(word for volume in volumes for word in ("--volume", volume)),
        *(config["image"], *arguments),
    )
    try:
        files = _packed(config["files"], secrets)
        subprocess.run(["docker", "cp", "-", f"{NAME}:/"], input=files, check=True, capture_output=True)
        docker("start", NAME)
        yield
    finally:
        _remove()
        docker("image", "rm", "--force", config["image"])


def _packed(files: list[dict[str, Any]], secrets: dict[str, str]) -> bytes:
    """The files of a machine, root's, as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in files:
            content = base64.b64decode(file.get("raw_value") or secrets[file["secret_name"]])
            entry = tarfile.TarInfo(file["guest_path"].lstrip("/"))
            entry.size, entry.mode = len(content), file["mode"]
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _remove() -> None:
    for kind in ("container", "volume"):
        listing = ("ls", "--quiet", "--filter", f"name=^{NAME}")
        if found := docker(kind, *listing, *(["--all"] if kind == "container" else [])).split():
            docker(kind, "rm", "--force", *found)
