"""``clawctl``: the operator's and the playbooks' way to the package.

Exit codes: 0 done, 1 refused or failed (with --json the reason is {"error": {...}} on standard output),
2 wrong usage.
"""

import asyncio
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from clawdeploy import allocation, claims, verbs, version
from clawdeploy.containers import LiveRequest
from clawdeploy.errors import ClawError
from clawdeploy.host import Paths, free_bytes, load_host, locked
from clawdeploy.models import DeclareRequest, ReleaseRequest, decode
from clawdeploy.registry import Registry, describe, iso
from clawdeploy.storage import Homes, HomesRequest, systemctl
from clawdeploy.store import RegistryStore, migrate

if TYPE_CHECKING:
    from clawdeploy.engine import Engine

Request = TypeVar("Request")


def _docker() -> "Engine":
    from clawdeploy.engine import Engine  # the SDK takes longer to import than most verbs to run

    return Engine()


@dataclass(frozen=True)
class Machine:
    """What the verbs work on; tests put their own in."""

    paths: Paths = field(default_factory=Paths)
    systemctl: Callable[..., None] = systemctl
    engine: Callable[[], "Engine"] = _docker

    @property
    def homes(self) -> Homes:
        return Homes(self.paths, self.systemctl)

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


def _verb(function: Callable[..., None]) -> Callable[..., None]:
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


def _print(result: dict[str, Any], as_json: bool, text: str) -> None:
    click.echo(json.dumps(result) if as_json else text)


def _summary(result: dict[str, Any]) -> str:
    """For verbs that playbooks call: what changed, without any secret."""
    after = result.get("diff", {}).get("after", "")
    return f"changed\n{after}".rstrip() if result["changed"] else "nothing to change"


def _stdin(kind: type[Request]) -> Request:
    return decode(sys.stdin.buffer.read(), kind)


def _now() -> int:
    return int(time.time())


_check = click.option("--check", is_flag=True, help="Only say what would change.")


