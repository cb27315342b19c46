"""What the registry knows about a bot, and what callers may ask for. Pure data, checked when decoded."""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from clawdeploy.errors import ClawError
from clawdeploy.tokens import ID_PATTERN

LEASE_SECONDS = 300

BotId = Annotated[str, Meta(pattern=ID_PATTERN)]
RunId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8,64}$")]
# No blank, no '#', no control character: a path is a key in a line of an HAProxy map.
_URL_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]*")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def is_dns_label(name: str) -> bool:
    """Whether ``name`` can be one label of a host name, lower case (RFC 1123, 1 to 63 characters)."""
    return _DNS_LABEL.fullmatch(name) is not None


def _check_path(path: str) -> None:
    if not _URL_PATH.fullmatch(path) or "//" in path or "/../" in f"{path}/" or "/./" in f"{path}/":
        raise ValueError(f"{path!r} is not a plain absolute URL path")


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One path of an agent that the edge lets through."""

    path: str
    match: Literal["exact", "prefix"]
    port: Annotated[int, Meta(ge=1, le=65535)]
    auth: Literal["public", "token", "agent"]

    def __post_init__(self) -> None:
        _check_path(self.path)
        if self.match == "prefix" and not self.path.endswith("/"):
            raise ValueError(f"prefix {self.path!r} must end in /")


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an agent makes a one-time link into its web interface: a command to run in its container, and the
    field of the JSON object it prints that holds the link, as it would be without the edge.
    """

    command: Annotated[tuple[str, ...], Meta(min_length=1)]
    field: Annotated[str, Meta(min_length=1)]


class Edge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the edge does for a bot; body_limit is bytes."""

    body_limit: Annotated[int, Meta(ge=1)]
    routes: tuple[Route, ...]
    health_path: str = ""
    login: Login | None = None

    def __post_init__(self) -> None:
        if self.health_path:
            _check_path(self.health_path)
        keys = [(route.match, route.path) for route in self.routes]
        if len(set(keys)) != len(keys):
            raise ValueError("a path appears twice in routes")

    @property
    def agent_checks_tokens(self) -> bool:
        """Whether customers show the gateway token to the agent itself, which then has to know it."""
        return any(route.auth == "agent" for route in self.routes)

    def health(self) -> str | None:
        """Path that answers 200 while the bot lives: health_path, else the first public exact .../health."""
        if self.health_path:
            return self.health_path
        found = (
            r.path
            for r in self.routes
            if r.auth == "public" and r.match == "exact" and r.path.endswith("/health")
        )
        return next(found, None)


class Bot(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the registry. Times are Unix seconds; only hashes of secrets are here."""

    id: BotId
    slot: Annotated[int, Meta(ge=0)]
    telegram_id: int
    telegram_username: str
    name: str | None
    agent: str
    plan: str
    interface: Literal["api", "ui"]
    llm_refusal: Literal["message", "error"]
    owner: str | None
    open_to_all: bool
    state: Literal["deploying", "active"]
    suspended: bool
    image: str
    image_digest: str | None
    config_hash: str | None
    edge: Edge
    gateway_token_hash: str
    llm_key_hash: str
    lease_run: str | None
    lease_at: int
    created_at: int

    @property
    def label(self) -> str:
        """First label of the host name (or first path segment): the name, else the id."""
        return self.name or self.id

    def leased_by_other(self, run_id: str, now: int) -> bool:
        """Whether another run still works on this bot; a lease ends by itself after five minutes."""
        return self.lease_run not in (None, run_id) and now - self.lease_at < LEASE_SECONDS


class Suspension(msgspec.Struct, frozen=True):
    """Why a bot is suspended, in the operator's words (may be empty), and since when (Unix seconds)."""

    reason: str
    since: int


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A bot destroyed without its data: its disk waits, with its place, for a deploy of its token."""

    id: BotId
    slot: int
    telegram_id: int
    telegram_username: str
    name: str | None
    agent: str
    plan: str
    owner: str | None
    kept_at: int

    @property
    def label(self) -> str:
        return self.name or self.id


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A program that a bot's agent starts beside itself and speaks MCP with; sha256 is the program's."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}


class BotRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one bot should be. ``None`` means: as it is, or the default for a new one.

    bot_env, bot_config and tools are what its user set of environment, configuration and programs, each as a
    whole. migrate_from: the bot (id or name) whose memory it takes over, so that what is kept of that one is
    left to it.
    """

    telegram_id: Annotated[int, Meta(ge=1)]
    telegram_username: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,64}$")]
    telegram_token: Annotated[str, Meta(pattern=r"^[0-9]{6,16}:[A-Za-z0-9_-]{30,64}$")]
    agent: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]*$")]
    plan: str
    interface: Literal["api", "ui"]
    llm_refusal: Literal["message", "error"] = "error"
    image: Annotated[str, Meta(min_length=1)]
    edge: Edge
    name: str | None = None
    owner: Annotated[str, Meta(pattern=r"^([0-9]{1,20}|@?[A-Za-z][A-Za-z0-9_]{3,31})$")] | None = None
    open_to_all: bool = False
    rotate_gateway_token: bool = False
    bot_env: dict[str, str] | None = None
    bot_config: dict[str, Any] | None = None
    tools: tuple[Tool, ...] | None = None
    migrate_from: str | None = None

    @property
    def called(self) -> str:
        """How messages name this bot."""
        return self.name or f"@{self.telegram_username}"


class DeclareRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Input of ``clawctl declare``."""

    run_id: RunId
    bots: tuple[BotRequest, ...]


class Running(msgspec.Struct, frozen=True):
    """What a healthy bot runs: hash of its configuration files and the reference that pins its image."""

    id: BotId
    config_hash: str
    image_digest: str


class ReleaseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Input of ``clawctl release``."""

    run_id: RunId


class Remote(msgspec.Struct, frozen=True):
    """A bot that runs elsewhere and calls its model through this host.

    ``settings`` are what the playbook that put it there wants to know next time; nothing here reads them.
    ``reason``: why it is suspended.
    """

    id: BotId
    name: str
    telegram_id: int
    telegram_username: str
    target: Literal["fly"]
    agent: str
    llm_refusal: Literal["message", "error"]
    settings: dict[str, Any]
    state: Literal["deploying", "active"]
    suspended: bool
    reason: str
    llm_key_hash: str
    created_at: int

    @property
    def label(self) -> str:
        return self.name


class RemoteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bot that is to run elsewhere; ``balance`` (dollars) is a new account's first entry."""

    name: str
    telegram_id: int
    telegram_username: str
    telegram_token: str
    target: Literal["fly"]
    agent: str
    settings: dict[str, Any]
    balance: str
    llm_refusal: Literal["message", "error"] = "error"
    spend_limit: str | None = None
    bot_config: dict[str, Any] | None = None


class BotSecrets(msgspec.Struct, frozen=True, omit_defaults=True):
    """Secrets of one bot in clear, kept off its disk.

    With what its user set, which may hold more of them: so that it can be shaped anew without its user.
    internal_token is what its agent takes: a token of its own, which the edge puts in place of the gateway
    token, or the gateway token itself where the agent has to check that.
    """

    telegram_token: str
    llm_key: str
    internal_token: str
    bot_env: dict[str, str] = {}
    bot_config: dict[str, Any] = {}
    tools: tuple[Tool, ...] = ()


Request = TypeVar("Request")


def decode(data: bytes | str, kind: type[Request]) -> Request:
    """Decode a caller's JSON; ClawError("bad_request") names the field, never its value."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise ClawError("bad_request", f"standard input is not what this verb takes: {error}") from None
