"""The kill switch, and the way back. ``clawctl``, the playbooks and whatever watches the bots call these two.

Suspending closes a bot from the outside in: its row in the registry (which all else is derived from, so that
it holds after a reboot and a deploy), its route, its LLM key, its processes. Its data is never touched.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from clawdeploy import edge, events
from clawdeploy.containers import ALIVE
from clawdeploy.errors import ClawError
from clawdeploy.models import Bot, Suspension
from clawdeploy.registry import Registry, iso

if TYPE_CHECKING:
    from clawdeploy.engine import Engine
    from clawdeploy.halter import Halter

_AT_ONCE = 8

OpenRegistry = Callable[[], AbstractContextManager[Registry]]
OpenEngine = Callable[[], "Engine"]
OpenHalter = Callable[[], "Halter"]


@dataclass
class _Steps:
    """Runs steps one after the other, whatever becomes of each, and notes how long they took (ms)."""

    began: float = field(default_factory=time.perf_counter)
    done: list[dict[str, Any]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        start = time.perf_counter()
        note: dict[str, Any] = {"step": name, "changed": False}
        try:
            yield note
        except ClawError as error:
            note["failed"] = error.message
            self.problems += error.problems
        except Exception as error:  # a full disk, say, must not keep the next step from being taken
            note["failed"] = f"{name}: {error}"
            self.problems.append(
                ("step_failed", f"{name} failed ({error}): suspend again once that is mended.")
            )
        end = time.perf_counter()
        self.done.append(note | {"ms": _ms(end - start), "done_ms": _ms(end - self.began)})

    def changed(self) -> bool:
        return any(note["changed"] for note in self.done)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def chosen(registry: Registry, references: Sequence[str] | None) -> list[Bot]:
    """The bots with these ids or names, all for None; ClawError with every one that is unknown."""
    if references is None:
        return registry.bots()
    found, problems = dict[str, Bot](), list[tuple[str, str]]()
    for reference in references:
        try:
            bot = registry.find(reference)
            found[bot.id] = bot
        except ClawError as error:
            problems += error.problems
    if problems:
        raise ClawError.several(problems)
    return list(found.values())


def suspend(
    changing: OpenRegistry,
    halter: OpenHalter,
    references: Sequence[str] | None,
    reason: str | None,
    now: int,
    check: bool = False,
) -> dict[str, Any]:
    """Stop bots (ids or names; None: all of the host) at once and for good, until ``resume``.

    Every step is taken even if one before it failed, and can be repeated; ``reason`` None: as it was.
    Returns changed, diff, the bots, and the steps with their milliseconds (``done_ms``: since the call).
    ClawError with everything that failed, after the last step.
    """
    steps = _Steps()
    with changing() as registry:
        bots = chosen(registry, references)
        before = registry.store.suspensions()
        wanted = {bot.id: _wanted(bot, before.get(bot.id), reason, now) for bot in bots}
        rows = [bot for bot in bots if not bot.suspended or before.get(bot.id) != wanted[bot.id]]
        if check:
            alive = _alive(halter, bots)
            return _result(bots, before, wanted, rows, bool(rows) or bool(alive), [])
        with steps.step("registry") as note:
            with registry.store.transaction():
                for bot in rows:
                    registry.store.suspend(bot.id, wanted[bot.id])
            note["changed"] = bool(rows)
        # Not read again: the steps work even where the registry could not be written.
        after = [
            msgspec.structs.replace(bot, suspended=bot.suspended or bot.id in wanted)
            for bot in registry.bots()
        ]
        with steps.step("edge") as note:
            changes = edge.SyncResult()
            edge.sync_maps(registry.paths, edge.render_flags(after), changes)
            note["changed"] = bool(changes.changed)
        with steps.step("llm") as note:
            changes = edge.SyncResult()
            edge.sync_llm_keys(registry.paths, registry.host, after, changes)
            note["changed"] = bool(changes.changed)
        # Frozen first and not stopped: a stop would thaw a bot and leave it seconds.
        for name in ("freeze", "kill"):
            with steps.step(name) as note:
                note["changed"] = any(_on_all(halter, name, bots))
        if steps.changed() or steps.problems:
            with steps.step("event"), registry.store.transaction():
                for bot in bots:
                    _note_suspended(registry, bot, wanted[bot.id], steps)
        if steps.problems:
            raise ClawError.several(steps.problems)
        return _result(bots, before, wanted, rows, steps.changed(), steps.done)


def _wanted(bot: Bot, before: Suspension | None, reason: str | None, now: int) -> Suspension:
    since = before.since if before and bot.suspended else now
    said = before.reason if before and bot.suspended else ""
    return Suspension(said if reason is None else reason, since)


def _note_suspended(registry: Registry, bot: Bot, why: Suspension, steps: _Steps) -> None:
    said = f"{bot.label} suspended" + (f": {why.reason}" if why.reason else "")
    details = {"reason": why.reason, "steps": steps.done}
    events.record(registry.store, "suspended", bot, said, details)


def _alive(halter: OpenHalter, bots: Sequence[Bot]) -> list[str]:
    with halter() as looking:
        return [bot.id for bot in bots if looking.state(bot.id) in ALIVE]


def _on_all(halter: OpenHalter, action: str, bots: Sequence[Bot]) -> list[bool]:
    """Freeze or kill all of these, several at a time; ClawError with everything that Docker refused."""
    problems = list[tuple[str, str]]()

    def act(bot: Bot) -> bool:
        try:
            with halter() as own:  # a connection of its own for each thread
                return own.freeze(bot.id) if action == "freeze" else own.kill(bot.id)
        except ClawError as error:
            problems.extend(error.problems)
            return False

    if len(bots) == 1:
        acted = [act(bots[0])]
    else:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            acted = list(pool.map(act, bots))
    if problems:
        raise ClawError.several(problems)
    return acted


def enforce(registry: Registry, halter: OpenHalter, bot_ids: Sequence[str]) -> list[str]:
    """Kill those of these bots that are suspended though they run; returns their ids. The lock is held.

    For whatever starts containers: a suspension may have come while it was at work.
    """
    late = [bot for bot in registry.bots() if bot.suspended and bot.id in set(bot_ids)]
    for action in ("freeze", "kill"):
        if late:
            _on_all(halter, action, late)
    return [bot.id for bot in late]


def _result(
    bots: Sequence[Bot],
    before: Mapping[str, Suspension],
    wanted: Mapping[str, Suspension],
    rows: Sequence[Bot],
    changed: bool,
    steps: list[dict[str, Any]],
) -> dict[str, Any]:
    def state(bot: Bot, why: Suspension | None) -> str:
        return f"{bot.label}: " + (f"suspended ({why.reason or 'no reason given'})\n" if why else "running\n")

    return {
        "changed": changed,
        "diff": {
            "before": "".join(state(bot, before.get(bot.id)) for bot in rows),
            "after": "".join(state(bot, wanted[bot.id]) for bot in rows),
        },
        "bots": [
            {
                "id": bot.id,
                "label": bot.label,
                "reason": wanted[bot.id].reason,
                "since": iso(wanted[bot.id].since),
            }
            for bot in bots
        ],
        "steps": steps,
    }


def resume(
    changing: OpenRegistry,
    engine: OpenEngine,
    halter: OpenHalter,
    references: Sequence[str] | None,
    timeout: float,
    now: int,
    check: bool = False,
) -> dict[str, Any]:
    """Bring bots back (ids or names; None: all suspended ones): LLM key, container, route, each for all bots;
    then wait, ``timeout`` seconds for all together, until customers reach them.

    A container that a deploy wants otherwise by now is made anew. A bot whose container cannot be started
    stays suspended. Returns changed, diff and per bot whether it is healthy, or the reason it is not;
    ClawError with everything that Docker refused.
    """
    with changing() as registry:
        host = registry.host
        bots = [bot for bot in chosen(registry, references) if bot.suspended]
        result: dict[str, Any] = {
            "changed": bool(bots),
            "diff": {
                "before": "".join(f"{bot.label}: suspended\n" for bot in bots),
                "after": "".join(f"{bot.label}: running\n" for bot in bots),
            },
            "bots": [],
        }
        if check or not bots:
            return result
        opened, problems = _open(registry, engine, halter, bots)
    if problems:
        raise ClawError.several(problems)
    from clawdeploy.health import wait_until_healthy

    with engine() as watching:
        found = asyncio.run(wait_until_healthy(opened, host, watching, timeout))
    labels = {bot.id: bot.label for bot in opened}
    return result | {"bots": [{**msgspec.to_builtins(one), "label": labels[one.id]} for one in found]}


def _open(
    registry: Registry, engine: OpenEngine, halter: OpenHalter, bots: Sequence[Bot]
) -> tuple[list[Bot], list[tuple[str, str]]]:
    """The steps of a resume under the lock; returns the bots that run again, and what was refused."""
    wanted = {bot.id for bot in bots}
    freed = [
        msgspec.structs.replace(bot, suspended=bot.suspended and bot.id not in wanted)
        for bot in registry.bots()
    ]
    edge.sync_llm_keys(registry.paths, registry.host, freed, edge.SyncResult())
    started, problems = list[Bot](), list[tuple[str, str]]()
    with engine() as own, halter() as halting:
        states = own.states()
        for bot in bots:
            spec, there = registry.store.container(bot.id), states.get(bot.id)
            try:
                if there is not None and there.state == "paused":
                    halting.kill(bot.id)  # what a kill that failed has left
                if spec is not None and (there is None or there.spec != spec.fingerprint()):
                    own.make(bot.id, spec)
                else:
                    own.start(bot.id)
                started.append(bot)
            except ClawError as error:
                problems += error.problems
    with registry.store.transaction():
        for bot in started:
            registry.store.resume(bot.id)
            events.record(registry.store, "resumed", bot, f"{bot.label} resumed")
    edge.sync(registry.paths, registry.host, registry.bots(), registry.internal_tokens())
    return [msgspec.structs.replace(bot, suspended=False) for bot in started], problems
