"""The ledger in one SQLite file: accounts, calls, and entries that are only ever appended.

Every public method but ``transaction`` is meant to run inside one; what it refuses, it refuses before its
first change, so that a refusal among many operations of one transaction needs no undoing.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from clawdeploy.errors import ClawError
from clawdeploy.ledger import Account, Call, Hold, NotCovered, Outcome, Settled, Wanted, grant, period_start
from clawdeploy.money import SpendLimit
from clawdeploy.store.migrating import apply

_ACCOUNT = ", ".join(Account.__struct_fields__)
_CALL = ", ".join(Call.__struct_fields__)


def migrate_ledger(path: Path) -> list[str]:
    """Create the ledger or bring it up to date; returns the names of what was applied."""
    return apply(path, "ledger_migrations")


def check_ledger_copy(path: Path) -> dict[str, int]:
    """Bring a copy of the ledger to the present schema and check its books; returns how much there is.

    ClawError("books_damaged") with what is wrong.
    """
    counts: dict[str, int] = {}
    try:
        migrate_ledger(path)
        with closing(LedgerStore(path)) as store, store.reading():
            problems, counts = store.verify(), store.counts()
    except sqlite3.DatabaseError as error:
        problems = [str(error)]
    if problems:
        raise ClawError("books_damaged", f"the copy of the ledger is not in order: {'; '.join(problems[:5])}")
    return counts


class LedgerStore:
    """Rows of the ledger. One writer; each thread has a store of its own."""

    def __init__(self, path: Path, low_balance: int = 0) -> None:
        """``low_balance``: nano-dollars below which a balance is worth telling.

        ClawError("ledger_missing") if there is no file: nobody starts a ledger anew by accident.
        """
        if not path.exists():
            raise ClawError("ledger_missing", f"{path} is missing: run prepare_host, or restore it.")
        self._low_balance = low_balance
        self._db = sqlite3.connect(
            f"file:{path}?mode=rw", uri=True, isolation_level=None, cached_statements=256
        )
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "busy_timeout = 10000",
        ):
            self._db.execute(f"PRAGMA {pragma}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and on disk when it ends. Raises sqlite3.Error when it cannot be written."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite ends some failed transactions by itself
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One unchanging view of the ledger, which never stands in a writer's way."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    # --- accounts -----------------------------------------------------------------------------------

    def accounts(self) -> list[Account]:
        """Every account, by bot."""
        rows = self._db.execute(f"SELECT {_ACCOUNT} FROM account ORDER BY bot")  # noqa: S608 # names of a class
        return [Account(*row) for row in rows]

    def account(self, bot: str) -> Account | None:
        row = self._db.execute(f"SELECT {_ACCOUNT} FROM account WHERE bot = ?", (bot,)).fetchone()  # noqa: S608
        return None if row is None else Account(*row)

    def existing(self, bot: str) -> Account:
        """The account; ClawError("no_account") if there is none."""
        account = self.account(bot)
        if account is None:
            raise ClawError("no_account", f"bot {bot} has no account: deploy it again to open one.")
        return account

    def open_account(self, bot: str, limit: SpendLimit, opening: int, now: float) -> None:
        """Open an account whose first entry is ``opening`` nano-dollars (none for 0)."""
        self._db.execute(
            "INSERT INTO account VALUES (?, ?, ?, ?, 0, 0, ?, 0, 0, 0, 0, 'nothing')",
            (bot, now, limit.kind, limit.nano, period_start(limit.kind, now)),
        )
        if opening:
            self._enter(bot, "opening", opening, f"opening:{bot}", now)

    def set_limit(self, bot: str, limit: SpendLimit, now: float) -> None:
        """Change who pays. What the operator paid counts on if the period is the same."""
        start = period_start(limit.kind, now)
        self._db.execute(
            "UPDATE account SET limit_kind = ?, limit_nano = ?, told = 'nothing', period_start = ?, "
            "period_spent = iif(period_start = ?, period_spent, 0) WHERE bot = ?",
            (limit.kind, limit.nano, start, start, bot),
        )

    def top_up_known(self, bot: str, amount: int, ref: str) -> bool:
        """Whether this top-up was entered before; ClawError("ref_used") if ``ref`` stands for another one."""
        row = self._db.execute("SELECT bot, amount FROM entry WHERE key = ?", (_top_up_key(ref),)).fetchone()
        if row not in (None, (bot, amount)):
            raise ClawError(
                "ref_used",
                f"ref {ref!r} already stands for another top-up (another bot or amount): "
                "every payment needs its own.",
            )
        return row is not None

    def top_up(self, bot: str, amount: int, ref: str, now: float) -> None:
        """Pay ``amount`` nano-dollars in, unless that was done under the same ``ref``.

        ClawError("no_account"), ClawError("ref_used").
        """
        self.existing(bot)
        if not self.top_up_known(bot, amount, ref):
            self._enter(bot, "top_up", amount, _top_up_key(ref), now)
            self._db.execute("UPDATE account SET told = 'nothing' WHERE bot = ?", (bot,))

    def _enter(self, bot: str, kind: str, amount: int, key: str, now: float) -> None:
        self._db.execute(
            "INSERT INTO entry (bot, at, kind, amount, key) VALUES (?, ?, ?, ?, ?)",
            (bot, now, kind, amount, key),
        )
        self._db.execute("UPDATE account SET balance = balance + ? WHERE bot = ?", (amount, bot))

    # --- calls --------------------------------------------------------------------------------------

    def reserve(self, wanted: Wanted, now: float) -> Hold | NotCovered:
        """Set the money for a call aside, or say that there is not enough (or no account)."""
        account = self.account(wanted.bot)
        if account is None:
            return NotCovered(SpendLimit(), first=False)
        granted = grant(wanted, account.available(now))
        if granted is None:
            first = account.told != "used_up"
            if first:
                self._db.execute("UPDATE account SET told = 'used_up' WHERE bot = ?", (wanted.bot,))
            return NotCovered(account.limit, first)
        tokens, nano = granted
        prepaid = account.limit_kind == "prepaid"
        if prepaid:
            self._db.execute("UPDATE account SET held = held + ? WHERE bot = ?", (nano, wanted.bot))
        else:
            self._turn_period(account, now)
            self._db.execute(
                "UPDATE account SET period_held = period_held + ? WHERE bot = ?", (nano, wanted.bot)
            )
        cursor = self._db.execute(
            "INSERT INTO call (bot, at, model, payer, state, held, charged) "
            "VALUES (?, ?, ?, ?, 'open', ?, 0)",
            (wanted.bot, now, wanted.model, "balance" if prepaid else "operator", nano),
        )
        assert cursor.lastrowid is not None  # noqa: S101 # an INSERT has one
        return Hold(cursor.lastrowid, tokens, nano)

    def _turn_period(self, account: Account, now: float) -> None:
        start = period_start(account.limit_kind, now)
        if account.period_start != start:
            self._db.execute(
                "UPDATE account SET period_start = ?, period_spent = 0, told = 'nothing' WHERE bot = ?",
                (start, account.bot),
            )

    def note_generation(self, call: int, generation: str) -> None:
        """Remember the name under which the upstream knows an open call."""
        self._db.execute(
            "UPDATE call SET generation = ? WHERE id = ? AND state <> 'settled'", (generation, call)
        )

    def mark_unknown(self, call: int, generation: str) -> None:
        """The call is over, but what it cost is still to be found out."""
        self._db.execute(
            "UPDATE call SET state = 'unknown', generation = ? WHERE id = ? AND state = 'open'",
            (generation, call),
        )

    def settle(self, call: int, outcome: Outcome, now: float) -> Settled | None:
        """Replace the hold by the real cost, never by more than the hold; None if that was done before."""
        row = self._db.execute(
            "SELECT bot, payer, held FROM call WHERE id = ? AND state <> 'settled'", (call,)
        ).fetchone()
        if row is None:
            return None
        bot, payer, held = row
        cost = held if outcome.how == "bound" else outcome.cost or 0
        charged = min(cost, held)
        self._db.execute(
            "UPDATE call SET state = 'settled', how = ?, charged = ?, cost = ?, prompt_tokens = ?, "
            "completion_tokens = ?, generation = coalesce(?, generation), settled_at = ? WHERE id = ?",
            (
                *(outcome.how, charged, outcome.cost, outcome.prompt_tokens, outcome.completion_tokens),
                *(outcome.generation, now, call),
            ),
        )
        if payer == "balance":
            if charged:
                # Numbered with leading zeros: keys then arrive in order, and the index grows at its end.
                self._db.execute(
                    "INSERT INTO entry (bot, at, kind, amount, key) VALUES (?, ?, 'charge', ?, ?)",
                    (bot, now, -charged, f"call:{call:012d}"),
                )
            changes = "balance = balance - :charged, held = held - :held"
        else:
            changes = "period_spent = period_spent + :charged, period_held = period_held - :held"
        # RETURNING rows must be fetched for the statement to end.
        ((balance, limit_kind, told),) = self._db.execute(
            f"UPDATE account SET {changes}, spent = spent + :charged, calls = calls + 1 WHERE bot = :bot "  # noqa: S608
            "RETURNING balance, limit_kind, told",
            {"charged": charged, "held": held, "bot": bot},
        ).fetchall()
        low = limit_kind == "prepaid" and told == "nothing" and balance < self._low_balance
        if low:
            self._db.execute("UPDATE account SET told = 'low' WHERE bot = ?", (bot,))
        return Settled(bot, charged, cost - charged, balance, low)

    def unsettled(self) -> list[Call]:
        """Calls that still hold money, oldest first."""
        rows = self._db.execute(f"SELECT {_CALL} FROM call WHERE state <> 'settled' ORDER BY id")  # noqa: S608
        return [Call(*row) for row in rows]

    def calls(self, bot: str, since: float, until: float, after: int, limit: int) -> list[Call]:
        """The first ``limit`` calls of a bot with a number above ``after`` that began in [since, until)."""
        rows = self._db.execute(
            f"SELECT {_CALL} FROM call WHERE bot = ? AND id > ? AND at >= ? AND at < ? "  # noqa: S608
            "ORDER BY id LIMIT ?",
            (bot, after, since, until, limit),
        )
        return [Call(*row) for row in rows]

    # --- copies -------------------------------------------------------------------------------------

    def copy_to(self, path: Path) -> None:
        """Write a copy as the books are at one moment, in nobody's way. Not inside a transaction."""
        self._db.execute("VACUUM INTO ?", (str(path),))

    def adopt(self, copy: Path, keep_balances: bool, now: float) -> None:
        """Take over all of a copy's books; calls that it caught in the middle are charged at their bound.

        Without ``keep_balances`` every balance is written off: what was spent after the copy was made is not
        in it. ClawError("ledger_in_use") if these books have an account already.
        """
        if self.counts()["accounts"]:
            raise ClawError(
                "ledger_in_use",
                "this host has books of its own, and two hosts' books cannot become one: restore bots one by "
                "one, or use a host without accounts.",
            )
        with closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as source:
            for table in ("account", "call", "entry"):
                rows = source.execute(f"SELECT * FROM {table}")  # noqa: S608 # names from the line above
                places = ", ".join("?" * len(rows.description))
                self._db.executemany(f"INSERT INTO {table} VALUES ({places})", rows)  # noqa: S608
        for call in self.unsettled():
            self.settle(call.id, Outcome("bound"), now)
        if not keep_balances:
            for account in self.accounts():
                if account.balance:
                    self._enter(account.bot, "write_off", -account.balance, f"write-off:{account.bot}", now)

    # --- the books ----------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many rows each table has."""
        return {
            name: self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            for name, table in (("accounts", "account"), ("entries", "entry"), ("calls", "call"))
        }

    def verify(self) -> list[str]:
        """Everything that is wrong with the books, one sentence each; empty if they are in order."""
        problems = [
            f"the database is damaged: {text}"
            for (text,) in self._db.execute("PRAGMA integrity_check")
            if text != "ok"
        ]
        problems += [
            f"{table} row {row} names nothing that exists in {parent}"
            for table, row, parent, _ in self._db.execute("PRAGMA foreign_key_check")
        ]
        for sentence, query in _CHECKS.items():
            problems += [sentence.format(*row) for row in self._db.execute(query)]
        return problems


