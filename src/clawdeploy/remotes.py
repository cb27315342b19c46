"""Bots that run elsewhere (Fly.io) and call their model through this host: rows, LLM keys and accounts.

What runs there is the business of whoever put it there. Here such a bot has an id, a key that is good only
through the edge's door for it (``llm.<base domain>``), and an account like any other bot.
"""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from clawdeploy import edge, events
from clawdeploy.errors import ClawError
from clawdeploy.host import Host, Paths
from clawdeploy.ledger_client import LedgerClient, Opening
from clawdeploy.models import Bot, BotSecrets, Remote, RemoteRequest, is_dns_label
from clawdeploy.money import SpendLimit, parse_dollars
from clawdeploy.registry import Registry
from clawdeploy.secret_files import load_secrets, remove_secrets, save_secrets
from clawdeploy.tokens import new_bot_id, new_internal_token, new_llm_key, sha256_hex

KEYS_MAP = "llm_keys.map"


def find(registry: Registry, reference: str) -> Remote:
    """The bot with that id or name; ClawError("unknown_bot") if there is none."""
    for remote in registry.store.remotes():
        if reference in (remote.id, remote.name):
            return remote
    raise ClawError(
        "unknown_bot", f"no bot {reference!r} runs elsewhere for this host: see `clawctl remote list`."
    )


def account_holder(registry: Registry, reference: str) -> Bot | Remote:
    """The bot with that id or name, wherever it runs."""
    for remote in registry.store.remotes():
        if reference in (remote.id, remote.name):
            return remote
    return registry.find(reference)


def account_holders(registry: Registry) -> list[Bot | Remote]:
    return [*registry.bots(), *registry.store.remotes()]


# --- key and door -----------------------------------------------------------------------------------


def render_keys(remotes: Sequence[Remote]) -> str:
    """The LLM gateway's second file of keys: good from no subnet, only through the edge."""
    keys = {
        one.llm_key_hash: {
            "bot": one.id,
            "subnet": None,
            "suspended": one.suspended,
            "refusal": one.llm_refusal,
        }
        for one in remotes
    }
    return json.dumps({"keys": keys}, indent=1, sort_keys=True) + "\n"


def sync(paths: Paths, host: Host, remotes: Sequence[Remote], result: edge.SyncResult, check: bool) -> None:
    """Let edge and LLM gateway know these keys and no others; nothing where the host has no such door.

    A suspended bot's key stays known at the edge: the gateway tells it why it is refused.
    """
    if not host.llm_public_url:
        return
    edge.sync_keys_file(paths, paths.remote_llm_keys, render_keys(remotes), result, check)
    edge.sync_maps(paths, {KEYS_MAP: {one.llm_key_hash: one.id for one in remotes}}, result, check)


def _sync(registry: Registry) -> edge.SyncResult:
    result = edge.SyncResult()
    sync(registry.paths, registry.host, registry.store.remotes(), result, False)
    return result


# --- verbs; callers hold the host's lock ------------------------------------------------------------


def describe(remote: Remote) -> dict[str, Any]:
    """The bot without secrets."""
    shown = msgspec.structs.asdict(remote)
    del shown["llm_key_hash"]
    return shown


def declare(
    registry: Registry, ledger: LedgerClient, request: RemoteRequest, now: int, check: bool
) -> dict[str, Any]:
    """Let the bot have a row, a key and an account; the same Telegram bot again is the same bot.

    Returns changed, diff and the bot with its secrets. ClawError before anything is changed.
    """
    known = {one.telegram_id: one for one in registry.store.remotes()}
    before = known.get(request.telegram_id)
    if problems := _review(registry, request, before):
        raise ClawError.several(problems)
    opening = Opening(
        before.id if before else new_bot_id({bot.id for bot in account_holders(registry)}),
        parse_dollars(request.balance),
        str(SpendLimit.parse(request.spend_limit)) if request.spend_limit else None,
    )
    old = load_secrets(registry.paths, opening.bot) if before else None
    secrets = msgspec.structs.replace(
        old or BotSecrets("", new_llm_key(), new_internal_token()), telegram_token=request.telegram_token
    )
    if request.bot_config is not None:
        secrets = msgspec.structs.replace(secrets, bot_config=request.bot_config)
    after = Remote(
        **{name: getattr(request, name) for name in _SHARED},
        id=opening.bot,
        state=before.state if before else "deploying",
        suspended=before.suspended if before else False,
        reason=before.reason if before else "",
        llm_key_hash=sha256_hex(secrets.llm_key),
        created_at=before.created_at if before else now,
    )
    (account,) = ledger.open([opening], check)
    # Edge and gateway first: where they cannot take it, there is no row that nobody asked for.
    others = [one for one in registry.store.remotes() if one.id != after.id]
    synced = edge.SyncResult()
    sync(registry.paths, registry.host, [*others, after], synced, check)
    if not check:
        with registry.store.transaction():
            registry.store.put_remote(after)
            if secrets != old:
                save_secrets(registry.paths, after.id, secrets)
    return {
        "changed": before != after or secrets != old or account.changed or bool(synced.changed),
        "diff": {"before": _text(before), "after": _text(after)},
        "bot": {
            **describe(after),
            "created": before is None,
            "llm_key": secrets.llm_key,
            "internal_token": secrets.internal_token,
            "bot_config": secrets.bot_config,
            "account": account.after.as_json(),
        },
    }


