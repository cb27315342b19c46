"""Which bots this host has: the checks and changes of ``declare``, ``activate`` and ``release``.

``review`` and ``desired`` are pure; ``Registry`` stores what they decide, under the host's lock.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from clawdeploy import allocation, claims, events, rollbacks
from clawdeploy.errors import ClawError
from clawdeploy.host import Host, Paths, free_bytes
from clawdeploy.models import (
    Bot,
    BotRequest,
    BotSecrets,
    DeclareRequest,
    Kept,
    Remote,
    Running,
    is_dns_label,
)
from clawdeploy.secret_files import load_secrets, remove_secrets, save_secrets
from clawdeploy.store import RegistryStore
from clawdeploy.tokens import new_bot_id, new_gateway_token, new_internal_token, new_llm_key, sha256_hex

WEEK = 7 * 24 * 3600

Problem = tuple[str, str]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


# --- checks ---------------------------------------------------------------------------------------


def review(
    request: DeclareRequest,
    bots: Sequence[Bot],
    host: Host,
    certificate_names: Mapping[str, int],
    free: int,
    now: int,
) -> list[Problem]:
    """Everything that forbids this batch, as (code, message); empty if it may go ahead.

    bots: all rows; certificate_names: host name -> first seen; free: bytes for disks; now: Unix seconds.
    """
    known = {bot.telegram_id: bot for bot in bots}
    problems = [
        problem
        for wanted in request.bots
        for problem in _review_one(wanted, known.get(wanted.telegram_id), bots, host, request.run_id, now)
    ]
    problems += _review_duplicates(request)
    problems += _review_room(request, known, host, free)
    problems += _review_certificates(request, known, host, certificate_names, now)
    return problems


def _review_one(
    wanted: BotRequest, bot: Bot | None, bots: Sequence[Bot], host: Host, run_id: str, now: int
) -> Iterator[Problem]:
    called = wanted.called
    if wanted.telegram_token.split(":")[0] != str(wanted.telegram_id):
        yield "token_mismatch", f"{called}: the token is not that of Telegram bot {wanted.telegram_id}."
    if wanted.plan not in host.plans:
        yield (
            "unknown_plan",
            f"{called}: plan {wanted.plan!r} is unknown; this host has {', '.join(sorted(host.plans))}.",
        )
    if wanted.interface == "ui" and not host.base_domain:
        yield (
            "base_domain_needed",
            f"{called}: agent {wanted.agent} has a web interface, which needs an origin of its own: "
            "set BASE_DOMAIN.",
        )
    if wanted.name is not None:
        yield from _review_name(wanted, wanted.name, bot, bots, host)
    if bot is None:
        return
    if bot.agent != wanted.agent and wanted.migrate_from in (bot.id, bot.name):
        yield (
            "agent_change",
            f"{called} still runs agent {bot.agent}, and a token is for one bot: take that one away but keep "
            f"what it knows (`clawctl destroy --keep-data {bot.label}`), then deploy again with "
            f"migrate_from={bot.id}.",
        )
    elif bot.agent != wanted.agent:
        yield (
            "agent_change",
            f"{called} runs agent {bot.agent}, not {wanted.agent}: destroy it first "
            f"(`clawctl destroy {bot.label}`).",
        )
    if wanted.name is not None and bot.name is not None and wanted.name != bot.name:
        yield (
            "token_in_use",
            f"the token of @{wanted.telegram_username} already runs as {bot.name!r}: deploy it under that "
            "name, or use another bot's token.",
        )
    if bot.leased_by_other(run_id, now):
        yield (
            "bot_busy",
            f"another deploy works on {bot.label} right now: wait for it to end (five minutes at most).",
        )


def _review_name(
    wanted: BotRequest, name: str, bot: Bot | None, bots: Sequence[Bot], host: Host
) -> Iterator[Problem]:
    if not is_dns_label(name):
        yield (
            "name_invalid",
            f"bot_name {name!r} is not a DNS label: use 1 to 63 of a-z, 0-9 and hyphens, none at an end.",
        )
    if name in host.reserved_names:
        yield "name_reserved", f"bot_name {name!r} is reserved on this host: choose another one."
    if any(name in (other.name, other.id) for other in bots if bot is None or other.id != bot.id):
        yield "name_taken", f"bot_name {name!r} is taken by another bot on this host: choose another one."


def _review_duplicates(request: DeclareRequest) -> Iterator[Problem]:
    for telegram_id, count in Counter(wanted.telegram_id for wanted in request.bots).items():
        if count > 1:
            yield (
                "token_twice",
                f"the token of Telegram bot {telegram_id} appears {count} times in this batch.",
            )
    for name, count in Counter(wanted.name for wanted in request.bots if wanted.name).items():
        if count > 1:
            yield "name_twice", f"bot_name {name!r} appears {count} times in this batch."


def _review_kept(request: DeclareRequest, bots: Sequence[Bot], kept: Sequence[Kept]) -> Iterator[Problem]:
    """A disk is of use only to the agent that wrote it, or to one that takes over what is on it."""
    known = {bot.telegram_id for bot in bots}
    asked = {wanted.telegram_id: wanted for wanted in request.bots if wanted.telegram_id not in known}
    for one in kept:
        wanted = asked.get(one.telegram_id)
        if wanted is None or wanted.agent == one.agent or wanted.migrate_from in (one.id, one.label):
            continue
        yield (
            "agent_change",
            f"the kept data of @{one.telegram_username} is {one.agent}'s, not {wanted.agent}'s: remove it "
            f"first (`clawctl destroy --purge {one.id}`), or, if {wanted.agent} can, take over what it knew "
            f"(migrate_from={one.id}).",
        )


def _review_remotes(request: DeclareRequest, remotes: Sequence[Remote]) -> Iterator[Problem]:
    """Two that poll one token take each other's messages; one name is for one bot."""
    for wanted in request.bots:
        for one in remotes:
            if one.telegram_id == wanted.telegram_id:
                yield (
                    "token_in_use",
                    f"@{one.telegram_username} runs at {one.target} as {one.name!r}: destroy it there first, "
                    "or use another bot's token.",
                )
            elif wanted.name in (one.name, one.id):
                yield "name_taken", f"bot_name {wanted.name!r} is taken by a bot that runs at {one.target}."


