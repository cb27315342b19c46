"""Skills: what is refused, and what becomes of a bot's own disk when it is taught something."""

import base64
import gzip
import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawdeploy.cli import Machine
from clawdeploy.containers import ContainerSpec
from clawdeploy.errors import ClawError
from clawdeploy.host import Paths
from clawdeploy.skills import MOST_BYTES, MOST_FILES, read_archive, read_bundle
from clawdeploy.storage import HomeRequest, Homes

from .conftest import container_spec, set_host, wanted
from .harness import ask, declared, run

RULES = {
    "source": "skills",
    "touch": "data/workspace/TOOLS.md",
    "manifest": "skill.json",
    "manifest_content": {"always": True},
}


def manifest(name: str = "refunds", version: str = "1.0", text: str = "Refund within 30 days.") -> bytes:
    return f"---\nname: {name}\ndescription: How refunds work\nversion: {version}\n---\n{text}\n".encode()


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes], packed: bool = True) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in members:
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(output.getvalue()) if packed else output.getvalue()


def zip_of(**files: bytes) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return output.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = kind, mode, target
    return entry


def refused(archive: bytes) -> str:
    with pytest.raises(ClawError) as refusal:
        read_archive("given", archive)
    assert refusal.value.problems[0][0] == "skill_invalid"
    return refusal.value.message


# --- checks -----------------------------------------------------------------------------------------


def test_a_skill_is_the_same_however_it_comes(tmp_path: Path) -> None:
    folder = tmp_path / "any"
    (folder / "docs").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("not part of it")
    (folder / "SKILL.md").write_bytes(manifest())
    (folder / "docs/faq.md").write_text("faq")
    found = [
        read_bundle("given", folder),
        read_archive("given", tar_of(("./docs/faq.md", b"faq"), ("./SKILL.md", manifest()))),
        read_archive(
            "given", tar_of(("top/SKILL.md", manifest()), ("top/docs/faq.md", b"faq"), packed=False)
        ),
        read_archive("given", zip_of(**{"SKILL.md": manifest(), "docs/faq.md": b"faq"})),
    ]
    assert {(one.name, one.version, one.sha256) for one in found} == {("refunds", "1.0", found[0].sha256)}
    assert sorted(found[0].files) == ["SKILL.md", "docs/faq.md"]
    changed = read_archive("given", tar_of(("SKILL.md", manifest()), ("docs/faq.md", b"FAQ")))
    assert changed.sha256 != found[0].sha256


def test_a_skill_without_a_version_is_called_by_its_checksum() -> None:
    found = read_archive("given", tar_of(("SKILL.md", b"---\nname: a\ndescription: b\n---\n")))
    assert found.version == found.sha256[:12]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("../outside", "no name for a file"),
        ("/etc/passwd", "no name for a file"),
        ("docs/../../outside", "no name for a file"),
        ("docs//twice", "no name for a file"),
        ("back\\slash", "no name for a file"),
        ("line\nbreak", "no name for a file"),
        ("a/b/c/d/e/f/g/deep", "at most 6 directories deep"),
        (member("link", tarfile.SYMTYPE, target="/etc/passwd"), "no plain file"),
        (member("inside", tarfile.SYMTYPE, target="SKILL.md"), "no plain file"),
        (member("hard", tarfile.LNKTYPE, target="SKILL.md"), "no plain file"),
        (member("device", tarfile.CHRTYPE), "no plain file"),
        (member("pipe", tarfile.FIFOTYPE), "no plain file"),
        (member("root", mode=0o4755), "setuid"),
        (member("group", mode=0o2755), "setgid"),
        ("SKILL.md", "twice"),
        ("SKILL.md/below", "both a file and a directory"),
    ],
)
def test_what_must_not_be_in_a_skill_is_named(name: str | tarfile.TarInfo, complaint: str) -> None:
    assert complaint in refused(tar_of(("SKILL.md", manifest()), (name, b"")))


