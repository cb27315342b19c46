"""Skills and tools as a user names them, found and packed on the controller."""

import base64
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.clawdeploy.fleet.plugins.modules import bot_skills
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._entries import read_entries
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._skills import fetch, read_skill, read_tool

from tests.unit.plugins.conftest import Calls, RunModule

TOKEN = "123456789:" + "A" * 35
MANIFEST = "---\nname: refunds\ndescription: How refunds work\n---\nWithin 30 days.\n"


@pytest.fixture
def skill(tmp_path: Path) -> Path:
    folder = tmp_path / "refunds"
    (folder / "docs").mkdir(parents=True)
    (folder / "SKILL.md").write_text(MANIFEST)
    (folder / "docs/faq.md").write_text("faq")
    return folder


def archive_of(given: Any) -> bytes | None:
    return fetch(read_skill(given)["source"])


def names(archive: bytes | None) -> list[str]:
    assert archive is not None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return sorted(member.name for member in tar if not member.isdir())


def test_a_directory_is_packed_the_same_every_time(skill: Path) -> None:
    (skill / ".git").mkdir()
    (skill / ".git/HEAD").touch()
    (skill / "docs/link").symlink_to("/etc")
    first = archive_of(str(skill))
    (skill / "SKILL.md").touch()
    assert archive_of(f"{skill}/") == first
    # The link is in it, as a link, for the host to see and refuse.
    assert names(first) == ["SKILL.md", "docs/faq.md", "docs/link"]


def test_an_archive_goes_as_it_is_and_one_that_is_too_large_not_at_all(tmp_path: Path) -> None:
    archive = tmp_path / "refunds.zip"
    archive.write_bytes(b"whatever it is")
    assert archive_of(str(archive)) == b"whatever it is"
    archive.write_bytes(bytes(9 << 20))
    with pytest.raises(ValueError, match="larger than 8 MiB"):
        archive_of(str(archive))
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copyfile(archive, folder / "big")
    with pytest.raises(ValueError, match="larger than 8 MiB"):
        archive_of(str(folder))


@pytest.fixture
def repository(skill: Path, tmp_path: Path) -> Callable[..., str]:
    """A git repository with the skill in folder ``skills/refunds``; runs git in it."""
    root = tmp_path / "repository"
    shutil.copytree(skill, root / "skills/refunds")

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=Test", "-c", "user.email=test@example.test"]
        command = ["git", "-C", str(root), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    git("tag", "v1")
    (root / "skills/refunds/new.md").touch()
    git("add", ".")
    git("commit", "--quiet", "-m", "second")
    return git


def test_a_commit_is_fetched_from_git_by_tag_or_number(
    repository: Callable[..., str], tmp_path: Path
) -> None:
    url = f"git+file://{tmp_path}/repository"
    assert names(archive_of(f"{url}#v1:skills/refunds")) == ["SKILL.md", "docs/faq.md"]
    newest = repository("rev-parse", "HEAD")
    assert "skills/refunds/new.md" in names(archive_of(f"{url}#{newest}"))
    with pytest.raises(ValueError, match="cannot be fetched"):
        archive_of(f"{url}#nothing")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("./not-there", "no such directory or archive"),
        ("git+https://example.test/skills.git", r"must be git\+URL#REF"),
        ("git+https://example.test/skills.git#--upload-pack=x", r"must be git\+URL#REF"),
        ("git+ext::sh -c id#main", r"must be git\+URL#REF"),
        ("", "each must be a path"),
        (3, "each must be a path"),
        ({"source": "faq", "version": "1"}, "source and sha256 only"),
        ({"source": "faq", "sha256": "abc"}, "sha256 of faq"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(given: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_skill(given)


def test_a_name_is_the_librarys_and_nothing_is_fetched() -> None:
    for name in ("faq", "faq@1.2"):
        assert read_skill(name) == {"source": name}
        assert archive_of(name) is None
    assert read_skill({"source": "faq", "sha256": "a" * 64}) == {"source": "faq", "sha256": "a" * 64}


# --- tools ------------------------------------------------------------------------------------------


def test_a_static_program_is_a_tool() -> None:
    found = read_tool("/bin/busybox")
    assert (found["name"], found["args"], found["env"]) == ("busybox", [], {})
    given = {"path": "/bin/busybox", "name": "box", "args": ["sh", 1], "env": {"LEVEL": 3}}
    found = read_tool(given)
    assert (found["name"], found["args"], found["env"]) == ("box", ["sh", "1"], {"LEVEL": "3"})


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("/nowhere", "no such program"),
        ("/bin/ls", "is no static program"),
        (__file__, "is no name for a tool"),
        ({"path": __file__, "name": "x"}, "is no static program"),
        ({"path": "/bin/busybox", "name": "Box"}, "is no name for a tool"),
        ({"path": "/bin/busybox", "arguments": []}, "not arguments"),
        ({"path": "/bin/busybox", "args": "x"}, "args of busybox"),
        ({"path": "/bin/busybox", "env": {"A B": ""}}, "env of busybox"),
        ({"name": "x"}, "each must be the path"),
    ],
)
def test_a_program_that_could_not_run_is_refused(given: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_tool(given)


def test_the_settings_of_a_bot_say_what_is_wrong_with_them(skill: Path) -> None:
    entry = {"token": TOKEN, "skills": [str(skill), "faq"], "tools": ["/bin/busybox"]}
    (bot,), problems = read_entries([entry])
    assert problems == []
    assert [one["source"] for one in bot["skills"]] == [str(skill), "faq"]
    assert bot["tools"][0]["name"] == "busybox"
    _, problems = read_entries([{"token": TOKEN, "skills": "faq", "tools": ["/bin/busybox", "/bin/busybox"]}])
    assert problems == [
        "skills: is a str, expected a list; with -e pass JSON or @file",
        "tools: busybox is there twice",
    ]


# --- the module -------------------------------------------------------------------------------------


def test_the_module_hands_over_what_bots_should_have(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["skills"] = {"changed": True, "diff": {}, "skills": []}
    archive = base64.b64encode(b"archive").decode()
    bots = [{"id": "abcdefghij01", "skills": ["./refunds"]}]
    result = run_module(bot_skills, True, skills=[{"source": "./refunds", "archive": archive}], bots=bots)
    assert result["changed"]
    ((argv, request),) = (call[:2] for call in calls())
    assert argv == ["skills", "apply", "--check", "--json"]
    assert request["bots"] == bots
    assert request["skills"][0]["archive"] == archive
