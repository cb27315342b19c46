"""Upgrades: bots that get another image or configuration and, unless they become healthy, have what they had.

A bot's turn: its way back is written down, its files are replaced, its old container ends before its new one
starts, customers must reach it, and only then is the new image recorded. Whatever goes wrong in between, a
signal included, takes the same way back. A turn that was cut off (power, SIGKILL) leaves the way back on the
disk: the next upgrade begins that bot's turn anew and, if need be, goes back all the way.
"""

import asyncio
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from clawdeploy import claims, events, rollbacks, suspension, verbs
from clawdeploy.containers import ContainerSpec
from clawdeploy.errors import ClawError
from clawdeploy.host import Paths
from clawdeploy.models import Bot, BotId, Edge, RunId
from clawdeploy.registry import Registry
from clawdeploy.rollbacks import Point
from clawdeploy.storage import HomeRequest, Homes, HomesRequest

if TYPE_CHECKING:
    from clawdeploy.engine import Engine, Image
    from clawdeploy.halter import Halter
    from clawdeploy.health import Health

Result = Literal["pending", "unchanged", "skipped", "upgraded", "rolled_back", "failed"]

_AT_ONCE = 4
_SUSPENDED = "suspended meanwhile"
_RENEW_SECONDS = 60.0  # far below the life of a lease


class UpgradeBusyError(ClawError):
    """Another upgrade is at work on this host."""


class UpgradeBot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one bot should become; all else about it stays. image_digest: what pins its image."""

    id: BotId
    image: Annotated[str, Meta(min_length=1)]
    image_digest: Annotated[str, Meta(min_length=1)]
    interface: Literal["api", "ui"]
    llm_refusal: Literal["message", "error"]
    edge: Edge
    home: HomeRequest
    container: ContainerSpec

    def __post_init__(self) -> None:
        if self.home.id != self.id:
            raise ValueError(f"home of {self.home.id} given for {self.id}")


class UpgradeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Input of ``clawctl upgrade``: bots whose turns come at the same time."""

    run_id: RunId
    bots: tuple[UpgradeBot, ...]


@dataclass(frozen=True)
class Host:
    """What turns need of the machine; ``clock`` tells Unix seconds."""

    changing: Callable[[], AbstractContextManager[Registry]]
    engine: Callable[[], "Engine"]
    halter: Callable[[], "Halter"]
    paths: Paths
    homes: Homes
    systemctl: Callable[..., None]
    clock: Callable[[], int]


@dataclass
class _Turn:
    """One bot on its way; ``reason`` is empty for one that is well. Times are seconds."""

    id: str
    label: str
    before: dict[str, Any]
    after: dict[str, Any]
    result: Result
    reason: str = ""
    log_tail: list[str] = field(default_factory=list)
    seconds: float = 0.0
    downtime: float = 0.0
    stopped_at: float | None = None

    @property
    def outcome(self) -> dict[str, Any]:
        return self.after if self.result in ("pending", "upgraded") else self.before

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "label": self.label,
            "from": self.before,
            "to": self.after,
            "result": self.result,
            "reason": self.reason,
            "log_tail": self.log_tail,
            "seconds": round(self.seconds, 2),
            "downtime": round(self.downtime, 2),
        }


def upgrade(host: Host, request: UpgradeRequest, timeout: float, watch: float, check: bool) -> dict[str, Any]:
    """Give these bots their turns, all at the same time; returns changed, diff and what became of each.

    Healthy within ``timeout`` seconds, and for ``watch`` seconds after that, or back to what it was. Bots
    that are there already are left alone, as are suspended ones and those that a deploy is working on. With
    ``check`` the results are what would be begun (``pending``). ClawError with everything that forbids it,
    before anything is changed.
    """
    with nullcontext() if check else _alone(host.paths):
        return _upgrade(host, request, timeout, watch, check)


@contextmanager
def _alone(paths: Paths) -> Iterator[None]:
    """One upgrade of a host at a time: whatever another one has left is that of a dead one."""
    with paths.upgrade_lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpgradeBusyError(
                "upgrade_busy", "another upgrade is at work on this host: start it again when that has ended."
            ) from None
        yield


