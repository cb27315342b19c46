"""What a new bot takes over of another agent's: what is taken, what is refused, and that it happens once."""

import base64
import gzip
import io
import json
import os
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clawdeploy import backup
from clawdeploy.archives import Entry, plain_files
from clawdeploy.cli import Machine
from clawdeploy.containers import ContainerSpec, MountSpec
from clawdeploy.engine import Engine as RealEngine
from clawdeploy.errors import ClawError
from clawdeploy.host import Paths
from clawdeploy.memories import RULES, ImportRules, _choose, _flattened
from clawdeploy.storage import HomeRequest, Homes
from tests.standin.build import build_binary, build_image

from .conftest import Engine, container_spec, wanted
from .harness import ask, declared, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

IMPORTS = {
    "elder": {
        "workspace": "data/workspace",
        "notes": ["MEMORY.md", "memory/*.md"],
        "databases": ["memory/brain.db", "brain.db"],
        "files": {"USER.md": "data/workspace/USER.md"},
        "note_limit": 1 << 20,
        "command": ["migrate", "openclaw", "--source", "/mnt/source"],
        "mount": "/mnt/source",
        "answer": r"Migration complete: (\d+) imported, (\d+) skipped",
    }
}
NOTES = {
    "MEMORY.md": b"# Memory\n\n- **animal**: hippogriff\n- closed on Mondays\n",
    "USER.md": b"# User\nCall her Ann.\n",
    "memory/2026-11-20.md": b"Talked about tariffs\n",
}
SECRET = b"a key that stays where it is"
HEIR, ELDER = 1_000_002, 1_000_001


class Importer(Engine):
    """Runs what is to run once with the agent's stand-in, which finds the bot's home where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.program = str(build_binary())
        self.saw: list[set[str]] = []
        self.before: Callable[[], None] = lambda: None

    def once(
        self, bot_id: str, spec: ContainerSpec, command: Sequence[str], mount: MountSpec, seconds: int
    ) -> tuple[int, str]:
        self._call("once", bot_id)
        self.before()
        assert mount.read_only
        stage = Path(mount.source)
        root = stage.parent
        self.saw.append({str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()})
        places = {"NULLCLAW_HOME": root / "config", "NULLCLAW_WORKSPACE": root / "data/workspace"}
        done = subprocess.run(
            [self.program, *(mount.source if word == mount.target else word for word in command)],
            env={name: str(place) for name, place in places.items()},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def engine() -> Engine:
    return Importer()


def at_home(machine: Machine, homes: Homes, bot: dict[str, Any]) -> Path:
    """Give the bot a disk; returns its workspace."""
    folders = [{"path": path, "mode": "0700"} for path in ("config", "data", "data/workspace")]
    content = json.dumps({"memory": {"backend": "sqlite"}})
    files = [
        {"path": "config/config.json", "content": content, "mode": "0400"},
        {"path": "data/workspace/USER.md", "content": "Nothing is known.\n", "mode": "0600", "seed": True},
    ]
    home = {"id": bot["id"], "uid": bot["uid"], "disk_size": 32 << 20}
    homes.apply([msgspec.convert(home | {"directories": folders, "files": files}, HomeRequest)])
    return homes.mount_point(str(bot["id"])) / "data/workspace"


@pytest.fixture
def elder(machine: Machine, homes: Homes, engine: Engine) -> Path:
    """The workspace of a running bot of the other agent, called ``elder``, with things of all kinds in it."""
    (bot,) = declared(machine, wanted(1, name="elder", agent="elder"))
    workspace = at_home(machine, homes, bot)
    for path, content in NOTES.items():
        (workspace / path).parent.mkdir(exist_ok=True)
        (workspace / path).write_bytes(content)
    (workspace.parent / "openclaw.json").write_bytes(SECRET)
    (workspace.parent / "config.json").write_text('{"apiKey": "theirs"}')
    (workspace / "config.json").write_text('{"apiKey": "theirs"}')
    (workspace / "memory/notes.txt").write_bytes(SECRET)
    engine.made[bot["id"]] = msgspec.convert(container_spec(), ContainerSpec)
    return workspace


@pytest.fixture
def heir(machine: Machine, homes: Homes) -> Path:
    """The workspace of a new bot that has not started yet."""
    (bot,) = declared(machine, wanted(2, name="heir"))
    return at_home(machine, homes, bot)


def taking(source: str = "elder", archive: bytes | None = None, **changes: Any) -> dict[str, Any]:
    """One bot's request."""
    packed = {} if archive is None else {"archive": base64.b64encode(archive).decode()}
    base = {"telegram_id": HEIR, "agent": "nullclaw", "source": source, "imports": IMPORTS}
    return {"bots": [base | {"container": container_spec()} | packed | changes]}


