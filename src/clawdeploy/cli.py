"""``clawctl``: the operator's and the playbooks' way to the package.

Exit codes: 0 done, 1 refused or failed (with --json the reason is {"error": {...}} on standard output),
2 wrong usage.
"""

import asyncio
import json
import logging
import sys
from typing import Any

import click
import msgspec

from clawdeploy import allocation, claims, verbs, version
from clawdeploy.cli_backup import backup_verbs
from clawdeploy.cli_doctor import doctor, trial
from clawdeploy.cli_login import login
from clawdeploy.cli_memories import memories
from clawdeploy.cli_money import money_verbs
from clawdeploy.cli_ops import cells, gauge, ops_verbs, suspended
from clawdeploy.cli_remote import remote
from clawdeploy.cli_skills import skills
from clawdeploy.cli_upgrades import upgrade_verbs
from clawdeploy.cli_watch import watch
from clawdeploy.clitools import Machine, check_option, now, say, show_table, stdin, summary, table, verb
from clawdeploy.containers import LiveRequest
from clawdeploy.errors import ClawError
from clawdeploy.gauges import Gauge
from clawdeploy.host import Paths, free_bytes, locked
from clawdeploy.ledger_client import Account
from clawdeploy.models import DeclareRequest, ReleaseRequest
from clawdeploy.money import format_dollars
from clawdeploy.registry import describe, iso
from clawdeploy.storage import HomesRequest
from clawdeploy.store import migrate

__all__ = ["Machine", "main"]


@click.group(
    epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong usage. "
    'Completion of the shell: eval "$(_CLAWCTL_COMPLETE=bash_source clawctl)" (or zsh_source, fish_source).'
)
@click.version_option(package_name="clawdeploy", prog_name="clawctl")
def main() -> None:
    """Manage the bots of this host.

    \b
    clawctl list                 which bots run here
    clawctl show support-bot     everything about one, secrets excepted
    clawctl suspend support-bot  stop it at once, whatever it does; resume brings it back
    clawctl top-up support-bot 5.00 --ref invoice-17
    clawctl claims new support-bot
    clawctl destroy support-bot
    clawctl doctor               is this host well?
    """


_groups = (doctor, login, memories, remote, skills, watch)
_added = (*money_verbs, *ops_verbs, *backup_verbs, *upgrade_verbs, *_groups)
for added_verb in _added:
    main.add_command(added_verb)
watch.add_command(trial)


# --- looking ----------------------------------------------------------------------------------------


@main.command()
@click.option("--all", "everything", is_flag=True, help="Also its bots and the images Docker has.")
@verb
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
    say(result, as_json, "\n".join(shown))


@main.command(name="list")
@click.option("--kept", is_flag=True, help="Instead, bots that were destroyed with --keep-data.")
@verb
def list_bots(machine: Machine, as_json: bool, kept: bool) -> None:
    """List the bots of this host.

    \b
    Example: clawctl list
    """
    if kept:
        _list_kept(machine, as_json)
        return
    with machine.registry() as registry:
        why = suspended(registry)
        bots = [
            _with_claim(describe(bot, registry.host), machine.paths) | {"suspension": why.get(bot.id)}
            for bot in registry.bots()
        ]
    accounts, used = _accounts(machine), gauge(machine) if bots else {}
    bots = [
        bot
        | {
            "account": _account(accounts.get(bot["id"])),
            "usage": msgspec.to_builtins(used.get(bot["id"])),
        }
        for bot in bots
    ]
    if as_json:
        click.echo(json.dumps({"bots": bots}))
    else:
        _table(bots, used)


def _list_kept(machine: Machine, as_json: bool) -> None:
    with machine.registry() as registry:
        kept = registry.store.kept()
    if as_json:
        click.echo(json.dumps({"kept": [msgspec.structs.asdict(one) for one in kept]}))
        return
    shown = table("Id", "Name", "Telegram", "Agent", "Since")
    for one in kept:
        shown.add_row(one.id, one.name or "-", f"@{one.telegram_username}", one.agent, iso(one.kept_at))
    if kept:
        show_table(shown)
    else:
        click.echo("No data of destroyed bots is kept.")