def test_a_zip_may_hold_no_more_than_a_tar() -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr("SKILL.md", manifest())
        archive.writestr(link, "/etc/passwd")
    assert "no plain file" in refused(output.getvalue())
    assert "no name" in refused(zip_of(**{"SKILL.md": manifest(), "../outside": b""}))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big", bytes(200 << 20))
    assert "larger than" in refused(bomb.getvalue())


def test_a_skill_is_small_and_a_bomb_does_not_go_off() -> None:
    many = [(f"file-{number}", b"") for number in range(MOST_FILES)]
    assert "more than 200 files" in refused(tar_of(("SKILL.md", manifest()), *many))
    assert "larger than 2 MiB" in refused(tar_of(("SKILL.md", manifest()), ("big", bytes(MOST_BYTES))))
    assert "larger than 2 MiB" in refused(gzip.compress(bytes(500 << 20)))
    assert "larger than 128 KiB" in refused(tar_of(("SKILL.md", manifest(text="x" * (128 << 10)))))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"no front matter", "must be UTF-8 text that begins with ---"),
        (b"---\nname: [\n---\n", "must be UTF-8"),
        (b"---\n- name\n---\n", "must be UTF-8"),
        (b"\xff\xfe", "must be UTF-8"),
        (b"---\nname: Bad Name\ndescription: x\n---\n", "its name"),
        (b"---\nname: ../up\ndescription: x\n---\n", "its name"),
        (b"---\nname: good\n---\n", "its description"),
        (b"---\nname: good\ndescription: x\nversion: ../1\n---\n", "its version"),
        (b"---\nname: good\ndescription: x\nversion: [1]\n---\n", "its version"),
        (b"---\nname: !!python/object/apply:os.getcwd []\ndescription: x\n---\n", "its name"),
    ],
)
def test_a_manifest_that_says_too_little_is_refused(content: bytes, complaint: str) -> None:
    assert complaint in refused(tar_of(("SKILL.md", content)))


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = refused(tar_of(("SKILL.md", b"---\nname: A\nversion: /\n---\n")))
    assert "its name" in said
    assert "its description" in said
    assert "its version" in said
    assert "missing at its top" in refused(tar_of(("README.md", b"")))


@given(st.binary(max_size=600) | st.binary(max_size=600).map(lambda junk: b"PK\x03\x04" + junk))
def test_no_junk_is_taken_for_an_archive_or_breaks_it(junk: bytes) -> None:
    with pytest.raises(ClawError):
        read_archive("given", junk)


VALID = (tar_of(("SKILL.md", manifest()), ("docs/faq.md", b"faq")), zip_of(**{"SKILL.md": manifest()}))


@given(st.sampled_from(VALID), st.data())
def test_a_damaged_archive_is_refused_or_harmless(archive: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(archive) - 1))
    damaged = archive[:at] + bytes([data.draw(st.integers(0, 255))]) + archive[at + 1 :]
    try:
        found = read_archive("given", damaged)
    except ClawError:
        return
    assert "SKILL.md" in found.files


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b c", "~", "\\", "SKILL.md"]), min_size=1, max_size=9))
def test_no_name_leads_out_of_the_place_it_is_written_to(parts: list[str]) -> None:
    path = "/".join(parts)
    try:
        found = read_archive("given", tar_of(("SKILL.md", manifest()), (path, b"x"), packed=False))
    except ClawError:
        return
    for name in found.files:
        assert os.path.normpath(f"/place/{name}") == f"/place/{name}"


# --- what a bot has ---------------------------------------------------------------------------------


