"""``clawctl``'s verbs on running bots: the kill switch, what happened, what is used, and repairs."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
import msgspec

from clawdeploy import events, gauges, suspension, version
from clawdeploy.clitools import Machine, Moment, check_option, now, say, show_table, summary, table, verb
from clawdeploy.errors import ClawError
from clawdeploy.events import Event
from clawdeploy.gauges import Gauge
from clawdeploy.models import Bot
from clawdeploy.registry import Registry, iso

_CPU_SECONDS = 0.2
_TOP_SECONDS = 2.0


def size(value: int | None) -> str:
    """Bytes as people read them."""
    if value is None:
        return "-"
    return f"{value / 1e6:.0f} MB" if value < 1e9 else f"{value / 1e9:.1f} GB"


def _chosen(bots: tuple[str, ...], everything: bool) -> tuple[str, ...] | None:
    if bool(bots) == everything:
        raise click.UsageError("Name bots, or give --all for all of this host.")
    return None if everything else bots


# --- the kill switch --------------------------------------------------------------------------------


@click.command()
@click.option("--reason", default=None, metavar="TEXT", help="Why; kept and shown by list, show and events.")
@click.option("--all", "everything", is_flag=True, help="All bots of this host.")
@click.argument("bots", nargs=-1)
@check_option
@verb
def suspend(
    machine: Machine, as_json: bool, bots: tuple[str, ...], everything: bool, reason: str | None, check: bool
) -> None:
    """Stop BOTS (ids or names) at once: route and LLM key refused, processes frozen, then killed.

    Nothing starts them again but `clawctl resume`: no reboot, no deploy. Their data stays as it is.
    Asks nothing, and can be repeated.

    \b
    Example: clawctl suspend support-bot --reason 'abuse report 4711'
             clawctl suspend --all
    """
    chosen = _chosen(bots, everything)
    result = suspension.suspend(machine.changing, machine.halter, chosen, reason, now(), check)
    say(result, as_json, summary(result) if check else _told(result))


def _told(result: dict[str, Any]) -> str:
    labels = ", ".join(bot["label"] for bot in result["bots"]) or "no bots"
    steps = (
        f"  {step['step']:9} {step['ms']:7.1f} ms{'' if step['changed'] else '  (was so)'}"
        for step in result["steps"]
    )
    return "\n".join([f"Suspended: {labels}", *steps])


@click.command()
@click.option("--all", "everything", is_flag=True, help="All suspended bots of this host.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait, for all bots together.")
@click.argument("bots", nargs=-1)
@check_option
@verb
def resume(
    machine: Machine, as_json: bool, bots: tuple[str, ...], everything: bool, timeout: float, check: bool
) -> None:
    """Bring suspended BOTS (ids or names) back and wait until they answer; exit code 1 if one does not.

    \b
    Example: clawctl resume support-bot
             clawctl resume --all --timeout 300
    """
    chosen = _chosen(bots, everything)
    result = suspension.resume(
        machine.changing, machine.engine, machine.halter, chosen, timeout, now(), check
    )
    if as_json or check or not result["changed"]:
        say(result, as_json, summary(result))
    else:
        for bot in result["bots"]:
            click.echo(f"{bot['label']}: {bot['reason'] or 'healthy after {:.1f} s'.format(bot['seconds'])}")
    if not all(bot["healthy"] for bot in result["bots"]):
        click.get_current_context().exit(1)


# --- looking ----------------------------------------------------------------------------------------


@click.command(name="events")
@click.option("--since", type=Moment(), default=None, help="A date, or 12h, 7d, 4w ago.")
@click.option("-n", "--lines", default=50, show_default=True, help="Show at most so many, the newest.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones until interrupted.")
@click.argument("bot", required=False)
@verb
def show_events(
    machine: Machine, as_json: bool, bot: str | None, since: float | None, lines: int, follow: bool
) -> None:
    """Show what happened, to BOT (id or name; it may be gone by now) or on the whole host.

    With --json and --follow each event is a line of its own.

    \b
    Example: clawctl events support-bot --since 7d
             clawctl events --follow
    """
    with machine.registry() as registry:
        found = registry.store.events(bot, since or 0, limit=lines)
        if bot and not found:
            registry.find(bot)  # refuses a name that was never one
        if as_json and not follow:
            click.echo(json.dumps({"events": [_event(event) for event in found]}))
            return
        _print_events(found, as_json)
        if follow:
            last = registry.store.events(limit=1)
            _print_events(events.follow(registry.store, bot, last[0].id if last else 0), as_json)


def _event(event: Event) -> dict[str, Any]:
    return msgspec.structs.asdict(event) | {"time": _time(event.at)}


def _time(at: float) -> str:
    return iso(int(at)).replace("+00:00", "Z")


def _print_events(found: Iterable[Event], as_json: bool) -> None:
    for event in found:
        click.echo(json.dumps(_event(event)) if as_json else f"{_time(event.at)}  {event.message}")


@click.command()
@click.option("-n", "--lines", default=100, show_default=True, help="Begin with so many of the last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until interrupted.")
@click.argument("bot")
@verb
def logs(machine: Machine, as_json: bool, bot: str, lines: int, follow: bool) -> None:
    """Show what the container of BOT (id or name) wrote.

    With --json and --follow each line is an object of its own.

    \b
    Example: clawctl logs support-bot -n 20 -f
    """
    with machine.registry() as registry:
        found = registry.find(bot)
    with machine.engine() as engine:
        written = _lines(engine.log(found.id, lines, follow))
        if as_json and not follow:
            click.echo(json.dumps({"id": found.id, "label": found.label, "lines": list(written)}))
            return
        for line in written:
            click.echo(json.dumps({"id": found.id, "line": line}) if as_json else line)


def _lines(pieces: Iterable[bytes]) -> Iterable[str]:
    """Whole lines of what may come in any pieces."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