def _review_room(
    request: DeclareRequest, known: Mapping[int, Bot], host: Host, free: int
) -> Iterator[Problem]:
    wanted_plans = {wanted.telegram_id: wanted.plan for wanted in request.bots}
    plans_before = {telegram_id: bot.plan for telegram_id, bot in known.items()}
    before = allocation.reserved_memory(plans_before.values(), host)
    after = allocation.reserved_memory((plans_before | wanted_plans).values(), host)
    if not allocation.admits(before, after, host.memory_budget):
        yield (
            "memory_budget",
            f"this host has {_megabytes(before)} of {_megabytes(host.memory_budget)} memory "
            f"reserved and this batch would make it {_megabytes(after)}: deploy fewer "
            "bots, a smaller plan, or use a larger host.",
        )
    growth = sum(
        max(_disk_size(plan, host) - _disk_size(plans_before.get(telegram_id), host), 0)
        for telegram_id, plan in wanted_plans.items()
    )
    if growth and free - growth < host.disk_floor:
        yield (
            "disk_floor",
            f"{_megabytes(free)} of disk are promised to no bot, this batch asks for "
            f"{_megabytes(growth)} and {_megabytes(host.disk_floor)} (platform_disk_floor) must stay: deploy "
            "fewer bots, a plan with a smaller disk_size, or use a larger disk.",
        )
    added = len(wanted_plans.keys() - known.keys())
    room = allocation.capacity(host.pool, host.bot_subnet_prefix)
    if added and len(known) + added > room:
        yield (
            "pool_exhausted",
            f"bot_pool {host.bot_pool} has room for {room} bots, {len(known)} run and {added} more were "
            "asked for: give this host a larger platform_bot_pool.",
        )


def _disk_size(plan: str | None, host: Host) -> int:
    return host.plans[plan].disk_size if plan in host.plans else 0