def _top_up_key(ref: str) -> str:
    return f"top-up:{ref}"


_CHECKS = {
    "account {0}: balance is {1}, but its entries add up to {2} nano-dollars": """
        SELECT bot, balance, total FROM account
        JOIN (SELECT a.bot AS of_bot, coalesce(sum(e.amount), 0) AS total
              FROM account a LEFT JOIN entry e ON e.bot = a.bot GROUP BY a.bot) ON of_bot = bot
        WHERE balance <> total""",
    "account {0}: it holds {1} and {2}, but its open calls hold {3} and {4} nano-dollars": """
        SELECT bot, held, period_held, of_balance, of_operator FROM account
        JOIN (SELECT a.bot AS of_bot,
                     coalesce(sum(iif(c.payer = 'balance', c.held, 0)), 0) AS of_balance,
                     coalesce(sum(iif(c.payer = 'operator', c.held, 0)), 0) AS of_operator
              FROM account a LEFT JOIN call c ON c.bot = a.bot AND c.state <> 'settled' GROUP BY a.bot)
        ON of_bot = bot
        WHERE held <> of_balance OR period_held <> of_operator""",
    "account {0}: it spent {1} in {2} calls, but its calls say {3} in {4}": """
        SELECT bot, spent, calls, total, number FROM account
        JOIN (SELECT a.bot AS of_bot, coalesce(sum(c.charged), 0) AS total, count(c.id) AS number
              FROM account a LEFT JOIN call c ON c.bot = a.bot AND c.state = 'settled' GROUP BY a.bot)
        ON of_bot = bot
        WHERE spent <> total OR calls <> number""",
    "call {0}: it charged {1}, but its entry says {2} nano-dollars": """
        SELECT c.id, c.charged, -e.amount FROM call c LEFT JOIN entry e ON e.key = printf('call:%012d', c.id)
        WHERE c.payer = 'balance' AND c.charged <> coalesce(-e.amount, 0)""",
    "entry {0}: it charges for {1}, which is no call that the balance paid": """
        SELECT e.id, e.key FROM entry e LEFT JOIN call c
        ON c.id = CAST(substr(e.key, 6) AS INTEGER) AND c.payer = 'balance' AND c.bot = e.bot
        WHERE e.kind = 'charge' AND c.id IS NULL""",
}
