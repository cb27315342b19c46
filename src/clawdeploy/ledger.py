"""What the ledger is made of: accounts, calls, and what a call may cost at most. Pure data and arithmetic."""

from datetime import UTC, datetime
from typing import Literal

import msgspec

from clawdeploy.money import NANO, SpendLimit

How = Literal["usage", "generation", "bound", "released"]

# A token can cost a fraction of a nano-dollar: prices are whole femto-dollars (10**-15 USD), rounded up, and
# a call's bound is rounded up to nano-dollars once.
FEMTO = 10**15
_FEMTO_PER_NANO = FEMTO // NANO


class Bound(msgspec.Struct, frozen=True):
    """What a call can cost at most: ``fixed`` and ``per_token`` of the answer, in femto-dollars."""

    fixed: int
    per_token: int

    def nano(self, tokens: int) -> int:
        """Nano-dollars, rounded up, for an answer of so many tokens."""
        return -(-(self.fixed + self.per_token * tokens) // _FEMTO_PER_NANO)

    def affordable(self, nano: int) -> int:
        """The longest answer (tokens) that ``nano`` is sure to pay; below 0: not even the question."""
        left = nano * _FEMTO_PER_NANO - self.fixed
        if left < 0:
            return -1
        return left // self.per_token if self.per_token else 2**62


class Wanted(msgspec.Struct, frozen=True):
    """A call that asks to be let through: with ``tokens`` for its answer, not fewer than ``least``."""

    bot: str
    model: str
    bound: Bound
    tokens: int
    least: int


class Hold(msgspec.Struct, frozen=True):
    """Money set aside for a call: its number, the answer's length it pays for, and how much it is (nano)."""

    call: int
    tokens: int
    nano: int


class NotCovered(msgspec.Struct, frozen=True):
    """What is left does not cover the call. ``first``: since the last top-up nobody has been told."""

    limit: SpendLimit
    first: bool


class Outcome(msgspec.Struct, frozen=True):
    """How a call ended. ``cost``: what the upstream reported, in nano-dollars, or None if it never did."""

    how: How
    cost: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    generation: str | None = None


class Settled(msgspec.Struct, frozen=True):
    """What a settlement did (nano). ``low``: the balance fell below the threshold and nobody was told yet."""

    bot: str
    charged: int
    excess: int
    balance: int
    low: bool


class Call(msgspec.Struct, frozen=True):
    """One call of the audit: times are Unix seconds, money is nano-dollars."""

    id: int
    bot: str
    at: float
    model: str
    payer: Literal["balance", "operator"]
    state: Literal["open", "unknown", "settled"]
    held: int
    how: How | None
    charged: int
    cost: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    generation: str | None
    settled_at: float | None


class Account(msgspec.Struct, frozen=True):
    """One bot's money, in nano-dollars.

    ``held`` is what open calls hold of the balance; ``period_*`` count what the operator pays for, in the day
    or month that began at ``period_start`` (Unix seconds); ``spent`` and ``calls`` count all ever settled.
    """

    bot: str
    opened_at: float
    limit_kind: Literal["prepaid", "day", "month", "unlimited"]
    limit_nano: int
    balance: int
    held: int
    period_start: int
    period_spent: int
    period_held: int
    spent: int
    calls: int
    told: Literal["nothing", "low", "used_up"]

    @property
    def limit(self) -> SpendLimit:
        return SpendLimit(self.limit_kind, self.limit_nano)

    def available(self, now: float) -> int | None:
        """What a new call may hold; None: as much as it likes."""
        if self.limit_kind == "unlimited":
            return None
        if self.limit_kind == "prepaid":
            return self.balance - self.held
        spent = self.period_spent if self.period_start == period_start(self.limit_kind, now) else 0
        return self.limit_nano - spent - self.period_held


def period_start(kind: str, now: float) -> int:
    """When the current day or month (UTC) began; 0 where there are no periods. Unix seconds."""
    if kind not in ("day", "month"):
        return 0
    midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return int((midnight if kind == "day" else midnight.replace(day=1)).timestamp())


def grant(wanted: Wanted, available: int | None) -> tuple[int, int] | None:
    """The answer's length and the hold (nano) that ``available`` nano-dollars pay for, or None.

    The answer is cut down to what is affordable, but not below ``wanted.least`` tokens.
    """
    tokens = wanted.tokens
    if available is not None:
        tokens = min(tokens, wanted.bound.affordable(available))
    if tokens < min(wanted.least, wanted.tokens):
        return None
    return tokens, wanted.bound.nano(tokens)