def _upgrade(
    host: Host, request: UpgradeRequest, timeout: float, watch: float, check: bool
) -> dict[str, Any]:
    began = time.monotonic()
    with host.changing() as registry:
        turns = _review(registry, host, request)
        todo = [(wanted, turns[wanted.id]) for wanted in request.bots if turns[wanted.id].result == "pending"]
        if not check:
            _begin(registry, host, [wanted for wanted, _ in todo], request.run_id)
    if todo and not check:
        try:
            _forward(host, request.run_id, todo, timeout, watch)
        except ClawError as error:
            for _, turn in todo:
                turn.reason = turn.reason or error.message
        except BaseException:  # a signal, say: first the way back
            for _, turn in todo:
                turn.reason = turn.reason or "the upgrade was broken off"
            _back(host, request.run_id, [turn for _, turn in todo if turn.result == "pending"], timeout)
            raise
        _back(host, request.run_id, [turn for _, turn in todo if turn.result == "pending"], timeout)
        for _, turn in todo:
            turn.seconds = time.monotonic() - began
    return _answer([turns[wanted.id] for wanted in request.bots])


def _answer(turns: Sequence[_Turn]) -> dict[str, Any]:
    touched = [turn for turn in turns if turn.result not in ("unchanged", "skipped")]
    return {
        "changed": bool(touched),
        "diff": {
            "before": "".join(f"{turn.label}: {_shown(turn.before)}\n" for turn in touched),
            "after": "".join(f"{turn.label}: {_shown(turn.outcome)}\n" for turn in touched),
        },
        "bots": [turn.as_json() for turn in turns],
    }


