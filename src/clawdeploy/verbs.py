"""What ``clawctl`` does that takes more than one part of the package. Callers hold the host's lock."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import msgspec

from clawdeploy import claims, edge, events, remotes, rollbacks, suspension
from clawdeploy.allocation import place
from clawdeploy.containers import Action, LiveBot, LiveRequest, next_action
from clawdeploy.errors import ClawError
from clawdeploy.ledger_client import Account, LedgerClient
from clawdeploy.models import Bot, Kept, Running
from clawdeploy.money import format_dollars
from clawdeploy.registry import Registry
from clawdeploy.storage import HomeRequest, Homes, HomesRequest, with_claim_state

if TYPE_CHECKING:
    from clawdeploy.engine import Engine
    from clawdeploy.halter import Halter
    from clawdeploy.health import Health

CLAIMS_UNIT = "clawdeploy-claims.service"
_AT_ONCE = 4  # containers being made; more do not make Docker faster


def apply_homes(registry: Registry, homes: Homes, request: HomesRequest, check: bool) -> dict[str, Any]:
    """Disks, mounts and files of these bots, and what their claims will write.

    In check mode ids that ``declare --check`` made up are taken for new bots.
    """
    rows = {bot.id: bot for bot in registry.bots()}
    problems = (
        []
        if check
        else [p for home in request.bots if (p := _review_home(registry, home, rows.get(home.id)))]
    )
    if problems:
        raise ClawError.several(problems)
    owners = {bot.id: bot.owner for bot in rows.values()}
    wanted = [with_claim_state(home, owners.get(home.id)) for home in request.bots]
    changes = homes.apply(wanted, check)
    for home, change in zip(request.bots, changes, strict=True):
        change.changed += _prepare_claim(registry, home, check)
    touched = [f"{change.id}/{name}" for change in changes for name in change.changed]
    return {
        "changed": bool(touched),
        "diff": {
            "before": "".join(f"{name}: absent or different\n" for name in touched),
            "after": "".join(f"{name}: as declared\n" for name in touched),
        },
        "bots": [{"id": c.id, "changed": c.changed, "config_hash": c.config_hash} for c in changes],
    }


def _review_home(registry: Registry, home: HomeRequest, bot: Bot | None) -> tuple[str, str] | None:
    if bot is None:
        return "unknown_bot", f"this host has no bot {home.id!r}: declare it first."
    uid = place(bot.slot, registry.host).uid
    if home.uid != uid:
        return (
            "wrong_uid",
            f"the uid of {bot.label} is {uid}, not {home.uid}: use the one that declare returned.",
        )
    unclaimed = home.claim_file is not None and not (bot.owner or bot.open_to_all)
    if unclaimed and claims.load_claim(registry.paths, bot.id) is None:
        return (
            "claim_missing",
            f"{bot.label} has neither an owner nor a claim: run deploy_bot for it again.",
        )
    return None


def _prepare_claim(registry: Registry, home: HomeRequest, check: bool) -> list[str]:
    claim = claims.load_claim(registry.paths, home.id)
    if claim is None or home.claim_file is None:
        return []
    prepared = msgspec.structs.replace(claim, file=home.claim_file, files=home.rendered())
    if prepared == claim:
        return []
    if not check:
        claims.save_claim(registry.paths, prepared)
    return ["claim"]


def go_live(
    changing: Callable[[], AbstractContextManager[Registry]],
    engine: Callable[[], "Engine"],
    halter: Callable[[], "Halter"],
    systemctl: Callable[..., None],
    ledger: LedgerClient,
    request: LiveRequest,
    timeout: float,
    now: int,
    check: bool,
) -> dict[str, Any]:
    """Open these bots' accounts, let their containers be what their specifications say, route to them, wait
    until customers reach them, and record which ones they do.

    The bots' leases keep other deploys away, so the host's lock is free while Docker works and bots start.
    Bots that do not answer keep their lease and state: the caller decides what becomes of them. ClawError
    with everything that Docker refused, before anything is routed.
    """
    from clawdeploy.health import wait_until_healthy

    with changing() as registry:
        host, rows = registry.host, {bot.id: bot for bot in registry.bots()}
    accounts = ledger.open([bot.opening() for bot in request.bots], check)
    actions = _actions(engine, rows, request)
    if not check:
        _act_on_all(engine, actions)
    with changing() as registry:
        if not check:
            _remember_containers(registry, request)
            for bot, action in actions:
                if action != "keep":  # what was before its last upgrade is of no use any more
                    rollbacks.remove(registry.paths, bot.id)
        synced = sync(registry, systemctl, now, check)
        if not check:  # whoever was suspended while Docker was at work
            suspension.enforce(registry, halter, [bot.id for bot, action in actions if action != "keep"])
        rows = {bot.id: bot for bot in registry.bots()} if not check else rows
    touched = [(bot.id, action) for bot, action in actions if action != "keep"]
    opened = [account for account in accounts if account.changed]
    result = {
        "changed": bool(touched) or bool(opened) or synced["changed"],
        "diff": {
            "before": "".join(f"account of {one.bot}: {_terms(one.before)}\n" for one in opened)
            + "".join(f"container of {bot_id}: absent or different\n" for bot_id, _ in touched)
            + synced["diff"]["before"],
            "after": "".join(f"account of {one.bot}: {_terms(one.after)}\n" for one in opened)
            + "".join(f"container of {bot_id}: {action}\n" for bot_id, action in touched)
            + synced["diff"]["after"],
        },
        "actions": {bot.id: action for bot, action in actions},
        "accounts": [one.after.as_json() for one in accounts],
        "maps": synced["maps"],
        "bots": [],
    }
    if check:
        return result
    # A suspended bot answers nobody, on purpose.
    waiting = [rows[bot.id] for bot in request.bots if bot.id in rows and not rows[bot.id].suspended]
    with engine() as watching:
        found: list[Health] = asyncio.run(wait_until_healthy(waiting, host, watching, timeout))
    sick = {health.id for health in found if not health.healthy}
    well = [Running(bot.id, bot.config_hash, bot.image_digest) for bot in request.bots if bot.id not in sick]
    with changing() as registry:
        activated = registry.activate(request.run_id, well)
    return result | {
        "changed": result["changed"] or activated["changed"],
        "bots": [msgspec.to_builtins(health) for health in found],
    }


def _remember_containers(registry: Registry, request: LiveRequest) -> None:
    """So that a container that was removed by hand, or that a suspension left behind, can be made again."""
    known = {bot.id for bot in registry.bots()}
    with registry.store.transaction():
        for bot in request.bots:
            if bot.id in known:
                registry.store.put_container(bot.id, bot.container)


def _terms(account: Account | None) -> str:
    return f"{format_dollars(account.balance)}, {account.spend_limit}" if account else "absent"


def _actions(
    engine: Callable[[], "Engine"], rows: Mapping[str, Bot], request: LiveRequest
) -> list[tuple[LiveBot, Action]]:
    """One look at all containers. A suspended bot's is left alone."""
    with engine() as looking:
        there = looking.states()
    actions: list[tuple[LiveBot, Action]] = []
    for wanted in request.bots:
        row = rows.get(wanted.id)
        action = next_action(there.get(wanted.id), wanted, row.config_hash if row else None)
        actions.append((wanted, "keep" if row and row.suspended else action))
    return actions