def _review_certificates(
    request: DeclareRequest, known: Mapping[int, Bot], host: Host, seen: Mapping[str, int], now: int
) -> Iterator[Problem]:
    if host.tls_mode != "acme" or not host.base_domain:
        return
    # A bot without a name gets one host name for its id, which is not drawn yet.
    fresh = {
        name
        for wanted in request.bots
        if (name := _certificate_name(wanted.name, known.get(wanted.telegram_id), host)) not in seen
    }
    unnamed = sum(not wanted.name and wanted.telegram_id not in known for wanted in request.bots)
    new = len(fresh - {""}) + unnamed
    recent = sum(now - first < WEEK for first in seen.values())
    if new and recent + new > host.acme_weekly_limit:
        yield (
            "acme_weekly_limit",
            f"{recent} new host names got a certificate in the last 7 days and this batch needs {new} more, "
            f"over the limit of {host.acme_weekly_limit} (Let's Encrypt): deploy later, or use a wildcard "
            "certificate (edge_tls_mode: dns01).",
        )


def _certificate_name(name: str | None, bot: Bot | None, host: Host) -> str:
    label = name or (bot.label if bot else "")
    return f"{label}.{host.base_domain}" if label else ""


# --- what a bot becomes ------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What declare does with one bot; ``before`` is None for a new one, also if it was ``restored`` from data
    that an earlier bot of its token has left.
    """

    before: Bot | None
    after: Bot
    secrets: BotSecrets
    secrets_changed: bool
    gateway_token: str | None
    claim: claims.Claim | None
    claim_state: str
    code: str | None
    restored: bool
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return self.before is None or bool(self.notes) or _settled(self.before) != _settled(self.after)


def _settled(bot: Bot) -> Bot:
    """The bot without its lease, which is the business of one run only."""
    return msgspec.structs.replace(bot, lease_run=None, lease_at=0)


def decide(
    wanted: BotRequest,
    bot: Bot | None,
    secrets: BotSecrets | None,
    claim: claims.Claim | None,
    slot: int,
    taken: set[str],
    run_id: str,
    now: int,
    left: Kept | None = None,
) -> Decision:
    """Work out one bot: its row, secrets, gateway token and claim. Draws random values, stores nothing.

    slot, taken (ids and names in use) and left (what was kept of it) matter for a new bot only.
    """
    notes: list[str] = []
    after = _row(wanted, bot, slot, taken, run_id, now)
    restored = bot is None and left is not None
    if bot is None and left is not None:
        after = _restored(after, left, taken)
        notes.append("data restored")

    kept = secrets or BotSecrets("", new_llm_key(), new_internal_token())
    current = msgspec.structs.replace(
        kept,
        telegram_token=wanted.telegram_token,
        bot_env=kept.bot_env if wanted.bot_env is None else wanted.bot_env,
        bot_config=kept.bot_config if wanted.bot_config is None else wanted.bot_config,
        tools=kept.tools if wanted.tools is None else wanted.tools,
    )
    if bot is not None:
        notes += ["secrets renewed"] if secrets is None else _replaced(secrets, current)
    after = msgspec.structs.replace(after, llm_key_hash=sha256_hex(current.llm_key))

    # A token that was never shown is of no use to anyone: an unfinished deploy gets another one. So does a
    # bot whose agent must know the token and does not.
    gateway_token = None
    agent_lacks_it = (
        wanted.edge.agent_checks_tokens and sha256_hex(current.internal_token) != after.gateway_token_hash
    )
    if bot is None or bot.state == "deploying" or wanted.rotate_gateway_token or agent_lacks_it:
        gateway_token = new_gateway_token()
        if wanted.edge.agent_checks_tokens:
            current = msgspec.structs.replace(current, internal_token=gateway_token)
        after = msgspec.structs.replace(
            after, gateway_token_hash=sha256_hex(gateway_token), state="deploying"
        )

    claim_state, code = "none", None
    if after.owner is not None or after.open_to_all:
        if wanted.owner is not None or wanted.open_to_all:
            claim = None
        elif after.owner is not None:
            claim_state = "claimed"
    elif claim is not None and claim.open(now) and bot is not None and bot.state == "active":
        claim_state = "pending"
    else:
        claim, code = claims.issue(after.id, now, claim)
        claim_state = "issued"
        notes.append("claim code issued")
    return Decision(
        before=bot,
        after=after,
        secrets=current,
        secrets_changed=current != secrets,
        gateway_token=gateway_token,
        claim=claim,
        claim_state=claim_state,
        code=code,
        restored=restored,
        notes=notes,
    )


def _replaced(before: BotSecrets, after: BotSecrets) -> list[str]:
    """Which of the secrets are others now, in words without them."""
    return [
        f"{name.replace('telegram_', 'telegram ')} replaced"
        for name in ("telegram_token", "bot_env", "bot_config", "tools")
        if getattr(before, name) != getattr(after, name)
    ]


def _restored(new: Bot, kept: Kept, taken: set[str]) -> Bot:
    """A new row for a bot that was here before: same id, so that disk and account are its own again."""
    name = kept.name if kept.name not in taken else None
    owner = new.owner if new.owner or new.open_to_all else kept.owner
    return msgspec.structs.replace(new, id=kept.id, name=new.name or name, owner=owner)


def _row(wanted: BotRequest, bot: Bot | None, slot: int, taken: set[str], run_id: str, now: int) -> Bot:
    if bot is None:
        return Bot(
            id=new_bot_id(taken),
            slot=slot,
            telegram_id=wanted.telegram_id,
            telegram_username=wanted.telegram_username,
            name=wanted.name,
            agent=wanted.agent,
            plan=wanted.plan,
            interface=wanted.interface,
            llm_refusal=wanted.llm_refusal,
            owner=wanted.owner,
            open_to_all=wanted.open_to_all,
            state="deploying",
            suspended=False,
            image=wanted.image,
            image_digest=None,
            config_hash=None,
            edge=wanted.edge,
            gateway_token_hash="",  # set by decide, as is the key's
            llm_key_hash="",
            lease_run=run_id,
            lease_at=now,
            created_at=now,
        )
    return msgspec.structs.replace(
        bot,
        telegram_username=wanted.telegram_username,
        name=wanted.name or bot.name,
        plan=wanted.plan,
        interface=wanted.interface,
        llm_refusal=wanted.llm_refusal,
        owner=wanted.owner or bot.owner,
        open_to_all=wanted.open_to_all,
        image=wanted.image,
        image_digest=bot.image_digest if bot.image == wanted.image else None,
        edge=wanted.edge,
        lease_run=run_id,
        lease_at=now,
    )


# --- what others see ---------------------------------------------------------------------------


def describe(bot: Bot, host: Host) -> dict[str, Any]:
    """The bot without secrets, as ``list`` and ``show`` print it."""
    placement = allocation.place(bot.slot, host)
    return {
        "id": bot.id,
        "name": bot.name,
        "label": bot.label,
        "url": host.origin(bot.label),
        "telegram_id": bot.telegram_id,
        "telegram_username": bot.telegram_username,
        "agent": bot.agent,
        "plan": bot.plan,
        "limits": msgspec.to_builtins(host.plans[bot.plan]) if bot.plan in host.plans else None,
        "interface": bot.interface,
        "uid": placement.uid,
        "subnet": placement.subnet,
        "host_address": placement.host_address,
        "address": placement.address,
        "owner": bot.owner,
        "open_to_all": bot.open_to_all,
        "state": bot.state,
        "suspended": bot.suspended,
        "image": bot.image,
        "image_digest": bot.image_digest,
        "config_hash": bot.config_hash,
    }


def _diff_text(bots: Sequence[tuple[Bot, list[str]]], host: Host) -> str:
    shown = {bot.id: {**describe(bot, host), "edge": msgspec.to_builtins(bot.edge)} for bot, _ in bots}
    for bot, notes in bots:
        shown[bot.id] |= {"renewed": notes} if notes else {}
    return json.dumps(shown, indent=2, sort_keys=True) + "\n" if shown else ""


def _declared(decision: Decision, host: Host, check: bool) -> dict[str, Any]:
    claim, code = decision.claim, None if check else decision.code
    return {
        **describe(decision.after, host),
        "created": decision.before is None,
        "restored": decision.restored,
        "gateway_token": None if check else decision.gateway_token,
        "llm_key": decision.secrets.llm_key,
        "internal_token": decision.secrets.internal_token,
        "bot_env": decision.secrets.bot_env,
        "bot_config": decision.secrets.bot_config,
        "tools": msgspec.to_builtins(decision.secrets.tools),
        "claim": {
            "state": decision.claim_state,
            "code": code,
            "link": claims.link(decision.after.telegram_username, code) if code else None,
            "expires": iso(claim.expires)
            if claim and decision.claim_state in ("pending", "issued")
            else None,
        },
    }


def iso(seconds: int) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


# --- the registry ------------------------------------------------------------------------------


class Registry:
    """The registry of this host. Methods that change it expect the caller to hold the host's lock."""

    def __init__(self, paths: Paths, host: Host, store: RegistryStore) -> None:
        self.paths, self.host, self.store = paths, host, store

    def bots(self) -> list[Bot]:
        return self.store.bots()

    def find(self, reference: str) -> Bot:
        """The bot with that id or name; ClawError("unknown_bot") if there is none."""
        for bot in self.bots():
            if reference in (bot.id, bot.name):
                return bot
        raise ClawError("unknown_bot", f"this host has no bot {reference!r}: see `clawctl list`.")

    def internal_tokens(self) -> dict[str, str]:
        """Bot id -> the token the edge shows its agent."""
        found = ((bot.id, load_secrets(self.paths, bot.id)) for bot in self.bots())
        return {bot_id: secrets.internal_token for bot_id, secrets in found if secrets is not None}

    def recall(self) -> list[dict[str, Any]]:
        """All bots with what the role needs to shape them anew, secrets included; ``reason`` tells why one
        cannot be shaped now, and is empty for the others.
        """
        return [self._recalled(bot) for bot in self.bots()]

    def _recalled(self, bot: Bot) -> dict[str, Any]:
        secrets, reason = load_secrets(self.paths, bot.id), ""
        if bot.suspended:
            reason = "suspended: resume it, then start the upgrade again"
        elif bot.state != "active":
            reason = "its last deploy has not ended: deploy it again"
        elif secrets is None:
            reason = "its secrets are lost: deploy it again with its token"
        elif bot.plan not in self.host.plans:
            reason = f"this host has no plan {bot.plan!r} any more: deploy it with another one"
        known = {} if reason or secrets is None else msgspec.to_builtins(secrets)
        token = known.pop("telegram_token", "")
        return {
            **describe(bot, self.host),
            **{"bot_env": {}, "bot_config": {}, "tools": [], "token": token, "reason": reason},
            **known,
        }

    def declare(self, request: DeclareRequest, now: int, check: bool = False) -> dict[str, Any]:
        """Make the registry hold these bots, leased to this run; all of them or, with a ClawError, none.

        Returns changed, diff and per bot, in the order asked for, what a deploy needs, secrets included.
        """
        bots = self.bots()
        problems = review(
            request, bots, self.host, self.store.certificate_names(), free_bytes(self.paths), now
        )
        problems += _review_kept(request, bots, self.store.kept())
        problems += _review_remotes(request, self.store.remotes())
        if problems:
            raise ClawError.several(problems)
        decisions = self._decide(request, bots, now)
        if not check:
            self._apply(decisions, now)
        changed = [decision for decision in decisions if decision.changed]
        return {
            "changed": bool(changed),
            "diff": {
                "before": _diff_text([(d.before, []) for d in changed if d.before is not None], self.host),
                "after": _diff_text([(d.after, d.notes) for d in changed], self.host),
            },
            "bots": [_declared(decision, self.host, check) for decision in decisions],
        }

    def _decide(self, request: DeclareRequest, bots: Sequence[Bot], now: int) -> list[Decision]:
        known = {bot.telegram_id: bot for bot in bots}
        agents = {wanted.telegram_id: wanted.agent for wanted in request.bots}
        left = self.store.kept()
        # Another agent's data stays what it is: whoever takes over what is on it is a new bot.
        kept = {one.telegram_id: one for one in left if agents.get(one.telegram_id) == one.agent}
        taken = (
            {bot.id for bot in bots}
            | {bot.label for bot in bots}
            | {one.id for one in self.store.remotes()}
            | {b.name for b in request.bots if b.name}
            | {one.id for one in left}
        )
        added = [wanted for wanted in request.bots if wanted.telegram_id not in known | kept]
        occupied = {bot.slot for bot in bots} | {one.slot for one in left}
        slots = {telegram_id: one.slot for telegram_id, one in kept.items()} | dict(
            zip(
                (wanted.telegram_id for wanted in added),
                allocation.lowest_free(occupied, len(added)),
                strict=True,
            )
        )
        decisions = []
        for wanted in request.bots:
            bot = known.get(wanted.telegram_id)
            decision = decide(
                wanted,
                bot,
                load_secrets(self.paths, bot.id) if bot else None,
                claims.load_claim(self.paths, bot.id) if bot else None,
                slots.get(wanted.telegram_id, -1),
                taken,
                request.run_id,
                now,
                kept.get(wanted.telegram_id),
            )
            allocation.place(
                decision.after.slot, self.host
            )  # outside the pool? refuse before anything is stored
            taken.add(decision.after.id)
            decisions.append(decision)
        return decisions

    def _apply(self, decisions: Sequence[Decision], now: int) -> None:
        try:
            with self.store.transaction():
                for decision in decisions:
                    self._store(decision, now)
        except BaseException:
            for decision in decisions:
                if decision.before is None:
                    remove_secrets(self.paths, decision.after.id)
                    claims.remove_claim(self.paths, decision.after.id)
            raise

    def _store(self, decision: Decision, now: int) -> None:
        bot = decision.after
        self.store.put(bot)
        self.store.remove_kept(bot.id)
        if self.host.base_domain:
            self.store.add_certificate_name(f"{bot.label}.{self.host.base_domain}", now)
        if decision.secrets_changed:
            save_secrets(self.paths, bot.id, decision.secrets)
        if decision.code is not None and decision.claim is not None:
            claims.save_claim(self.paths, decision.claim)
        elif decision.claim is None:
            claims.remove_claim(self.paths, bot.id)

    def activate(self, run_id: str, running: Sequence[Running]) -> dict[str, Any]:
        """Record that these bots run with this configuration and image, and end their lease.

        ClawError("lease_lost") if one of them was taken over by another run, "unknown_bot" if it is gone.
        """
        rows = {bot.id: bot for bot in self.bots()}
        problems: list[Problem] = []
        for done in running:
            if done.id not in rows:
                problems.append(("unknown_bot", f"this host has no bot {done.id!r} any more."))
            elif rows[done.id].lease_run != run_id:
                problems.append(
                    (
                        "lease_lost",
                        f"{rows[done.id].label} was taken over by another deploy: run deploy_bot again.",
                    )
                )
        if problems:
            raise ClawError.several(problems)
        changed = []
        with self.store.transaction():
            for done in running:
                bot = rows[done.id]
                after = msgspec.structs.replace(
                    bot,
                    state="active",
                    config_hash=done.config_hash,
                    image_digest=done.image_digest,
                    lease_run=None,
                    lease_at=0,
                )
                self.store.put(after)
                if _settled(bot) != after:
                    changed.append(bot.id)
                    details = {"image": after.image, "image_digest": after.image_digest, "plan": after.plan}
                    events.record(self.store, "deployed", after, f"{after.label} deployed", details)
        return {"changed": bool(changed), "bots": changed}

    def release(self, run_id: str) -> dict[str, Any]:
        """End the leases of a run that failed; bots stay as they are."""
        held = [bot for bot in self.bots() if bot.lease_run == run_id]
        with self.store.transaction():
            for bot in held:
                self.store.put(_settled(bot))
        return {"changed": bool(held), "bots": [bot.id for bot in held]}

    def set_owner(self, bot_id: str, owner: str, config_hash: str) -> None:
        """Record who claimed the bot and the configuration that follows from it."""
        bot = self.find(bot_id)
        with self.store.transaction():
            self.store.put(msgspec.structs.replace(bot, owner=owner, config_hash=config_hash))
            if bot.owner != owner:
                events.record(self.store, "claimed", bot, f"{bot.label} claimed by Telegram user {owner}")

    def forget(self, bot_id: str, kept: Kept | None = None) -> None:
        """Drop the bot's row, secrets and claim; unless it is kept, another bot can then have its slot."""
        remove_secrets(self.paths, bot_id)
        claims.remove_claim(self.paths, bot_id)
        rollbacks.remove(self.paths, bot_id)
        with self.store.transaction():
            self.store.remove(bot_id)
            if kept is not None:
                self.store.put_kept(kept)
