"""What a call may hold: never more than there is, and as much as that pays for."""

from datetime import UTC, datetime, timedelta
from typing import Literal

from hypothesis import example, given
from hypothesis import strategies as st

from clawdeploy.ledger import FEMTO, Account, Bound, Wanted, grant, period_start
from clawdeploy.money import NANO

FEMTO_PER_NANO = FEMTO // NANO
FEMTOS = st.integers(0, 10**24)
BOUNDS = st.builds(Bound, fixed=FEMTOS, per_token=st.integers(0, 10**15))
TOKENS = st.integers(1, 2**31)
MONEY = st.integers(0, 10**15)


@given(BOUNDS, st.integers(0, 2**31))
def test_a_bound_is_rounded_up_by_less_than_a_nano_dollar(bound: Bound, tokens: int) -> None:
    exact = bound.fixed + bound.per_token * tokens
    assert exact <= bound.nano(tokens) * FEMTO_PER_NANO < exact + FEMTO_PER_NANO


@given(BOUNDS, MONEY)
def test_what_is_affordable_is_covered_and_one_token_more_is_not(bound: Bound, nano: int) -> None:
    tokens = bound.affordable(nano)
    if tokens >= 0:
        assert bound.nano(tokens) <= nano
        if bound.per_token:
            assert bound.nano(tokens + 1) > nano
    else:
        assert bound.nano(0) > nano


@given(BOUNDS, TOKENS, st.integers(0, 2**31), st.integers(-(10**12), 10**15) | st.none())
@example(Bound(0, 0), 1, 256, 0)
@example(Bound(1, 0), 1, 256, 0)
def test_what_is_granted_is_never_more_than_there_is_nor_less_than_could_be(
    bound: Bound, tokens: int, least: int, available: int | None
) -> None:
    granted = grant(Wanted("bot", "model", bound, tokens, least), available)
    useful = min(least, tokens)
    if granted is None:
        assert available is not None
        assert bound.nano(useful) > available
        return
    length, hold = granted
    assert useful <= length <= tokens
    assert hold == bound.nano(length)
    if available is not None:
        assert hold <= available
        assert length == tokens or bound.nano(length + 1) > available


PERIODS: st.SearchStrategy[Literal["day", "month"]] = st.sampled_from(["day", "month"])
TIMES = st.integers(946_684_800_000, 4_102_444_800_000).map(
    lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
)


@given(PERIODS, TIMES)
@example("month", datetime(2028, 2, 29, 23, 59, 59, 999999, tzinfo=UTC))
@example("day", datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC))
def test_a_period_begins_at_a_midnight_in_utc_and_holds_its_whole_time(
    kind: Literal["day", "month"], at: datetime
) -> None:
    start = datetime.fromtimestamp(period_start(kind, at.timestamp()), UTC)
    assert (start.hour, start.minute, start.second, start.microsecond) == (0, 0, 0, 0)
    assert start <= at < start + timedelta(days=1 if kind == "day" else 31)
    assert (start.year, start.month) == (at.year, at.month)
    assert start.day == (at.day if kind == "day" else 1)


@given(st.sampled_from(["prepaid", "unlimited"]), TIMES)
def test_without_a_period_there_is_no_start(kind: str, at: datetime) -> None:
    assert period_start(kind, at.timestamp()) == 0


@given(PERIODS, TIMES, st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_a_new_period_forgets_what_was_spent_but_not_what_is_held(
    kind: Literal["day", "month"], at: datetime, limit: int, spent: int, held: int
) -> None:
    now = at.timestamp()
    account = Account(
        bot="bot",
        opened_at=0,
        limit_kind=kind,
        limit_nano=limit,
        balance=10**9,
        held=0,
        period_start=period_start(kind, now),
        period_spent=spent,
        period_held=held,
        spent=spent,
        calls=0,
        told="nothing",
    )
    assert account.available(now) == limit - spent - held
    assert account.available((at + timedelta(days=32)).timestamp()) == limit - held