def _shown(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


# --- before anything is changed ---------------------------------------------------------------------


def _review(registry: Registry, host: Host, request: UpgradeRequest) -> dict[str, _Turn]:
    rows = {bot.id: bot for bot in registry.bots()}
    unknown = [wanted.id for wanted in request.bots if wanted.id not in rows]
    if unknown:
        raise ClawError("unknown_bot", f"this host has no bots {', '.join(unknown)}: see `clawctl list`.")
    return {
        wanted.id: _look(registry, host, wanted, rows[wanted.id], request.run_id) for wanted in request.bots
    }


def _look(registry: Registry, host: Host, wanted: UpgradeBot, bot: Bot, run_id: str) -> _Turn:
    before = {"image": bot.image, "image_digest": bot.image_digest, "config_hash": bot.config_hash}
    turn = _Turn(bot.id, bot.label, before, dict(before), "skipped")
    point = rollbacks.load(registry.paths, bot.id)
    begun = point is not None and not point.ended
    cut_off = point is not None and point.cut_off(bot)
    if bot.suspended:
        turn.reason = "suspended: resume it, then start the upgrade again"
    elif bot.leased_by_other(run_id, host.clock()) and not cut_off:
        turn.reason = "another deploy or upgrade works on it: start the upgrade again when that has ended"
    elif bot.state != "active" or registry.store.container(bot.id) is None:
        turn.reason = "its last deploy has not ended: deploy it again"
    else:
        # Raises where a home cannot be made as asked; nothing has been changed by then.
        home = verbs.apply_homes(registry, host.homes, HomesRequest((wanted.home,)), check=True)
        (found,) = home["bots"]
        turn.after = {
            "image": wanted.image,
            "image_digest": wanted.image_digest,
            "config_hash": found["config_hash"],
        }
        there = _facts(wanted, bot) == bot and not home["changed"] and turn.after == before
        same = registry.store.container(bot.id) == wanted.container
        turn.result = "unchanged" if there and same and not begun else "pending"
    return turn


def _facts(wanted: UpgradeBot, bot: Bot) -> Bot:
    """The bot with what the edge and the LLM gateway must know of it; its image is recorded later."""
    return msgspec.structs.replace(
        bot, interface=wanted.interface, llm_refusal=wanted.llm_refusal, edge=wanted.edge
    )


def _begin(registry: Registry, host: Host, todo: Sequence[UpgradeBot], run_id: str) -> None:
    """Write down the ways back, unless a turn that was cut off has, and lease the bots."""
    bots = [registry.find(wanted.id) for wanted in todo]
    points = [_point(registry, host.homes, *one, run_id) for one in zip(todo, bots, strict=True)]
    for point in points:
        rollbacks.save(registry.paths, point)
    _lease(registry, [bot.id for bot in bots], run_id, host.clock())


def _lease(registry: Registry, bot_ids: Sequence[str], run_id: str, now: int) -> None:
    with registry.store.transaction():
        for bot_id in bot_ids:
            bot = registry.find(bot_id)
            registry.store.put(msgspec.structs.replace(bot, lease_run=run_id, lease_at=now))


def _point(registry: Registry, homes: Homes, wanted: UpgradeBot, bot: Bot, run_id: str) -> Point:
    old = rollbacks.load(registry.paths, bot.id)
    if old is not None and not old.ended:
        return msgspec.structs.replace(old, run=run_id)
    container, claim = registry.store.container(bot.id), claims.load_claim(registry.paths, bot.id)
    if container is None or bot.image_digest is None or bot.config_hash is None:
        raise ClawError("not_deployed", f"{bot.label} has never run: deploy it again.")
    found = {file.path: homes.read_file(bot.id, file.path) for file in wanted.home.files}
    kept = {file.path for file in wanted.home.files if not file.seed}
    return Point(
        bot=bot.id,
        run=run_id,
        image=bot.image,
        image_digest=bot.image_digest,
        config_hash=bot.config_hash,
        interface=bot.interface,
        llm_refusal=bot.llm_refusal,
        edge=bot.edge,
        owner=bot.owner,
        container=container,
        files=tuple(file for path, file in found.items() if file is not None and path in kept),
        absent=tuple(path for path, file in found.items() if file is None),
        claim_file=claim.file if claim else None,
        claim_files=claim.files if claim else {},
        retired=old.image_digest if old else "",
    )


# --- forward ----------------------------------------------------------------------------------------


def _forward(
    host: Host, run_id: str, todo: Sequence[tuple[UpgradeBot, _Turn]], timeout: float, watch: float
) -> None:
    """Replace, wait, look on and record; turns that are still pending afterwards have failed."""
    wanted_homes = HomesRequest(tuple(wanted.home for wanted, _ in todo))
    with host.changing() as registry:
        owners = dict[str, str | None]()
        for wanted, _ in todo:
            bot = registry.find(wanted.id)
            owners[bot.id] = bot.owner
            registry.store.put(_facts(wanted, bot))
        made = verbs.apply_homes(registry, host.homes, wanted_homes, check=False)
        verbs.sync(registry, host.systemctl, host.clock(), check=False)
    hashes = {one["id"]: one["config_hash"] for one in made["bots"]}
    _replace(host, {turn.id: (turn, wanted.container) for wanted, turn in todo})
    rows = _running(host, run_id, [turn for _, turn in todo])
    well = _healthy(host, rows, [turn for _, turn in todo if not turn.reason], timeout)
    if watch:
        well = _look_on(host, run_id, rows, well, timeout, watch)
    with host.changing() as registry:
        for wanted, turn in todo:
            if turn in well:
                _record(registry, wanted, turn, run_id, owners[turn.id], hashes[turn.id])


def _replace(host: Host, todo: Mapping[str, tuple[_Turn, ContainerSpec]]) -> None:
    """New containers in place of old ones; what Docker refuses is noted at the turn."""

    def act(turn: _Turn, spec: ContainerSpec) -> None:
        turn.stopped_at = turn.stopped_at or time.monotonic()
        try:
            # Each thread has a client of its own: the SDK's is not made to be shared.
            with host.engine() as own:
                own.stop(turn.id)  # Telegram lets one poll at a time: never the new one beside the old one
                own.make(turn.id, spec)
        except ClawError as error:
            turn.reason = error.message

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda one: act(*one), todo.values()))


