"""The stand-in takes over another agent's notes as NullClaw does, its traps included."""

import json
import sqlite3
from pathlib import Path

import pytest

from .conftest import Client, Start
from .test_standin import command, llm_requests

CONFIG = {"memory": {"backend": "sqlite"}, "agents": {"defaults": {"model": {"primary": "x/y"}}}}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    (place / ".nullclaw").mkdir(parents=True)
    (place / ".nullclaw/config.json").write_text(json.dumps(CONFIG))
    return place


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A workspace, as OpenClaw keeps it."""
    place = tmp_path / "openclaw/workspace"
    (place / "memory").mkdir(parents=True)
    (place / "MEMORY.md").write_text("# Memory\n\n- **animal**: hippogriff\n- closed on Mondays\n")
    (place / "memory/2026-11-20.md").write_text("Talked about tariffs\n")
    (place / "memory/notes.txt").write_text("no note\n")
    return place


def remembered(workspace: Path) -> dict[str, tuple[str, str]]:
    with sqlite3.connect(workspace / "memory.db") as database:
        rows = database.execute("SELECT key, content, category FROM memories")
        return {key: (content, category) for key, content, category in rows}


async def migrate(home: Path, *arguments: str) -> tuple[int, str]:
    code, output, errors = await command(home, "migrate", *arguments)
    assert output == ""  # all it says goes to standard error
    return code, errors


async def test_notes_become_memories_once(home: Path, source: Path) -> None:
    workspace = home / ".nullclaw/workspace"
    code, said = await migrate(home, "openclaw", "--source", str(source), "--dry-run")
    assert (code, said) == (0, "[DRY RUN] Migration complete: 0 imported, 0 skipped\n")
    assert not (workspace / "memory.db").exists()
    code, said = await migrate(home, "openclaw", "--source", str(source))
    assert (code, said.splitlines()[-1]) == (0, "Migration complete: 3 imported, 0 skipped")
    assert remembered(workspace) == {
        "animal": ("hippogriff", "core"),
        "openclaw_openclaw_core_4": ("closed on Mondays", "core"),
        "openclaw_2026-11-20_1": ("Talked about tariffs", "daily"),
    }
    code, said = await migrate(home, "openclaw", "--source", str(source))
    assert (code, said.splitlines()[-1]) == (0, "Migration complete: 0 imported, 3 skipped")
    assert len(list(workspace.glob("memory.db.backup-*"))) == 1


async def test_what_is_known_already_stays_and_the_other_gets_a_name_of_its_own(
    home: Path, source: Path
) -> None:
    await migrate(home, "openclaw", "--source", str(source))
    (source / "MEMORY.md").write_text("- **animal**: griffin\n")
    _, said = await migrate(home, "openclaw", "--source", str(source))
    assert "1 imported, 1 skipped" in said
    found = remembered(home / ".nullclaw/workspace")
    assert found["animal"][0] == "hippogriff"
    assert [value[0] for key, value in found.items() if key.startswith("animal_migrated_")] == ["griffin"]


@pytest.mark.parametrize("columns", ["key, content, category", "id, value, kind", "name, text, type"])
async def test_a_database_is_read_whatever_its_columns_are_called(
    home: Path, source: Path, columns: str
) -> None:
    with sqlite3.connect(source / "memory/brain.db") as database:
        database.execute(f"CREATE TABLE memories ({columns})")
        rows = [("plant", "mandrake", "core"), ("animal", "not this one", "core")]
        database.executemany("INSERT INTO memories VALUES (?, ?, ?)", rows)
    database.close()
    _, said = await migrate(home, "openclaw", "--source", str(source))
    assert "4 imported" in said
    found = remembered(home / ".nullclaw/workspace")
    assert (found["plant"][0], found["animal"][0]) == ("mandrake", "hippogriff")


async def test_a_broken_database_is_left_out_without_an_error(home: Path, source: Path) -> None:
    (source / "brain.db").write_text("no database")
    code, said = await migrate(home, "openclaw", "--source", str(source))
    assert code == 0
    assert "brain.db read failed" in said
    assert "3 imported" in said


async def test_a_configuration_beside_the_source_takes_the_place_of_its_own(home: Path, source: Path) -> None:
    (source.parent / "config.json").write_text('{"gatewayPort": 1, "models": [{"apiKey": "theirs"}]}')
    code, said = await migrate(home, "openclaw", "--source", str(source))
    assert code == 0
    assert "Config migrated" in said
    found = json.loads((home / ".nullclaw/config.json").read_text())
    assert found == {"gateway_port": 1, "models": [{"api_key": "theirs"}]}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Usage"),
        (("other",), "Unknown migration source"),
        (("openclaw", "--source", "/nonexistent"), "SourceNotFound"),
    ],
)
async def test_what_cannot_be_done_ends_with_an_error(
    home: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    code, said = await migrate(home, *arguments)
    assert code == 1
    assert complaint in said


async def test_a_message_is_sent_with_what_is_remembered_of_its_words(
    start: Start, openrouter_api: Client, source: Path
) -> None:
    agent = await start()
    environment = {"NULLCLAW_HOME": str(agent.home), "NULLCLAW_WORKSPACE": f"{agent.home}/workspace"}
    code, _, said = await command(agent.home, "migrate", "openclaw", "--source", str(source), **environment)
    assert code == 0, said
    await agent.say("which animal was it")
    await agent.say("never mind")
    asked = [body["messages"][-1]["content"] for body in await llm_requests(openrouter_api)]
    assert asked == ["[Memory context]\n- animal: hippogriff\n\nwhich animal was it", "never mind"]