@main.command()
@click.argument("bot")
@verb
def show(machine: Machine, as_json: bool, bot: str) -> None:
    """Show one bot (BOT is its id or name), without secrets.

    \b
    Example: clawctl show support-bot
    """
    with machine.registry() as registry:
        result = _with_claim(describe(registry.find(bot), registry.host), machine.paths)
        result["suspension"] = suspended(registry).get(result["id"])
    result["account"] = _account(_accounts(machine).get(result["id"]))
    say(result, as_json, "\n".join(f"{key}: {_plain(value)}" for key, value in result.items()))


def _with_claim(described: dict[str, Any], paths: Paths) -> dict[str, Any]:
    claim = claims.load_claim(paths, described["id"])
    if claim is None:
        return described | {"claim": None}
    return described | {
        "claim": {"open": claim.open(now()), "expires": iso(claim.expires), "wrong": claim.wrong}
    }


def _accounts(machine: Machine) -> dict[str, Account]:
    """Accounts by bot; none while the LLM gateway, who keeps them, does not answer."""
    try:
        return {account.bot: account for account in machine.ledger.accounts()}
    except ClawError as error:
        if error.code != "gateway_down":
            raise
        click.echo(f"clawctl: {error.message}", err=True)
        return {}


def _account(account: Account | None) -> dict[str, Any] | None:
    return account.as_json() if account else None


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


def _table(bots: list[dict[str, Any]], used: dict[str, Gauge]) -> None:
    if not bots:
        click.echo("No bots yet: run the deploy_bot playbook.")
        return
    shown = table(
        *("Bot", "Telegram", "Plan", "Address", "Owner", "Balance", "State"),
        *("CPU", "RAM", "RPS", "Last seen"),
    )
    for bot in bots:
        state = (
            "[red]suspended[/]"
            if bot["suspended"]
            else {"active": "[green]active[/]"}.get(bot["state"], bot["state"])
        )
        shown.add_row(
            *(bot["label"], f"@{bot['telegram_username']}", bot["plan"], bot["address"], _owner(bot)),
            *(_money(bot["account"]), state),
            *cells(used.get(bot["id"])),
        )
    show_table(shown)


def _money(account: dict[str, Any] | None) -> str:
    if account is None:
        return "?"
    return (
        format_dollars(account["balance"]) if account["spend_limit"] == "prepaid" else account["spend_limit"]
    )


# --- deploying (the playbooks' verbs) ---------------------------------------------------------------


@main.command(name="migrate")
@check_option
@verb
def migrate_registry(machine: Machine, as_json: bool, check: bool) -> None:
    """Create the registry or bring it up to date.

    \b
    Example: clawctl migrate
    """
    with locked(machine.paths):
        applied = migrate(machine.paths.registry, check)
    result = {"changed": bool(applied), "migrations": applied}
    say(result, as_json, f"applied: {', '.join(applied)}" if applied else "nothing to change")


@main.command()
@check_option
@verb
def declare(machine: Machine, as_json: bool, check: bool) -> None:
    """Put bots into the registry, all or none, from a JSON object on standard input.

    With --json the answer has the bots' secrets: give it to nobody but the deploy.

    \b
    Example: clawctl declare --json --check < bots.json
    """
    with machine.changing() as registry:
        result = registry.declare(stdin(DeclareRequest), now(), check)
    say(result, as_json, summary(result))


@main.group()
def home() -> None:
    """Disks and files of bots."""


@home.command(name="apply")
@check_option
@verb
def home_apply(machine: Machine, as_json: bool, check: bool) -> None:
    """Make disks, mounts and files of bots as a JSON object on standard input says.

    \b
    Example: clawctl home apply --json < homes.json
    """
    with machine.changing() as registry:
        result = verbs.apply_homes(registry, machine.homes, stdin(HomesRequest), check)
    say(result, as_json, summary(result))


