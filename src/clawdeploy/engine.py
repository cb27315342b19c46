"""The container engine: the only module that knows how a bot's container is named, watched and removed.

Containers are made by the ``bot`` role; here they are looked at, restarted and taken away.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import docker
from docker.errors import DockerException, NotFound
from docker.utils import version_gte

from clawdeploy.errors import ClawError

LABEL_BOT = "clawdeploy.bot"
_STOP_SECONDS = 10
# Docker 25 brought health checks' start_interval (https://docs.docker.com/reference/api/engine/version-history/).
_START_INTERVAL_API = "1.44"


def container_name(bot_id: str) -> str:
    return f"clawdeploy-{bot_id}"


network_name = container_name  # one network per bot, of the same name


@dataclass(frozen=True)
class ContainerState:
    """state: Docker's word (created, running, exited, …); status: its sentence, as ``docker ps`` shows it.

    checked_early: the engine runs the first health check within a second, not after a whole interval.
    """

    state: str
    status: str
    checked_early: bool = False

    @property
    def running(self) -> bool:
        """Up, and its own health check passes, as far as the engine has already been able to run it."""
        starting = self.checked_early and "(health: starting)" in self.status
        return self.state == "running" and "(unhealthy)" not in self.status and not starting

    @property
    def dead(self) -> bool:
        """Down, and the engine will not bring it back by itself."""
        return self.state in ("exited", "dead", "created", "removing")


class Engine:
    """Docker on this host's socket; ClawError("engine_down") if nobody answers there."""

    def __init__(self) -> None:
        try:
            self._docker = docker.from_env(timeout=60)
        except DockerException as error:
            raise _down(error) from None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self._docker.close()

    def states(self) -> dict[str, ContainerState]:
        """Bot id -> state of its container, with one call for all of them."""
        try:
            listed: list[dict[str, Any]] = self._docker.api.containers(all=True, filters={"label": LABEL_BOT})
        except DockerException as error:
            raise _down(error) from None
        early = version_gte(self._docker.api.api_version, _START_INTERVAL_API)
        return {
            entry["Labels"][LABEL_BOT]: ContainerState(entry["State"], entry["Status"], early)
            for entry in listed
        }

    def log_tail(self, bot_id: str, lines: int = 20) -> list[str]:
        """The container's last log lines; none if it is gone or its log driver keeps nothing."""
        try:
            output: bytes = self._docker.containers.get(container_name(bot_id)).logs(tail=lines)
        except DockerException:
            return []
        return output.decode(errors="replace").splitlines()

    def restart(self, bot_id: str) -> None:
        """Restart the bot; ClawError("no_container") if it has none."""
        try:
            self._docker.containers.get(container_name(bot_id)).restart(timeout=_STOP_SECONDS)
        except NotFound:
            raise ClawError(
                "no_container", f"bot {bot_id} has no container: run deploy_bot for it again."
            ) from None
        except DockerException as error:
            raise _down(error) from None

    def remove(self, bot_id: str) -> None:
        """Remove container and network; what is gone already is fine."""
        try:
            for container in self._docker.containers.list(
                all=True, ignore_removed=True, filters={"label": f"{LABEL_BOT}={bot_id}"}
            ):
                with suppress(NotFound):
                    container.remove(force=True, v=True)
            for network in self._docker.networks.list(names=[network_name(bot_id)]):
                if network.name == network_name(bot_id):  # the engine's filter matches parts of a name
                    with suppress(NotFound):
                        network.remove()
        except DockerException as error:
            raise _down(error) from None


def _down(error: DockerException) -> ClawError:
    return ClawError(
        "engine_down", f"Docker did not do what was asked ({error}): see `systemctl status docker`."
    )
