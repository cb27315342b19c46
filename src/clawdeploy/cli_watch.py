"""``clawctl watch``: the watchdog's service, and what it sees."""

import logging
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import click
import msgspec

from clawdeploy.clitools import Machine, say, show_table, table, verb
from clawdeploy.errors import ClawError

if TYPE_CHECKING:
    from clawdeploy.watchdog.config import Measure
    from clawdeploy.watchdog.service import Status

# A round may take a moment; after so many intervals without one the service hangs or is gone.
_STALE = 3
# Share of a limit from which on a value is shown as near it.
_NEAR = 0.8


@click.group()
def watch() -> None:
    """The watchdog, which warns of, throttles and suspends bots by rule."""


@watch.command()
@verb
def serve(machine: Machine, as_json: bool) -> None:
    """Watch this host's bots until SIGTERM (a service runs this).

    \b
    Example: systemctl status clawdeploy-watchdog
    """
    from clawdeploy.notify import Notifier, ways
    from clawdeploy.watchdog.config import load
    from clawdeploy.watchdog.metrics import Metrics
    from clawdeploy.watchdog.sensors import Sensors
    from clawdeploy.watchdog.service import Watchdog

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    config, metrics, stop = load(machine.paths.watchdog_file), Metrics(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server, thread = metrics.serve(config.metrics_port)
    except OSError as error:
        raise ClawError(
            "port_taken",
            f"127.0.0.1:{config.metrics_port} cannot be used ({error.strerror}): "
            "set another watchdog_metrics_port.",
        ) from None
    notifier = Notifier(ways(config.notify), config.notify.repeat, metrics.notified)
    Watchdog(config, machine, Sensors(machine), notifier, metrics).run(stop)
    server.shutdown()
    server.server_close()
    thread.join()
    say({"changed": False}, as_json, "stopped")


@watch.command()
@verb
def status(machine: Machine, as_json: bool) -> None:
    """Show what the watchdog sees: each rule's last value, and hits of those it takes for the next step.

    \b
    Example: clawctl watch status
             clawctl watch status --json
    """
    from clawdeploy.watchdog.config import load
    from clawdeploy.watchdog.service import Status

    config = load(machine.paths.watchdog_file)
    try:
        found = msgspec.json.decode(config.status_file.read_bytes(), type=Status)
    except (OSError, msgspec.DecodeError):
        found = None
    age = time.time() - found.at if found else 0.0
    if found is None or age > _STALE * config.interval + 1:
        when = f"has seen nothing for {age:.0f} s" if found else "does not run"
        raise ClawError("watchdog_down", f"the watchdog {when}: `systemctl status clawdeploy-watchdog`.")
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        _table(found)


def _table(found: "Status") -> None:
    from clawdeploy.watchdog.config import MEASURES
    from clawdeploy.watchdog.service import BotStatus, written

    def cell(bot: BotStatus, measure: "Measure") -> str:
        rule = bot.rules.get(measure)
        if rule is None:
            return "off"
        colour = "red" if rule.near >= 1 else "yellow" if rule.near >= _NEAR else "default"
        taken = f" [bold]{rule.taken}[/]" if rule.taken else ""
        return f"[{colour}]{written(measure, rule.value, short=True)}[/] {rule.hits}/{rule.needed}{taken}"

    shown = table("Bot", "State", *MEASURES)
    for bot in found.bots:
        state = f"{bot.state}, judged in {bot.grace:.0f} s" if bot.grace else bot.state
        shown.add_row(bot.label, state, *(cell(bot, measure) for measure in MEASURES))
    if found.bots:
        show_table(shown)
    else:
        click.echo("No bots.")
    if found.dry_run:
        click.echo("Dry run: decisions are events, and nothing is done.")
    for sensor, why in found.failed.items():
        click.echo(f"{sensor} cannot be read, its rules rest: {why}")
