"""Money: integer nano-dollars (1 USD = 1,000,000,000), for a token can cost less than a micro-dollar."""

import re
from decimal import ROUND_CEILING, Context, Decimal
from typing import Literal

import msgspec

from clawdeploy.errors import ClawError

NANO = 1_000_000_000
# The largest amount anybody may name: a slip of the finger should not become a fortune.
_MOST = 1_000_000 * NANO
_AMOUNT = re.compile(r"\$?([0-9]{1,7}(?:\.[0-9]{1,9})?)")
_LIMIT = re.compile(r"(.+)/(day|month)")
# Every step rounds up: with more digits than decimals have room for, the usual context would round down.
_UP = Context(rounding=ROUND_CEILING)


def parse_dollars(text: str) -> int:
    """``5``, ``5.00`` or ``$0.000000001`` in nano-dollars.

    ClawError("amount_invalid") for all else, more than nine decimals and more than a million included.
    """
    match = _AMOUNT.fullmatch(text.strip())
    nano = int(Decimal(match[1]) * NANO) if match else -1
    if not 0 <= nano <= _MOST:
        raise ClawError(
            "amount_invalid",
            f"{text!r} is not an amount in US dollars: write for example 5.00 (at most nine decimals, "
            "at most 1000000).",
        )
    return nano


def format_dollars(nano: int) -> str:
    """``$5.00`` or ``-$0.0012``: with two decimals at least and as many as it takes."""
    whole, fraction = divmod(abs(nano), NANO)
    decimals = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}${whole}.{decimals}"


def ceil_nano(dollars: Decimal) -> int:
    """Dollars in nano-dollars, rounded up; ``dollars`` is finite."""
    return ceil_units(dollars, NANO)


def ceil_units(dollars: Decimal, units: int) -> int:
    """Dollars in units of which ``units`` make one dollar, rounded up; ``dollars`` is finite."""
    return int(_UP.multiply(dollars, Decimal(units)).to_integral_value(ROUND_CEILING))


class SpendLimit(msgspec.Struct, frozen=True):
    """Who pays for an account's calls, and up to what.

    prepaid: its balance; day, month: the operator, up to ``nano`` in a calendar day or month (UTC);
    unlimited: the operator.
    """

    kind: Literal["prepaid", "day", "month", "unlimited"] = "prepaid"
    nano: int = 0

    @classmethod
    def parse(cls, text: str) -> "SpendLimit":
        """``prepaid``, ``unlimited``, ``2.00/day`` or ``20/month``; ClawError("spend_limit_invalid")."""
        if text == "prepaid":
            return cls("prepaid")
        if text == "unlimited":
            return cls("unlimited")
        try:
            match = _LIMIT.fullmatch(text)
            nano = parse_dollars(match[1]) if match else 0
        except ClawError:
            nano = 0
        if match is None or nano == 0:
            raise ClawError(
                "spend_limit_invalid",
                f"spend limit {text!r} is unknown: write prepaid, unlimited, or dollars a day or a month, "
                "such as 2.00/day or 20/month.",
            )
        return cls("day" if match[2] == "day" else "month", nano)

    def __str__(self) -> str:
        if self.kind in ("prepaid", "unlimited"):
            return self.kind
        return f"{format_dollars(self.nano)[1:]}/{self.kind}"
