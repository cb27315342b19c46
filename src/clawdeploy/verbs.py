"""What ``clawctl`` does that takes more than one part of the package. Callers hold the host's lock."""

from collections.abc import Callable
from typing import Any

import msgspec

from clawdeploy import claims, edge
from clawdeploy.allocation import place
from clawdeploy.engine import Engine
from clawdeploy.errors import ClawError
from clawdeploy.models import Bot
from clawdeploy.registry import Registry
from clawdeploy.storage import HomeRequest, Homes, HomesRequest, with_claim_state

CLAIMS_UNIT = "clawdeploy-claims.service"


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


def sync(registry: Registry, systemctl: Callable[..., None], now: int, check: bool) -> dict[str, Any]:
    """Let edge, LLM gateway and claim listener follow the registry."""
    result = edge.sync(registry.paths, registry.host, registry.bots(), registry.internal_tokens(), check)
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


def destroy(registry: Registry, homes: Homes, engine: Engine, reference: str) -> dict[str, Any]:
    """Remove a bot and all its data. The row goes last: until then its address and uid belong to nobody else,
    and an attempt that was interrupted can be repeated.
    """
    bot = registry.find(reference)
    others = [other for other in registry.bots() if other.id != bot.id]
    edge.sync(registry.paths, registry.host, others, registry.internal_tokens())
    engine.remove(bot.id)
    homes.remove(bot.id)
    registry.forget(bot.id)
    return {"changed": True, "id": bot.id, "name": bot.name, "telegram_username": bot.telegram_username}
