"""The edge's maps and the LLM gateway's keys: pure functions of the registry, put in place as a whole.

A map changes in two places: its file, which HAProxy reads when it starts, and HAProxy's memory, which is
swapped through the runtime socket ("prepare map", "add map @<ver>", "commit map" of its management guide), so
that no request sees half of it and no connection is cut.
"""

import grp
import json
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from clawdeploy.allocation import place
from clawdeploy.errors import ClawError
from clawdeploy.files import write_atomic
from clawdeploy.host import Host, Paths
from clawdeploy.models import Bot

Map = dict[str, str]

# A command and its payload must fit into HAProxy's buffer (tune.bufsize, 16 kB unless lowered).
_PAYLOAD_BYTES = 4096
_SOCKET_SECONDS = 10.0


# --- rendering --------------------------------------------------------------------------------------


def render(bots: Sequence[Bot], internal_tokens: Mapping[str, str], host: Host) -> dict[str, Map]:
    """Every map, by file name: key -> value. internal_tokens: bot id -> token shown to the agent."""
    maps: dict[str, Map] = {
        name: {}
        for name in (
            "hosts.map",
            "addresses.map",
            "routes.map",
            "prefixes.map",
            "tokens.map",
            "inject.map",
            "plans.map",
            "body_limits.map",
        )
    }
    for bot in bots:
        maps["hosts.map"][bot.label] = bot.id
        maps["addresses.map"][bot.id] = place(bot.slot, host).address
        for route in bot.edge.routes:
            name = "routes.map" if route.match == "exact" else "prefixes.map"
            maps[name][f"{bot.id}:{route.path}"] = f"{route.port},{route.auth}"
        maps["tokens.map"][bot.gateway_token_hash] = bot.id
        if bot.id in internal_tokens:
            maps["inject.map"][bot.id] = internal_tokens[bot.id]
        maps["plans.map"][bot.id] = bot.plan
        maps["body_limits.map"][bot.id] = str(bot.edge.body_limit)
    return maps | render_flags(bots)


def render_flags(bots: Sequence[Bot]) -> dict[str, Map]:
    """The one map that a suspension changes."""
    return {"flags.map": {bot.id: "suspended" for bot in bots if bot.suspended}}


def render_llm_keys(bots: Sequence[Bot], host: Host) -> str:
    """keys.json of the LLM gateway: which key belongs to which bot and from which subnet it is good."""
    keys = {
        bot.llm_key_hash: {
            "bot": bot.id,
            "subnet": place(bot.slot, host).subnet,
            "suspended": bot.suspended,
            "refusal": bot.llm_refusal,
        }
        for bot in bots
    }
    return json.dumps({"keys": keys}, indent=1, sort_keys=True) + "\n"


def map_text(entries: Map) -> str:
    """A map as HAProxy reads it from a file: one ``key value`` a line."""
    return "".join(f"{key} {value}\n" for key, value in sorted(entries.items()))


def payloads(entries: Map) -> Iterator[str]:
    """The map's lines in pieces that fit into one command each."""
    piece = ""
    for line in map_text(entries).splitlines(keepends=True):
        if piece and len(piece) + len(line) > _PAYLOAD_BYTES:
            yield piece
            piece = ""
        piece += line
    if piece:
        yield piece


# --- HAProxy's runtime socket -----------------------------------------------------------------------


