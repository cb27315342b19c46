"""What the watchdog decides: pure, so that whole courses of events can be tried."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawdeploy.watchdog.config import MEASURES, STEPS, Config, Measure, Rule
from clawdeploy.watchdog.policy import BotState, Decision, Seen, States, advance, steps, throttled

from .watchdog import default_rules, make_config

BOT = "bot000000001"
HOT = Rule(limit=0.9, hits=2, of=3, calm=2, ladder=("warn", "throttle", "suspend"))


def config(rule: Rule = HOT, **changes: Any) -> Config:
    """Only the rule for cpu is on."""
    off = {measure: msgspec.structs.replace(rule, ladder=()) for measure in MEASURES}
    return make_config(rules=off | {"cpu": rule}, **({"grace": 0.0} | changes))


def seen(cpu: float | None, bot: str = BOT, **changes: Any) -> Seen:
    usual = Seen(bot, "small", "c1", False, {"cpu": cpu})
    return msgspec.structs.replace(usual, **changes)


def play(
    rules: Config, course: Sequence[Seen | None], states: States | None = None
) -> tuple[States, list[str]]:
    """The state after these windows, one second apart, and what was decided in each."""
    after, said = states or {}, list[str]()
    for second, one in enumerate(course):
        after, decisions = advance(rules, after, [one] if one else [], float(second))
        said.append(" ".join(f"{d.action}:{d.step}" for d in decisions))
    return after, said


def test_the_ladder_is_climbed_step_by_step_and_each_step_counts_anew() -> None:
    _, said = play(config(), [seen(1.0)] * 7)
    assert said == ["", "warn:warn", "", "throttle:throttle", "", "suspend:suspend", ""]


def test_hits_need_not_follow_each_other() -> None:
    _, said = play(config(), [seen(cpu) for cpu in (1.0, 0.1, 0.9)])
    assert said == ["", "", "warn:warn"]


def test_one_spike_is_nothing() -> None:
    _, said = play(config(), [seen(cpu) for cpu in (1.0, 0.1, 0.1, 1.0, 0.1, 0.1)])
    assert set(said) == {""}


def test_recovery_steps_down_and_a_new_offence_begins_at_the_bottom() -> None:
    course = [seen(1.0)] * 4 + [seen(0.1)] * 4 + [seen(1.0)] * 2
    states, said = play(config(), course)
    assert said[3:] == ["throttle:throttle", "", "recover:throttle", "", "recover:warn", "", "warn:warn"]
    assert steps(config(), "small", states[BOT]) == {"cpu": "warn"}


def test_calm_is_windows_in_a_row() -> None:
    _, said = play(config(), [seen(cpu) for cpu in (1.0, 1.0, 0.1, 1.0, 0.1, 0.1)])
    assert said == ["", "warn:warn", "", "", "", "recover:warn"]


def test_what_cannot_be_read_is_neither_a_hit_nor_calm() -> None:
    _, said = play(config(), [seen(1.0), seen(None), seen(None), seen(1.0), *[seen(None)] * 5, seen(0.1)])
    assert said == ["", "", "", "warn:warn", "", "", "", "", "", ""]


def test_a_ladder_may_lack_steps() -> None:
    rule = msgspec.structs.replace(HOT, ladder=("suspend",))
    assert play(config(rule), [seen(1.0)] * 4)[1] == ["", "suspend:suspend", "", ""]


def test_a_suspension_is_never_taken_back_by_the_watchdog() -> None:
    rule = msgspec.structs.replace(HOT, ladder=("suspend",))
    _, said = play(config(rule), [seen(1.0)] * 2 + [seen(0.0)] * 10)
    assert said[1] == "suspend:suspend"
    assert set(said[2:]) == {""}


def test_in_a_dry_run_even_that_step_is_taken_back() -> None:
    rule = msgspec.structs.replace(HOT, ladder=("suspend",))
    _, said = play(config(rule, dry_run=True), [seen(1.0)] * 2 + [seen(0.0)] * 2)
    assert said == ["", "suspend:suspend", "", "recover:suspend"]


@pytest.mark.parametrize("change", [{"suspended": True}, {"container": "c2"}, {"container": ""}])
def test_suspended_and_made_anew_bots_begin_anew(change: dict[str, Any]) -> None:
    course = [seen(1.0), seen(1.0), seen(1.0, **change), seen(1.0)]
    _, said = play(config(), course)
    assert said == ["", "warn:warn", "", ""]


def test_nothing_is_judged_in_the_time_of_grace() -> None:
    states, said = play(config(grace=5.0), [seen(1.0)] * 7)
    assert said == [""] * 6 + ["warn:warn"]
    assert states[BOT].since == 0.0


def test_a_restart_of_the_container_gives_no_new_grace() -> None:
    """Docker's id stays the same, so a bot cannot buy time by crashing."""
    _, said = play(config(grace=2.0), [seen(1.0)] * 4)
    assert said[3] == "warn:warn"


def test_a_plan_can_have_rules_of_its_own() -> None:
    rules = make_config(grace=0.0, plan_rules={"large": {"cpu": {"hits": 1, "of": 1}}})
    states, decisions = advance(rules, {}, [seen(1.0), seen(1.0, bot="bot000000002", plan="large")], 0.0)
    assert [decision.bot for decision in decisions] == ["bot000000002"]
    assert not throttled(rules, "small", states[BOT])


def test_a_decision_carries_what_led_to_it() -> None:
    states: States = {}
    for cpu in (0.2, 0.95, 1.0):
        states, decisions = advance(config(), states, [seen(cpu)], 0.0)
    (decision,) = decisions
    assert decision.samples == (0.2, 0.95, 1.0)
    assert (decision.hits, decision.of, decision.limit) == (2, 3, 0.9)
    assert decision.values["cpu"] == 1.0


