"""What a new bot is to take over, found and packed on the controller."""

import base64
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ansible_collections.clawdeploy.fleet.plugins.modules import bot_memories
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._card import render
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._entries import read_entries
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._memories import (
    gather,
    patterns_of,
    read_source,
)

from clawdeploy.memories import Taking
from tests.unit.plugins.conftest import Calls, Evaluate, RunModule
from tests.unit.plugins.profiles import BOT, HOST
from tests.unit.plugins.test_card import BOT as CARD

TOKEN = "123456789:" + "A" * 35
PATTERNS = {"MEMORY.md", "memory/*.md", "brain.db"}
# What `openclaw backup create` of 2026.9.6 makes.
BACKUP = "2026-11-27T01-03-14.154+00-00-openclaw-backup"
STATE = f"{BACKUP}/payload/posix/home/node/.openclaw"
FILES = {
    f"{STATE}/openclaw.json": b'{"token": "secret"}',
    f"{STATE}/workspace/MEMORY.md": b"closed on Mondays",
    f"{STATE}/workspace/memory/2026-11-20.md": b"tariffs",
    f"{STATE}/workspace/memory/deep/er.md": b"never read",
    f"{BACKUP}/manifest.json": b"{}",
}
WANTED = {f"{STATE}/workspace/MEMORY.md", f"{STATE}/workspace/memory/2026-11-20.md"}


def entries(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: entry for entry in tar}


def as_tar(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def as_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)


def as_directory(path: Path) -> None:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


@pytest.mark.parametrize("make", [as_tar, as_zip, as_directory])
def test_only_what_may_be_remembered_leaves_this_machine(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "export")
    archive = gather(str(tmp_path / "export"), PATTERNS)
    assert set(entries(archive)) == WANTED
    assert b"secret" not in archive
    assert b"closed on Mondays" in archive


def test_links_and_what_leads_out_go_as_they_are_for_the_host_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "export.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("MEMORY.md", tarfile.SYMTYPE), ("../MEMORY.md", tarfile.CHRTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, "/etc/shadow", 0o4755
            tar.addfile(entry)
    found = entries(gather(str(path), PATTERNS))
    assert {name: (entry.isfile(), entry.mode) for name, entry in found.items()} == {
        "MEMORY.md": (False, 0o4755),
        "../MEMORY.md": (False, 0o4755),
    }
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "MEMORY.md").symlink_to("/etc/shadow")
    assert not entries(gather(str(folder), PATTERNS))["MEMORY.md"].isfile()
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        link = zipfile.ZipInfo("MEMORY.md")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/shadow")
    assert not entries(gather(str(tmp_path / "export.zip"), PATTERNS))["MEMORY.md"].isfile()


def test_what_is_no_archive_or_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "export.tar"
    path.write_bytes(b"no archive " * 100)
    with pytest.raises(ValueError, match="no archive that can be read"):
        gather(str(path), PATTERNS)
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "big.md").write_bytes(bytes(9 << 20))
    with pytest.raises(ValueError, match="larger than 8 MiB"):
        gather(str(tmp_path), PATTERNS)


def test_a_source_is_a_bot_or_something_on_this_machine(tmp_path: Path) -> None:
    assert read_source("abcdefghij01") == "abcdefghij01"
    assert read_source("claw") == "claw"
    assert read_source(f"{tmp_path}/") == str(tmp_path)
    for wrong in ("./not-there.tar.gz", "export.tar.gz", "Not_A_Bot"):
        bots, problems = read_entries([{"token": TOKEN, "migrate_from": wrong}])
        assert not bots
        assert problems == [
            f"migrate_from: {wrong!r} is neither the id or name of a bot nor an archive or a directory on "
            "this machine"
        ]


def test_the_host_gets_the_archive_and_nobody_else(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["memories"] = {"changed": False, "bots": [{"telegram_id": 1, "facts": None}]}
    archive = base64.b64encode(b"what was said to a bot").decode()
    bot = {"telegram_id": 1, "agent": "a", "source": "/export", "archive": archive, "imports": {}}
    result = run_module(bot_memories, check_mode=True, bots=[bot])
    assert calls() == [[["memories", "apply", "--check", "--json"], {"bots": [bot]}]]
    assert archive not in json.dumps(result)


# --- what the role makes of it ---


def asked(**changes: Any) -> dict[str, Any]:
    (bot,), problems = read_entries([{"token": TOKEN, "migrate_from": "claw"} | changes])
    assert not problems
    return bot


def test_an_agent_that_cannot_take_over_anything_refuses(evaluate: Evaluate) -> None:
    look: dict[str, Any] = {"bots": []}
    said = evaluate("__bot_heir_problem", asked=asked(agent="openclaw"), __bot_look=look)
    assert said == "migrate_from: agent openclaw has no way to take over what another bot knew; leave it out"
    assert not evaluate("__bot_heir_problem", asked=asked(), __bot_look=look).strip()


def test_clawctl_takes_what_the_role_asks_for(evaluate: Evaluate) -> None:
    first = evaluate("__bot_heir", asked=asked(), __bot_look={"bots": []})
    found = msgspec.json.decode(json.dumps(first), type=Taking)
    assert (found.source, found.agent, found.container) == ("claw", "nullclaw", None)
    bot = BOT | asked() | {"agent": "nullclaw", "bot_env": {}, "bot_config": {}}
    pinned = {bot["image"]: "sha256:" + "a" * 64}
    then = evaluate("__bot_taking", bot=bot, __bot_look={"host": HOST}, __bot_pinned=pinned)
    container = msgspec.json.decode(json.dumps(then), type=Taking).container
    assert container is not None
    assert container.image == "sha256:" + "a" * 64


def test_only_a_bot_of_the_host_is_named_to_the_registry(evaluate: Evaluate, tmp_path: Path) -> None:
    scope = {
        "__bot_look": {"bots": [], "images": {}},
        "asked": asked() | {"telegram_id": 1, "username": "a_bot"},
    }
    assert evaluate("__bot_declaration", **scope)["migrate_from"] == "claw"
    for source in (None, str(tmp_path)):
        scope["asked"] |= {"migrate_from": source}
        assert evaluate("__bot_declaration", **scope)["migrate_from"] is None


def test_the_agents_command_sees_no_configuration_that_would_replace_its_own(
    role_variables: dict[str, Any],
) -> None:
    profile = role_variables["__bot_profiles"]["__bot_nullclaw"]
    for rules in profile["imports"].values():
        assert not [pattern for pattern in patterns_of({"x": rules}) if "json" in pattern or pattern == "*"]
        # It also looks one directory higher: where it is shown the workspace must be a directory of its own.
        assert rules["mount"].count("/") > 2
        assert rules["mount"] in rules["command"]


def test_the_card_says_what_came_over() -> None:
    known = {"label": "claw", "agent": "openclaw", "notes": 12, "files": ["MEMORY.md", "USER.md"]}
    assert "Memory:        12 notes of claw (openclaw), from 2 files" in render(
        [CARD | {"memories": known}], ""
    )
    assert "12 notes" in render([CARD | {"memories": known}, CARD], "")
    assert "Memory:" not in render([CARD | {"memories": None}], "")
