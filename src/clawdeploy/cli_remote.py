"""``clawctl remote``: bots that run elsewhere and call their model through this host."""

import json

import click

from clawdeploy import remotes
from clawdeploy.clitools import Machine, check_option, now, say, show_table, stdin, summary, table, verb
from clawdeploy.models import RemoteRequest

# What whoever puts a bot elsewhere must know of this host.
_ABOUT = ("llm_public_url", "openrouter_model", "support_email")


@click.group()
def remote() -> None:
    """Bots that run elsewhere (Fly.io): their LLM keys and accounts."""


@remote.command(name="list")
@verb
def list_remotes(machine: Machine, as_json: bool) -> None:
    """List the bots that run elsewhere.

    \b
    Example: clawctl remote list
    """
    with machine.registry() as registry:
        found, host = registry.store.remotes(), registry.host
    if as_json:
        shown = [remotes.describe(one) for one in found]
        about = {name: getattr(host, name) for name in _ABOUT}
        click.echo(json.dumps({"bots": shown, **about}))
        return
    lines = table("Id", "Name", "Telegram", "Agent", "Runs at", "State")
    for one in found:
        state = f"suspended: {one.reason}" if one.suspended else one.state
        lines.add_row(one.id, one.name, f"@{one.telegram_username}", one.agent, one.target, state)
    if found:
        show_table(lines)
    else:
        click.echo("No bot runs elsewhere.")


@remote.command()
@check_option
@verb
def declare(machine: Machine, as_json: bool, check: bool) -> None:
    """Give a bot an LLM key and an account; standard input is its description as JSON. For playbooks.

    \b
    Example: clawctl remote declare --check --json < request.json
    """
    request = stdin(RemoteRequest)
    with machine.changing() as registry:
        result = remotes.declare(registry, machine.ledger, request, now(), check)
    say(result, as_json, summary(result))


@remote.command()
@click.argument("bot")
@check_option
@verb
def settle(machine: Machine, as_json: bool, bot: str, check: bool) -> None:
    """Note that BOT (id or name) runs. For playbooks.

    \b
    Example: clawctl remote settle support-bot
    """
    with machine.changing() as registry:
        result = remotes.settle(registry, bot, check)
    say(result, as_json, summary(result))


@remote.command()
@click.option("--reason", default="", help="Why; shown in the list.")
@click.argument("bot")
@check_option
@verb
def suspend(machine: Machine, as_json: bool, bot: str, reason: str, check: bool) -> None:
    """Close its model to BOT (id or name). Its machine runs on: playbooks/suspend_fly.yml stops that too.

    \b
    Example: clawctl remote suspend support-bot --reason "abuse report 4711"
    """
    with machine.changing() as registry:
        result = remotes.flag(registry, bot, True, reason, check)
    say(result, as_json, summary(result))


@remote.command()
@click.argument("bot")
@check_option
@verb
def resume(machine: Machine, as_json: bool, bot: str, check: bool) -> None:
    """Open its model to BOT (id or name) again.

    \b
    Example: clawctl remote resume support-bot
    """
    with machine.changing() as registry:
        result = remotes.flag(registry, bot, False, "", check)
    say(result, as_json, summary(result))


@remote.command()
@click.argument("bot")
@check_option
@verb
def forget(machine: Machine, as_json: bool, bot: str, check: bool) -> None:
    """Take the LLM key of BOT (id or name) back and forget it. Its account stays in the books.

    \b
    Example: clawctl remote forget support-bot
    """
    with machine.changing() as registry:
        result = remotes.forget(registry, machine.ledger, bot, check)
    say(result, as_json, summary(result))