def _running(host: Host, run_id: str, turns: Sequence[_Turn]) -> dict[str, Bot]:
    """The bots as they are now that their containers have been replaced, with their leases renewed.

    A suspension that came meanwhile wins, and what was made for a bot that was destroyed is removed.
    """
    with host.changing() as registry:
        rows = {bot.id: bot for bot in _renewed(registry, host, run_id, turns)}
        suspension.enforce(registry, host.halter, [turn.id for turn in turns])
        gone = {turn.id for turn in turns} - {bot.id for bot in registry.bots()}
        if gone:
            with host.engine() as own:
                for bot_id in gone:
                    own.remove(bot_id)
    for turn in turns:
        if turn.id not in rows:
            turn.reason = "another run has taken it over, or it was destroyed"
        elif rows[turn.id].suspended:
            turn.reason = _SUSPENDED
    return rows


def _renewed(registry: Registry, host: Host, run_id: str, turns: Sequence[_Turn]) -> Iterator[Bot]:
    mine = {turn.id for turn in turns}
    for bot in registry.bots():
        if bot.id in mine and bot.lease_run == run_id:
            fresh = msgspec.structs.replace(bot, lease_at=host.clock())
            registry.store.put(fresh)
            yield fresh


def _healthy(host: Host, rows: Mapping[str, Bot], turns: Sequence[_Turn], timeout: float) -> list[_Turn]:
    """Wait for all of these; returns those that customers reach, and notes at the others why not."""
    from clawdeploy.health import wait_until_healthy

    if not turns:
        return []
    with host.changing() as registry:
        facts = registry.host
    began, waiting = time.monotonic(), [rows[turn.id] for turn in turns]
    with host.engine() as watching:
        found = asyncio.run(wait_until_healthy(waiting, facts, watching, timeout))
    for turn, health in zip(turns, found, strict=True):
        _note(turn, health, began)
    return [turn for turn in turns if not turn.reason]


def _note(turn: _Turn, health: "Health", began: float) -> None:
    if not health.healthy:
        turn.reason, turn.log_tail = health.reason, health.log_tail
    elif turn.stopped_at is not None:
        turn.downtime += began + health.seconds - turn.stopped_at
        turn.stopped_at = None


def _look_on(
    host: Host, run_id: str, rows: Mapping[str, Bot], turns: Sequence[_Turn], timeout: float, seconds: float
) -> list[_Turn]:
    """Watch bots that are well for so many seconds; returns those that still are."""
    from clawdeploy.health import watch_containers

    turns, left = list(turns), seconds
    while turns and left > 0:
        span = min(left, _RENEW_SECONDS)
        with host.engine() as watching:
            failed = asyncio.run(watch_containers([rows[turn.id] for turn in turns], watching, span))
            for turn in turns:
                if turn.id in failed:
                    turn.reason, turn.log_tail = failed[turn.id], watching.log_tail(turn.id)
        _running(host, run_id, turns)
        turns, left = [turn for turn in turns if not turn.reason], left - span
    return _healthy(host, rows, turns, timeout)


def _record(
    registry: Registry, wanted: UpgradeBot, turn: _Turn, run_id: str, owner: str | None, config_hash: str
) -> None:
    bot = registry.find(turn.id)
    if bot.lease_run != run_id or bot.suspended:
        turn.reason = _SUSPENDED if bot.suspended else "another run has taken it over"
        return
    point = rollbacks.load(registry.paths, bot.id)
    if point is None:
        raise ClawError("rollback_lost", f"the way back of {bot.label} was removed meanwhile.")
    # Whoever claimed it meanwhile has had its configuration written, and its hash recorded.
    config_hash = config_hash if bot.owner == owner else str(bot.config_hash)
    turn.after["config_hash"] = config_hash
    with registry.store.transaction():
        registry.store.put(
            msgspec.structs.replace(
                bot,
                image=wanted.image,
                image_digest=wanted.image_digest,
                config_hash=config_hash,
                lease_run=None,
                lease_at=0,
            )
        )
        registry.store.put_container(bot.id, wanted.container)
        details = {"from": turn.before, "to": turn.after, "downtime": round(turn.downtime, 2)}
        events.record(registry.store, "upgraded", bot, f"{bot.label} upgraded to {wanted.image}", details)
    # The files that it was given to begin with are its own from now on.
    seeds = {file.path for file in wanted.home.files if file.seed}
    added = tuple(path for path in point.absent if path not in seeds)
    rollbacks.save(registry.paths, msgspec.structs.replace(point, ended=True, absent=added))
    turn.result = "upgraded"


