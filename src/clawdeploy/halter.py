"""Stopping containers through Docker's HTTP API: the SDK takes longer to import than a kill switch may take.

https://docs.docker.com/reference/api/engine/; without a version in the path the daemon's own one is meant.
"""

import http.client
import json
import os
import socket
from contextlib import suppress
from typing import Any

from clawdeploy import cgroups
from clawdeploy.containers import ALIVE, container_name
from clawdeploy.errors import ClawError

_SOCKET = "unix:///var/run/docker.sock"
_SECONDS = 20


class _Connection(http.client.HTTPConnection):
    """HTTP on Docker's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Halter:
    """Freezes and kills bots; ClawError("engine_down") if Docker does not answer or refuses."""

    def __init__(self) -> None:
        address = os.environ.get("DOCKER_HOST") or _SOCKET
        self._connection = _Connection(address.removeprefix("unix://"))

    def __enter__(self) -> "Halter":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def freeze(self, bot_id: str) -> bool:
        """Stop all processes of the bot where they stand, without telling them; whether any were running."""
        status, answer = self._ask("POST", bot_id, "/pause")
        if status == 204:
            return True
        # Not there, paused already, or not running: kill() deals with all of these.
        if status in (404, 409) or self.state(bot_id) != "running":
            return False
        raise _refused(answer)

    def kill(self, bot_id: str) -> bool:
        """End all processes of the bot by SIGKILL, frozen ones too; whether there were any.

        Returns when they are gone. Docker takes it for a stop by hand, which ``unless-stopped`` respects even
        after a restart of the daemon or of the host.
        """
        status, there = self._ask("GET", bot_id, "/json")
        if status == 404:
            return False
        if status != 200:
            raise _refused(there)
        if there["State"]["Status"] not in ALIVE:
            return False
        if there["State"]["Status"] == "paused":
            with suppress(OSError):  # Docker's own kill comes next, and leaves them a moment at most
                cgroups.doom_frozen(there["Id"])
        self._tell(bot_id, "/kill?signal=KILL")
        if self.state(bot_id) == "restarting":
            self._tell(bot_id, "/stop?t=0")  # nothing runs, but the next start is being waited for
        self._tell(bot_id, "/wait")
        return True

    def state(self, bot_id: str) -> str:
        """Docker's word for the state of the bot's container; empty if it has none."""
        status, there = self._ask("GET", bot_id, "/json")
        return str(there["State"]["Status"]) if status == 200 else ""

    def _tell(self, bot_id: str, verb: str) -> None:
        status, answer = self._ask("POST", bot_id, verb)
        if status not in (200, 204, 304, 404, 409):  # it may have ended, or gone, by itself meanwhile
            raise _refused(answer)

    def _ask(self, method: str, bot_id: str, verb: str) -> tuple[int, Any]:
        try:
            self._connection.request(method, f"/containers/{container_name(bot_id)}{verb}")
            response = self._connection.getresponse()
            body = response.read()
            return response.status, json.loads(body) if body else {}
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            raise _refused({"message": str(error)}) from None


def _refused(answer: Any) -> ClawError:
    return ClawError(
        "engine_down",
        f"Docker did not do what was asked ({answer.get('message', '')}): see `systemctl status docker`.",
    )
