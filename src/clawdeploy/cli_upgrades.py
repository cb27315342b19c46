"""``clawctl``'s verbs of upgrades: the playbooks' own, the way back, and images that nobody needs."""

import json
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from clawdeploy import upgrades
from clawdeploy.clitools import Machine, check_option, now, say, show_table, stdin, summary, table, verb
from clawdeploy.upgrades import UpgradeRequest

_TIMEOUT = 60.0
_timeout = click.option(
    "--timeout", default=_TIMEOUT, show_default=True, help="Seconds to wait, each time, until bots answer."
)


def _host(machine: Machine) -> upgrades.Host:
    return upgrades.Host(
        changing=machine.changing,
        engine=machine.engine,
        halter=machine.halter,
        paths=machine.paths,
        homes=machine.homes,
        systemctl=machine.systemctl,
        clock=now,
    )


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let a signal that ends this program leave time for the way back; a second one changes nothing."""
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def end(number: int, _: object) -> None:
        for name in signals:
            signal.signal(name, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {name: signal.signal(name, end) for name in signals}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def undo_cut_off(machine: Machine, check: bool) -> list[dict[str, str]]:
    """For ``clawctl reconcile``."""
    with _ending_in_order():
        return upgrades.undo_cut_off(_host(machine), secrets.token_hex(8), _TIMEOUT, check)


@click.command()
@verb
def recall(machine: Machine, as_json: bool) -> None:
    """Tell what bots were deployed with. With --json, secrets included: for the playbooks alone.

    \b
    Example: clawctl recall
    """
    with machine.registry() as registry:
        bots = registry.recall()
    if as_json:
        click.echo(json.dumps({"bots": bots}))
        return
    shown = table("Bot", "Agent", "Image", "Environment", "Configuration", "Can be upgraded")
    for bot in bots:
        names = (", ".join(bot[part]) or "-" for part in ("bot_env", "bot_config"))
        shown.add_row(bot["label"], bot["agent"], bot["image"], *names, bot["reason"] or "yes")
    show_table(shown)


@click.command()
@_timeout
@click.option("--watch", default=0.0, show_default=True, help="Seconds they must stay well after that.")
@check_option
@verb
def upgrade(machine: Machine, as_json: bool, timeout: float, watch: float, check: bool) -> None:
    """Give bots another image or configuration, or back what they had (a JSON object on standard input).

    Exit code 1 if one of them went back.

    \b
    Example: clawctl upgrade --json --watch 60 < bots.json
    """
    request = stdin(UpgradeRequest)
    with _ending_in_order():
        result = upgrades.upgrade(_host(machine), request, timeout, watch, check)
    say(result, as_json, summary(result) if check else _told(result))
    _fail_if_any(result, "rolled_back", "failed")


@click.command()
@_timeout
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("bots", nargs=-1, required=True)
@check_option
@verb
def rollback(
    machine: Machine, as_json: bool, bots: tuple[str, ...], timeout: float, yes: bool, check: bool
) -> None:
    """Let BOTS (ids or names) be what they were before their last upgrade: image and configuration.

    What they have learned since stays. Exit code 1 if one is not healthy then.

    \b
    Example: clawctl rollback support-bot
    """
    if not (yes or check):
        click.confirm(f"Restart {', '.join(bots)} as before the last upgrade?", abort=True, err=True)
    with _ending_in_order():
        result = upgrades.roll_back(_host(machine), bots, secrets.token_hex(8), timeout, check)
    say(result, as_json, summary(result) if check else _told(result))
    _fail_if_any(result, "failed")


def _told(result: dict[str, Any]) -> str:
    lines = []
    for bot in result["bots"]:
        lines.append(f"{bot['label']}: {bot['result'].replace('_', ' ')}, {bot['downtime']:.1f} s without it")
        lines += [f"  {bot['reason']}"] if bot["reason"] else []
    return "\n".join(lines)


def _fail_if_any(result: dict[str, Any], *results: str) -> None:
    if any(bot["result"] in results for bot in result["bots"]):
        click.get_current_context().exit(1)


@click.group()
def images() -> None:
    """Images of the bots' agents."""


@images.command()
@check_option
@verb
def prune(machine: Machine, as_json: bool, check: bool) -> None:
    """Remove images of agents that no bot runs, or would go back to.

    \b
    Example: clawctl images prune --check
    """
    with machine.changing() as registry, machine.engine() as engine:
        result = upgrades.prune_images(registry, engine, check)
    lines = (f"{', '.join(one['tags']) or one['id']}: {one['size'] / 1e6:.0f} MB" for one in result["images"])
    say(result, as_json, "\n".join(lines) or "nothing to remove")


upgrade_verbs = (recall, upgrade, rollback, images)