@pytest.fixture
def bot(machine: Machine, homes: Homes, paths: Paths) -> str:
    """Id of a bot with a disk, whose agent wants to be told of skills."""
    set_host(paths, skills_library=str(paths.state / "library"))
    (found,) = declared(machine, wanted(1, name="support"))
    home = HomeRequest(id=found["id"], uid=found["uid"], disk_size=32 << 20)
    homes.apply(
        [
            msgspec.convert(
                msgspec.to_builtins(home)
                | {
                    "directories": [
                        {"path": "skills", "mode": "0755"},
                        {"path": "data/workspace", "mode": "0700"},
                    ]
                },
                HomeRequest,
            )
        ]
    )
    with machine.registry() as registry:
        registry.store.put_container(
            found["id"], msgspec.convert(container_spec(skills=RULES), ContainerSpec)
        )
    return str(found["id"])


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., str]:
    """Makes the directory of a skill; returns its path."""

    def made(name: str = "refunds", version: str = "1.0", text: str = "Refund within 30 days.") -> str:
        folder = tmp_path / "sources" / f"{name}-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "SKILL.md").write_bytes(manifest(name, version, text))
        return str(folder)

    return made


def seen(paths: Paths, bot: str) -> dict[str, str]:
    """What the agent finds: path -> text."""
    root = paths.bots / bot / "skills"
    return {
        str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()
    }


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def test_an_added_skill_lies_where_the_agent_looks_in_the_form_it_wants(
    machine: Machine, bot: str, make: Callable[..., str], paths: Paths
) -> None:
    old_umask = os.umask(0o077)
    try:
        answer = ask(machine, "skills", "add", "support", make())
    finally:
        os.umask(old_umask)
    assert answer["changed"]
    assert "refunds: 1.0" in answer["diff"]["after"]
    found = seen(paths, bot)
    assert "30 days" in found["refunds/SKILL.md"]
    about = json.loads(found["refunds/skill.json"])
    assert about == {"name": "refunds", "description": "How refunds work", "version": "1.0", "always": True}
    place = paths.bots / bot / "skills/refunds"
    assert [oct(path.stat().st_mode & 0o7777) for path in (place, place / "SKILL.md")] == ["0o755", "0o644"]
    assert {path.stat().st_uid for path in (place, *place.iterdir())} == {0}
    assert not ask(machine, "skills", "add", "support", make())["changed"]


def test_a_running_agent_is_told_by_the_file_that_it_watches(
    machine: Machine, bot: str, make: Callable[..., str], paths: Paths
) -> None:
    watched = paths.bots / bot / "data/workspace/TOOLS.md"
    watched.write_text("mine")
    os.utime(watched, (1, 1))
    ask(machine, "skills", "add", "support", make())
    assert watched.stat().st_mtime > 1
    assert watched.read_text() == "mine"
    # A bot cannot make root touch something else.
    victim = paths.state / "victim"
    victim.touch()
    os.utime(victim, (1, 1))
    watched.unlink()
    watched.symlink_to(victim)
    ask(machine, "skills", "remove", "support", "refunds")
    assert victim.stat().st_mtime == 1


def test_rollback_brings_back_what_was_before_and_forth_again(
    machine: Machine, bot: str, make: Callable[..., str], paths: Paths
) -> None:
    ask(machine, "skills", "add", "support", make(version="1.0", text="thirty days"))
    assert "no other version" in run(machine, "skills", "rollback", "support", "refunds", code=1).stderr
    ask(machine, "skills", "add", "support", make(version="1.1", text="sixty days"))
    assert "sixty" in seen(paths, bot)["refunds/SKILL.md"]
    assert ask(machine, "skills", "rollback", "support", "refunds")["changed"]
    assert "thirty" in seen(paths, bot)["refunds/SKILL.md"]
    (listed,) = ask(machine, "skills", "list", "support")["skills"]
    assert (listed["current"]["version"], listed["previous"]["version"], listed["intact"]) == (
        "1.0",
        "1.1",
        True,
    )
    ask(machine, "skills", "rollback", "support", "refunds")
    assert "sixty" in seen(paths, bot)["refunds/SKILL.md"]
    told = [event["message"] for event in ask(machine, "events", "support")["events"]]
    assert told == [
        "support got skill refunds 1.0",
        "support got skill refunds 1.1",
        "support went back to skill refunds 1.0",
        "support went back to skill refunds 1.1",
    ]


