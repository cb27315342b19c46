"""The registry in one SQLite file, root 0600."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from clawdeploy.containers import ContainerSpec
from clawdeploy.errors import ClawError
from clawdeploy.events import Event
from clawdeploy.models import Bot, Edge, Kept, Remote, Suspension
from clawdeploy.store.migrating import apply

_COLUMNS = Bot.__struct_fields__
_EVENT = ", ".join(Event.__struct_fields__)
_KEPT = Kept.__struct_fields__
_REMOTE = Remote.__struct_fields__


class RegistryStore:
    """Rows of the registry. One thread, one connection; writers hold the host's lock besides."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise ClawError("host_unprepared", f"{path} is missing: run prepare_host, or `clawctl migrate`.")
        self._db = sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        for pragma in ("foreign_keys = ON", "journal_mode = WAL", "busy_timeout = 10000"):
            self._db.execute(f"PRAGMA {pragma}")

    def close(self) -> None:
        self._db.close()

    def copy_to(self, path: Path) -> None:
        """Make a copy as it is at one moment, whoever writes meanwhile (SQLite's online backup)."""
        with closing(sqlite3.connect(path)) as target:
            self._db.backup(target)

    def damage(self) -> list[str]:
        """What SQLite itself finds wrong with the file; empty if nothing."""
        return [text for (text,) in self._db.execute("PRAGMA integrity_check") if text != "ok"]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def bots(self) -> list[Bot]:
        """Every bot, oldest slot first."""
        return [_bot(row) for row in self._db.execute("SELECT * FROM bot ORDER BY slot")]

    def put(self, bot: Bot) -> None:
        """Insert the bot, or replace what is known about it."""
        values = msgspec.structs.asdict(bot) | {"edge": msgspec.json.encode(bot.edge).decode()}
        changes = ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS if column != "id")
        self._db.execute(
            f"INSERT INTO bot ({', '.join(_COLUMNS)}) VALUES ({', '.join(':' + c for c in _COLUMNS)}) "  # noqa: S608 # column names are the class's own
            f"ON CONFLICT (id) DO UPDATE SET {changes}",
            values,
        )

    def remove(self, bot_id: str) -> None:
        self._db.execute("DELETE FROM bot WHERE id = ?", (bot_id,))

    # --- suspended, kept, containers ---

    def suspensions(self) -> dict[str, Suspension]:
        """Bot id -> why and since when it is suspended."""
        rows = self._db.execute("SELECT bot, reason, since FROM suspension")
        return {row["bot"]: Suspension(row["reason"], row["since"]) for row in rows}

    def suspend(self, bot_id: str, suspension: Suspension) -> None:
        """Flag the bot, and say why in place of what was said before."""
        self._db.execute("UPDATE bot SET suspended = 1 WHERE id = ?", (bot_id,))
        self._db.execute(
            "INSERT INTO suspension VALUES (?, ?, ?) "
            "ON CONFLICT (bot) DO UPDATE SET reason = excluded.reason, since = excluded.since",
            (bot_id, suspension.reason, suspension.since),
        )

    def resume(self, bot_id: str) -> None:
        self._db.execute("UPDATE bot SET suspended = 0 WHERE id = ?", (bot_id,))
        self._db.execute("DELETE FROM suspension WHERE bot = ?", (bot_id,))

    def container(self, bot_id: str) -> ContainerSpec | None:
        """What the bot's container should be, as its last deploy said; None before its first one."""
        row = self._db.execute("SELECT spec FROM container WHERE bot = ?", (bot_id,)).fetchone()
        return msgspec.json.decode(row["spec"], type=ContainerSpec) if row else None

    def put_container(self, bot_id: str, spec: ContainerSpec) -> None:
        self._db.execute(
            "INSERT INTO container VALUES (?, ?) ON CONFLICT (bot) DO UPDATE SET spec = excluded.spec",
            (bot_id, msgspec.json.encode(spec).decode()),
        )

    def kept(self) -> list[Kept]:
        """Bots that were destroyed without their data, by id."""
        return [
            msgspec.convert(dict(row), Kept) for row in self._db.execute("SELECT * FROM kept ORDER BY id")
        ]

    def put_kept(self, kept: Kept) -> None:
        self._db.execute(
            f"INSERT INTO kept ({', '.join(_KEPT)}) VALUES ({', '.join(':' + c for c in _KEPT)})",  # noqa: S608 # column names are the class's own
            msgspec.structs.asdict(kept),
        )

    def remove_kept(self, bot_id: str) -> None:
        self._db.execute("DELETE FROM kept WHERE id = ?", (bot_id,))

    # --- bots that run elsewhere ---

    def remotes(self) -> list[Remote]:
        """Every bot that runs elsewhere, by name."""
        return [_remote(row) for row in self._db.execute("SELECT * FROM remote ORDER BY name")]

    def put_remote(self, remote: Remote) -> None:
        """Insert the bot, or replace what is known about it."""
        values = msgspec.structs.asdict(remote) | {"settings": msgspec.json.encode(remote.settings).decode()}
        changes = ", ".join(f"{column} = excluded.{column}" for column in _REMOTE if column != "id")
        self._db.execute(
            f"INSERT INTO remote ({', '.join(_REMOTE)}) VALUES ({', '.join(':' + c for c in _REMOTE)}) "  # noqa: S608 # column names are the class's own
            f"ON CONFLICT (id) DO UPDATE SET {changes}",
            values,
        )

    def remove_remote(self, bot_id: str) -> None:
        self._db.execute("DELETE FROM remote WHERE id = ?", (bot_id,))

    # --- events ---

    def add_event(
        self, at: float, bot: str | None, label: str | None, kind: str, message: str, details: dict[str, Any]
    ) -> None:
        self._db.execute(
            "INSERT INTO event (at, bot, label, kind, message, details) VALUES (?, ?, ?, ?, ?, ?)",
            (at, bot, label, kind, message, msgspec.json.encode(details).decode()),
        )

    def events(
        self, reference: str | None = None, since: float = 0, after: int = 0, limit: int = 1000
    ) -> list[Event]:
        """The newest ``limit`` events from ``since`` on (Unix seconds), oldest first.

        reference: only those of the bot with that id or label; after: only those with a higher number.
        """
        rows = self._db.execute(
            f"SELECT {_EVENT} FROM event WHERE (?1 IS NULL OR bot = ?1 OR label = ?1) "  # noqa: S608 # column names are the class's own
            "AND at >= ?2 AND id > ?3 ORDER BY id DESC LIMIT ?4",
            (reference, since, after, limit),
        ).fetchall()
        return [
            msgspec.convert(dict(row) | {"details": msgspec.json.decode(row["details"])}, Event)
            for row in reversed(rows)
        ]

    def certificate_names(self) -> dict[str, int]:
        """Host name -> Unix second at which this host first asked for its certificate."""
        return dict(self._db.execute("SELECT name, first_seen FROM certificate_name").fetchall())

    def add_certificate_name(self, name: str, now: int) -> None:
        self._db.execute("INSERT INTO certificate_name VALUES (?, ?) ON CONFLICT DO NOTHING", (name, now))


def _bot(row: sqlite3.Row) -> Bot:
    values = dict(row)
    values["edge"] = msgspec.json.decode(values["edge"], type=Edge)
    return msgspec.convert(values, Bot, strict=False)  # not strict: SQLite has 0 and 1 for booleans


def _remote(row: sqlite3.Row) -> Remote:
    values = dict(row)
    values["settings"] = msgspec.json.decode(values["settings"])
    return msgspec.convert(values, Remote, strict=False)


def migrate(path: Path, check: bool = False) -> list[str]:
    """Bring the schema up to date, creating the file; returns what was (in check mode: would be) applied."""
    return apply(path, "migrations", check)