class HAProxy:
    """HAProxy's runtime API; one connection a command, as the API wants it outside its interactive mode."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def running(self) -> bool:
        """Whether somebody listens on the socket."""
        try:
            self._connect().close()
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_SOCKET_SECONDS)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        return connection

    def _ask(self, command: str) -> str:
        with self._connect() as connection:
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode().strip()

    def _tell(self, command: str, expected: str = "") -> str:
        answer = self._ask(command)
        if not answer.startswith(expected) or (answer and not expected):
            verb = " ".join(command.split(maxsplit=3)[:3])  # never the payload, which has tokens
            raise ClawError(
                "edge_refused",
                f"HAProxy answered `{verb}` with {answer!r}: does the running haproxy.cfg use that map? "
                "Run prepare_host, then `clawctl sync`.",
            )
        return answer

    def entries(self, path: Path) -> list[tuple[str, str]]:
        """What HAProxy holds of a map, sorted (a key that is there twice is listed twice)."""
        answer = self._ask(f"show map {path}")
        lines = [line.split(" ", 2) for line in answer.splitlines() if line]
        if any(len(line) != 3 or not line[0].startswith("0x") for line in lines):
            raise ClawError(
                "edge_refused",
                f"HAProxy does not know {path}: the running haproxy.cfg does not use it. Run prepare_host.",
            )
        return sorted((key, value) for _, key, value in lines)

    def table(self, name: str) -> dict[str, dict[str, int]]:
        """A stick table: key -> its numbers (exp: ms until it is forgotten; rates: over their own window)."""
        rows = {}
        for line in self._ask(f"show table {name}").splitlines():
            # "0x…: key=… use=0 exp=3599000 … http_req_rate(10000)=3"
            fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
            if line.startswith("0x") and "key" in fields:
                key = fields.pop("key")
                rows[key] = {field.partition("(")[0]: int(value) for field, value in fields.items()}
        return rows

    def swap(self, path: Path, entries: Map) -> None:
        """Replace a map in memory, in one step for every request."""
        version = self._tell(f"prepare map {path}", "New version created:").rpartition(" ")[2]
        for payload in payloads(entries):
            self._tell(f"add map @{version} {path} <<\n{payload}")
        self._tell(f"commit map @{version} {path}")


# --- sync -------------------------------------------------------------------------------------------


@dataclass
class SyncResult:
    """Names of what changed in files or in HAProxy's memory, and lines for a diff without any secret."""

    changed: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    def note(self, name: str, old: int | None, new: int) -> None:
        self.changed.append(name)
        self.before.append(f"{name}: {'absent' if old is None else f'{old} lines'}")
        self.after.append(f"{name}: {new} lines")


def sync(
    paths: Paths, host: Host, bots: Sequence[Bot], internal_tokens: Mapping[str, str], check: bool = False
) -> SyncResult:
    """Make the edge and the LLM gateway follow the registry. The caller holds the host's lock.

    ClawError if the host is not prepared or HAProxy refuses.
    """
    result = SyncResult()
    sync_maps(paths, render(bots, internal_tokens, host), result, check)
    sync_llm_keys(paths, host, bots, result, check)
    return result


def sync_maps(paths: Paths, maps: Mapping[str, Map], result: SyncResult, check: bool = False) -> None:
    """Put these maps in place and leave any other as it is.

    Files first, then HAProxy's memory, which is compared too: a run that died between the two is made good by
    the next one. A stopped HAProxy is fine, it reads the files when it starts.
    """
    haproxy = HAProxy(paths.haproxy_socket)
    running = haproxy.running()
    group = _group(paths.maps_group)
    for name, entries in maps.items():
        path, text = paths.maps / name, map_text(entries)
        old = _read(path)
        stale = running and haproxy.entries(path) != sorted(entries.items())
        if old == text and not stale:
            continue
        result.note(name, None if old is None else old.count("\n"), len(entries))
        if check:
            continue
        try:
            if old != text:
                _write(path, text, group)
        finally:  # a full disk must not keep a flag from working
            if stale:
                haproxy.swap(path, entries)


def sync_llm_keys(
    paths: Paths, host: Host, bots: Sequence[Bot], result: SyncResult, check: bool = False
) -> None:
    """Put the LLM gateway's keys in place; it looks at the file again before each call."""
    sync_keys_file(paths, paths.llm_keys, render_llm_keys(bots, host), result, check)


def sync_keys_file(paths: Paths, path: Path, keys: str, result: SyncResult, check: bool = False) -> None:
    """Put one of the LLM gateway's files of keys in place."""
    old_keys = _read(path)
    if keys != old_keys:
        result.note(path.name, None if old_keys is None else old_keys.count("\n"), keys.count("\n"))
        if not check:
            _write(path, keys, _group(paths.llm_group))


def forget_certificate(paths: Paths, host: Host, label: str) -> None:
    """Remove the certificate that Caddy got for this bot's name alone; a wildcard or shared one stays."""
    if host.base_domain:
        for folder in paths.certificates.glob(f"*/{label}.{host.base_domain}"):
            shutil.rmtree(folder)


def _read(path: Path) -> str | None:
    with suppress(FileNotFoundError):
        return path.read_text()
    return None


def _write(path: Path, text: str, group: int) -> None:
    try:
        write_atomic(path, text, 0o640, group)
    except FileNotFoundError:
        raise ClawError(
            "host_unprepared", f"{path.parent} is missing: run prepare_host on this host."
        ) from None


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ClawError(
            "host_unprepared", f"group {name!r} is missing: run prepare_host on this host."
        ) from None