def test_a_removed_skill_leaves_nothing(
    machine: Machine, bot: str, make: Callable[..., str], paths: Paths
) -> None:
    for version in ("1.0", "1.1"):
        ask(machine, "skills", "add", "support", make(version=version))
    assert ask(machine, "skills", "remove", "support", "refunds", "--check")["changed"]
    assert seen(paths, bot)
    ask(machine, "skills", "remove", "support", "refunds")
    assert seen(paths, bot) == {}
    assert not list((paths.bots / bot / "skills.previous").iterdir())
    assert (
        "no skill 'refunds'; it has none"
        in run(machine, "skills", "remove", "support", "refunds", code=1).stderr
    )


def test_a_changed_file_is_noticed_and_put_right(
    machine: Machine, bot: str, make: Callable[..., str], paths: Paths
) -> None:
    ask(machine, "skills", "add", "support", make(version="0.9"))
    ask(machine, "skills", "add", "support", make())
    (paths.bots / bot / "skills/refunds/SKILL.md").write_text("evil")
    (listed,) = ask(machine, "skills", "list", "support")["skills"]
    assert not listed["intact"]
    assert ask(machine, "skills", "add", "support", make())["changed"]
    (listed,) = ask(machine, "skills", "list", "support")["skills"]
    assert (listed["intact"], listed["previous"]["version"]) == (True, "0.9")


def test_a_pinned_checksum_is_kept_to(
    machine: Machine, bot: str, make: Callable[..., str], paths: Paths
) -> None:
    right = read_bundle("x", Path(make())).sha256
    complaint = run(machine, "skills", "add", "support", make(), "--sha256", "0" * 64, code=1).stderr
    assert f"its checksum is {right}" in complaint
    assert seen(paths, bot) == {}
    assert ask(machine, "skills", "add", "support", make(), "--sha256", right)["changed"]


def test_a_full_disk_is_said_and_the_old_version_stays(
    machine: Machine, bot: str, make: Callable[..., str], paths: Paths
) -> None:
    ask(machine, "skills", "add", "support", make())
    filler = paths.bots / bot / "data/workspace/filler"
    subprocess.run(f"head -c 64M /dev/zero > {filler}", shell=True, stderr=subprocess.DEVNULL, check=False)
    new = make(version="2.0", text="x" * 100_000)
    assert "has no room for refunds" in run(machine, "skills", "add", "support", new, code=1).stderr
    filler.unlink()
    (listed,) = ask(machine, "skills", "list", "support")["skills"]
    assert (listed["current"]["version"], listed["intact"]) == ("1.0", True)
    assert "version: 1.0" in seen(paths, bot)["refunds/SKILL.md"]


def test_a_bot_whose_agent_takes_no_skills_is_left_alone(
    machine: Machine, bot: str, make: Callable[..., str]
) -> None:
    with machine.registry() as registry:
        registry.store.put_container(bot, msgspec.convert(container_spec(), ContainerSpec))
    assert "takes no skills" in run(machine, "skills", "add", "support", make(), code=1).stderr


def test_a_bot_that_is_kept_and_deployed_again_still_knows_it(
    machine: Machine, bot: str, make: Callable[..., str], homes: Homes, paths: Paths
) -> None:
    ask(machine, "skills", "add", "support", make())
    homes.put_away(bot)
    homes.apply([msgspec.convert({"id": bot, "uid": 200000, "disk_size": 32 << 20}, HomeRequest)])
    (listed,) = ask(machine, "skills", "list", "support")["skills"]
    assert listed["intact"]
    assert "30 days" in seen(paths, bot)["refunds/SKILL.md"]


# --- library ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bot")
def test_bots_take_skills_from_the_library_by_name_and_version(
    machine: Machine, make: Callable[..., str]
) -> None:
    for version in ("1.9", "1.10"):
        assert ask(machine, "skills", "publish", make(version=version))["changed"]
    assert not ask(machine, "skills", "publish", make(version="1.10"))["changed"]
    assert [one["version"] for one in ask(machine, "skills", "list")["skills"]] == ["1.9", "1.10"]
    ask(machine, "skills", "add", "support", "refunds@1.9")
    (listed,) = ask(machine, "skills", "list", "support")["skills"]
    assert listed["current"]["version"] == "1.9"
    ask(machine, "skills", "add", "support", "refunds")
    (listed,) = ask(machine, "skills", "list", "support")["skills"]
    assert (listed["current"]["version"], listed["current"]["source"]) == ("1.10", "refunds")