# --- back -------------------------------------------------------------------------------------------


def _back(host: Host, run_id: str, turns: Sequence[_Turn], timeout: float) -> None:
    """Let these bots be what they were. Every bot is tried; what cannot be done is said at its turn."""
    if not turns:
        return
    specs = dict[str, tuple[_Turn, ContainerSpec]]()
    causes = {turn.id: (turn.reason, turn.log_tail) for turn in turns}
    with host.changing() as registry:
        leased = {bot.id: bot for bot in _renewed(registry, host, run_id, turns)}
        for turn in turns:
            point = rollbacks.load(registry.paths, turn.id)
            if turn.id not in leased or point is None:
                turn.result = "failed"  # somebody else's by now: left to them
                continue
            turn.reason, turn.log_tail = "", []
            try:
                _put_back(registry, host.homes, leased[turn.id], point)
            except (ClawError, OSError) as error:
                turn.reason = str(error)
            if not leased[turn.id].suspended:
                specs[turn.id] = (turn, point.container)
        try:
            verbs.sync(registry, host.systemctl, host.clock(), check=False)
        except ClawError as error:
            for turn, _ in specs.values():
                turn.reason = turn.reason or error.message
    _replace(host, specs)
    made = [turn for turn, _ in specs.values() if not turn.reason]
    rows = _running(host, run_id, made)
    _healthy(host, rows, [turn for turn in made if not turn.reason], timeout)
    with host.changing() as registry:
        for turn in turns:
            if turn.id in leased:
                _end_back(registry, turn, run_id, *causes[turn.id])


def _put_back(registry: Registry, homes: Homes, bot: Bot, point: Point) -> None:
    with registry.store.transaction():
        registry.store.put(point.facts_of(bot))
        registry.store.put_container(bot.id, point.container)
    homes.put_back(bot.id, point.files_for(bot.owner), point.absent)
    claim = claims.load_claim(registry.paths, bot.id)
    if claim is not None and point.claim_file is not None:
        before = msgspec.structs.replace(claim, file=point.claim_file, files=point.claim_files)
        claims.save_claim(registry.paths, before)


def _end_back(registry: Registry, turn: _Turn, run_id: str, cause: str, log_tail: list[str]) -> None:
    """Record how it went. The way back is kept where its end was not reached."""
    bot = next((bot for bot in registry.bots() if bot.id == turn.id and bot.lease_run == run_id), None)
    if bot is None:
        turn.result = "failed"
        return
    if turn.reason in ("", _SUSPENDED):
        turn.result, said = "rolled_back", f"{bot.label} went back to {bot.image}"
        turn.reason = turn.reason or cause
    else:
        turn.result, said = "failed", f"{bot.label} is not well after it went back to {bot.image}"
        turn.reason = f"{cause} Then, as it was before: {turn.reason}".strip()
    turn.log_tail = log_tail or turn.log_tail
    with registry.store.transaction():
        registry.store.put(msgspec.structs.replace(bot, lease_run=None, lease_at=0))
        events.record(registry.store, turn.result, bot, said, {"cause": cause})
    if turn.result == "rolled_back":
        rollbacks.remove(registry.paths, bot.id)


def roll_back(
    host: Host, references: Sequence[str], run_id: str, timeout: float, check: bool
) -> dict[str, Any]:
    """Let bots (ids or names) be what they were before their last upgrade; returns what became of each.

    ClawError with everything that forbids it, before anything is changed. What a bot has learned since stays.
    """
    with nullcontext() if check else _alone(host.paths):
        return _roll_back(host, references, run_id, timeout, check)