@click.group(epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong usage.")
@click.version_option(package_name="clawdeploy", prog_name="clawctl")
def main() -> None:
    """Manage the bots of this host.

    \b
    clawctl list                 which bots run here
    clawctl show support-bot     everything about one, secrets excepted
    clawctl claims new support-bot
    clawctl destroy support-bot
    """


# --- looking ----------------------------------------------------------------------------------------


@main.command()
@click.option("--all", "everything", is_flag=True, help="Also its bots and the images Docker has.")
@_verb
def host(machine: Machine, as_json: bool, everything: bool) -> None:
    """Show this host's settings and what is left of it.

    \b
    Example: clawctl host --json
    """
    with machine.registry() as registry:
        bots = registry.bots()
        result = {
            **msgspec.to_builtins(registry.host),
            "version": version(),
            "free_bytes": free_bytes(machine.paths),
            "memory_reserved_sum": allocation.reserved_memory((bot.plan for bot in bots), registry.host),
            "bot_count": len(bots),
        }
        if everything:
            with machine.engine() as engine:
                result["images"] = engine.images()
            result["bots"] = [describe(bot, registry.host) for bot in bots]
    shown = (
        f"{key}: {value if isinstance(value, str | int) else json.dumps(value)}"
        for key, value in result.items()
    )
    _print(result, as_json, "\n".join(shown))


@main.command(name="list")
@_verb
def list_bots(machine: Machine, as_json: bool) -> None:
    """List the bots of this host.

    \b
    Example: clawctl list
    """
    with machine.registry() as registry:
        bots = [_with_claim(describe(bot, registry.host), machine.paths) for bot in registry.bots()]
    if as_json:
        click.echo(json.dumps({"bots": bots}))
    else:
        _table(bots)


@main.command()
@click.argument("bot")
@_verb
def show(machine: Machine, as_json: bool, bot: str) -> None:
    """Show one bot (BOT is its id or name), without secrets.

    \b
    Example: clawctl show support-bot
    """
    with machine.registry() as registry:
        result = _with_claim(describe(registry.find(bot), registry.host), machine.paths)
    _print(result, as_json, "\n".join(f"{key}: {_plain(value)}" for key, value in result.items()))


def _with_claim(described: dict[str, Any], paths: Paths) -> dict[str, Any]:
    claim = claims.load_claim(paths, described["id"])
    if claim is None:
        return described | {"claim": None}
    return described | {
        "claim": {"open": claim.open(_now()), "expires": iso(claim.expires), "wrong": claim.wrong}
    }


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def _owner(bot: dict[str, Any]) -> str:
    if bot["open_to_all"]:
        return "everyone"
    if bot["owner"]:
        return str(bot["owner"])
    return "waiting to be claimed" if bot["claim"] and bot["claim"]["open"] else "claim expired"


def _table(bots: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("Bot", "Telegram", "Plan", "Address", "Owner", "State", box=box.SIMPLE_HEAD)
    for bot in bots:
        state = (
            "[red]suspended[/]"
            if bot["suspended"]
            else {"active": "[green]active[/]"}.get(bot["state"], bot["state"])
        )
        table.add_row(
            *(bot["label"], f"@{bot['telegram_username']}", bot["plan"], bot["address"], _owner(bot), state)
        )
    console = Console()
    console.print(table if bots else "No bots yet: run the deploy_bot playbook.")


# --- deploying (the playbooks' verbs) ---------------------------------------------------------------


@main.command(name="migrate")
@_check
@_verb
def migrate_registry(machine: Machine, as_json: bool, check: bool) -> None:
    """Create the registry or bring it up to date.

    \b
    Example: clawctl migrate
    """
    with locked(machine.paths):
        applied = migrate(machine.paths.registry, check)
    result = {"changed": bool(applied), "migrations": applied}
    _print(result, as_json, f"applied: {', '.join(applied)}" if applied else "nothing to change")


@main.command()
@_check
@_verb
def declare(machine: Machine, as_json: bool, check: bool) -> None:
    """Put bots into the registry, all or none, from a JSON object on standard input.

    With --json the answer has the bots' secrets: give it to nobody but the deploy.

    \b
    Example: clawctl declare --json --check < bots.json
    """
    with machine.changing() as registry:
        result = registry.declare(_stdin(DeclareRequest), _now(), check)
    _print(result, as_json, _summary(result))


@main.group()
def home() -> None:
    """Disks and files of bots."""


@home.command(name="apply")
@_check
@_verb
def home_apply(machine: Machine, as_json: bool, check: bool) -> None:
    """Make disks, mounts and files of bots as a JSON object on standard input says.

    \b
    Example: clawctl home apply --json < homes.json
    """
    with machine.changing() as registry:
        result = verbs.apply_homes(registry, machine.homes, _stdin(HomesRequest), check)
    _print(result, as_json, _summary(result))


@main.command()
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait, for all bots together.")
@_check
@_verb
def live(machine: Machine, as_json: bool, timeout: float, check: bool) -> None:
    """Run bots' containers, route to them and wait until they answer over HTTPS (JSON on standard input).

    \b
    Example: clawctl live --json --timeout 60 < deployed.json
    """
    result = verbs.go_live(
        machine.changing, machine.engine, machine.systemctl, _stdin(LiveRequest), timeout, _now(), check
    )
    _print(result, as_json, _summary(result))


@main.command()
@_check
@_verb
def sync(machine: Machine, as_json: bool, check: bool) -> None:
    """Let the edge and the LLM gateway follow the registry. Safe at any time.

    \b
    Example: clawctl sync
    """
    with machine.changing() as registry:
        result = verbs.sync(registry, machine.systemctl, _now(), check)
    _print(result, as_json, _summary(result))


@main.command()
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait, for all bots together.")
@click.argument("bots", nargs=-1, required=True)
@_verb
def wait(machine: Machine, as_json: bool, timeout: float, bots: tuple[str, ...]) -> None:
    """Wait until bots answer over HTTPS; exit code 1 if one does not.

    \b
    Example: clawctl wait --timeout 30 support-bot
    """
    from clawdeploy.health import wait_until_healthy

    with machine.registry() as registry:
        found, host_facts = [registry.find(bot) for bot in bots], registry.host
    with machine.engine() as engine:
        results = asyncio.run(wait_until_healthy(found, host_facts, engine, timeout))
    if as_json:
        click.echo(json.dumps({"bots": [msgspec.to_builtins(result) for result in results]}))
    else:
        for bot, result in zip(found, results, strict=True):
            click.echo(f"{bot.label}: {result.reason or f'healthy after {result.seconds:.1f} s'}")
            for line in result.log_tail:
                click.echo(f"  {line}")
    if not all(result.healthy for result in results):
        click.get_current_context().exit(1)


@main.command()
@_verb
def release(machine: Machine, as_json: bool) -> None:
    """End the leases of a deploy that failed, so that the next one need not wait (JSON on standard input).

    \b
    Example: echo '{"run_id": "0123456789abcdef"}' | clawctl release
    """
    with machine.changing() as registry:
        result = registry.release(_stdin(ReleaseRequest).run_id)
    _print(result, as_json, _summary(result))


# --- one bot ----------------------------------------------------------------------------------------


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("bot")
@_verb
def destroy(machine: Machine, as_json: bool, bot: str, yes: bool) -> None:
    """Remove BOT (id or name) with all its data. There is no way back.

    \b
    Example: clawctl destroy support-bot
    """
    if not yes:
        click.confirm(f"Remove {bot} and everything it remembers?", abort=True, err=True)
    with machine.changing() as registry, machine.engine() as engine:
        result = verbs.destroy(registry, machine.homes, engine, bot)
    advice = (
        f"Its token still works elsewhere: revoke it (@BotFather, /revoke, @{result['telegram_username']})."
    )
    _print(result, as_json, f"Removed {bot}. {advice}")


@main.group(name="claims")
def claims_group() -> None:
    """Owner claims: who opens the link first with the right code owns the bot."""


@claims_group.command(name="new")
@click.argument("bot")
@_verb
def claims_new(machine: Machine, as_json: bool, bot: str) -> None:
    """Print a new one-time link for BOT (id or name), good for 24 hours; the old one is void.

    \b
    Example: clawctl claims new support-bot
    """
    with machine.changing() as registry:
        found = registry.find(bot)
        claim, code = claims.renew(machine.paths, found, _now())
    machine.systemctl("start", "--no-block", verbs.CLAIMS_UNIT)
    link = claims.link(found.telegram_username, code)
    result = {"changed": True, "id": found.id, "code": code, "link": link, "expires": iso(claim.expires)}
    _print(result, as_json, f"{link}\nGood until {iso(claim.expires)}, once, for whoever opens it first.")


@claims_group.command(name="serve")
@_verb
def claims_serve(machine: Machine, as_json: bool) -> None:
    """Wait on Telegram for the owners of unclaimed bots; ends when none is left (a service runs this).

    \b
    Example: systemctl start clawdeploy-claims
    """
    from clawdeploy.claim_service import ClaimService

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def restart(bot_id: str) -> None:
        with machine.engine() as engine:
            engine.restart(bot_id)

    asyncio.run(ClaimService(machine.paths, machine.registry, machine.homes, restart).serve())
    _print({"changed": False}, as_json, "no claim is pending")
