"""clawctl's verbs about money, on a real ledger behind its socket."""

import csv
import io
import os
import time
from typing import Any

import pytest

from clawdeploy.cli import Machine
from clawdeploy.ledger import Bound, Hold, Outcome, Wanted
from clawdeploy.ledger_client import LedgerClient, Opening
from clawdeploy.money import NANO
from clawdeploy.store import LedgerStore

from .conftest import MODEL, Engine, wanted
from .harness import ask, declared, live_request, run

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's"),
    pytest.mark.usefixtures("ledger"),
]


@pytest.fixture
def bot(machine: Machine, ledger: LedgerClient) -> str:
    """The id of a bot named support, with one dollar."""
    bot_id: str = declared(machine, wanted(1, name="support"))[0]["id"]
    ledger.open([Opening(bot_id, NANO)], check=False)
    return bot_id


def spend(machine: Machine, bot: str, nano: int, how: Any = "usage") -> None:
    """A call that the gateway let through and settled."""
    store = LedgerStore(machine.paths.state / "ledger.db")
    with store.transaction():
        hold = store.reserve(Wanted(bot, MODEL, Bound(nano * 10**6, 0), 10, 1), time.time())
        assert isinstance(hold, Hold)
        store.settle(hold.call, Outcome(how, nano, 7, 3, "gen-1"), time.time())
    store.close()


def test_a_deploy_opens_an_account_once_and_says_what_is_in_it(machine: Machine, engine: Engine) -> None:
    bot = declared(machine, wanted(1))[0]
    request = live_request(bot["id"])
    before = ask(machine, "live", "--check", request=request)
    assert f"account of {bot['id']}: $1.00, prepaid" in before["diff"]["after"]
    assert ask(machine, "balance")["accounts"] == []
    for _ in range(2):
        answer = ask(machine, "live", "--timeout", "0.1", request=request)
        assert [one["balance_dollars"] for one in answer["accounts"]] == ["1.00"]
    request["bots"][0] |= {"balance": "50.00", "spend_limit": "2/day"}
    (account,) = ask(machine, "live", "--timeout", "0.1", request=request)["accounts"]
    assert (account["balance_dollars"], account["spend_limit"]) == ("1.00", "2.00/day")


@pytest.mark.parametrize(
    ("terms", "code"),
    [({"balance": "-1"}, "amount_invalid"), ({"spend_limit": "2/week"}, "spend_limit_invalid")],
)
def test_terms_that_make_no_sense_start_no_container(
    machine: Machine,
    engine: Engine,
    terms: dict[str, str],
    code: str,
) -> None:
    request = live_request(declared(machine, wanted(1))[0]["id"])
    request["bots"][0] |= terms
    assert ask(machine, "live", request=request, code=1)["error"]["code"] == code
    assert engine.made == {}


def test_a_top_up_counts_once_for_each_ref(machine: Machine, bot: str) -> None:
    top_up = ("top-up", "support", "5.00", "--ref", "invoice-17")
    assert ask(machine, *top_up, "--check")["balance_dollars"] == "6.00"
    assert "$1.00 → $6.00" in run(machine, *top_up).stdout
    again = ask(machine, *top_up)
    assert (again["changed"], again["balance_dollars"]) == (False, "6.00")
    refused = ask(machine, "top-up", "support", "7.00", "--ref", "invoice-17", code=1)
    assert refused["error"]["code"] == "ref_used"
    assert ask(machine, "balance", "support")["accounts"][0]["balance_dollars"] == "6.00"


@pytest.mark.parametrize("amount", ["0", "-5", "five", "1e3", "0.0000000001", "1000001"])
def test_an_amount_that_is_none_is_refused_with_an_example(machine: Machine, bot: str, amount: str) -> None:
    refused = run(machine, "top-up", bot, amount, "--ref", "x", code=1)
    assert repr(amount) in refused.stderr
    assert ask(machine, "balance", bot)["accounts"][0]["balance_dollars"] == "1.00"


def test_who_pays_can_be_changed_and_is_shown(machine: Machine, bot: str) -> None:
    assert ask(machine, "spend-limit", bot, "20/month", "--check")["changed"]
    assert ask(machine, "spend-limit", bot, "20/month")["changed"]
    assert not ask(machine, "spend-limit", bot, "20.00/month")["changed"]
    assert "20.00/month" in run(machine, "list").stdout
    assert ask(machine, "spend-limit", bot, "a lot", code=1)["error"]["code"] == "spend_limit_invalid"


def test_balances_are_in_list_and_show(machine: Machine, bot: str) -> None:
    spend(machine, bot, 250_000_000)
    assert "$0.75" in run(machine, "list").stdout
    assert "$0.75" in run(machine, "balance").stdout
    account = ask(machine, "show", bot)["account"]
    assert (account["balance"], account["spent"], account["calls"]) == (750_000_000, 250_000_000, 1)


def test_usage_is_told_by_day_by_call_and_as_csv(machine: Machine, bot: str) -> None:
    spend(machine, bot, 1_500)
    spend(machine, bot, 2_000, "bound")
    assert "$0.0000035" in run(machine, "usage", bot).stdout
    calls = ask(machine, "usage", bot, "--since", "1h")["calls"]
    assert [(call["dollars"], call["how"], call["prompt_tokens"]) for call in calls] == [
        ("0.0000015", "usage", 7), ("0.000002", "bound", 7)
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(run(machine, "usage", bot, "--csv").stdout)))
    assert [(row["dollars"], row["settled_by"], row["model"], row["generation"]) for row in rows] == [
        ("0.0000015", "usage", MODEL, "gen-1"), ("0.000002", "bound", MODEL, "gen-1")
    ]  # fmt: skip
    assert "No calls" in run(machine, "usage", bot, "--until", "1h").stdout
    assert "neither a date" in run(machine, "usage", bot, "--since", "tomorrow", code=2).stderr


def test_a_price_is_told_or_said_to_be_unknown(machine: Machine) -> None:
    assert "$1 in, $2 out for a million tokens (set by the operator)" in run(machine, "price").stdout
    refused = run(machine, "price", "no/model", code=1)
    assert "no price is known for 'no/model'" in refused.stderr


def test_books_that_do_not_add_up_are_told(machine: Machine, bot: str) -> None:
    spend(machine, bot, 1_500)
    assert ask(machine, "ledger", "verify")["ok"]
    assert "in order: 1 accounts, 2 entries, 1 calls" in run(machine, "ledger", "verify").stdout
    store = LedgerStore(machine.paths.state / "ledger.db")
    with store.transaction():
        store._db.execute("UPDATE account SET balance = balance + 1")
    store.close()
    told = run(machine, "ledger", "verify", code=1)
    assert f"account {bot}: balance is 999998501, but its entries add up to 999998500" in told.stdout