@main.command()
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait, for all bots together.")
@check_option
@verb
def live(machine: Machine, as_json: bool, timeout: float, check: bool) -> None:
    """Open bots' accounts, run containers and routes, and wait until they answer (JSON on standard input).

    \b
    Example: clawctl live --json --timeout 60 < deployed.json
    """
    request = stdin(LiveRequest)
    result = verbs.go_live(
        *(machine.changing, machine.engine, machine.halter, machine.systemctl, machine.ledger),
        *(request, timeout, now(), check),
    )
    say(result, as_json, summary(result))


@main.command()
@check_option
@verb
def sync(machine: Machine, as_json: bool, check: bool) -> None:
    """Let the edge and the LLM gateway follow the registry. Safe at any time.

    \b
    Example: clawctl sync
    """
    with machine.changing() as registry:
        result = verbs.sync(registry, machine.systemctl, now(), check)
    say(result, as_json, summary(result))


@main.command()
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait, for all bots together.")
@click.argument("bots", nargs=-1, required=True)
@verb
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
@verb
def release(machine: Machine, as_json: bool) -> None:
    """End the leases of a deploy that failed, so that the next one need not wait (JSON on standard input).

    \b
    Example: echo '{"run_id": "0123456789abcdef"}' | clawctl release
    """
    with machine.changing() as registry:
        result = registry.release(stdin(ReleaseRequest).run_id)
    say(result, as_json, summary(result))


# --- one bot ----------------------------------------------------------------------------------------


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--keep-data/--purge", help="Leave its disk, for a later deploy of its token; purge if not given."
)
@click.argument("bot")
@verb
def destroy(machine: Machine, as_json: bool, bot: str, yes: bool, keep_data: bool) -> None:
    """Remove BOT (id or name) with all its data; there is no way back, unless you keep the data.

    \b
    Example: clawctl destroy support-bot
             clawctl destroy --keep-data support-bot      deploying its token again brings it back
             clawctl destroy --purge support-bot          removes kept data too
    """
    if not yes:
        what = "but keep its data" if keep_data else "and everything it remembers"
        click.confirm(f"Remove {bot} {what}?", abort=True, err=True)
    with machine.changing() as registry, machine.engine() as engine:
        result = verbs.destroy(registry, machine.homes, engine, machine.ledger, bot, now(), keep_data)
    say(result, as_json, _farewell(bot, result))


def _farewell(bot: str, result: dict[str, Any]) -> str:
    lines = [f"Removed {bot}, its data is {result['data']}."]
    if statement := result["statement"]:
        balance, spent = format_dollars(statement["balance"]), format_dollars(statement["spent"])
        lines.append(f"Its account: {balance} left, {spent} spent on {statement['calls']} calls.")
    else:
        lines.append("Its account: unknown, it has none or the LLM gateway does not answer.")
    lines.append(
        f"Its token still works elsewhere: revoke it (@BotFather, /revoke, @{result['telegram_username']})."
    )
    return "\n".join(lines)


@main.group(name="claims")
def claims_group() -> None:
    """Owner claims: who opens the link first with the right code owns the bot."""


@claims_group.command(name="new")
@click.argument("bot")
@verb
def claims_new(machine: Machine, as_json: bool, bot: str) -> None:
    """Print a new one-time link for BOT (id or name), good for 24 hours; the old one is void.

    \b
    Example: clawctl claims new support-bot
    """
    with machine.changing() as registry:
        found = registry.find(bot)
        claim, code = claims.renew(machine.paths, found, now())
    machine.systemctl("start", "--no-block", verbs.CLAIMS_UNIT)
    link = claims.link(found.telegram_username, code)
    result = {"changed": True, "id": found.id, "code": code, "link": link, "expires": iso(claim.expires)}
    say(result, as_json, f"{link}\nGood until {iso(claim.expires)}, once, for whoever opens it first.")


@claims_group.command(name="serve")
@verb
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
    say({"changed": False}, as_json, "no claim is pending")
