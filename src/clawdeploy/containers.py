"""What a bot's container should be, and what has to be done to get there. Pure data and decisions.

Strict: a misspelt limit would be no limit.
"""

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from clawdeploy.ledger_client import Opening
from clawdeploy.models import BotId, RunId
from clawdeploy.money import SpendLimit, parse_dollars

if TYPE_CHECKING:
    from clawdeploy.engine import ContainerState

# Docker's words for a container whose processes exist, or that it is about to start again.
ALIVE = ("running", "paused", "restarting")

Action = Literal["create", "replace", "restart", "start", "keep"]


def container_name(bot_id: str) -> str:
    return f"clawdeploy-{bot_id}"


class NetworkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The bot's own network: bridge interface, subnet (CIDR), the host's address in it and the bot's."""

    bridge: str
    subnet: str
    gateway: str
    address: str


class MountSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file or directory of the host inside the container."""

    source: str
    target: str
    read_only: bool


class SkillRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What an agent does with skills.

    source: the directory of the home that it sees them in; touch: a file of the home that must look changed
    for a running agent to notice; manifest: a file it wants beside each SKILL.md, a JSON object with name,
    description, version and ``manifest_content``. Empty: none is needed.
    """

    source: str
    touch: str = ""
    manifest: str = ""
    manifest_content: dict[str, Any] = {}


class HealthcheckSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Docker's own check of the container; times in seconds."""

    test: tuple[str, ...]
    interval: float
    timeout: float
    retries: int
    start_period: float
    start_interval: float


class ContainerSpec(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """Everything that shapes a container. memory is bytes without swap; tmpfs: path -> mount options.

    runtime: name the engine knows a runtime by, or "" for its own. skills: None for an agent that takes none.
    """

    image: str
    hostname: str
    command: tuple[str, ...]
    env: dict[str, str]
    user: str
    network: NetworkSpec
    mounts: tuple[MountSpec, ...]
    tmpfs: dict[str, str]
    healthcheck: HealthcheckSpec
    stop_timeout: int
    cpus: float
    memory: int
    pids_limit: int
    ulimits: dict[str, int]
    cgroup_parent: str
    cap_drop: tuple[str, ...]
    security_opts: tuple[str, ...]
    read_only: bool
    init: bool
    restart_policy: str
    runtime: str = ""
    skills: SkillRules | None = None

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all of it; kept with the container, it tells whether that is still right."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class LiveBot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One bot to bring to its customers; config_hash is that of its configuration files as they are now.

    ``balance`` (dollars) is what its account opens with, if it has none yet; ``spend_limit`` None: as it is.
    """

    id: BotId
    config_hash: str
    image_digest: str
    container: ContainerSpec
    balance: Annotated[str, Meta(max_length=40)]
    spend_limit: Annotated[str, Meta(max_length=40)] | None = None

    def opening(self) -> Opening:
        """What its account should be. ClawError("amount_invalid"), ClawError("spend_limit_invalid")."""
        limit = None if self.spend_limit is None else str(SpendLimit.parse(self.spend_limit))
        return Opening(self.id, parse_dollars(self.balance), limit)


class LiveRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Input of ``clawctl live``."""

    run_id: RunId
    bots: tuple[LiveBot, ...]


def next_action(there: "ContainerState | None", wanted: LiveBot, running_config: str | None) -> Action:
    """What makes the container right; ``running_config``: hash of the configuration it was started with."""
    if there is None:
        return "create"
    if there.spec != wanted.container.fingerprint():
        return "replace"
    if wanted.config_hash != running_config or there.state == "restarting":
        return "restart"  # an agent reads its configuration only when it starts
    return "keep" if there.state == "running" else "start"