def _roll_back(
    host: Host, references: Sequence[str], run_id: str, timeout: float, check: bool
) -> dict[str, Any]:
    began = time.monotonic()
    with host.changing() as registry:
        bots = suspension.chosen(registry, references)
        points = {bot.id: rollbacks.load(registry.paths, bot.id) for bot in bots}
        problems = [problem for bot in bots if (problem := _stays(bot, points[bot.id], run_id, host.clock()))]
        if problems:
            raise ClawError.several(problems)
        turns = [_returning(bot, point) for bot in bots if (point := points[bot.id]) is not None]
        if not check:
            _lease(registry, [turn.id for turn in turns], run_id, host.clock())
    if not check:
        _back(host, run_id, turns, timeout)
        for turn in turns:
            turn.seconds = time.monotonic() - began
    return {
        "changed": bool(turns),
        "diff": {
            "before": "".join(f"{turn.label}: {_shown(turn.before)}\n" for turn in turns),
            "after": "".join(f"{turn.label}: {_shown(turn.after)}\n" for turn in turns),
        },
        "bots": [turn.as_json() for turn in turns],
    }


def _stays(bot: Bot, point: Point | None, run_id: str, now: int) -> tuple[str, str] | None:
    if point is None:
        return (
            "no_way_back",
            f"{bot.label} has not been upgraded since its last deploy: name the image you want, with "
            "upgrade_bots or deploy_bot.",
        )
    if bot.suspended:
        return "bot_suspended", f"{bot.label} is suspended: resume it first (`clawctl resume {bot.label}`)."
    if bot.leased_by_other(run_id, now) and not point.cut_off(bot):
        return "bot_busy", f"another deploy or upgrade works on {bot.label} right now: wait for it to end."
    return None


def _returning(bot: Bot, point: Point) -> _Turn:
    before = {"image": bot.image, "image_digest": bot.image_digest, "config_hash": bot.config_hash}
    past = point.facts_of(bot)
    after = {"image": past.image, "image_digest": past.image_digest, "config_hash": past.config_hash}
    return _Turn(bot.id, bot.label, before, after, "pending")


def undo_cut_off(host: Host, run_id: str, timeout: float, check: bool) -> list[dict[str, str]]:
    """Take the way back for bots whose turn was cut off; nothing while an upgrade is at work.

    Returns the repairs as {what, was, now}; ClawError with everything that is not well after that.
    """
    with suppress(UpgradeBusyError), _alone(host.paths):
        with host.changing() as registry:
            points = [(bot, rollbacks.load(registry.paths, bot.id)) for bot in registry.bots()]
            turns = [_returning(bot, point) for bot, point in points if point and point.cut_off(bot)]
            if not check:
                _lease(registry, [turn.id for turn in turns], run_id, host.clock())
        if not check:
            _back(host, run_id, turns, timeout)
        sick = [(turn.result, turn.reason) for turn in turns if turn.result == "failed"]
        if sick:
            raise ClawError.several(sick)
        return [
            {"what": turn.label, "was": "cut off in an upgrade", "now": f"back at {turn.after['image']}"}
            for turn in turns
        ]
    return []


# --- images -----------------------------------------------------------------------------------------


def prune_images(registry: Registry, engine: "Engine", check: bool) -> dict[str, Any]:
    """Remove images of the bots' agents that no bot runs, or would go back to; returns them.

    An agent's images are those with the name of an image that a bot has or had before, in any version. Others
    on this host are none of our business.
    """
    bots = registry.bots()
    points = [point for bot in bots if (point := rollbacks.load(registry.paths, bot.id))]
    used = {bot.image_digest or bot.image for bot in bots} | {point.image_digest for point in points}
    ours = {image_name(bot.image) for bot in bots} | {image_name(point.image) for point in points}
    retired = {point.retired for point in points}
    removed = [
        image
        for image in engine.unused_images()
        if not used & _references(image)
        and (retired & _references(image) or ours & {image_name(tag) for tag in image.tags + image.digests})
        and (check or engine.remove_image(image))
    ]
    lines = [f"{', '.join(image.tags) or image.id}\n" for image in removed]
    return {
        "changed": bool(removed),
        "diff": {"before": "".join(lines), "after": ""},
        "images": [{"id": image.id, "tags": image.tags, "size": image.size} for image in removed],
    }


def _references(image: "Image") -> set[str]:
    return {image.id, *image.tags, *image.digests}


def image_name(reference: str) -> str:
    """An image's name without its version: ``host:5000/agent:v1`` and ``host:5000/agent@sha256:…`` alike."""
    name = reference.partition("@")[0]
    path, colon, tag = name.rpartition(":")
    return path if colon and "/" not in tag else name