@click.command(name="version")
@verb
def show_version(machine: Machine, as_json: bool) -> None:
    """Show the release that this host runs.

    \b
    Example: clawctl version
    """
    say({"version": version(), "python": sys.version.split()[0]}, as_json, f"clawctl {version()}")


def gauge(machine: Machine, seconds: float = _CPU_SECONDS) -> dict[str, Gauge]:
    """Bot id -> what it uses; none, and a word on standard error, if Docker or HAProxy does not answer."""
    try:
        with machine.engine() as engine:
            return gauges.read(machine.paths, engine.states(), seconds)
    except ClawError as error:
        if error.code not in ("engine_down", "edge_refused"):
            raise
        click.echo(f"clawctl: {error.message}", err=True)
        return {}


def cells(used: Gauge | None) -> tuple[str, str, str, str]:
    """CPU, memory, requests a second and last request, as list and top show them."""
    used = used or Gauge()
    return (
        "-" if used.cpu is None else f"{used.cpu:.0%}",
        size(used.memory),
        "-" if used.rps is None else f"{used.rps:.1f}",
        "-" if used.last_seen is None else _ago(time.time() - used.last_seen),
    )


def _ago(seconds: float) -> str:
    return f"{max(seconds, 0):.0f} s ago" if seconds < 100 else f"{seconds / 60:.0f} min ago"


@click.command()
@click.option("--interval", default=_TOP_SECONDS, show_default=True, help="Seconds between two looks.")
@click.option("--count", type=int, default=None, help="Look so many times, then end.")
@verb
def top(machine: Machine, as_json: bool, interval: float, count: int | None) -> None:
    """Show what bots use, the busiest first, until interrupted; with --json one object for each look.

    \b
    Example: clawctl top
             clawctl top --json --count 1
    """
    looks = itertools.count() if count is None else range(count)
    if as_json:
        for _ in looks:
            bots = [row[0] | {"usage": msgspec.to_builtins(row[1])} for row in _look(machine, interval)]
            click.echo(json.dumps({"at": round(time.time(), 3), "bots": bots}))
        return
    from rich.live import Live

    with Live(auto_refresh=False, screen=sys.stdout.isatty() and count is None) as live:
        for _ in looks:
            shown = table("Bot", "State", "CPU", "Memory", "of", "Processes", "Requests/s", "Open", "Seen")
            for bot, used in _look(machine, interval):
                cpu, memory, rps, seen = cells(used)
                shown.add_row(
                    *(bot["label"], bot["state"], cpu, memory, size(bot["memory_limit"])),
                    *(_text(used.pids), rps, _text(used.open), seen),
                )
            live.update(shown, refresh=True)