@pytest.mark.usefixtures("bot")
def test_a_published_version_never_changes(machine: Machine, make: Callable[..., str]) -> None:
    ask(machine, "skills", "publish", make())
    changed = make(text="something else")
    assert "give yours a new version" in run(machine, "skills", "publish", changed, code=1).stderr


@pytest.mark.usefixtures("bot")
@pytest.mark.parametrize("reference", ["nothing", "refunds@9", "..", "refunds@..", "*", "@"])
def test_what_the_library_has_not_is_refused(
    machine: Machine, make: Callable[..., str], reference: str
) -> None:
    ask(machine, "skills", "publish", make())
    assert "the library has no skill" in run(machine, "skills", "add", "support", reference, code=1).stderr


# --- deploys ----------------------------------------------------------------------------------------


def deployed(bot: str | None, *archives: bytes, names: tuple[str, ...] = ()) -> dict[str, Any]:
    given = [
        {"source": f"./{number}", "archive": base64.b64encode(archive).decode()}
        for number, archive in enumerate(archives)
    ] + [{"source": name} for name in names]
    wanted_ = [{"id": bot, "skills": [one["source"] for one in given]}] if bot else []
    return {"skills": given, "bots": wanted_}


def test_a_deploy_says_all_that_a_bot_should_have(
    machine: Machine, bot: str, make: Callable[..., str]
) -> None:
    ask(machine, "skills", "publish", make("shipping"))
    ask(machine, "skills", "add", "support", make("by-hand"))
    request = deployed(bot, tar_of(("SKILL.md", manifest())), names=("shipping",))
    dry = ask(machine, "skills", "apply", "--check", request=request)
    assert dry["changed"]
    assert [one["name"] for one in ask(machine, "skills", "list", "support")["skills"]] == ["by-hand"]
    done = ask(machine, "skills", "apply", request=request)
    assert done["diff"] == dry["diff"]
    listed = ask(machine, "skills", "list", "support")["skills"]
    assert [one["name"] for one in listed] == ["refunds", "shipping"]
    assert not ask(machine, "skills", "apply", request=request)["changed"]
    ask(machine, "skills", "apply", request={"skills": [], "bots": [{"id": bot, "skills": []}]})
    assert ask(machine, "skills", "list", "support")["skills"] == []


def test_a_deploy_with_a_bad_skill_changes_nothing(machine: Machine, bot: str) -> None:
    good, bad = tar_of(("SKILL.md", manifest())), tar_of(("SKILL.md", b"nothing"))
    answer = ask(machine, "skills", "apply", request=deployed(bot, good, bad, names=("lost",)), code=1)
    assert [problem["code"] for problem in answer["error"]["problems"]] == ["skill_invalid", "unknown_skill"]
    assert ask(machine, "skills", "list", "support")["skills"] == []
    twice = tar_of(("SKILL.md", manifest(version="2.0")))
    answer = ask(machine, "skills", "apply", request=deployed(bot, good, twice), code=1)
    assert answer["error"]["code"] == "skill_twice"


@pytest.mark.usefixtures("bot")
def test_skills_can_be_checked_before_there_is_a_bot(machine: Machine) -> None:
    request = deployed(None, tar_of(("SKILL.md", manifest())))
    assert not ask(machine, "skills", "apply", "--check", request=request)["changed"]
    new = deployed("zzzzzzzzzzzz", tar_of(("SKILL.md", manifest())))
    assert ask(machine, "skills", "apply", "--check", request=new)["changed"]
    assert ask(machine, "skills", "apply", request=new, code=1)["error"]["code"] == "unknown_bot"
