"""What is decided about bots: samples in, decisions out. Pure, so that every course of events can be tested.

Each rule of a bot is a ladder of its own. A step up takes ``hits`` hits among the last ``of`` windows and
starts counting anew; a step down takes ``calm`` windows in a row without one. What could not be read is
neither a hit nor calm. A suspension is taken back by people only.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from clawdeploy.watchdog.config import Config, Measure, Rule, Step
from clawdeploy.watchdog.readings import Values

Action = Literal["warn", "throttle", "suspend", "recover"]


class RuleState(msgspec.Struct, frozen=True):
    """Where one rule of one bot is: how many steps of the ladder are taken, and the windows since then."""

    taken: int = 0
    seen: tuple[float, ...] = ()
    calm: int = 0


class BotState(msgspec.Struct, frozen=True):
    """What is remembered of a bot: the container it is about, since when (Unix seconds), and its rules."""

    container: str
    since: float
    rules: dict[Measure, RuleState] = {}


class Seen(msgspec.Struct, frozen=True):
    """One bot at the end of a window. container: Docker's id, empty if there is none."""

    bot: str
    plan: str
    container: str
    suspended: bool
    values: Values


class Decision(msgspec.Struct, frozen=True):
    """One step up or down a rule's ladder, with what led to it.

    step: the step that was taken, or with "recover" the one that was taken back; samples: the windows that
    were judged, oldest first; values: everything about the bot in the last of them.
    """

    bot: str
    rule: Measure
    action: Action
    step: Step
    limit: float
    hits: int
    of: int
    samples: tuple[float, ...]
    values: Values


States = dict[str, BotState]


def advance(
    config: Config, states: Mapping[str, BotState], seen: Sequence[Seen], now: float
) -> tuple[States, list[Decision]]:
    """The bots' states after this window, and the steps that are to be taken now (Unix seconds).

    Bots that are suspended, have no container, or are gone are forgotten, whoever did that.
    """
    after, decisions = States(), list[Decision]()
    for one in seen:
        if one.suspended or not one.container:
            continue
        before = states.get(one.bot)
        if before is None or before.container != one.container:
            before = BotState(one.container, now)
        if now - before.since < config.grace:
            after[one.bot] = before
            continue
        rules = dict(before.rules)
        for measure, rule in config.rules_of(one.plan).items():
            state, decision = _judge(config.dry_run, one, measure, rule, rules.get(measure, RuleState()))
            rules[measure] = state
            if decision is not None:
                decisions.append(decision)
        after[one.bot] = msgspec.structs.replace(before, rules=rules)
    return after, decisions


def _judge(
    dry_run: bool, one: Seen, measure: Measure, rule: Rule, before: RuleState
) -> tuple[RuleState, Decision | None]:
    value, taken = one.values.get(measure), min(before.taken, len(rule.ladder))
    if value is None or not rule.ladder:
        return msgspec.structs.replace(before, taken=taken), None
    if taken and rule.ladder[taken - 1] == "suspend" and not dry_run:
        return before, None  # until the bot is seen to be suspended
    seen = (*before.seen, value)[-rule.of :]
    hits = sum(one >= rule.limit for one in seen)
    calm = 0 if value >= rule.limit else before.calm + 1

    def decide(action: Action, step: Step) -> Decision:
        return Decision(one.bot, measure, action, step, rule.limit, hits, len(seen), seen, one.values)

    if hits >= rule.hits and taken < len(rule.ladder):
        step = rule.ladder[taken]
        return RuleState(taken + 1), decide(step, step)
    if taken and calm >= rule.calm:
        return RuleState(taken - 1), decide("recover", rule.ladder[taken - 1])
    return RuleState(taken, seen, calm), None


def steps(config: Config, plan: str, state: BotState) -> dict[Measure, Step]:
    """Rule -> the highest step it has taken, for the rules that have taken one."""
    rules = config.rules_of(plan)
    return {
        measure: rules[measure].ladder[min(one.taken, len(rules[measure].ladder)) - 1]
        for measure, one in state.rules.items()
        if one.taken and rules[measure].ladder
    }


def throttled(config: Config, plan: str, state: BotState) -> bool:
    """Whether any rule wants the bot throttled."""
    rules = config.rules_of(plan)
    return any("throttle" in rules[measure].ladder[: one.taken] for measure, one in state.rules.items())
