"""Bringing a host back to what its registry says: after a crash, a reboot, or a hand that slipped.

Nothing here decides what should be; it compares and repairs, and each repair is one that a verb makes too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from clawdeploy import backup, claims, edge, events, remotes
from clawdeploy.errors import ClawError
from clawdeploy.models import Bot
from clawdeploy.registry import Registry
from clawdeploy.storage import Homes

if TYPE_CHECKING:
    from clawdeploy.engine import ContainerState, Engine
    from clawdeploy.halter import Halter

HAPROXY_UNIT = "haproxy.service"
CLAIMS_UNIT = "clawdeploy-claims.service"


@dataclass
class _Report:
    check: bool
    done: list[dict[str, str]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def repair(self, what: str, was: str, now: str, act: Callable[[], object]) -> None:
        """Note a repair and, unless only checking, make it; a failure is noted and the next one is tried."""
        if not self.check:
            try:
                act()
            except ClawError as error:
                self.problems += error.problems
                return
        self.done.append({"what": what, "was": was, "now": now})


def reconcile(
    registry: Registry,
    homes: Homes,
    engine: "Callable[[], Engine]",
    halter: "Callable[[], Halter]",
    systemctl: Callable[..., None],
    now: int,
    check: bool,
) -> dict[str, Any]:
    """Repair (``check``: only find) what differs from the registry. The caller holds the host's lock.

    Bots that a deploy is working on are left to it. Returns changed, diff, and every repair as {what, was,
    now}; ClawError with everything that could not be repaired, after all else was.
    """
    report = _Report(check)
    _edge(registry, systemctl, report)
    rows = {bot.id: bot for bot in registry.bots()}
    try:
        with engine() as own, halter() as halting:
            states = own.states()
            for bot in rows.values():
                if not bot.leased_by_other("", now):
                    _bot(registry, homes, own, halting, bot, states, report)
            for stray in sorted(own.owners() - rows.keys()):
                what = f"container and network of {stray}"
                report.repair(what, "of no bot here", "removed", partial(own.remove, stray))
    except ClawError as error:
        report.problems += error.problems
    if not check:
        if claims.pending_claims(registry.paths, now):
            systemctl("start", "--no-block", CLAIMS_UNIT)
        if report.done:
            said = f"{len(report.done)} things brought back to what the registry says"
            events.record(registry.store, "reconciled", None, said, {"done": report.done})
    if report.problems:
        raise ClawError.several(report.problems)
    return {
        "changed": bool(report.done),
        "diff": {
            "before": "".join(f"{one['what']}: {one['was']}\n" for one in report.done),
            "after": "".join(f"{one['what']}: {one['now']}\n" for one in report.done),
        },
        "done": report.done,
    }


def _edge(registry: Registry, systemctl: Callable[..., None], report: _Report) -> None:
    try:
        synced = edge.sync(
            registry.paths, registry.host, registry.bots(), registry.internal_tokens(), report.check
        )
        remotes.sync(registry.paths, registry.host, registry.store.remotes(), synced, report.check)
    except ClawError as error:
        report.problems += error.problems
        return
    report.done += [{"what": name, "was": "different", "now": "as registered"} for name in synced.changed]
    # Without one of its maps it does not start, and systemd has given up by now.
    if not edge.HAProxy(registry.paths.haproxy_socket).running():
        report.repair("HAProxy", "not running", "started", lambda: _start(systemctl, HAPROXY_UNIT))


def _start(systemctl: Callable[..., None], unit: str) -> None:
    systemctl("reset-failed", unit)  # else it may have failed too often to be started
    systemctl("start", unit)


def _bot(
    registry: Registry,
    homes: Homes,
    engine: "Engine",
    halter: "Halter",
    bot: Bot,
    states: "Mapping[str, ContainerState]",
    report: _Report,
) -> None:
    there, what = states.get(bot.id), f"container of {bot.label}"
    if bot.suspended:
        if there is not None and there.alive:
            report.repair(what, f"{there.state} though suspended", "killed", lambda: _stop(halter, bot.id))
        return
    if bot.state != "active":
        return  # its deploy never ended: the next one does all of this
    disk = homes.mount_point(bot.id)
    if homes.unit(bot.id).exists() and not disk.is_mount():
        report.repair(f"disk of {bot.label}", "not mounted", "mounted", lambda: homes.mount(bot.id))
    if there is None:
        report.repair(what, "missing", "made anew", lambda: _make(registry, engine, bot))
    elif there.dead or (there.state == "paused" and not backup.copying(registry.paths, bot.id)):
        report.repair(what, there.state, "running", lambda: engine.start(bot.id))


def _make(registry: Registry, engine: "Engine", bot: Bot) -> None:
    spec = registry.store.container(bot.id)
    if spec is None:
        raise ClawError("no_container", f"{bot.label} has no container: run deploy_bot for it again.")
    engine.make(bot.id, spec)


def _stop(halter: "Halter", bot_id: str) -> None:
    halter.freeze(bot_id)
    halter.kill(bot_id)
