"""What all verbs of ``clawctl`` share: the machine they work on, ``--json``, and how refusals are said."""

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from clawdeploy.errors import ClawError
from clawdeploy.host import Paths, load_host, locked
from clawdeploy.ledger_client import LedgerClient
from clawdeploy.models import decode
from clawdeploy.registry import Registry
from clawdeploy.storage import Homes, systemctl
from clawdeploy.store.sqlite import RegistryStore

if TYPE_CHECKING:
    from rich.table import Table

    from clawdeploy.engine import Engine
    from clawdeploy.halter import Halter

Request = TypeVar("Request")

_PIPE_WIDTH = 160
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def _docker() -> "Engine":
    from clawdeploy.engine import Engine  # the SDK takes longer to import than most verbs to run

    return Engine()


def _halter() -> "Halter":
    from clawdeploy.halter import Halter

    return Halter()


@dataclass(frozen=True)
class Machine:
    """What the verbs work on; tests put their own in."""

    paths: Paths = field(default_factory=Paths)
    systemctl: Callable[..., None] = systemctl
    engine: Callable[[], "Engine"] = _docker
    halter: Callable[[], "Halter"] = _halter

    @property
    def homes(self) -> Homes:
        return Homes(self.paths, self.systemctl)

    @property
    def ledger(self) -> LedgerClient:
        """The ledger, through the LLM gateway's socket."""
        return LedgerClient(self.paths.ledger_socket)

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        """The registry of this host, for reading, or for writing inside ``locked``."""
        host = load_host(self.paths)
        store = RegistryStore(self.paths.registry)
        try:
            yield Registry(self.paths, host, store)
        finally:
            store.close()

    @contextmanager
    def changing(self) -> Iterator[Registry]:
        """The registry, with the host's lock held."""
        with locked(self.paths), self.registry() as registry:
            yield registry


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb ``--json`` and the machine; say refusals the way the caller reads them."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @click.pass_context
    @functools.wraps(function)
    def wrapper(context: click.Context, /, as_json: bool, **arguments: Any) -> None:
        try:
            if os.geteuid() != 0:
                raise ClawError("not_root", "clawctl works as root only: use sudo.")
            function(context.ensure_object(Machine), as_json, **arguments)
        except ClawError as error:
            if as_json:
                click.echo(json.dumps({"error": error.as_json()}))
            else:
                for _, message in error.problems:
                    click.echo(f"clawctl: {message}", err=True)
            context.exit(1)

    return wrapper


def say(result: dict[str, Any], as_json: bool, text: str) -> None:
    click.echo(json.dumps(result) if as_json else text)


def summary(result: dict[str, Any]) -> str:
    """For verbs that playbooks call: what changed, without any secret."""
    after = result.get("diff", {}).get("after", "")
    return f"changed\n{after}".rstrip() if result["changed"] else "nothing to change"


def stdin(kind: type[Request]) -> Request:
    return decode(sys.stdin.buffer.read(), kind)


def now() -> int:
    return int(time.time())


class Moment(click.ParamType[float]):
    """A point in time: a date or time of ISO 8601 (UTC unless it says otherwise), or how long ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if value[:-1].isdecimal() and value[-1] in _UNITS:
            return time.time() - timedelta(**{_UNITS[value[-1]]: int(value[:-1])}).total_seconds()
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a date such as 2026-11-01 nor a span such as 12h, 7d or 4w")
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


check_option = click.option("--check", is_flag=True, help="Only say what would change.")


def table(*columns: str) -> "Table":
    """A table for people, in the style of all of clawctl."""
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD)


def show_table(table: "Table") -> None:
    from rich.console import Console

    # A pipe has no width; what goes through it should not be cut to that of an old terminal.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
