"""Any interleaving of what can happen to a ledger: the money adds up, and nobody spends what is not there.

The machine plays the gateway on a real database file. Beside it, it keeps the plainest possible books, and
after each step both must say the same.
"""

import contextlib
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from clawdeploy.errors import ClawError
from clawdeploy.ledger import FEMTO, Bound, Hold, How, NotCovered, Outcome, Wanted, period_start
from clawdeploy.money import NANO, SpendLimit
from clawdeploy.store import LedgerStore, migrate_ledger

BOTS = ("botaaaaaaaaa", "botbbbbbbbbb", "botccccccccc", "botddddddddd")
LOW = 50
FEMTO_PER_NANO = FEMTO // NANO
NANOS = st.integers(0, 200)
LIMITS = st.sampled_from(
    [
        SpendLimit("prepaid"),
        SpendLimit("unlimited"),
        SpendLimit("day", 100),
        SpendLimit("day", 300),
        SpendLimit("month", 500),
    ]
)
BOUNDS = st.builds(
    Bound,
    fixed=st.sampled_from([0, 40, 101, 120, 1000]).map(lambda nano: nano * FEMTO_PER_NANO + nano % 2),
    per_token=st.integers(0, 3 * FEMTO_PER_NANO),
)
HOWS: st.SearchStrategy[How] = st.sampled_from(["usage", "generation", "bound", "released"])