def _look(machine: Machine, seconds: float) -> list[tuple[dict[str, Any], Gauge]]:
    used = gauge(machine, seconds)
    with machine.registry() as registry:
        bots, plans = registry.bots(), registry.host.plans
    rows = [
        (
            {
                "id": bot.id,
                "label": bot.label,
                "state": "suspended" if bot.suspended else bot.state,
                "memory_limit": plans[bot.plan].memory_limit if bot.plan in plans else None,
            },
            used.get(bot.id, Gauge()),
        )
        for bot in bots
    ]
    return sorted(rows, key=lambda row: (-(row[1].cpu or 0), -(row[1].memory or 0)))


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


@click.command()
@click.argument("bot")
@verb
def limits(machine: Machine, as_json: bool, bot: str) -> None:
    """Show what the plan of BOT (id or name) allows and how much of that it uses.

    \b
    Example: clawctl limits support-bot
    """
    with machine.registry() as registry:
        found, plans = registry.find(bot), registry.host.plans
    if found.plan not in plans:
        raise ClawError("unknown_plan", f"{found.label} has plan {found.plan!r}, which this host has not.")
    plan, used = plans[found.plan], gauge(machine).get(found.id, Gauge())
    disk = _disk(machine, found)
    rows: Sequence[tuple[str, Any, Any, Callable[[Any], str]]] = (
        ("cpus", used.cpu, plan.cpus, lambda value: f"{value:g}"),
        ("memory", used.memory, plan.memory_limit, size),
        ("processes", used.pids, plan.pids_limit, str),
        ("disk", disk, plan.disk_size, size),
        ("open_files_of_a_process", None, plan.nofile_limit, str),
        ("requests_per_second", used.rps, plan.rate_limit_rps, lambda value: f"{value:g}"),
        ("requests_in_a_burst", None, plan.rate_limit_burst, str),
        ("requests_at_once", used.open, plan.concurrency, str),
    )
    if as_json:
        listed = {name: {"used": now_, "limit": limit} for name, now_, limit, _ in rows}
        answer = {"id": found.id, "label": found.label, "plan": found.plan, "oom_kills": used.oom_kills}
        click.echo(json.dumps({**answer, "limits": listed}))
        return
    shown = table(f"{found.label} ({found.plan})", "Used", "Limit")
    for name, now_, limit, written in rows:
        shown.add_row(name.replace("_", " "), "-" if now_ is None else written(now_), written(limit))
    show_table(shown)
    if used.oom_kills:
        click.echo(f"Memory ran out {used.oom_kills} times since its container started.")


def _disk(machine: Machine, bot: Bot) -> int | None:
    """Bytes that the bot's disk takes on the host's."""
    try:
        return machine.homes.image(bot.id).stat().st_blocks * 512
    except FileNotFoundError:
        return None


def suspended(registry: Registry) -> dict[str, dict[str, Any]]:
    """Bot id -> why and since when it is suspended, as list and show print it."""
    found = registry.store.suspensions().items()
    return {bot_id: {"reason": why.reason, "since": iso(why.since)} for bot_id, why in found}


# --- repairs ----------------------------------------------------------------------------------------


@click.command()
@check_option
@verb
def reconcile(machine: Machine, as_json: bool, check: bool) -> None:
    """Bring this host back to what its registry says, and say what was repaired. Also runs at each boot.

    Routes, flags and LLM keys; HAProxy; disks that are not mounted; containers that were stopped or removed,
    or run though suspended; containers and networks of bots that are no more; bots whose upgrade was cut off.
    Safe at any time.

    \b
    Example: clawctl reconcile --check
    """
    from clawdeploy.cli_upgrades import undo_cut_off
    from clawdeploy.reconcile import reconcile as repair

    undone = undo_cut_off(machine, check)
    with machine.changing() as registry:
        result = repair(
            registry, machine.homes, machine.engine, machine.halter, machine.systemctl, now(), check
        )
    result |= {"changed": result["changed"] or bool(undone), "done": undone + result["done"]}
    verb = "would be" if check else "was"
    lines = [f"{one['what']} ({one['was']}): {verb} {one['now']}" for one in result["done"]]
    say(result, as_json, "\n".join(lines) or "all is as it should be")


ops_verbs: tuple[click.Command, ...] = (
    suspend,
    resume,
    show_events,
    top,
    limits,
    logs,
    reconcile,
    show_version,
)
