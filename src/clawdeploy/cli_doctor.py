"""``clawctl doctor`` and ``clawctl watch trial``: is this host well?"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from clawdeploy.clitools import Machine, now, show_table, table, verb

if TYPE_CHECKING:
    from clawdeploy.doctor import Finding


@click.command()
@click.option("--note", is_flag=True, help="Write what is wrong into the events too; the watchdog tells.")
@verb
def doctor(machine: Machine, as_json: bool, note: bool) -> None:
    """Check everything that has to be right on this host; exit code 1 if something is not. Changes nothing.

    Services, what the watchdog reads, the registry against the host, the books, the model's price, free
    space, every bot's certificate. Runs daily with --note (clawdeploy-doctor.timer).

    \b
    Example: clawctl doctor
             clawctl doctor --json
    """
    from clawdeploy import doctor as examiner

    found = list(examiner.examine(machine, now()))
    if note:
        examiner.note(machine, found)
    _say(found, as_json)


@click.command()
@verb
def trial(_machine: Machine, as_json: bool) -> None:
    """Let three offenders run into small limits, and see whether the watchdog would read it. Takes seconds.

    They run in containers of their own, without network; bots are not touched. For a new host, or a new
    kernel: exit code 1 says that rules which need the reading would never fire.

    \b
    Example: clawctl watch trial
    """
    from clawdeploy.watchdog import trial as offenders

    _say(list(offenders.run()), as_json)


def _say(found: "Sequence[Finding]", as_json: bool) -> None:
    good = all(one.good for one in found)
    if as_json:
        click.echo(json.dumps({"good": good, "findings": msgspec.to_builtins(found)}))
    else:
        shown = table("Check", "", "Seen")
        for one in found:
            shown.add_row(one.check, "[green]good[/]" if one.good else "[red]BAD[/]", one.message)
        show_table(shown)
    if not good:
        click.get_current_context().exit(1)
