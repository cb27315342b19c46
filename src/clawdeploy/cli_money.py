"""``clawctl``'s verbs about money: balances, top-ups, usage, prices and the books."""

import csv
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from clawdeploy.clitools import Machine, Moment, check_option, say, show_table, summary, table, verb
from clawdeploy.errors import ClawError
from clawdeploy.ledger_client import Call, Opening
from clawdeploy.money import SpendLimit, format_dollars, parse_dollars
from clawdeploy.remotes import account_holder, account_holders

_CSV_COLUMNS = (
    "time",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "dollars",
    "settled_by",
    "generation",
)


def _diff(changed: bool, name: str, before: str, after: str) -> dict[str, Any]:
    if not changed:
        return {"changed": False, "diff": {"before": "", "after": ""}}
    return {"changed": True, "diff": {"before": f"{name}: {before}\n", "after": f"{name}: {after}\n"}}


@click.command()
@click.argument("bots", nargs=-1)
@verb
def balance(machine: Machine, as_json: bool, bots: tuple[str, ...]) -> None:
    """Show the balances of BOTS (ids or names), or of all.

    \b
    Example: clawctl balance support-bot
    """
    with machine.registry() as registry:
        found = [account_holder(registry, bot) for bot in bots] if bots else account_holders(registry)
    accounts = {account.bot: account for account in machine.ledger.accounts()}
    shown = [(bot, accounts[bot.id]) for bot in found if bot.id in accounts]
    if bots and len(shown) < len(found):
        lacking = ", ".join(bot.label for bot in found if bot.id not in accounts)
        raise ClawError("no_account", f"without an account: {lacking}; deploy again to open one.")
    if as_json:
        rows = [{"id": bot.id, "label": bot.label, **account.as_json()} for bot, account in shown]
        click.echo(json.dumps({"accounts": rows}))
        return
    lines = table("Bot", "Balance", "Held by open calls", "Spent in all", "Calls", "Spend limit")
    for bot, account in shown:
        lines.add_row(
            *(bot.label, format_dollars(account.balance), format_dollars(account.held)),
            *(format_dollars(account.spent), str(account.calls), account.spend_limit),
        )
    show_table(lines)


# A negative amount is not an option that is unknown, but an amount that is wrong.
@click.command(name="top-up", context_settings={"ignore_unknown_options": True})
@click.option("--ref", required=True, help="Name of the payment, such as an invoice's number.")
@click.argument("bot")
@click.argument("amount")
@check_option
@verb
def top_up(machine: Machine, as_json: bool, bot: str, amount: str, ref: str, check: bool) -> None:
    """Add AMOUNT dollars to the balance of BOT (id or name).

    The same REF again changes nothing, so a command whose end you did not see can simply be repeated.

    \b
    Example: clawctl top-up support-bot 5.00 --ref invoice-17
    """
    nano = parse_dollars(amount)
    if nano == 0:
        raise ClawError("amount_invalid", f"{amount!r} is nothing: give an amount above 0.")
    with machine.registry() as registry:
        found = account_holder(registry, bot)
    done = machine.ledger.top_up(found.id, nano, ref, check)
    before, after = format_dollars(done.before.balance), format_dollars(done.after.balance)
    result = {
        **_diff(done.changed, f"balance of {found.label}", before, after),
        "id": found.id,
        "label": found.label,
        **done.after.as_json(),
    }
    text = (
        f"{found.label}: {before} → {after}" if done.changed else f"{found.label}: {ref} was paid in before"
    )
    say(result, as_json, text)


@click.command(name="spend-limit")
@click.argument("bot")
@click.argument("limit")
@check_option
@verb
def spend_limit(machine: Machine, as_json: bool, bot: str, limit: str, check: bool) -> None:
    """Say who pays for BOT: its balance (prepaid), or you, up to LIMIT: 2.00/day, 20/month, unlimited.

    \b
    Example: clawctl spend-limit my-own-bot 2.00/day
    """
    wanted = str(SpendLimit.parse(limit))
    with machine.registry() as registry:
        found = account_holder(registry, bot)
    machine.ledger.account(found.id)
    (opened,) = machine.ledger.open([Opening(found.id, spend_limit=wanted)], check)
    before = opened.before.spend_limit if opened.before else "no account"
    result = _diff(opened.changed, f"spend limit of {found.label}", before, opened.after.spend_limit)
    say(result | {"id": found.id, **opened.after.as_json()}, as_json, summary(result))


