"""What happened, as the registry keeps it and clawctl shows it."""

import json
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from clawdeploy import events
from clawdeploy.cli import Machine
from clawdeploy.models import Running
from clawdeploy.registry import Registry
from clawdeploy.store import RegistryStore

from .conftest import RUN, wanted
from .harness import ask, declared, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's")


def test_a_life_is_told_and_outlives_its_bot(machine: Machine) -> None:
    bot_id = declared(machine, wanted(1, name="one", owner=None))[0]["id"]
    for _ in range(2):
        with machine.changing() as registry:
            registry.activate(RUN, [Running(bot_id, "c" * 64, "sha256:1")])
        declared(machine, wanted(1, name="one"))
    with machine.changing() as registry:
        registry.set_owner(bot_id, "4711", "d" * 64)
        registry.set_owner(bot_id, "4711", "d" * 64)
    ask(machine, "suspend", "one", "--reason", "abuse")
    ask(machine, "destroy", "one", "--yes")
    for reference in ("one", bot_id):
        found = ask(machine, "events", reference)["events"]
        assert [event["kind"] for event in found] == ["deployed", "claimed", "suspended", "destroyed"]
        assert {event["bot"] for event in found} == {bot_id}
    text = run(machine, "events").stdout
    assert "one suspended: abuse" in text
    assert "one claimed by Telegram user 4711" in text


def test_events_hold_no_secret(machine: Machine) -> None:
    bot_id = declared(machine, wanted(1, name="one"))[0]["id"]
    secrets = json.loads((machine.paths.secrets / f"{bot_id}.json").read_text())
    ask(machine, "suspend", "one", "--reason", "x")
    ask(machine, "destroy", "one", "--yes")
    text = json.dumps(ask(machine, "events"))
    assert [secret for secret in secrets.values() if secret in text] == []


def test_the_newest_are_shown_and_those_since_a_time(machine: Machine, registry: Registry) -> None:
    for number in range(5):
        registry.store.add_event(1000.0 + number, None, None, "test", f"event {number}", {})
    shown = ask(machine, "events", "-n", "2")["events"]
    assert [event["message"] for event in shown] == ["event 3", "event 4"]
    assert shown[0]["time"] == "1970-01-01T00:16:43Z"
    since = ask(machine, "events", "--since", "1970-01-01T00:16:42")["events"]
    assert [event["message"] for event in since] == ["event 2", "event 3", "event 4"]
    assert ask(machine, "events", "nobody", code=1)["error"]["code"] == "unknown_bot"


def test_events_cannot_be_changed_and_only_the_oldest_go(paths_registry: Path) -> None:
    store = RegistryStore(paths_registry)
    events.record(store, "test", None, "the first")
    with sqlite3.connect(paths_registry) as db:
        for change in ("UPDATE event SET message = 'x'", "DELETE FROM event"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(change)
        db.execute("UPDATE sqlite_sequence SET seq = 100000 WHERE name = 'event'")
    events.record(store, "test", None, "the last")
    assert [event.message for event in store.events()] == ["the last"]
    store.close()
    db.close()


@pytest.fixture
def paths_registry(machine: Machine) -> Path:
    return machine.paths.registry


def test_new_events_are_followed(machine: Machine, registry: Registry) -> None:
    events.record(registry.store, "test", None, "before")

    def write() -> None:
        time.sleep(0.2)
        with machine.registry() as other:
            events.record(other.store, "test", None, "after")

    writer = threading.Thread(target=write)
    writer.start()
    followed = events.follow(registry.store, None, registry.store.events()[-1].id)
    assert next(followed).message == "after"
    writer.join()
