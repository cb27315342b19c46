"""The container engine: the only module that knows how a bot's container is made, watched and removed.

What a container should be is said by the ``bot`` role, as a ContainerSpec.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import NOT_FOUND
from typing import Any

import docker
import msgspec
from docker.errors import APIError, DockerException, NotFound
from docker.types import IPAMConfig, IPAMPool, Mount, Ulimit
from docker.utils import version_gte
from requests import RequestException

from clawdeploy.containers import ALIVE, ContainerSpec, MountSpec, NetworkSpec, container_name
from clawdeploy.errors import ClawError

LABEL_BOT = "clawdeploy.bot"
LABEL_SPEC = "clawdeploy.spec"
LABEL_ONCE = "clawdeploy.once"
_STOP_SECONDS = 10
_EX_CONFIG = 78
_KILLED = 128 + 9
# Docker 25 brought health checks' start_interval (https://docs.docker.com/reference/api/engine/version-history/).
_START_INTERVAL_API = "1.44"


network_name = container_name  # one network per bot, of the same name


@dataclass(frozen=True)
class ContainerState:
    """state: Docker's word (created, running, exited, …); status: its sentence, as ``docker ps`` shows it.

    checked_early: the engine runs the first health check within a second, not after a whole interval.
    spec: hash of the specification it was made from; container: Docker's own id.
    """

    state: str
    status: str
    checked_early: bool = False
    spec: str = ""
    container: str = ""

    @property
    def running(self) -> bool:
        """Up, and its own health check passes, as far as the engine has already been able to run it."""
        starting = self.checked_early and "(health: starting)" in self.status
        return self.state == "running" and "(unhealthy)" not in self.status and not starting

    @property
    def dead(self) -> bool:
        """Down, and the engine will not bring it back by itself."""
        return self.state in ("exited", "dead", "created", "removing")

    @property
    def misconfigured(self) -> bool:
        """It ended with EX_CONFIG of sysexits.h: another start with the same settings ends the same way."""
        return f"({_EX_CONFIG})" in self.status

    @property
    def killed(self) -> bool:
        """It ended by SIGKILL, as by the kernel when memory runs out. Docker's word `OOMKilled` is not to be
        had from a list, and false where a process below the first one was the victim.
        """
        return f"({_KILLED})" in self.status

    @property
    def alive(self) -> bool:
        """Its processes exist, or the engine is about to start them again."""
        return self.state in ALIVE


@dataclass(frozen=True)
class Image:
    """An image of this host; size is bytes, what it shares with others included."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size: int


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
        return {
            entry["Labels"][LABEL_BOT]: ContainerState(
                *(entry["State"], entry["Status"], self._checks_early),
                *(entry["Labels"].get(LABEL_SPEC, ""), entry["Id"]),
            )
            for entry in listed
        }

    def images(self) -> dict[str, str]:
        """Every name, digest and id by which an image of this host is known -> the reference that pins it.

        An image from a registry is pinned by its digest there, any other one by its id.
        """
        try:
            listed: list[dict[str, Any]] = self._docker.api.images()
        except DockerException as error:
            raise _down(error) from None
        pins = {}
        for image in listed:
            digests = image.get("RepoDigests") or []
            for name in (*(image.get("RepoTags") or []), image["Id"]):
                pins[name] = digests[0] if digests else image["Id"]
            pins |= {digest: digest for digest in digests}
        return pins

    def unused_images(self) -> list[Image]:
        """The images that no container was made from, running or not."""
        api = self._docker.api
        try:
            listed: list[dict[str, Any]] = api.images()
            used = {entry["ImageID"] for entry in api.containers(all=True)}
        except DockerException as error:
            raise _down(error) from None
        return [
            Image(
                one["Id"], tuple(one.get("RepoTags") or ()), tuple(one.get("RepoDigests") or ()), one["Size"]
            )
            for one in listed
            if one["Id"] not in used
        ]

    def remove_image(self, image: Image) -> bool:
        """Remove the image with all its names; False if a container has come to use it meanwhile."""
        try:
            for name in (*image.tags, image.id):
                with suppress(NotFound):
                    self._docker.api.remove_image(name)
        except APIError as error:
            if error.status_code == 409:
                return False
            raise _down(error) from None
        except DockerException as error:
            raise _down(error) from None
        return True

    def make(self, bot_id: str, spec: ContainerSpec) -> None:
        """Make and start the bot's container, with its network, in place of any it has.

        ClawError("container_failed") with Docker's own words if it cannot be.
        """
        name = container_name(bot_id)
        api = self._docker.api
        try:
            with suppress(NotFound):
                # Not killed: some agents hold a lock on their data that only a proper end gives back.
                api.stop(name)  # for as long as its specification says
                api.remove_container(name, force=True, v=True)
            self._ensure_network(bot_id, spec.network)
            api.create_container_from_config(self._config(bot_id, spec), name)
            api.start(name)
        except DockerException as error:
            raise ClawError("container_failed", f"container {name} cannot be started: {error}") from None

    def once(
        self, bot_id: str, spec: ContainerSpec, command: Sequence[str], mount: MountSpec, seconds: int
    ) -> tuple[int, str]:
        """Run a command in a container like the bot's, with one mount more and without any network, and
        remove that container; the command's exit code, and all that it said.

        ClawError("container_failed") if it cannot be run, or has not ended after so many seconds.
        """
        name, api = f"{container_name(bot_id)}-once", self._docker.api
        config = self._config(
            bot_id, msgspec.structs.replace(spec, command=tuple(command), mounts=(*spec.mounts, mount))
        )
        config["Labels"] = {LABEL_ONCE: bot_id}
        config["Healthcheck"] = {"Test": ["NONE"]}
        config["HostConfig"] |= {"NetworkMode": "none", "RestartPolicy": {"Name": "no"}}
        del config["NetworkingConfig"]
        try:
            with suppress(NotFound):
                api.remove_container(name, force=True, v=True)
            api.create_container_from_config(config, name)
            try:
                api.start(name)
                code = int(api.wait(name, timeout=seconds)["StatusCode"])
                said: bytes = api.logs(name)
            finally:
                api.remove_container(name, force=True, v=True)
        except (DockerException, RequestException) as error:
            raise ClawError("container_failed", f"container {name} did not do its work: {error}") from None
        return code, said.decode(errors="replace")

    def start(self, bot_id: str) -> None:
        """Start the bot's container as it is, or let it go on if it is paused.

        ClawError("no_container") if there is none, "container_failed" if it cannot be started.
        """
        try:
            if self._state(bot_id) == "paused":
                self._docker.api.unpause(container_name(bot_id))
            else:
                self._docker.api.start(container_name(bot_id))
        except NotFound:
            raise _no_container(bot_id) from None
        except DockerException as error:
            raise ClawError(
                "container_failed", f"container {container_name(bot_id)} cannot be started: {error}"
            ) from None

    def run(self, bot_id: str, command: Sequence[str]) -> bytes:
        """Run a command in the bot's container, as its user; return its standard output.

        ClawError("no_container") if it does not run, "command_failed" with the end of what the command said.
        """
        name, api = container_name(bot_id), self._docker.api
        try:
            started = api.exec_create(name, list(command))
            output, errors = api.exec_start(started, demux=True)
            code = api.exec_inspect(started)["ExitCode"]
        except APIError as error:
            if error.status_code in (404, 409):  # there is none, or it is not running
                raise ClawError("no_container", f"the container of bot {bot_id} does not run.") from None
            raise _down(error) from None
        except DockerException as error:
            raise _down(error) from None
        if code != 0:
            said = " ".join((errors or output or b"").decode(errors="replace").split())[-300:]
            raise ClawError("command_failed", f"`{command[0]}` in {name} ended with code {code}: {said}")
        return bytes(output or b"")

    def _stop_seconds(self, name: str) -> int:
        """How long the container may take to end, as its specification says."""
        config: dict[str, Any] = self._docker.api.inspect_container(name)["Config"]
        return int(config.get("StopTimeout") or _STOP_SECONDS)

    def _state(self, bot_id: str) -> str:
        """Docker's word for the state of the bot's container; NotFound if it has none."""
        return str(self._docker.api.inspect_container(container_name(bot_id))["State"]["Status"])

    def restarts(self, bot_id: str) -> int | None:
        """How often the engine started the container by itself since people last did; None if it has none."""
        try:
            return int(self._docker.api.inspect_container(container_name(bot_id))["RestartCount"])
        except NotFound:
            return None
        except DockerException as error:
            raise _down(error) from None

    def out_of_memory(self, since: float, until: float) -> Counter[str]:
        """Bot id -> how often the kernel ended processes of it for want of memory, between two Unix times.

        For a container that ended with them; a living one's control group counts exactly.
        """
        wanted = {"label": LABEL_BOT, "type": "container", "event": "oom"}
        try:
            found = self._docker.api.events(since=since, until=until, filters=wanted, decode=True)
            return Counter(event["Actor"]["Attributes"][LABEL_BOT] for event in found)
        except DockerException as error:
            raise _down(error) from None

    def set_cpus(self, bot_id: str, cpus: float) -> None:
        """Give the bot's container so many CPUs from now on, running or not, until it is made anew.

        ClawError("no_container") if there is none.
        """
        api = self._docker.api
        # The SDK's update knows only quotas, which Docker refuses for a container made with NanoCpus.
        url = f"{api.base_url}/v{api.api_version}/containers/{container_name(bot_id)}/update"
        try:
            answer = api.post(url, json={"NanoCpus": round(cpus * 1e9)}, timeout=api.timeout)
            if answer.status_code == NOT_FOUND:
                raise _no_container(bot_id)
            answer.raise_for_status()
        except RequestException as error:
            raise _down(error) from None

    def owners(self) -> set[str]:
        """Ids of all bots that a container or a network here was made for."""
        try:
            labelled: list[dict[str, Any]] = [
                *self._docker.api.containers(all=True, filters={"label": LABEL_BOT}),
                *self._docker.api.networks(filters={"label": LABEL_BOT}),
            ]
        except DockerException as error:
            raise _down(error) from None
        return {entry["Labels"][LABEL_BOT] for entry in labelled}

    def log(self, bot_id: str, lines: int, follow: bool = False) -> Iterator[bytes]:
        """The container's last log lines, as raw pieces; with ``follow`` all later ones too, until it ends.

        ClawError("no_container") if there is none.
        """
        try:
            found = self._docker.containers.get(container_name(bot_id))
            yield from found.logs(tail=lines, stream=True, follow=follow)
        except NotFound:
            raise _no_container(bot_id) from None
        except DockerException as error:
            raise _down(error) from None

    def thaw(self, bot_id: str) -> None:
        """Let a frozen bot go on; one that is not frozen, or is gone, is left alone."""
        name, api = container_name(bot_id), self._docker.api
        try:
            if api.inspect_container(name)["State"]["Status"] == "paused":
                api.unpause(name)
        except NotFound:
            return
        except DockerException as error:
            raise _down(error) from None

    def fetch(self, reference: str) -> None:
        """Make sure that the host has the image of that pinned reference.

        ClawError("image_missing") if it has not and no registry gives it.
        """
        if reference in self.images():
            return
        reason = "and it comes from no registry"
        if "@" in reference:
            try:
                self._docker.images.pull(reference)
            except DockerException as error:
                reason = f"and cannot be pulled ({error})"
            else:
                return
        raise ClawError(
            "image_missing", f"image {reference} is not on this host {reason}: bring it with `docker load`."
        )

    @property
    def _checks_early(self) -> bool:
        return bool(version_gte(self._docker.api.api_version, _START_INTERVAL_API))

    def _ensure_network(self, bot_id: str, wanted: NetworkSpec) -> None:
        name, options = network_name(bot_id), {"com.docker.network.bridge.name": wanted.bridge}
        addresses = {"Subnet": wanted.subnet, "Gateway": wanted.gateway}
        # The engine's filter matches parts of a name.
        for found in self._docker.api.networks(names=[name]):
            if found["Name"] == name:
                if found["Options"] == options and found["IPAM"]["Config"] == [addresses]:
                    return
                self._docker.api.remove_network(found["Id"])
        pool = IPAMPool(subnet=wanted.subnet, gateway=wanted.gateway)
        self._docker.api.create_network(
            name,
            driver="bridge",
            options=options,
            ipam=IPAMConfig(pool_configs=[pool]),
            labels={LABEL_BOT: bot_id},
        )

    def _config(self, bot_id: str, spec: ContainerSpec) -> dict[str, Any]:
        """The body of Docker's create call (https://docs.docker.com/reference/api/engine/)."""
        api, network = self._docker.api, network_name(bot_id)
        host_config = api.create_host_config(
            network_mode=network,
            mounts=[Mount(m.target, m.source, type="bind", read_only=m.read_only) for m in spec.mounts],
            tmpfs=spec.tmpfs,
            nano_cpus=round(spec.cpus * 1e9),
            mem_limit=spec.memory,
            memswap_limit=spec.memory,
            pids_limit=spec.pids_limit,
            ulimits=[Ulimit(name=name, soft=limit, hard=limit) for name, limit in spec.ulimits.items()],
            cap_drop=list(spec.cap_drop),
            security_opt=list(spec.security_opts),
            read_only=spec.read_only,
            init=spec.init,
            restart_policy={"Name": spec.restart_policy},
            cgroup_parent=spec.cgroup_parent or None,
            runtime=spec.runtime or None,
        )
        check = spec.healthcheck
        config: dict[str, Any] = api.create_container_config(
            image=spec.image,
            command=list(spec.command),
            hostname=spec.hostname,
            user=spec.user,
            environment=spec.env,
            stop_timeout=spec.stop_timeout,
            labels={LABEL_BOT: bot_id, LABEL_SPEC: spec.fingerprint()},
            host_config=host_config,
            networking_config=api.create_networking_config(
                {network: api.create_endpoint_config(ipv4_address=spec.network.address)}
            ),
            healthcheck={
                "test": list(check.test),
                "interval": round(check.interval * 1e9),
                "timeout": round(check.timeout * 1e9),
                "retries": check.retries,
                "start_period": round(check.start_period * 1e9),
            },
        )
        if self._checks_early:  # the SDK does not know it
            config["Healthcheck"]["StartInterval"] = round(check.start_interval * 1e9)
        return config

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
            name = container_name(bot_id)
            self._docker.api.restart(name, timeout=self._stop_seconds(name))
        except NotFound:
            raise _no_container(bot_id) from None
        except DockerException as error:
            raise _down(error) from None

    def stop(self, bot_id: str) -> None:
        """Let the bot end in its own time, as its container says; none is fine."""
        try:
            self._docker.api.stop(container_name(bot_id))
        except NotFound:
            pass
        except DockerException as error:
            raise _down(error) from None

    def remove(self, bot_id: str) -> None:
        """Remove container and network; what is gone already is fine."""
        try:
            for label in (LABEL_BOT, LABEL_ONCE):
                for container in self._docker.containers.list(
                    all=True, ignore_removed=True, filters={"label": f"{label}={bot_id}"}
                ):
                    with suppress(NotFound):
                        container.remove(force=True, v=True)
            named = [  # the engine's filter matches parts of a name
                network
                for network in self._docker.networks.list(names=[network_name(bot_id)])
                if network.name == network_name(bot_id)
            ]
            labelled = self._docker.networks.list(filters={"label": f"{LABEL_BOT}={bot_id}"})
            for network in (*named, *labelled):
                with suppress(NotFound):
                    network.remove()
        except DockerException as error:
            raise _down(error) from None


def _no_container(bot_id: str) -> ClawError:
    return ClawError("no_container", f"bot {bot_id} has no container: run deploy_bot for it again.")


def _down(error: Exception) -> ClawError:
    return ClawError(
        "engine_down", f"Docker did not do what was asked ({error}): see `systemctl status docker`."
    )
