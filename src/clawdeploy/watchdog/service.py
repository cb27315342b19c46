"""The watchdog at work: look, decide, act, and say so, round after round."""

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from clawdeploy import events, suspension
from clawdeploy.clitools import Machine
from clawdeploy.errors import ClawError
from clawdeploy.files import write_atomic
from clawdeploy.models import Bot
from clawdeploy.notify import Notifier
from clawdeploy.sd_notify import notify
from clawdeploy.watchdog import policy
from clawdeploy.watchdog.config import Config, Measure, Rule
from clawdeploy.watchdog.metrics import Metrics
from clawdeploy.watchdog.policy import BotState, Decision, RuleState
from clawdeploy.watchdog.readings import Reading, Values, values
from clawdeploy.watchdog.sensors import Look, Sensors, Sight

log = logging.getLogger(__name__)

_NOTICE_SECONDS = 10
# Told again only after the disk has had a tenth more than the threshold.
_ROOM_AGAIN = 1.1
_DONE = {"warn": "warned", "throttle": "throttled", "suspend": "to be suspended", "recover": "calm again"}


class RuleStatus(msgspec.Struct, frozen=True):
    """One rule of one bot. value: of the last window; taken, next: steps of its ladder."""

    value: float | None
    limit: float
    hits: int
    needed: int
    of: int
    taken: str | None
    next: str | None

    @property
    def near(self) -> float:
        """How near the last window's value is to the limit: 1.0 is there."""
        return 0.0 if self.value is None else self.value / self.limit


class BotStatus(msgspec.Struct, frozen=True):
    """One bot as ``clawctl watch status`` shows it; ``grace`` is seconds until it is judged."""

    id: str
    label: str
    plan: str
    state: str
    grace: float
    throttled: bool
    rules: dict[Measure, RuleStatus]


class Status(msgspec.Struct, frozen=True):
    """What the watchdog saw at ``at`` (Unix seconds); ``failed``: sensor -> why it says nothing."""

    at: float
    interval: float
    window: float
    dry_run: bool
    failed: dict[str, str]
    bots: list[BotStatus]


class _Memory(msgspec.Struct):
    """What outlives a restart of the service: steps taken, containers that are throttled, suspensions that
    have not been carried out (bot id -> reason), and the last event the operator was told about.
    """

    states: policy.States = {}
    throttled: dict[str, tuple[str, float]] = {}
    pending: dict[str, str] = {}
    last_event: int | None = None
    disk_low: bool = False


