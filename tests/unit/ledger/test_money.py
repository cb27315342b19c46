"""Amounts of money: what can be written, what it is in nano-dollars, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from clawdeploy.errors import ClawError
from clawdeploy.money import NANO, SpendLimit, ceil_nano, format_dollars, parse_dollars

MOST = 1_000_000 * NANO
AMOUNTS = st.integers(0, MOST)


@contextmanager
def refused(code: str) -> Iterator[None]:
    """What is inside may be refused, but with this code only."""
    try:
        yield
    except ClawError as error:
        if error.code != code:
            raise


@given(AMOUNTS)
def test_what_is_shown_can_be_entered_again(nano: int) -> None:
    shown = format_dollars(nano)
    assert parse_dollars(shown) == parse_dollars(shown.removeprefix("$")) == nano
    assert len(shown.partition(".")[2]) >= 2


@given(st.integers(1, 2**63 - 1))
def test_a_debt_is_shown_like_the_amount_with_a_sign(nano: int) -> None:
    assert format_dollars(-nano) == "-" + format_dollars(nano)
    assert Decimal(format_dollars(nano)[1:]) * NANO == nano


@given(st.text(max_size=12) | st.from_regex(r"\A[$ ]{0,2}[-+]?[0-9\u0660-\u0669.,_eE]{0,20}\Z"))
def test_text_is_an_amount_exactly_or_refused(text: str) -> None:
    with refused("amount_invalid"):
        nano = parse_dollars(text)
        assert 0 <= nano <= MOST
        assert Fraction(text.strip().removeprefix("$")) * NANO == nano


@pytest.mark.parametrize(
    "text",
    [
        "",
        "$",
        "-1",
        "+1",
        "1e3",
        "1.",
        ".5",
        "1,5",
        "1_000",
        "0.0000000001",
        "1000000.000000001",
        "\u0663",
        "NaN",
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ClawError, match="at most nine decimals"):
        parse_dollars(text)


@given(st.fractions(0, 10**6).map(lambda value: Decimal(value.numerator) / value.denominator))
@example(Decimal("0.0000000000000000001"))
@example(Decimal("1.0000000000000000000000000000000000001"))
@example(Decimal("123456.00000000000000000000000000000001"))
def test_a_cost_is_rounded_up_whatever_its_length(dollars: Decimal) -> None:
    assert ceil_nano(dollars) == ceil(Fraction(dollars) * NANO)


@given(st.integers(1, MOST), st.sampled_from(["day", "month"]))
def test_a_spend_limit_is_written_as_it_is_shown(nano: int, period: str) -> None:
    limit = SpendLimit.parse(f"{format_dollars(nano)}/{period}")
    assert (limit.kind, limit.nano) == (period, nano)
    assert SpendLimit.parse(str(limit)) == limit


@pytest.mark.parametrize("word", ["prepaid", "unlimited"])
def test_a_spend_limit_can_be_a_word(word: str) -> None:
    assert str(SpendLimit.parse(word)) == word


@given(
    st.text(max_size=20) | st.sampled_from(["0/day", "1/week", "1/day/month", "/day", "Prepaid", "-1/day"])
)
def test_no_other_spend_limit_exists(text: str) -> None:
    assume(text not in ("prepaid", "unlimited"))
    with refused("spend_limit_invalid"):
        limit = SpendLimit.parse(text)
        assert limit.kind in ("day", "month")
        assert limit.nano > 0