@click.command()
@click.option("--since", type=Moment(), default="30d", show_default=True, help="A date, or 12h, 7d, 4w ago.")
@click.option("--until", type=Moment(), default=None, help="A date, or 12h, 7d, 4w ago; now if not given.")
@click.option("--csv", "as_csv", is_flag=True, help="Print every call as a line of CSV.")
@click.argument("bot")
@verb
def usage(machine: Machine, as_json: bool, bot: str, since: float, until: float | None, as_csv: bool) -> None:
    """Show what BOT (id or name) asked its model and was charged: by day; with --csv or --json by call.

    \b
    Example: clawctl usage support-bot --since 7d
             clawctl usage support-bot --since 2026-11-01 --csv > november.csv
    """
    with machine.registry() as registry:
        found = account_holder(registry, bot)
    calls = machine.ledger.calls(found.id, since, time.time() + 1 if until is None else until)
    if as_json:
        rows = [msgspec.structs.asdict(call) | {"dollars": _plain_dollars(call.charged)} for call in calls]
        click.echo(json.dumps({"id": found.id, "label": found.label, "calls": rows}))
    elif as_csv:
        _write_csv(calls)
    else:
        _show_days(calls)


def _plain_dollars(nano: int) -> str:
    return format_dollars(nano).replace("$", "")


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _write_csv(calls: Sequence[Call]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(_CSV_COLUMNS)
    for call in calls:
        charged, settled_by = _plain_dollars(call.charged), call.how or call.state
        tokens = call.prompt_tokens, call.completion_tokens
        writer.writerow((_iso(call.at), call.model, *tokens, charged, settled_by, call.generation))


def _show_days(calls: Sequence[Call]) -> None:
    days: dict[str, list[Call]] = {}
    for call in calls:
        days.setdefault(_iso(call.at)[:10], []).append(call)
    shown = table("Day (UTC)", "Calls", "Tokens in", "Tokens out", "Charged", "At the bound", "Not settled")
    for day, of_day in days.items():
        shown.add_row(day, *_sums(of_day))
    if len(days) > 1:
        shown.add_section()
        shown.add_row("All", *_sums(calls))
    if calls:
        show_table(shown)
    else:
        click.echo("No calls in that time.")


def _sums(calls: Sequence[Call]) -> tuple[str, ...]:
    return (
        str(len(calls)),
        str(sum(call.prompt_tokens or 0 for call in calls)),
        str(sum(call.completion_tokens or 0 for call in calls)),
        format_dollars(sum(call.charged for call in calls)),
        str(sum(call.how == "bound" for call in calls)),
        str(sum(call.state != "settled" for call in calls)),
    )


@click.command()
@click.argument("model", required=False)
@verb
def price(machine: Machine, as_json: bool, model: str | None) -> None:
    """Show what MODEL, or the one that the bots use, costs at most.

    \b
    Example: clawctl price openai/gpt-4o-mini
    """
    found = machine.ledger.price(model)
    source = "set by the operator"
    if found.fetched is not None:
        source = f"OpenRouter's table of {_iso(found.fetched)[:16]} UTC"
    per_call = f", ${found.request} a call" if found.request != "0" else ""
    per_million = f"${found.prompt} in, ${found.completion} out for a million tokens"
    say(msgspec.structs.asdict(found), as_json, f"{found.model}: {per_million}{per_call} ({source})")


@click.group()
def ledger() -> None:
    """The books."""


@ledger.command()
@verb
def verify(machine: Machine, as_json: bool) -> None:
    """Check that every balance is the sum of its entries, and all else that must hold; exit code 1 if not.

    \b
    Example: clawctl ledger verify
    """
    books = machine.ledger.verify()
    counted = f"{books.accounts} accounts, {books.entries} entries, {books.calls} calls"
    text = f"in order: {counted}" if books.ok else "\n".join(books.problems)
    say(msgspec.structs.asdict(books), as_json, text)
    if not books.ok:
        click.get_current_context().exit(1)


money_verbs: tuple[click.Command, ...] = (balance, top_up, spend_limit, usage, price, ledger)