@cache
def empty_ledger() -> bytes:
    """The file of a ledger without accounts."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger.db"
        migrate_ledger(path)
        return path.read_bytes()


class _CrashError(Exception):
    """The process ended here."""


@dataclass
class Open:
    """A call as the plain books have it."""

    bot: str
    hold: int
    payer: Literal["balance", "operator"]
    generation: str | None = None
    over: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """Bots, an operator, a clock, and a gateway that crashes."""

    calls = Bundle("calls")
    refs = Bundle("refs")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "ledger.db"
        self.now = 1_790_000_000.0  # 21 Sep 2026, in the afternoon
        self.store: LedgerStore | None = None
        self.paid: Counter[str] = Counter()
        self.charged: Counter[str] = Counter()  # from balances
        self.spent: Counter[str] = Counter()
        self.in_period: Counter[str] = Counter()
        self.limit: dict[str, SpendLimit] = {}
        self.period: dict[str, int] = {}
        self.lowered: set[str] = set()
        self.tops: dict[str, tuple[str, int]] = {}
        self.told: dict[str, str] = {}
        self.open: dict[int, Open] = {}
        self.entries = 0

    @initialize(limit=LIMITS)
    def begin(self, limit: SpendLimit) -> None:
        self.path.write_bytes(empty_ledger())
        self.store = LedgerStore(self.path, LOW)
        self.open_account(BOTS[0], SpendLimit("prepaid"), 300)
        self.open_account(BOTS[1], limit, 100)
        self.open_account(BOTS[2], SpendLimit("day", 100), 0)

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
        self.directory.cleanup()

    @property
    def ledger(self) -> LedgerStore:
        assert self.store is not None
        return self.store

    # --- the operator -------------------------------------------------------------------------------

    @rule(bot=st.sampled_from(BOTS), limit=LIMITS, opening=NANOS)
    def open_account(self, bot: str, limit: SpendLimit, opening: int) -> None:
        if bot in self.limit:
            return
        with self.ledger.transaction():
            self.ledger.open_account(bot, limit, opening, self.now)
        self.paid[bot] = opening
        self.limit[bot] = limit
        self.told[bot] = "nothing"
        self.period[bot] = period_start(limit.kind, self.now)

    @rule(target=refs, bot=st.sampled_from(BOTS), amount=st.integers(1, 300))
    def top_up(self, bot: str, amount: int) -> str:
        ref = f"pay-{len(self.tops)}"
        self._top_up(bot, amount, ref)
        return ref

    @rule(ref=refs)
    def repeat_a_top_up(self, ref: str) -> None:
        if ref in self.tops:
            self._top_up(*self.tops[ref], ref)

    @rule(ref=refs, bot=st.sampled_from(BOTS), amount=st.integers(1, 300))
    def use_a_ref_again_for_something_else(self, ref: str, bot: str, amount: int) -> None:
        if ref in self.tops and bot in self.limit and self.tops[ref] != (bot, amount):
            with pytest.raises(ClawError, match="already stands"), self.ledger.transaction():
                self.ledger.top_up(bot, amount, ref, self.now)

    def _top_up(self, bot: str, amount: int, ref: str) -> None:
        if bot not in self.limit:
            with pytest.raises(ClawError, match="no account"), self.ledger.transaction():
                self.ledger.top_up(bot, amount, ref, self.now)
            return
        with self.ledger.transaction():
            self.ledger.top_up(bot, amount, ref, self.now)
        if ref not in self.tops:
            self.tops[ref] = (bot, amount)
            self.paid[bot] += amount
            self.told[bot] = "nothing"

    @rule(bot=st.sampled_from(BOTS), limit=LIMITS)
    def change_the_limit(self, bot: str, limit: SpendLimit) -> None:
        if bot not in self.limit:
            return
        with self.ledger.transaction():
            self.ledger.set_limit(bot, limit, self.now)
        self.limit[bot] = limit
        self.told[bot] = "nothing"
        start = period_start(limit.kind, self.now)
        if start != self.period[bot]:
            self.in_period[bot] = 0
        self.period[bot] = start
        held = sum(call.hold for call in self._open_of(bot, "operator"))
        # What is under way or done already may be above a limit that has just been set.
        if self.in_period[bot] + held > limit.nano:
            self.lowered.add(bot)
        else:
            self.lowered.discard(bot)

    def _open_of(self, bot: str, payer: str) -> list[Open]:
        return [call for call in self.open.values() if (call.bot, call.payer) == (bot, payer)]

    # --- calls --------------------------------------------------------------------------------------

    @rule(
        target=calls,
        bot=st.sampled_from(BOTS),
        bound=BOUNDS,
        tokens=st.integers(1, 100),
        least=st.integers(0, 100),
    )
    def reserve(self, bot: str, bound: Bound, tokens: int, least: int) -> Any:
        with self.ledger.transaction():
            held = self.ledger.reserve(Wanted(bot, "model", bound, tokens, least), self.now)
        left = self._left(bot)
        if isinstance(held, NotCovered):
            assert bot not in self.limit or (left is not None and bound.nano(min(least, tokens)) > left), (
                "refused although it could be paid"
            )
            if bot in self.limit:
                assert held == NotCovered(self.limit[bot], first=self.told[bot] != "used_up")
                self.told[bot] = "used_up"
            return multiple()
        assert isinstance(held, Hold)
        assert left is None or held.nano <= left, "more was held than there was"
        assert held.call not in self.open
        payer: Literal["balance", "operator"] = "balance" if self.limit[bot].kind == "prepaid" else "operator"
        self._turn(bot)
        self.open[held.call] = Open(bot, held.nano, payer)
        return held.call

    def _left(self, bot: str) -> int | None:
        """What a new call of ``bot`` may hold, by the plain books; None: all it likes."""
        limit = self.limit.get(bot)
        if limit is None or limit.kind == "prepaid":
            held = sum(call.hold for call in self._open_of(bot, "balance"))
            return self.paid[bot] - self.charged[bot] - held
        if limit.kind == "unlimited":
            return None
        held = sum(call.hold for call in self._open_of(bot, "operator"))
        same = self.period[bot] == period_start(limit.kind, self.now)
        return limit.nano - held - (self.in_period[bot] if same else 0)

    def _turn(self, bot: str) -> None:
        limit = self.limit[bot]
        start = period_start(limit.kind, self.now)
        if limit.kind in ("day", "month") and start != self.period[bot]:
            self.period[bot] = start
            self.in_period[bot] = 0
            self.told[bot] = "nothing"
            self.lowered.discard(bot)

    @rule(call=calls, how=HOWS, cost=st.none() | NANOS | st.integers(10**6, 10**12))
    def settle(self, call: int, how: How, cost: int | None) -> None:
        with self.ledger.transaction():
            settled = self.ledger.settle(call, Outcome(how, cost), self.now)
        known = self.open.pop(call, None)
        if known is None:
            assert settled is None, "a call was settled twice"
            return
        wanted = known.hold if how == "bound" else cost or 0
        assert settled is not None
        assert settled.charged == min(wanted, known.hold)
        assert settled.excess == wanted - settled.charged
        self._charge(known, settled.charged)
        assert settled.balance == self.paid[known.bot] - self.charged[known.bot]
        prepaid = self.limit[known.bot].kind == "prepaid"
        assert settled.low == (prepaid and self.told[known.bot] == "nothing" and settled.balance < LOW)
        if settled.low:
            self.told[known.bot] = "low"

    def _charge(self, call: Open, nano: int) -> None:
        self.spent[call.bot] += nano
        if call.payer == "balance":
            self.charged[call.bot] += nano
        else:
            self.in_period[call.bot] += nano

    @rule(call=calls, generation=st.sampled_from(["gen-1", "gen-2"]), over=st.booleans())
    def learn_the_name_of_a_call(self, call: int, generation: str, over: bool) -> None:
        with self.ledger.transaction():
            if over:
                self.ledger.mark_unknown(call, generation)
            else:
                self.ledger.note_generation(call, generation)
        if call in self.open:
            known = self.open[call]
            if not (known.over and over):
                known.generation = generation
            known.over = known.over or over

    # --- faults -------------------------------------------------------------------------------------

    @rule(costs=st.lists(st.none() | NANOS, min_size=1, max_size=4))
    def crash_and_recover(self, costs: list[int | None]) -> None:
        """Every call that was open is settled by what is known of it: its name, or nothing."""
        self.ledger.close()
        self.store = LedgerStore(self.path, LOW)
        left = self.ledger.unsettled()
        assert [call.id for call in left] == sorted(self.open)
        for number, call in enumerate(left):
            known = self.open[call.id]
            assert (call.bot, call.held, call.payer) == (known.bot, known.hold, known.payer)
            assert (call.generation, call.state == "unknown") == (known.generation, known.over)
            cost = costs[number % len(costs)]
            found = call.generation is not None and cost is not None
            self.settle(call.id, "generation" if found else "bound", cost if found else None)
        assert self.ledger.unsettled() == []

    @rule(bot=st.sampled_from(BOTS))
    def crash_in_the_middle_of_a_transaction(self, bot: str) -> None:
        """What was not committed never happened."""
        victim = LedgerStore(self.path, LOW)
        with contextlib.suppress(_CrashError), victim.transaction():
            if bot in self.limit:
                victim.top_up(bot, 1, "lost", self.now)
            for call in victim.unsettled():
                victim.settle(call.id, Outcome("bound"), self.now)
            raise _CrashError
        victim.close()

    @rule(seconds=st.sampled_from([3600, 43_200, 86_400, 31 * 86_400]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(sql=st.sampled_from(["UPDATE entry SET amount = amount + 1", "DELETE FROM entry"]))
    def nobody_can_change_an_entry(self, sql: str) -> None:
        if self.ledger.counts()["entries"]:
            with pytest.raises(Exception, match="append-only"):
                self.ledger._db.execute(sql)

    # --- what holds at any time -----------------------------------------------------------------------

    @invariant()
    def the_books_add_up(self) -> None:
        if self.store is None:
            return
        assert self.ledger.verify() == []
        accounts = {account.bot: account for account in self.ledger.accounts()}
        assert set(accounts) == set(self.limit)
        for bot, account in accounts.items():
            assert account.balance == self.paid[bot] - self.charged[bot]
            assert 0 <= account.held <= account.balance, "more is promised than was paid in"
            assert self.charged[bot] <= self.paid[bot]
            assert account.spent == self.spent[bot]
            assert account.limit == self.limit[bot]
            if account.limit_kind in ("day", "month"):
                assert account.period_spent == self.in_period[bot]
                if bot not in self.lowered:
                    assert account.period_spent + account.period_held <= account.limit_nano
        assert {call.id for call in self.ledger.unsettled()} == set(self.open)

    @invariant()
    def entries_only_grow(self) -> None:
        if self.store is not None:
            entries = self.ledger.counts()["entries"]
            assert entries >= self.entries
            self.entries = entries


TestLedger = pytest.mark.slow(LedgerMachine.TestCase)
LedgerMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