class Watchdog:
    """One host's watchdog. ``round`` is a look and all that follows from it."""

    def __init__(
        self,
        config: Config,
        machine: Machine,
        sensors: Sensors,
        notifier: Notifier,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._machine, self._sensors = config, machine, sensors
        self._notifier, self._metrics, self._clock = notifier, metrics, clock
        self._readings: dict[str, list[Reading]] = defaultdict(list)
        self._values: dict[str, Values] = {}
        self._window_began = clock()
        self._ooms: dict[str, float] = {}
        self._failed: dict[str, str] = {}
        self._memory = self._recall()

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set."""
        notify("READY=1")
        due = time.monotonic()
        while not stop.is_set():
            try:
                self.round()
            except ClawError as error:
                self._complain({"host": error.message})
            except Exception:  # a bug in one round must not leave the host unwatched
                log.exception("this round failed")
            notify("WATCHDOG=1")
            # Late rounds are left out, not caught up on.
            due = max(due + self._config.interval, time.monotonic())
            stop.wait(due - time.monotonic())
        notify("STOPPING=1")
        self._remember()
        self._notifier.close(_NOTICE_SECONDS)
        self._sensors.close()

    def round(self) -> None:
        """Look at everything once and do what follows. ClawError if nothing can be seen."""
        began = time.monotonic()
        self._begin_telling()
        look = self._sensors.look({bot: cpus for bot, (_, cpus) in self._memory.throttled.items()})
        self._complain(look.failed)
        for sight in look.sights:
            if sight.reading is not None:
                self._readings[sight.bot.id].append(sight.reading)
        self._small_things(look)
        # Half an interval early is on time: rounds are never quite even.
        if self._clock() - self._window_began >= self._config.window - self._config.interval / 2:
            self._judge(look)
        self._suspend(look)
        self._throttle(look)
        self._tell()
        self._show(look, time.monotonic() - began)

    # --- deciding ---------------------------------------------------------------------------------------

    def _judge(self, look: Look) -> None:
        self._values = {bot: values(readings) for bot, readings in self._readings.items()}
        self._readings.clear()
        self._window_began = self._clock()
        seen = [
            policy.Seen(
                sight.bot.id,
                sight.bot.plan,
                sight.container,
                sight.bot.suspended,
                self._values.get(sight.bot.id, {}),
            )
            for sight in look.sights
        ]
        self._memory.states, decisions = policy.advance(
            self._config, self._memory.states, seen, self._clock()
        )
        bots = {sight.bot.id: sight.bot for sight in look.sights}
        for decision in decisions:
            self._decided(bots[decision.bot], decision)
        self._remember()

    def _decided(self, bot: Bot, decision: Decision) -> None:
        said = self._words(bot, decision)
        self._metrics.decisions.labels(decision.rule, decision.action).inc()
        if decision.action == "suspend" and not self._config.dry_run:
            self._memory.pending[bot.id] = f"watchdog: {_why(decision, self._config.window)}"
        details = msgspec.to_builtins(decision) | {
            "window": self._config.window,
            "dry_run": self._config.dry_run,
        }
        self._record(f"watchdog_{decision.action}", bot, said, details)

    def _words(self, bot: Bot, decision: Decision) -> str:
        dry = " (dry run: nothing is done)" if self._config.dry_run else ""
        done = _DONE[decision.action]
        if decision.action == "recover":
            return f"{bot.label} {done}: {decision.rule} below its limit, {decision.step} taken back{dry}"
        return f"{bot.label} {done}: {_why(decision, self._config.window)}{dry}"

    # --- acting -----------------------------------------------------------------------------------------

    def _suspend(self, look: Look) -> None:
        """Carry out what was decided; what fails is tried again in the next round."""
        here = {sight.bot.id for sight in look.sights}
        for bot_id, reason in list(self._memory.pending.items()):
            if bot_id in here:
                try:
                    suspension.suspend(
                        self._machine.changing, self._machine.halter, [bot_id], reason, int(self._clock())
                    )
                except ClawError as error:
                    log.error("bot %s could not be suspended, next try follows: %s", bot_id, error.message)
                    continue
            del self._memory.pending[bot_id]
            self._remember()

    def _throttle(self, look: Look) -> None:
        """Let each container have as many CPUs as its rules leave it."""
        before = dict(self._memory.throttled)
        for sight in look.sights:
            bot, was = sight.bot, self._memory.throttled.get(sight.bot.id)
            if was is not None and was[0] != sight.container:
                del self._memory.throttled[bot.id]  # made anew, with what its plan says
                was = None
            state = self._memory.states.get(bot.id)
            wanted = (
                not self._config.dry_run
                and not bot.suspended
                and state is not None
                and policy.throttled(self._config, bot.plan, state)
            )
            cpus = round(sight.cpus * self._config.throttle, 3)
            try:
                if wanted and (was is None or was[1] != cpus):
                    self._sensors.engine().set_cpus(bot.id, cpus)
                    self._memory.throttled[bot.id] = (sight.container, cpus)
                elif was is not None and not wanted:
                    self._sensors.engine().set_cpus(bot.id, sight.cpus)
                    del self._memory.throttled[bot.id]
            except ClawError as error:
                log.error("CPUs of %s could not be changed, next try follows: %s", bot.label, error.message)
        here = {sight.bot.id for sight in look.sights}
        self._memory.throttled = {bot: was for bot, was in self._memory.throttled.items() if bot in here}
        if self._memory.throttled != before:
            self._remember()

    # --- saying -----------------------------------------------------------------------------------------

    def _small_things(self, look: Look) -> None:
        """What is worth an event without any rule: memory that ran out, a disk that fills up."""
        for sight in look.sights:
            if sight.reading is not None and sight.reading.oom:
                self._out_of_memory(sight.bot, sight.reading.oom)
        low = look.disk_free < self._config.disk_low * (_ROOM_AGAIN if self._memory.disk_low else 1)
        if low != self._memory.disk_low:
            self._memory.disk_low = low
            room = f"{look.disk_free / 1e9:.1f} GB of {look.disk_total / 1e9:.1f} GB are free"
            said = f"this host's disk is nearly full: {room}" if low else f"the disk has room again: {room}"
            self._record("disk_low" if low else "disk_ok", None, said, {"free": look.disk_free})
            self._remember()

    def _out_of_memory(self, bot: Bot, kills: int) -> None:
        now = self._clock()
        if now - self._ooms.get(bot.id, -math.inf) >= self._config.notify.repeat:
            self._ooms[bot.id] = now
            said = f"{bot.label} ran out of memory: the kernel ended {kills} of its processes"
            self._record("oom", bot, said, {"kills": kills})

    def _record(self, kind: str, bot: Bot | None, said: str, details: Mapping[str, Any]) -> None:
        log.warning("event=%s bot=%s %s", kind, bot.id if bot else "-", said)
        try:
            with self._machine.registry() as registry:
                events.record(registry.store, kind, bot, said, details)
        except Exception as error:  # a full disk, say: what was decided is done all the same
            log.error("the event could not be recorded: %s", error)

    def _begin_telling(self) -> None:
        """What happened before the first look of all is no news."""
        if self._memory.last_event is None:
            with self._machine.registry() as registry:
                newest = registry.store.events(limit=1)
            self._memory.last_event = newest[-1].id if newest else 0

    def _tell(self) -> None:
        """Tell the operator what happened since, whoever did it."""
        with self._machine.registry() as registry:
            found = registry.store.events(after=self._memory.last_event or 0, limit=events.PAGE)
        for event in found:
            self._memory.last_event = event.id
            if event.kind in self._config.notify.kinds:
                about = str(event.details.get("rule", ""))
                self._notifier.tell(event.kind, event.message, event.bot or "", about)
        if found:
            self._remember()

    def _complain(self, failed: Mapping[str, str]) -> None:
        """Log what cannot be read once, and once more when it can."""
        for sensor, why in failed.items():
            if sensor not in self._failed:
                log.error("%s cannot be read, its rules rest: %s", sensor, why)
        for sensor in self._failed.keys() - failed.keys():
            log.warning("%s can be read again", sensor)
        self._failed = dict(failed)

    def _show(self, look: Look, seconds: float) -> None:
        bots = [self._status(sight) for sight in look.sights]
        self._metrics.see(look, {bot.id: bot.state for bot in bots}, seconds)
        config = self._config
        status = Status(time.time(), config.interval, config.window, config.dry_run, look.failed, bots)
        write_atomic(config.status_file, msgspec.json.encode(status).decode(), owner=-1, group=-1)

    def _status(self, sight: Sight) -> BotStatus:
        bot, state = sight.bot, self._memory.states.get(sight.bot.id)
        state = state or BotState(sight.container, self._clock())
        last = self._values.get(bot.id, {})
        rules = {
            measure: _rule_status(rule, state.rules.get(measure, RuleState()), last.get(measure))
            for measure, rule in self._config.rules_of(bot.plan).items()
            if rule.ladder
        }
        throttled = bot.id in self._memory.throttled
        return BotStatus(
            id=bot.id,
            label=bot.label,
            plan=bot.plan,
            state="suspended" if bot.suspended else "throttled" if throttled else sight.state,
            grace=round(max(state.since + self._config.grace - self._clock(), 0.0), 1),
            throttled=throttled,
            rules=rules,
        )

    # --- remembering ------------------------------------------------------------------------------------

    def _recall(self) -> _Memory:
        try:
            return msgspec.json.decode(self._config.state_file.read_bytes(), type=_Memory)
        except FileNotFoundError:
            return _Memory()
        except (OSError, msgspec.DecodeError) as error:
            log.error("%s cannot be used, beginning anew: %s", self._config.state_file, error)
            return _Memory()

    def _remember(self) -> None:
        try:
            text = msgspec.json.encode(self._memory).decode()
            write_atomic(self._config.state_file, text, owner=-1, group=-1)
        except OSError as error:
            log.error("%s cannot be written: %s", self._config.state_file, error)


def _rule_status(rule: Rule, state: RuleState, value: float | None) -> RuleStatus:
    taken = min(state.taken, len(rule.ladder))
    return RuleStatus(
        value=None if value is None else round(value, 4),
        limit=rule.limit,
        hits=sum(one >= rule.limit for one in state.seen),
        needed=rule.hits,
        of=rule.of,
        taken=rule.ladder[taken - 1] if taken else None,
        next=rule.ladder[taken] if taken < len(rule.ladder) else None,
    )


def _why(decision: Decision, window: float) -> str:
    """``cpu at 97% of its limit (16 of the last 20 windows of 30 s at 90% or more)``."""
    last = decision.values[decision.rule]
    said = written(decision.rule, last)
    bound = written(decision.rule, decision.limit)
    return (
        f"{decision.rule} {said} ({decision.hits} of the last {decision.of} windows of {window:g} s "
        f"at {bound} or more)"
    )


_UNITS: dict[Measure, str] = {
    "oom": "{:g} in a window",
    "restarts": "{:g} in a window",
    "requests": "{:.1f} times its rate",
    "spend": "${:.2f} an hour",
    "denied": "{:.1f} refused packets a second",
}


_SHORT: dict[Measure, str] = {
    "oom": "{:g}",
    "restarts": "{:g}",
    "requests": "{:.1f}x",
    "spend": "${:.2f}/h",
    "denied": "{:.1f}/s",
}


def written(measure: Measure, value: float | None, short: bool = False) -> str:
    """A value as people read it, ``short`` in tables."""
    units = _SHORT if short else _UNITS
    return "-" if value is None else units.get(measure, "{:.0%}").format(value)