def test_a_shorter_ladder_takes_effect_on_bots_that_were_higher() -> None:
    states, _ = play(config(), [seen(1.0)] * 4)
    shorter = config(msgspec.structs.replace(HOT, ladder=("warn",)))
    states, said = play(shorter, [seen(0.1)] * 2, states)
    assert said == ["", "recover:warn"]
    assert not throttled(shorter, "small", states[BOT])


# --- whatever happens -------------------------------------------------------------------------------

WINDOWS = st.one_of(st.none(), st.floats(0, 2))
RULES = st.builds(
    lambda hits, more, calm, ladder: Rule(
        limit=0.9, hits=hits, of=hits + more, calm=calm, ladder=tuple(ladder)
    ),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(1, 4),
    st.sets(st.sampled_from(STEPS)).map(lambda chosen: [step for step in STEPS if step in chosen]),
)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        WINDOWS,
        st.sampled_from(["run"] * 12 + ["suspend", "remake", "gone"]),
        st.booleans(),
    ),
    max_size=60,
)


def course_of(rules: Config, happenings: list[tuple[str, float | None, str, bool]]) -> list[Decision]:
    """Everything decided while windows of three bots come in any order, with a restart of the watchdog here
    and there.
    """
    states: States = {}
    containers: dict[str, int] = defaultdict(int)
    decided: list[Decision] = []
    for second, (bot, cpu, how, restarted) in enumerate(happenings):
        containers[bot] += how == "remake"
        one = seen(cpu, bot, container=f"c{containers[bot]}", suspended=how == "suspend")
        if restarted:
            states = msgspec.json.decode(msgspec.json.encode(states), type=States)
        others = {name: state for name, state in states.items() if name != bot}
        now, decisions = advance(rules, states, [one] if how != "gone" else [], float(second))
        states = others | now
        decided += decisions
    return decided


@given(RULES, EVENTS)
@settings(max_examples=150, deadline=None)
def test_a_bot_below_all_limits_is_never_touched(
    rule: Rule, happenings: list[tuple[str, float | None, str, bool]]
) -> None:
    lawful = [(bot, min(cpu, 0.89) if cpu and bot == "a" else cpu, *rest) for bot, cpu, *rest in happenings]
    assert [d for d in course_of(config(rule), lawful) if d.bot == "a"] == []  # type: ignore[arg-type]


@given(st.sampled_from(sorted(default_rules())), st.lists(st.floats(0, 0.999), max_size=100))
@settings(max_examples=150, deadline=None)
def test_no_default_rule_touches_what_stays_below_its_limit(measure: Measure, shares: list[float]) -> None:
    rules = make_config(grace=0.0)
    limit = rules.rules[measure].limit
    states: States = {}
    for share in shares:
        values: dict[Measure, float | None] = {measure: share * limit}
        states, decisions = advance(rules, states, [seen(None, values=values)], 0.0)
        assert decisions == []


@given(RULES, EVENTS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_step_is_skipped_or_taken_twice(
    rule: Rule, happenings: list[tuple[str, float | None, str, bool]], dry_run: bool
) -> None:
    """Replays the decisions on a ladder: each goes exactly one step up or down, unless the bot began anew."""
    height: dict[str, int] = defaultdict(int)
    rules = config(rule, dry_run=dry_run)
    begun_anew = [(index, bot) for index, (bot, _, how, _) in enumerate(happenings) if how != "run"]
    states: States = {}
    containers: dict[str, int] = defaultdict(int)
    for second, (bot, cpu, how, _) in enumerate(happenings):
        if (second, bot) in begun_anew:
            height[bot] = 0
        containers[bot] += how == "remake"
        one = seen(cpu, bot, container=f"c{containers[bot]}", suspended=how == "suspend")
        others = {name: state for name, state in states.items() if name != bot}
        now, decisions = advance(rules, states, [one] if how != "gone" else [], float(second))
        states = others | now
        assert len(decisions) <= 1
        for decision in decisions:
            if decision.action == "recover":
                height[bot] -= 1
                assert decision.step == rule.ladder[height[bot]]
                assert decision.step != "suspend" or dry_run
            else:
                assert decision.action == decision.step == rule.ladder[height[bot]]
                height[bot] += 1
        taken = states[bot].rules["cpu"].taken if bot in states and "cpu" in states[bot].rules else 0
        assert taken == height[bot]


@given(RULES, EVENTS)
@settings(max_examples=150, deadline=None)
def test_bots_do_not_influence_each_other(
    rule: Rule, happenings: list[tuple[str, float | None, str, bool]]
) -> None:
    together = [d for d in course_of(config(rule), happenings) if d.bot == "a"]
    alone = course_of(config(rule), [one for one in happenings if one[0] == "a"])
    assert together == alone


@given(RULES, st.lists(st.floats(0, 2), min_size=1, max_size=60))
@settings(max_examples=150, deadline=None)
def test_steps_up_need_as_many_hits_as_the_rule_says(rule: Rule, course: list[float]) -> None:
    states: States = {}
    rules = config(rule)
    for cpu in course:
        states, decisions = advance(rules, states, [seen(cpu)], 0.0)
        for decision in decisions:
            if decision.action != "recover":
                assert sum(one >= rule.limit for one in decision.samples) >= rule.hits
                assert len(decision.samples) <= rule.of


def test_a_remembered_state_is_what_it_was() -> None:
    states, _ = play(config(), [seen(1.0)] * 3)
    assert msgspec.json.decode(msgspec.json.encode(states), type=dict[str, BotState]) == states
