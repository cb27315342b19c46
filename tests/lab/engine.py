"""The machine's Docker engine: started when none answers, and spoken to through its own command."""

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.lab.settings import LABEL, ROOT, STATE, LabError

ENGINE_PID = STATE / "dockerd.pid"
LABEL_ARGS = ("--label", f"{LABEL}={ROOT}")


def docker(*args: str, stdin: str | None = None, timeout: float = 300) -> str:
    """Run one docker command and return its standard output; LabError with the engine's words if it fails."""
    result = subprocess.run(
        ["docker", *args], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )
    if result.returncode:
        words = (result.stderr or result.stdout).strip()
        raise LabError(f"docker {args[0]} failed: {words}")
    return result.stdout.strip()


def inspect(kind: str, name: str) -> dict[str, Any] | None:
    """Return what the engine knows of a container, network, volume or image; None if there is none."""
    try:
        found: list[dict[str, Any]] = json.loads(docker(kind, "inspect", name))
    except LabError as error:
        if "no such" in str(error).lower() or "not found" in str(error).lower():
            return None
        raise
    return found[0]


def answers() -> bool:
    """Tell whether a Docker engine answers on this machine."""
    try:
        docker("version", "--format", "{{.Server.Version}}", timeout=20)
    except FileNotFoundError as error:
        raise LabError("docker is not installed: run `apt-get install docker.io`") from error
    except (LabError, subprocess.TimeoutExpired):
        return False
    return True


def ensure_docker(timeout: float = 60) -> bool:
    """Start dockerd in the background if no engine answers, and wait for it; True if it was started.

    Raises LabError with the end of its log if it does not answer within `timeout` seconds.
    """
    if answers():
        return False
    STATE.mkdir(parents=True, exist_ok=True)
    log = STATE / "dockerd.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["dockerd"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={"PATH": os.environ["PATH"]},
        )
    ENGINE_PID.write_text(str(process.pid))
    deadline = time.monotonic() + timeout
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise LabError(f"dockerd does not answer, see {log}:\n{tail}")
        time.sleep(0.2)
    return True


def stop_engine() -> bool:
    """Stop the engine if ensure_docker started it and nobody's container is left in it; True if stopped."""
    try:
        pid = int(ENGINE_PID.read_text())
        if Path(f"/proc/{pid}/comm").read_text().strip() != "dockerd":
            return False
    except FileNotFoundError:
        return False
    if docker("ps", "--all", "--quiet"):
        return False
    stop(pid, timeout=30)
    return True


def stop(pid: int, timeout: float = 5) -> None:
    """End a process politely, after `timeout` seconds by force, and wait until it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], timeout)[0]:
                return
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