def apply(machine: Machine, **arguments: Any) -> Any:
    return ask(machine, "memories", "apply", request=taking(**arguments))


def refused(machine: Machine, check: bool = True, **arguments: Any) -> str:
    options = ("--check",) if check else ()
    answer = ask(machine, "memories", "apply", *options, request=taking(**arguments), code=1)
    return str(answer["error"]["message"])


def remembered(workspace: Path) -> dict[str, str]:
    with sqlite3.connect(workspace / "memory.db") as database:
        found = dict(database.execute("SELECT key, content FROM memories"))
    database.close()
    return found


def tar_of(members: dict[str | tarfile.TarInfo, bytes] | dict[str, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in members.items():
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return output.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = kind, mode, target
    return entry


def brain(path: Path, *, open_: bool = False) -> sqlite3.Connection:
    """A database of memories, whose newest row is in its write-ahead log only."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA wal_autocheckpoint = 0")
    database.execute("CREATE TABLE memories (key TEXT, content TEXT, category TEXT)")
    database.commit()
    database.execute("INSERT INTO memories VALUES ('plant', 'mandrake', 'core')")
    database.commit()
    if not open_:
        database.close()
    return database


# --- taking over ------------------------------------------------------------------------------------


def test_a_new_bot_knows_what_the_other_wrote_down_and_gets_nothing_else(
    machine: Machine, engine: Importer, elder: Path, heir: Path
) -> None:
    before = {path: path.read_bytes() for path in elder.parent.rglob("*") if path.is_file()}
    answer = apply(machine)
    assert answer["changed"]
    facts = answer["bots"][0]["facts"]
    assert (facts["label"], facts["agent"], facts["notes"]) == ("elder", "elder", 3)
    assert facts["files"] == sorted(NOTES)
    assert engine.saw == [set(NOTES)]
    assert sorted(remembered(heir).values()) == ["Talked about tariffs", "closed on Mondays", "hippogriff"]
    assert (heir / "USER.md").read_bytes() == NOTES["USER.md"]
    assert (heir / "USER.md").stat().st_uid == heir.stat().st_uid
    for path in heir.parents[1].rglob("*"):
        assert not path.is_file() or SECRET not in path.read_bytes()
    assert json.loads((heir.parents[1] / "config/config.json").read_text()) == {
        "memory": {"backend": "sqlite"}
    }
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in heir.parents[1].iterdir()) == [
        *("config", "data", "lost+found", "memories.json")
    ]
    shown = run(machine, "memories", "show", "heir").stdout
    assert "3 notes of elder (elder)" in shown
    (event,) = ask(machine, "events", "heir")["events"]
    assert event["kind"] == "migrated"
    assert event["details"]["notes"] == 3


def test_it_happens_once_even_when_the_source_is_gone(
    machine: Machine, engine: Importer, elder: Path, heir: Path, homes: Homes
) -> None:
    assert ask(machine, "memories", "apply", "--check", request=taking())["changed"]
    assert not (heir / "memory.db").exists()
    first = apply(machine)
    (elder / "MEMORY.md").write_text("- **animal**: griffin\n")
    again = apply(machine)
    assert not again["changed"]
    assert again["bots"] == first["bots"]
    ask(machine, "destroy", "elder", "--yes")
    assert not apply(machine)["changed"]
    assert len(engine.saw) == 1
    assert "elder knew, and that is not mixed" in refused(machine, source="x", archive=tar_of(NOTES))


def test_before_there_is_a_bot_it_is_only_checked(machine: Machine, elder: Path) -> None:
    answer = ask(machine, "memories", "apply", "--check", request=taking(container=None))
    assert not answer["changed"]
    assert answer["bots"] == [{"telegram_id": HEIR, "facts": None}]
    # As a deploy in check mode does, whose bot is in no registry.
    assert ask(machine, "memories", "apply", "--check", request=taking())["changed"]
    assert ask(machine, "memories", "apply", request=taking(), code=1)["error"]["code"] == "unknown_bot"


def test_the_source_stands_still_while_it_is_read_and_goes_on_after_that(
    machine: Machine, engine: Importer, elder: Path, heir: Path
) -> None:
    still = list[set[str]]()
    engine.before = lambda: still.append(engine.frozen)
    apply(machine)
    elder_id = elder.parents[1].name
    assert [name for name, bot in engine.calls if bot == elder_id] == ["freeze", "thaw"]
    assert still == [set()]


def test_a_running_backup_is_not_disturbed(machine: Machine, elder: Path, heir: Path) -> None:
    with backup.alone(machine.paths):
        assert "another backup" in refused(machine, check=False)
    assert apply(machine)["changed"]


def test_a_database_comes_along_with_its_log_as_one_file(machine: Machine, elder: Path, heir: Path) -> None:
    database = brain(elder / "memory/brain.db", open_=True)
    assert (elder / "memory/brain.db-wal").stat().st_size > 0
    facts = apply(machine)["bots"][0]["facts"]
    database.close()
    assert facts["notes"] == 4
    assert facts["files"] == sorted([*NOTES, "memory/brain.db"])
    assert remembered(heir)["plant"] == "mandrake"


def test_a_bot_whose_data_was_kept_is_read_from_its_disk(
    machine: Machine, elder: Path, heir: Path, paths: Paths
) -> None:
    elder_id = elder.parents[1].name
    ask(machine, "destroy", "elder", "--keep-data", "--yes")
    image = paths.disks / f"{elder_id}.img"
    before = image.read_bytes()
    assert apply(machine, source=elder_id)["bots"][0]["facts"]["source"] == elder_id
    assert "hippogriff" in remembered(heir).values()
    assert image.read_bytes() == before
    assert [one["id"] for one in ask(machine, "list", "--kept")["kept"]] == [elder_id]


def test_a_failed_import_can_be_repeated(machine: Machine, engine: Importer, elder: Path, heir: Path) -> None:
    good, engine.program = engine.program, "/bin/false"
    answer = ask(machine, "memories", "apply", request=taking(), code=1)
    assert answer["error"]["code"] == "import_failed"
    assert not (heir.parents[1] / "memories.json").exists()
    assert not (heir.parents[1] / "memories.new").exists()
    assert (heir / "USER.md").read_text() == "Nothing is known.\n"
    engine.program = "/bin/true"  # it ends well, but has not said what it did
    assert "it said nothing" in refused(machine, check=False)
    engine.program = good
    assert apply(machine)["bots"][0]["facts"]["notes"] == 3


def test_a_bot_that_has_run_keeps_its_own_memory(
    machine: Machine, engine: Importer, elder: Path, heir: Path, ledger: Any
) -> None:
    with machine.registry() as registry:
        registry.store.put_container(heir.parents[1].name, msgspec.convert(container_spec(), ContainerSpec))
    assert "heir has run already" in refused(machine)
    assert engine.saw == []


def test_a_bot_that_comes_back_to_its_own_data_takes_over_nothing(
    machine: Machine, elder: Path, heir: Path
) -> None:
    ask(machine, "destroy", "heir", "--keep-data", "--yes")
    assert "its own data comes back" in refused(machine, container=None)


# --- the same token ---------------------------------------------------------------------------------


def test_a_token_can_change_its_agent_once_what_was_there_is_kept(
    machine: Machine, homes: Homes, elder: Path
) -> None:
    elder_id = elder.parents[1].name
    new = wanted(1, migrate_from="elder")
    request = {"run_id": "f" * 16, "bots": [new]}
    here = taking(telegram_id=ELDER)
    assert not ask(
        machine, "memories", "apply", "--check", request=taking(telegram_id=ELDER, container=None)
    )["changed"]
    ask(machine, "release", request={"run_id": "0123456789abcdef"})
    said = ask(machine, "declare", request=request, code=1)["error"]["message"]
    assert "`clawctl destroy --keep-data elder`" in said
    assert f"migrate_from={elder_id}" in said

    ask(machine, "destroy", "elder", "--keep-data", "--yes")
    plain = ask(machine, "declare", request={"run_id": "f" * 16, "bots": [wanted(1)]}, code=1)["error"]
    assert plain["code"] == "agent_change"
    assert f"migrate_from={elder_id}" in plain["message"]
    (bot,) = ask(machine, "declare", request=request)["bots"]
    assert bot["id"] != elder_id
    workspace = at_home(machine, homes, bot)
    assert ask(machine, "memories", "apply", request=here)["changed"]
    assert "hippogriff" in remembered(workspace).values()
    # And again, with the bot there and the other's data still kept.
    ask(machine, "release", request={"run_id": "f" * 16})
    (again,) = ask(machine, "declare", request={"run_id": "e" * 16, "bots": [new]})["bots"]
    assert (again["id"], again["created"]) == (bot["id"], False)
    assert not ask(machine, "memories", "apply", request=here)["changed"]
    # There is room for one bot's data per token.
    said = ask(machine, "destroy", bot["id"], "--keep-data", "--yes", code=1)["error"]["message"]
    assert f"`clawctl destroy --purge {elder_id}`" in said
    ask(machine, "destroy", elder_id, "--purge", "--yes")
    ask(machine, "destroy", bot["id"], "--keep-data", "--yes")


# --- archives ---------------------------------------------------------------------------------------

ROOTS = [
    "",
    "./",
    "workspace/",
    ".openclaw/workspace/",
    # What `openclaw backup create` of 2026.9.6 makes.
    "2026-11-27T01-03-14.154+00-00-openclaw-backup/payload/posix/home/node/.openclaw/workspace/",
]


@pytest.mark.parametrize("root", ROOTS)
def test_the_workspace_is_found_wherever_an_archive_has_it(machine: Machine, heir: Path, root: str) -> None:
    members = {f"{root}{path}": content for path, content in NOTES.items()}
    noise = {
        f"{root}skills/x/MEMORY.md": b"deeper",
        f"{root}docs/memory/old.md": b"deeper",
        f"{root}config.json": SECRET,
    }
    facts = apply(machine, source="/home/a/export.tar.gz", archive=gzip.compress(tar_of(members | noise)))
    assert facts["bots"][0]["facts"] | {"source": "", "since": 0} == {
        "source": "",
        "asked": "export.tar.gz",
        "label": "export.tar.gz",
        "agent": "elder",
        "notes": 3,
        "files": sorted(NOTES),
        "since": 0,
    }
    assert "hippogriff" in remembered(heir).values()
    again = apply(machine, source="./other-name.tar", archive=tar_of(members))
    assert not again["changed"], "it is the same, whatever it is called and however it is packed"


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({}, "none of MEMORY.md, memory/*.md"),
        ({"workspace/README.md": b""}, "nothing was written down there"),
        ({"a/workspace/MEMORY.md": b"x", "b/workspace/MEMORY.md": b"y"}, "more than one workspace"),
        ({"../MEMORY.md": b""}, "no name for a file"),
        ({"/etc/MEMORY.md": b""}, "no name for a file"),
        ({"workspace/../../MEMORY.md": b""}, "no name for a file"),
        ({"workspace/memory/a\nb.md": b""}, "no name for a file"),
        ({member("workspace/MEMORY.md", tarfile.SYMTYPE, target="/etc/shadow"): b""}, "no plain file"),
        ({member("workspace/MEMORY.md", tarfile.LNKTYPE, target="x"): b""}, "no plain file"),
        ({member("workspace/memory/a.md", tarfile.CHRTYPE): b""}, "no plain file"),
        ({member("workspace/memory/a.md", tarfile.FIFOTYPE): b""}, "no plain file"),
        ({member("workspace/USER.md", mode=0o4755): b""}, "setuid"),
        ({"workspace/MEMORY.md": b"\xff\xfe"}, "no text in UTF-8"),
        ({"workspace/MEMORY.md": b"a\0b"}, "no text in UTF-8"),
        ({"workspace/MEMORY.md": bytes(1 << 20) + b"x"}, "larger than 1024 KiB"),
        ({f"memory/{number}.md": bytes(1 << 20) for number in range(9)}, "larger than 8 MiB"),
        ({f"memory/{number}.md": b"" for number in range(2001)}, "more than 2000 files"),
        ({"brain.db": b"SQLite format 3\0 and junk"}, "no SQLite database"),
    ],
)
def test_what_is_wrong_with_an_archive_is_said_before_anything_is_changed(
    machine: Machine, heir: Path, entries: dict[Any, bytes], complaint: str
) -> None:
    said = refused(machine, source="./export.tar", archive=tar_of(entries), check=False)
    assert complaint in said
    assert said.startswith("migrate_from ./export.tar: ") or "(1) migrate_from ./export.tar: " in said
    assert not (heir.parents[1] / "memories.json").exists()
    assert not (heir / "memory.db").exists()


@pytest.mark.parametrize("junk", [b"", b"no archive at all" * 40, gzip.compress(bytes(200 << 20))])
def test_what_is_no_archive_is_refused(machine: Machine, junk: bytes) -> None:
    said = refused(machine, source="./export.tar", archive=junk)
    assert "neither a tar nor a zip" in said or "larger than" in said or "nothing was written down" in said


PARTS = st.sampled_from(["..", ".", "", "workspace", "memory", "MEMORY.md", "a.md", "USER.md", "\\", "x"])


@given(st.lists(st.lists(PARTS, min_size=1, max_size=6).map("/".join), min_size=1, max_size=6))
def test_no_name_in_an_archive_leads_out_of_its_workspace(paths: list[str]) -> None:
    rules = msgspec.convert(IMPORTS["elder"], ImportRules)
    entries = [Entry(path, 0o100644, 0, lambda: b"") for path in paths]
    try:
        files = plain_files(RULES, "given", _choose("given", rules, entries))
    except ClawError:
        return
    for path in files:
        assert rules.wants(path)
        assert os.path.normpath(f"/place/{path}") == f"/place/{path}"


# --- bots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MEMORY.md", "memory/2026-11-20.md", "memory"])
def test_a_link_in_a_bots_workspace_is_not_followed(
    machine: Machine, elder: Path, heir: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "outside"
    target.mkdir()
    (target / "secret.md").write_bytes(SECRET)
    place = elder / name
    subprocess.run(["rm", "-r", str(place)], check=True)
    place.symlink_to(target if name == "memory" else target / "secret.md")
    assert "no directory" in (said := refused(machine)) or "no plain file" in said
    assert not (heir / "memory.db").exists()


def test_a_pipe_in_a_bots_workspace_holds_nobody_up(machine: Machine, elder: Path) -> None:
    (elder / "USER.md").unlink()
    os.mkfifo(elder / "USER.md")
    assert "USER.md is no plain file" in refused(machine)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"source": "nobody"}, "no other bot of that id or name"),
        ({"source": "heir"}, "no other bot of that id or name"),
        (
            {"source": "third"},
            "third runs nullclaw, and nullclaw takes over only what bots of these agents know: elder",
        ),
        ({"imports": {}}, "of these agents know: none"),
    ],
)
@pytest.mark.usefixtures("elder", "heir")
def test_a_source_that_cannot_be_meant_is_refused(
    machine: Machine, homes: Homes, changes: dict[str, Any], complaint: str
) -> None:
    (third,) = declared(machine, wanted(3, name="third"))
    at_home(machine, homes, third)
    assert complaint in refused(machine, **changes)


def test_all_that_is_wrong_is_said_at_once(machine: Machine, elder: Path) -> None:
    (elder / "MEMORY.md").write_bytes(b"\xff")
    (elder / "USER.md").write_bytes(b"\xff")
    request = taking()
    request["bots"].append(request["bots"][0] | {"source": "nobody"})
    problems = ask(machine, "memories", "apply", request=request, code=1)["error"]["problems"]
    assert [one["code"] for one in problems] == ["source_invalid"] * 3


def test_a_database_that_does_harm_ends_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "brain.db"
    database = sqlite3.connect(path)
    # Looks like a table, and would count for ever.
    database.execute(
        "CREATE VIEW memories AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT i AS content FROM n"
    )
    database.commit()
    database.close()
    assert _flattened(path.read_bytes(), b"") is None


def test_limits_leave_room_in_a_small_bot() -> None:
    assert RULES.most_bytes * 4 <= 64 << 20


# --- in a real container ----------------------------------------------------------------------------


@pytest.fixture
def profile() -> dict[str, Any]:
    """What the role knows of the agent that the stand-in stands for."""
    path = Path(__file__).parents[3] / "roles/bot/vars/nullclaw.yml"
    found: dict[str, Any] = yaml.safe_load(path.read_text())["__bot_nullclaw"]
    return found


@pytest.fixture
def standin(client: Any) -> Iterator[str]:
    """Id of the stand-in's image, which Docker has."""
    image = build_image()
    present = any(known.id == image.image_id for known in client.images.list())
    client.images.load(Path(image.archive).read_bytes())
    yield image.image_id
    if not present:
        client.images.remove(image.image_id, force=True)


@pytest.mark.docker
def test_the_agents_own_command_does_it_in_a_container_like_the_bots(
    machine: Machine, homes: Homes, elder: Path, profile: dict[str, Any], standin: str
) -> None:
    brain(elder / "brain.db")
    (bot,) = declared(machine, wanted(2, name="heir"))
    config = json.dumps({"memory": {"backend": "sqlite"}})
    home = {
        "id": bot["id"],
        "uid": bot["uid"],
        "disk_size": 32 << 20,
        "directories": profile["directories"],
        "files": [{"path": "config/config.json", "content": config, "mode": "0400"}],
    }
    homes.apply([msgspec.convert(home, HomeRequest)])
    root = homes.mount_point(bot["id"])
    container = container_spec(
        image=standin,
        command=profile["command"],
        env=profile["env"],
        user=f"{bot['uid']}:{bot['uid']}",
        mounts=[mount | {"source": f"{root}/{mount['source']}"} for mount in profile["mounts"]],
        tmpfs=profile["tmpfs"],
    )
    real = replace(machine, engine=RealEngine)
    imports = {"elder": profile["imports"]["openclaw"]}
    answer = ask(real, "memories", "apply", request=taking(container=container, imports=imports))
    assert answer["bots"][0]["facts"]["notes"] == 4
    assert sorted(remembered(root / "data/workspace").values()) == sorted(
        ["Talked about tariffs", "closed on Mondays", "hippogriff", "mandrake"]
    )
    assert (root / "data/workspace/memory.db").stat().st_uid == bot["uid"]
    assert (root / "data/workspace/USER.md").read_bytes() == NOTES["USER.md"]
    assert (root / "config/config.json").read_text() == config
