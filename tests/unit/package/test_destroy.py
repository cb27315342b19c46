"""A bot leaves nothing behind, or only its disk, and can come back to that."""

import os
from pathlib import Path

import pytest

from clawdeploy.cli import Machine
from clawdeploy.ledger_client import LedgerClient, Opening
from clawdeploy.money import NANO
from clawdeploy.storage import Homes

from .conftest import Engine, wanted
from .harness import ask, declared, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's")


@pytest.fixture
def bot(machine: Machine, homes: Homes) -> str:
    """The id of a bot named one with a disk on which it has written something."""
    found = declared(machine, wanted(1, name="one"))[0]
    apply_home(machine, found)
    memory = machine.paths.bots / found["id"] / "memory"
    memory.write_text("remembered")
    os.chown(memory, found["uid"], found["uid"])
    ask(machine, "sync")
    return str(found["id"])


def apply_home(machine: Machine, bot: dict[str, object]) -> None:
    home = {"id": bot["id"], "uid": bot["uid"], "disk_size": 32 << 20}
    ask(machine, "home", "apply", request={"bots": [home]})


def files_of(machine: Machine, bot: str) -> list[Path]:
    """Every file on the host whose name or content (but the events) has the bot's id."""
    named = {path for root in (machine.paths.state, machine.paths.units) for path in root.rglob(f"*{bot}*")}
    texts = [*machine.paths.maps.iterdir(), machine.paths.llm_keys]
    return sorted(named | {path for path in texts if bot in path.read_text()})


@pytest.mark.parametrize("flags", [(), ("--purge",)])
def test_nothing_is_left_of_a_bot(machine: Machine, engine: Engine, bot: str, flags: tuple[str, ...]) -> None:
    gone = ask(machine, "destroy", "one", "--yes", *flags)
    assert (gone["data"], gone["statement"]) == ("gone", None)
    assert files_of(machine, bot) == []
    assert engine.removed == [bot]
    assert ask(machine, "list", "--kept") == {"kept": []}
    assert declared(machine, wanted(1))[0]["id"] != bot


def certificate_of(machine: Machine, name: str) -> Path:
    """A certificate where Caddy keeps it."""
    place = machine.paths.certificates / "acme-v02.api.letsencrypt.org-directory" / name
    place.mkdir(parents=True)
    (place / f"{name}.key").write_text("a key")
    return place


@pytest.mark.parametrize("flags", [("--purge",), ("--keep-data",)])
def test_a_bots_own_certificate_goes_with_its_data_and_no_other(
    machine: Machine, bot: str, flags: tuple[str, ...]
) -> None:
    own = certificate_of(machine, "one.bots.example.test")
    others = [certificate_of(machine, f"{name}.bots.example.test") for name in ("two", "wildcard_")]
    ask(machine, "destroy", "one", "--yes", *flags)
    assert own.exists() == ("--keep-data" in flags)
    ask(machine, "destroy", "one", "--yes", "--purge", code=int("--purge" in flags))
    assert [path.exists() for path in (own, *others)] == [False, True, True]


def test_the_final_statement_and_the_advice_are_given(
    machine: Machine, bot: str, ledger: LedgerClient
) -> None:
    ledger.open([Opening(bot, 5 * NANO)], check=False)
    text = run(machine, "destroy", "one", "--yes").stdout
    assert "$5.00 left, $0.00 spent on 0 calls" in text
    assert "revoke it (@BotFather, /revoke, @bot_1_bot)" in text
    (event,) = ask(machine, "events", bot)["events"]
    assert event["details"]["statement"]["balance_dollars"] == "5.00"


def test_kept_data_is_the_same_bots_again_when_its_token_is_deployed(
    machine: Machine, homes: Homes, bot: str
) -> None:
    before = ask(machine, "show", "one")
    assert ask(machine, "destroy", "one", "--keep-data", "--yes")["data"] == "kept"
    assert files_of(machine, bot) == [homes.image(bot)]
    assert ask(machine, "list") == {"bots": []}
    assert [one["id"] for one in ask(machine, "list", "--kept")["kept"]] == [bot]
    assert "one" in run(machine, "list", "--kept").stdout
    (other,) = declared(machine, wanted(2, name="other"))
    assert other["uid"] != before["uid"], "its place is kept, too"

    (again,) = declared(machine, wanted(1, owner=None))
    assert (again["created"], again["restored"]) == (True, True)
    assert not other["restored"]
    assert {name: again[name] for name in ("id", "name", "uid", "address", "owner")} == {
        name: before[name] for name in ("id", "name", "uid", "address", "owner")
    }
    apply_home(machine, again)
    assert (machine.paths.bots / bot / "memory").read_text() == "remembered"
    assert ask(machine, "list", "--kept") == {"kept": []}


def test_kept_data_can_be_removed_for_good(machine: Machine, bot: str) -> None:
    ask(machine, "destroy", "one", "--keep-data", "--yes")
    assert not ask(machine, "destroy", "one", "--keep-data", "--yes")["changed"]
    assert ask(machine, "destroy", "--purge", bot, "--yes")["data"] == "gone"
    assert files_of(machine, bot) == []
    assert ask(machine, "list", "--kept") == {"kept": []}
    assert "No data" in run(machine, "list", "--kept").stdout


def test_a_name_that_was_taken_meanwhile_is_not_given_twice(machine: Machine, bot: str) -> None:
    ask(machine, "destroy", "one", "--keep-data", "--yes")
    declared(machine, wanted(2, name="one"))
    (again,) = declared(machine, wanted(1))
    assert (again["id"], again["name"]) == (bot, None)


def test_another_agent_gets_no_disk_of_this_one(machine: Machine, bot: str) -> None:
    ask(machine, "destroy", "one", "--keep-data", "--yes")
    request = {"run_id": "0123456789abcdef", "bots": [wanted(1, agent="openclaw")]}
    error = ask(machine, "declare", request=request, code=1)["error"]
    assert error["code"] == "agent_change"
    assert f"clawctl destroy --purge {bot}" in error["message"]