_SHARED = ("name", "telegram_id", "telegram_username", "target", "agent", "llm_refusal", "settings")


def _review(registry: Registry, request: RemoteRequest, before: Remote | None) -> list[tuple[str, str]]:
    name, problems = request.name, list[tuple[str, str]]()
    if not registry.host.llm_public_url:
        problems.append(
            (
                "door_closed",
                "this host serves no bots that run elsewhere: set platform_remote_bots to true and run "
                "prepare_host.",
            )
        )
    if not is_dns_label(name):
        problems.append(("name_invalid", f"bot_name {name!r} is not a DNS label: use a-z, 0-9 and -."))
    if any(
        name in (bot.label, bot.id)
        for bot in account_holders(registry)
        if before is None or bot.id != before.id
    ):
        problems.append(("name_taken", f"bot_name {name!r} is taken by another bot: choose another one."))
    if any(bot.telegram_id == request.telegram_id for bot in registry.bots()):
        problems.append(
            (
                "token_in_use",
                f"@{request.telegram_username} runs on this host: destroy it here first "
                "(playbooks/destroy_bot.yml), or use another bot's token.",
            )
        )
    if before is not None and before.name != name:
        problems.append(
            ("token_in_use", f"@{before.telegram_username} already runs as {before.name!r}: keep that name.")
        )
    if before is not None and before.agent != request.agent:
        problems.append(
            (
                "agent_change",
                f"{before.name} runs agent {before.agent}, not {request.agent}: destroy it first.",
            )
        )
    if before is not None and before.suspended:
        problems.append(("suspended", f"{before.name} is suspended: resume it first."))
    return problems


def _text(remote: Remote | None) -> str:
    return json.dumps(describe(remote), indent=2, sort_keys=True) + "\n" if remote else ""


def settle(registry: Registry, reference: str, check: bool) -> dict[str, Any]:
    """Note that the bot runs."""
    remote = find(registry, reference)
    if remote.state == "deploying" and not check:
        with registry.store.transaction():
            registry.store.put_remote(msgspec.structs.replace(remote, state="active"))
            said = f"{remote.name} deployed to {remote.target}"
            events.record(registry.store, "deployed", remote, said, {"target": remote.target})
    return {"changed": remote.state == "deploying", "id": remote.id}


def flag(registry: Registry, reference: str, suspended: bool, reason: str, check: bool) -> dict[str, Any]:
    """Close the bot's model to it, or open it again. What runs elsewhere goes on running."""
    remote = find(registry, reference)
    after = msgspec.structs.replace(remote, suspended=suspended, reason=reason if suspended else "")
    if not check and after != remote:
        with registry.store.transaction():
            registry.store.put_remote(after)
            word = "suspended" if suspended else "resumed"
            events.record(registry.store, word, remote, f"{remote.name} {word}", {"reason": reason})
    synced = edge.SyncResult() if check else _sync(registry)
    return {
        "changed": after != remote or bool(synced.changed),
        "diff": {"before": _text(remote), "after": _text(after)},
        "id": remote.id,
    }


def forget(registry: Registry, ledger: LedgerClient, reference: str, check: bool) -> dict[str, Any]:
    """Take back the bot's key and forget it; its account stays in the books. None such: nothing to do."""
    remotes = registry.store.remotes()
    remote = next((one for one in remotes if reference in (one.id, one.name)), None)
    if remote is None:
        return {"changed": False, "diff": {"before": "", "after": ""}, "statement": None}
    if not check:
        others = [one for one in remotes if one.id != remote.id]
        # The key first: an attempt that was interrupted can be repeated.
        sync(registry.paths, registry.host, others, edge.SyncResult(), False)
        remove_secrets(registry.paths, remote.id)
        with registry.store.transaction():
            registry.store.remove_remote(remote.id)
            events.record(registry.store, "destroyed", remote, f"{remote.name} destroyed at {remote.target}")
    try:
        statement = ledger.account(remote.id).as_json()
    except ClawError:  # nobody to ask is no reason to keep a key
        statement = None
    return {
        "changed": True,
        "diff": {"before": _text(remote), "after": ""},
        "id": remote.id,
        "statement": statement,
    }
