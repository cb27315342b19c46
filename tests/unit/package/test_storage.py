"""Homes: real images, really mounted. Only systemd is replaced, by what it would do with the units."""

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clawdeploy.errors import ClawError
from clawdeploy.host import Paths
from clawdeploy.storage import HomeFile, HomeRequest, Homes, unit_name, unit_text

from .conftest import UID, Systemd

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

BOT = "abcdefghij01"


def home(bot_id: str = BOT, **changes: Any) -> HomeRequest:
    values: dict[str, Any] = {
        "id": bot_id,
        "uid": UID,
        "disk_size": 32 << 20,
        "directories": [{"path": "config", "mode": "0700"}, {"path": "data/workspace", "mode": "0700"}],
        "files": [
            {"path": "config/config.json", "content": '{"secret": "s3cret"}', "mode": "0400"},
            {"path": "data/workspace/SOUL.md", "content": "be kind", "mode": "0600", "seed": True},
        ],
    }
    return msgspec.convert(values | changes, HomeRequest)


def test_a_new_home_is_a_mounted_disk_with_the_files_of_its_owner(homes: Homes, paths: Paths) -> None:
    change = homes.apply([home()])[0]
    root = paths.bots / BOT
    assert change.changed == [
        *("disk", "mount", "config", "data/workspace"),
        *("config/config.json", "data/workspace/SOUL.md"),
    ]
    options = subprocess.run(
        ["findmnt", "-no", "OPTIONS", root], capture_output=True, text=True, check=True
    ).stdout
    assert {"nodev", "nosuid", "noatime"} <= set(options.strip().split(","))
    for path, mode in (
        (".", 0o700),
        ("data", 0o700),
        ("data/workspace", 0o700),
        ("config/config.json", 0o400),
    ):
        found = (root / path).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (UID, UID, mode), path


def test_the_disk_is_sparse_and_bounded(homes: Homes, paths: Paths) -> None:
    homes.apply([home()])
    image = (paths.disks / f"{BOT}.img").stat()
    assert image.st_size == 32 << 20
    assert image.st_blocks * 512 < 2 << 20
    assert stat.S_IMODE(image.st_mode) == 0o600
    with pytest.raises(OSError, match="No space left"):
        (paths.bots / BOT / "data" / "fill").write_bytes(bytes(40 << 20))


def test_a_full_disk_is_said_in_words(homes: Homes, paths: Paths) -> None:
    homes.apply([home()])
    big = home(files=[{"path": "config/big", "content": "x" * (40 << 20), "mode": "0400"}])
    with pytest.raises(ClawError) as error:
        homes.apply([big])
    assert error.value.code == "disk_full"
    assert list((paths.bots / BOT / "config").iterdir()) == [paths.bots / BOT / "config" / "config.json"]


def test_the_second_run_changes_nothing_and_does_not_call_systemd(homes: Homes, systemd: Systemd) -> None:
    first = homes.apply([home()])[0]
    systemd.calls.clear()
    second = homes.apply([home()])[0]
    assert second.changed == []
    assert second.config_hash == first.config_hash
    assert systemd.calls == []


def test_a_batch_asks_systemd_once(homes: Homes, systemd: Systemd) -> None:
    homes.apply([home(), home("abcdefghij02")])
    units = [unit_name(homes.mount_point(bot_id)) for bot_id in (BOT, "abcdefghij02")]
    assert systemd.calls == [("enable", "--no-reload", *units), ("daemon-reload",), ("start", *units)]


def test_check_mode_tells_the_same_and_touches_nothing(homes: Homes, paths: Paths) -> None:
    foretold = homes.apply([home()], check=True)[0].changed
    assert not paths.disks.exists()
    assert foretold == homes.apply([home()])[0].changed
    changed = home(files=[{"path": "config/config.json", "content": "{}", "mode": "0400"}])
    assert homes.apply([changed], check=True)[0].changed == ["config/config.json"]
    assert "s3cret" in (paths.bots / BOT / "config/config.json").read_text()


def test_what_is_not_mounted_cannot_be_written_to(homes: Homes, paths: Paths) -> None:
    homes.apply([home()])
    root = paths.bots / BOT
    subprocess.run(["umount", root], check=True)
    with pytest.raises(PermissionError):
        (root / "beside").touch()
    assert homes.apply([home()])[0].changed == ["mount"]


