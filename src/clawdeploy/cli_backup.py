"""``clawctl``'s verbs about backups: making, listing, checking and forgetting them, and restoring."""

import json
import signal
import time
from types import FrameType
from typing import Any

import click

from clawdeploy import backup as backups_
from clawdeploy import restoring
from clawdeploy.clitools import Machine, check_option, now, say, show_table, summary, table, verb
from clawdeploy.errors import ClawError

_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


class _BackupGroup(click.Group):
    """``clawctl backup [BOT...]`` is short for ``clawctl backup run [BOT...]``."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["run", *args]
        return super().parse_args(context, args)


def _end_in_order(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@click.group(cls=_BackupGroup)
def backup() -> None:
    """Make backups, check them, forget them.

    \b
    clawctl backup                  all bots and the platform, then let go of what is old
    clawctl backup support-bot      one bot
    clawctl backup verify           could this host be restored?
    """
    # A bot that stands still for its copy must not stay so because systemd ended us.
    signal.signal(signal.SIGTERM, _end_in_order)


@backup.command()
@click.argument("bots", nargs=-1)
@check_option
@verb
def run(machine: Machine, as_json: bool, bots: tuple[str, ...], check: bool) -> None:
    """Back up BOTS (ids or names), or all bots and the platform; exit code 1 if anything was not saved.

    \b
    Example: clawctl backup
             clawctl backup run support-bot --json
    """
    try:
        result = backups_.back_up(machine, bots, now(), check)
    except ClawError as error:
        if not check:
            for code, message in error.problems:
                backups_.note(machine, "backup_failed", f"{code}: {message}")
        raise
    if not check:
        count = len(result["snapshots"])
        backups_.note(machine, "backup_done", f"{count} backups made, {sum(_added(result))} bytes were new")
    say(result, as_json, summary(result) if check else _told(result))


def _added(result: dict[str, Any]) -> list[int]:
    return [snapshot["bytes_added"] for snapshot in result["snapshots"]]


def _told(result: dict[str, Any]) -> str:
    lines = []
    for one in result["snapshots"]:
        stood = f", stood still for {one['stood_still_ms']} ms" if "stood_still_ms" in one else ""
        lines.append(
            f"{one['what']}: backup {one['snapshot'][:8]}, {one['bytes_added'] / 1e6:.1f} MB new{stood}"
        )
    lines += [f"{label}: not deployed yet, left out" for label in result["skipped"]]
    return "\n".join(lines) or "nothing to back up"


@backup.command()
@check_option
@verb
def init(machine: Machine, as_json: bool, check: bool) -> None:
    """Make the repository, unless it is there (prepare_host does this).

    \b
    Example: clawctl backup init
    """
    made = backups_.open_repository(machine.paths).init(check)
    result = {"changed": made, "diff": {"before": "", "after": "repository: made\n" if made else ""}}
    say(result, as_json, summary(result))


@backup.command()
@click.option(
    "--read", "subset", default="5%", show_default=True, help="How much data to read: 5%, 1G, or part 2/10."
)
@verb
def verify(machine: Machine, as_json: bool, subset: str) -> None:
    """Check the repository, and restore this host's books to a test; exit code 1 if anything is wrong.

    \b
    Example: clawctl backup verify
             clawctl backup verify --read 100%
    """
    result = backups_.verify(machine, subset, time.time())
    books = result["ledger"]
    made = f"{result['snapshots']} backups of {result['bots']} bots and the platform"
    text = "\n".join(result["problems"]) or (
        f"in order: {made}, the newest of it {ago(result['age'])} old; "
        f"its books add up ({books['accounts']} accounts)"
    )
    say(result, as_json, text)
    if not result["ok"]:
        for problem in result["problems"]:
            backups_.note(machine, "backup_verify_failed", problem)
        click.get_current_context().exit(1)


@backup.command()
@verb
def tidy(machine: Machine, as_json: bool) -> None:
    """Undo what an interrupted backup left: bots that stand still, half-made copies (the service runs this).

    \b
    Example: clawctl backup tidy
    """
    with backups_.alone(machine.paths):
        result = backups_.tidy(machine)
    say(result, as_json, f"removed: {', '.join(result['removed'])}" if result["changed"] else "nothing to do")


@backup.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("bot")
@check_option
@verb
def forget(machine: Machine, as_json: bool, bot: str, yes: bool, check: bool) -> None:
    """Remove every backup of BOT (id, or the name that it had) for good, for a customer who has left.

    \b
    Example: clawctl backup forget support-bot
    """
    if not yes and not check:
        click.confirm(f"Remove every backup of {bot}?", abort=True, err=True)
    result = backups_.forget(machine, bot, check)
    say(result, as_json, f"{result['forgotten']} backups of {bot}" + (" would go" if check else " removed"))


@click.command()
@click.argument("bot", required=False)
@verb
def backups(machine: Machine, as_json: bool, bot: str | None) -> None:
    """List the backups in the repository, or those of BOT (id, or the name that it had), oldest first.

    \b
    Example: clawctl backups
             clawctl backups support-bot --json
    """
    found = backups_.open_repository(machine.paths).snapshots()
    chosen = backups_.of_bot(found, bot) if bot else found
    rows = [backups_.described(snapshot, time.time()) for snapshot in chosen]
    if as_json:
        click.echo(json.dumps({"backups": rows}))
        return
    shown = table("Backup", "Of", "Id", "Host", "Made (UTC)", "Age")
    for row in rows:
        cells = (row["snapshot"], row["what"], row["id"] or "-", row["host"], row["time"][:16])
        shown.add_row(*cells, ago(row["age"]))
    if rows:
        show_table(shown)
    else:
        click.echo("No backups yet: `clawctl backup` makes one.")


def ago(seconds: float) -> str:
    """An age as people read it."""
    for unit, length in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


@click.command()
@click.option("--all", "everything", is_flag=True, help="All bots of the newest platform that are not here.")
@click.option("--platform", is_flag=True, help="The books, on a host that has none; before any bot.")
@click.option("--snapshot", metavar="ID", default=None, help="This backup; the newest if not given.")
@click.option(
    "--with-balance", is_flag=True, help="Balances as in the backup; what was spent since counts twice."
)
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait until a bot answers.")
@click.argument("bots", nargs=-1)
@check_option
@verb
def restore(
    machine: Machine,
    as_json: bool,
    bots: tuple[str, ...],
    everything: bool,
    platform: bool,
    snapshot: str | None,
    with_balance: bool,
    timeout: float,
    check: bool,
) -> None:
    """Bring BOTS (ids, or the names that they had) back from a backup and wait until they answer.

    On this host they must have been destroyed first; on another one they get free addresses and uids. A bot
    whose account this host has keeps that; any other one begins with nothing on it unless you say otherwise.

    \b
    Example: clawctl restore support-bot
             clawctl restore support-bot --snapshot 1a2b3c4d
             clawctl restore --platform && clawctl restore --all
    """
    if sum((bool(bots), everything, platform)) != 1:
        raise click.UsageError("Name bots, or give either --all or --platform.")
    if snapshot and len(bots) != 1 and not platform:
        raise click.UsageError("--snapshot goes with one bot, or with --platform.")
    signal.signal(signal.SIGTERM, _end_in_order)
    if platform:
        result = restoring.restore_platform(machine, snapshot, with_balance, check)
        say(result, as_json, summary(result) if check else _platform_told(result))
        return
    chosen = None if everything else bots
    result = restoring.restore_bots(machine, chosen, snapshot, with_balance, timeout, now(), check)
    say(result, as_json, summary(result) if check else "\n".join(map(_bot_told, result["bots"])) or "no bots")
    if not check and not all(bot["healthy"] for bot in result["bots"]):
        click.get_current_context().exit(1)


def _bot_told(bot: dict[str, Any]) -> str:
    state = "restored and answers" if bot["healthy"] else f"restored, but does not answer: {bot['reason']}"
    money = bot["money"]
    balance = {
        "kept": f"Its account was here: ${money['balance_dollars']}.",
        "zero": "Its account is new, with nothing on it: `clawctl top-up` pays in.",
        "backup": f"Its balance is that of the backup: ${money['balance_dollars']}. What it spent after "
        f"{bot['taken_at']} is not in that; at most ${money['at_risk_dollars']} are paid twice.",
    }[money["rule"]]
    return f"{bot['label']}: {state}, as of {bot['taken_at']}. {balance}"


def _platform_told(result: dict[str, Any]) -> str:
    balances = (
        f"Balances are those of the backup; what was spent after it is not in them: at most "
        f"${result['at_risk_dollars']} are paid twice."
        if result["rule"] == "backup"
        else "Every balance was written off: `clawctl top-up` pays in again what you can vouch for."
    )
    labels = ", ".join(bot["label"] for bot in result["bots"]) or "none"
    return (
        f"The books of {result['host']} as of {result['taken_at']}: {result['ledger']['accounts']} accounts. "
        f"{balances}\nIts bots were: {labels}. `clawctl restore --all` brings them back."
    )


backup_verbs: tuple[click.Command, ...] = (backup, backups, restore)