def _act_on_all(engine: Callable[[], "Engine"], actions: Sequence[tuple[LiveBot, Action]]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        refused = pool.map(lambda todo: _act(engine, *todo), actions)
        problems = [problem for found in refused for problem in found]
    if problems:
        raise ClawError.several(problems)


def _act(engine: Callable[[], "Engine"], wanted: LiveBot, action: Action) -> Sequence[tuple[str, str]]:
    if action == "keep":
        return ()
    try:
        # Each thread has a client of its own: the SDK's is not made to be shared.
        with engine() as own:
            if action in ("create", "replace"):
                own.make(wanted.id, wanted.container)
            elif action == "restart":
                own.restart(wanted.id)
            else:
                own.start(wanted.id)
    except ClawError as error:
        return error.problems
    return ()


def sync(registry: Registry, systemctl: Callable[..., None], now: int, check: bool) -> dict[str, Any]:
    """Let edge, LLM gateway and claim listener follow the registry."""
    result = edge.sync(registry.paths, registry.host, registry.bots(), registry.internal_tokens(), check)
    remotes.sync(registry.paths, registry.host, registry.store.remotes(), result, check)
    if not check and claims.pending_claims(registry.paths, now):
        systemctl("start", "--no-block", CLAIMS_UNIT)
    return {
        "changed": bool(result.changed),
        "diff": {
            "before": "".join(f"{line}\n" for line in result.before),
            "after": "".join(f"{line}\n" for line in result.after),
        },
        "maps": result.changed,
    }


def destroy(
    registry: Registry,
    homes: Homes,
    engine: "Engine",
    ledger: LedgerClient,
    reference: str,
    now: int,
    keep_data: bool = False,
) -> dict[str, Any]:
    """Remove a bot and all its data; with ``keep_data`` all but its disk, for a later deploy of its token.

    The row goes last: until then its address and uid belong to nobody else, and an attempt that was
    interrupted can be repeated. ``statement`` of the answer is the bot's account as the ledger has it, None
    if it has none or nobody answers.
    """
    kept = next((one for one in registry.store.kept() if reference in (one.id, one.name)), None)
    if kept is not None and not any(reference in (bot.id, bot.name) for bot in registry.bots()):
        return _purge(registry, homes, ledger, kept, keep_data)
    bot = registry.find(reference)
    earlier = next((one for one in registry.store.kept() if one.telegram_id == bot.telegram_id), None)
    if keep_data and earlier is not None:
        raise ClawError(
            "data_exists",
            f"data of an earlier bot of @{bot.telegram_username} is kept, and there is room for one: remove "
            f"that first (`clawctl destroy --purge {earlier.id}`).",
        )
    statement = _statement(ledger, bot.id)
    others = [other for other in registry.bots() if other.id != bot.id]
    edge.sync(registry.paths, registry.host, others, registry.internal_tokens())
    engine.remove(bot.id)
    if keep_data:
        homes.put_away(bot.id)
    else:
        homes.remove(bot.id)
        edge.forget_certificate(registry.paths, registry.host, bot.label)
    registry.forget(bot.id, _kept(bot, now) if keep_data else None)
    said = f"{bot.label} destroyed, " + ("its data kept" if keep_data else "with all its data")
    events.record(registry.store, "destroyed", bot, said, {"kept": keep_data, "statement": statement})
    return {
        "changed": True,
        "id": bot.id,
        "name": bot.name,
        "telegram_username": bot.telegram_username,
        "data": "kept" if keep_data else "gone",
        "statement": statement,
    }


def _purge(
    registry: Registry, homes: Homes, ledger: LedgerClient, kept: Kept, keep_data: bool
) -> dict[str, Any]:
    """Remove what an earlier ``keep_data`` has left."""
    statement = _statement(ledger, kept.id)
    if not keep_data:
        homes.remove(kept.id)
        edge.forget_certificate(registry.paths, registry.host, kept.label)
        with registry.store.transaction():
            registry.store.remove_kept(kept.id)
            said = f"kept data of {kept.label} destroyed"
            details = {"id": kept.id, "label": kept.label, "statement": statement}
            events.record(registry.store, "destroyed", None, said, details)
    return {
        "changed": not keep_data,
        "id": kept.id,
        "name": kept.name,
        "telegram_username": kept.telegram_username,
        "data": "kept" if keep_data else "gone",
        "statement": statement,
    }


def _kept(bot: Bot, now: int) -> Kept:
    shared = {name: getattr(bot, name) for name in Kept.__struct_fields__ if name != "kept_at"}
    return Kept(**shared, kept_at=now)


def _statement(ledger: LedgerClient, bot_id: str) -> dict[str, Any] | None:
    try:
        return ledger.account(bot_id).as_json()
    except ClawError:  # no account, or nobody to ask: no reason to let a bot live
        return None
