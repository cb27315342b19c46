"""``clawctl memories``: what bots have taken over of others."""

import click
import msgspec

from clawdeploy import memories as taking
from clawdeploy.clitools import Machine, check_option, now, say, stdin, summary, verb
from clawdeploy.memories import TakingsRequest
from clawdeploy.registry import iso


@click.group()
def memories() -> None:
    """What new bots have taken over of bots that another agent ran."""


@memories.command()
@click.argument("bot")
@verb
def show(machine: Machine, as_json: bool, bot: str) -> None:
    """Show what BOT (id or name) has taken over, and of whom.

    \b
    Example: clawctl memories show support-bot
    """
    with machine.registry() as registry:
        found = registry.find(bot)
        facts = taking.facts(machine.homes, found.id)
    result = {"id": found.id, "label": found.label, "memories": msgspec.to_builtins(facts)}
    if facts is None:
        say(result, as_json, f"{found.label} has taken over nothing.")
        return
    lines = [f"{facts.notes} notes of {facts.label} ({facts.agent}), {iso(facts.since)}", *facts.files]
    say(result, as_json, "\n".join(lines))


@memories.command()
@check_option
@verb
def apply(machine: Machine, as_json: bool, check: bool) -> None:
    """Let new bots take over what a JSON object on standard input says, each once. Playbooks use this.

    \b
    Example: clawctl memories apply --json --check < takings.json
    """
    result = taking.apply(machine, stdin(TakingsRequest), now(), check)
    say(result, as_json, summary(result))