def may_resize_in_use() -> bool:
    """Whether this machine gives root CAP_SYS_RESOURCE (bit 24), which the kernel wants for that."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return bool(int(effective, 16) >> 24 & 1)


def test_a_disk_grows_and_never_shrinks(homes: Homes, paths: Paths) -> None:
    homes.apply([home()])
    (paths.bots / BOT / "data/kept").write_text("kept")
    if not may_resize_in_use():
        with pytest.raises(ClawError, match="unmount its disk"):
            homes.apply([home(disk_size=64 << 20)])
        assert homes.apply([home()])[0].changed == []
        subprocess.run(["umount", paths.bots / BOT], check=True)
    assert "disk" in homes.apply([home(disk_size=64 << 20)])[0].changed
    assert shutil.disk_usage(paths.bots / BOT).total > 48 << 20
    assert (paths.bots / BOT / "data/kept").read_text() == "kept"
    assert homes.apply([home(disk_size=32 << 20)])[0].changed == []


def test_seeds_belong_to_the_bot_once_written(homes: Homes, paths: Paths) -> None:
    before = homes.apply([home()])[0].config_hash
    (paths.bots / BOT / "data/workspace/SOUL.md").write_text("changed by the bot")
    assert homes.apply([home()])[0].changed == []
    assert (paths.bots / BOT / "data/workspace/SOUL.md").read_text() == "changed by the bot"
    reseeded = home(files=[*map(msgspec.to_builtins, home().files[:1])])
    assert homes.apply([reseeded])[0].config_hash == before


def test_drift_in_content_mode_or_owner_is_put_right(homes: Homes, paths: Paths) -> None:
    homes.apply([home()])
    config = paths.bots / BOT / "config/config.json"
    for spoil in (
        lambda: config.write_text("{}"),
        lambda: config.chmod(0o644),
        lambda: os.chown(config, 0, 0),
    ):
        spoil()
        assert homes.apply([home()])[0].changed == ["config/config.json"]
        assert homes.apply([home()])[0].changed == []


@pytest.mark.parametrize("target", ["data", "data/workspace"])
def test_a_link_in_place_of_a_directory_is_refused(
    homes: Homes, paths: Paths, tmp_path: Path, target: str
) -> None:
    homes.apply([home()])
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(paths.bots / BOT / target)
    (paths.bots / BOT / target).symlink_to(outside)
    with pytest.raises(ClawError, match="remove it") as error:
        homes.apply([home()])
    assert error.value.code == "path_blocked"
    assert list(outside.iterdir()) == []
    assert outside.stat().st_uid == 0


def test_a_link_in_place_of_a_file_is_replaced_not_followed(
    homes: Homes, paths: Paths, tmp_path: Path
) -> None:
    homes.apply([home()])
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    config = paths.bots / BOT / "config/config.json"
    config.unlink()
    config.symlink_to(victim)
    assert homes.apply([home()])[0].changed == ["config/config.json"]
    assert victim.read_text() == "untouched"
    assert config.is_file()
    assert not config.is_symlink()


def test_a_dangling_link_in_place_of_a_seed_is_left_alone(homes: Homes, paths: Paths, tmp_path: Path) -> None:
    homes.apply([home()])
    seed = paths.bots / BOT / "data/workspace/SOUL.md"
    seed.unlink()
    seed.symlink_to(tmp_path / "made-by-root")
    assert homes.apply([home()])[0].changed == []
    assert not (tmp_path / "made-by-root").exists()


def test_a_fifo_in_place_of_a_file_does_not_hang(homes: Homes, paths: Paths) -> None:
    homes.apply([home()])
    config = paths.bots / BOT / "config/config.json"
    config.unlink()
    os.mkfifo(config, 0o400)
    os.chown(config, UID, UID)
    assert homes.apply([home()])[0].changed == ["config/config.json"]


def test_a_directory_in_place_of_a_file_is_refused(homes: Homes, paths: Paths) -> None:
    homes.apply([home()])
    config = paths.bots / BOT / "config/config.json"
    config.unlink()
    config.mkdir()
    with pytest.raises(ClawError) as error:
        homes.apply([home()])
    assert error.value.code == "path_blocked"


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "config/../../x", "config/./x", "", "a//b", "a b", "config/"]
)
def test_paths_out_of_the_home_are_refused(path: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        home(files=[{"path": path, "content": "", "mode": "0400"}])


def test_one_file_can_be_replaced_later(homes: Homes, paths: Paths) -> None:
    homes.apply([home()])
    homes.write_file(BOT, HomeFile(path="config/config.json", content="new", mode="0400"))
    config = paths.bots / BOT / "config/config.json"
    assert (config.read_text(), config.stat().st_uid) == ("new", UID)
    subprocess.run(["umount", paths.bots / BOT], check=True)
    with pytest.raises(ClawError) as error:
        homes.write_file(BOT, HomeFile(path="config/config.json", content="new", mode="0400"))
    assert error.value.code == "not_mounted"


def test_removal_leaves_nothing_and_can_be_repeated(homes: Homes, paths: Paths) -> None:
    homes.apply([home()])
    homes.remove(BOT)
    homes.remove(BOT)
    assert list(paths.disks.iterdir()) == list(paths.bots.iterdir()) == []
    assert [file.name for file in paths.units.rglob("*.mount")] == []
    loops = subprocess.run(
        ["losetup", "--list", "--noheadings"], capture_output=True, text=True, check=True
    ).stdout
    assert str(paths.disks) not in loops


def test_a_disk_that_was_half_made_is_made_again(homes: Homes, paths: Paths) -> None:
    paths.disks.mkdir()
    (paths.disks / f"{BOT}.new").write_text("left by a crash")
    assert "disk" in homes.apply([home()])[0].changed
    assert [file.name for file in paths.disks.iterdir()] == [f"{BOT}.img"]


def test_a_command_that_fails_is_quoted(
    homes: Homes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "mkfs.ext4"
    broken.write_text("#!/bin/sh\necho 'no such feature' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ClawError, match="no such feature") as error:
        homes.apply([home()])
    assert error.value.code == "disk_failed"


def test_the_unit_is_what_systemd_expects() -> None:
    assert unit_name(Path("/var/lib/clawdeploy/bots/abc")) == "var-lib-clawdeploy-bots-abc.mount"
    assert unit_name(Path("/a-b/.c d")) == r"a\x2db-.c\x20d.mount"
    text = unit_text(BOT, Path("/disks/x.img"), Path("/bots/x"))
    assert "Before=docker.service" in text
    assert "Options=loop,nodev,nosuid,noatime" in text
    assert "WantedBy=local-fs.target" in text
