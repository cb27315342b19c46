"""Bots' homes: one sparse ext4 image per bot, mounted by systemd, and the files a deploy puts into it.

The bot owns everything in its home, so root never follows a name in there: every step is an ``openat`` with
O_NOFOLLOW, and new content always goes into a new file. The home is a file system of its own, so nothing in
it can be renamed or hard-linked to somewhere else.
"""

import errno
import hashlib
import os
import secrets
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from clawdeploy.claims import ClaimFile, FileState, config_hash
from clawdeploy.errors import ClawError
from clawdeploy.files import private_directory, write_atomic
from clawdeploy.host import Paths
from clawdeploy.models import BotId

_PART = r"(?!\.\.?(/|$))[A-Za-z0-9._-]+"
HomePath = Annotated[str, Meta(pattern=rf"^{_PART}(/{_PART})*$")]
Mode = Annotated[str, Meta(pattern=r"^0[0-7]{3}$")]

_WANTED_BY = "local-fs.target"
_MOST_BYTES = 4 << 20  # of a configuration file
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class HomeDirectory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: HomePath
    mode: Mode


class HomeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """seed: written only where nothing is, afterwards the bot's own business."""

    path: HomePath
    content: str
    mode: Mode
    seed: bool = False


class HomeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one home should hold; disk_size is bytes, a disk grows but never shrinks."""

    id: BotId
    uid: Annotated[int, Meta(ge=1000)]
    disk_size: Annotated[int, Meta(ge=16 << 20)]
    directories: tuple[HomeDirectory, ...] = ()
    files: tuple[HomeFile, ...] = ()
    claim_file: ClaimFile | None = None

    def __post_init__(self) -> None:
        if self.claim_file is not None and self.claim_file.path not in self.rendered():
            raise ValueError(f"claim_file {self.claim_file.path!r} is not one of the files")

    def rendered(self) -> dict[str, FileState]:
        """What the config hash covers: every file but the seeds."""
        return {file.path: file_state(file) for file in self.files if not file.seed}


class HomesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Input of ``clawctl home apply``."""

    bots: tuple[HomeRequest, ...]


@dataclass
class HomeChange:
    """What was (in check mode: would be) done to one home; config_hash covers its files but the seeds."""

    id: str
    config_hash: str
    changed: list[str] = field(default_factory=list)


def file_state(file: HomeFile) -> FileState:
    return FileState(mode=file.mode, sha256=hashlib.sha256(file.content.encode()).hexdigest())


# --- systemd ----------------------------------------------------------------------------------------


def unit_name(mount_point: Path) -> str:
    """Name systemd demands for the mount unit of a path (systemd-escape --path --suffix=mount)."""

    def escape(character: str) -> str:
        if character == "/":
            return "-"
        plain = character.isascii() and (character.isalnum() or character in ":_.")
        return character if plain else "".join(f"\\x{byte:02x}" for byte in character.encode())

    return "".join(map(escape, str(mount_point).strip("/"))) + ".mount"


def unit_text(bot_id: str, image: Path, mount_point: Path) -> str:
    """The mount unit. local-fs.target only wants it: a missing image fails this unit and never the boot."""
    return f"""\
# Written by clawctl. Do not edit.
[Unit]
Description=Disk of clawDeploy bot {bot_id}
Before=docker.service

[Mount]
What={image}
Where={mount_point}
Type=ext4
Options=loop,nodev,nosuid,noatime

[Install]
WantedBy={_WANTED_BY}
"""


def systemctl(*arguments: str) -> None:
    """Run systemctl; ClawError("systemd_failed") with its words if it fails."""
    _run("systemctl", *arguments, code="systemd_failed", hint="see `systemctl --failed` and its journal")


def _run(*command: str, code: str, hint: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    said = " ".join(f"{done.stderr} {done.stdout}".split())
    if "No space left on device" in said:
        raise disk_full()
    raise ClawError(code, f"`{' '.join(command[:2])}` failed ({said[-300:]}): {hint}.")


def disk_full() -> ClawError:
    return ClawError(
        "disk_full", "no space is left on the disk of this host: remove files or bots, then run again."
    )


# --- homes ------------------------------------------------------------------------------------------


class Homes:
    """All homes of this host. Methods that change something expect the caller to hold the host's lock."""

    def __init__(self, paths: Paths, systemctl: Callable[..., None] = systemctl) -> None:
        self.paths, self._systemctl = paths, systemctl

    def image(self, bot_id: str) -> Path:
        return self.paths.disks / f"{bot_id}.img"

    def mount_point(self, bot_id: str) -> Path:
        return self.paths.bots / bot_id

    def unit(self, bot_id: str) -> Path:
        return self.paths.units / unit_name(self.mount_point(bot_id))

    def apply(self, homes: Sequence[HomeRequest], check: bool = False) -> list[HomeChange]:
        """Make every home as asked: disk, mount, directories, files; one look at systemd for the whole batch.

        With ``check`` nothing is touched and the same changes are reported. ClawError if a disk cannot be
        made or mounted, or if the bot has put something in the way of a file.
        """
        changes = [HomeChange(home.id, config_hash(home.rendered())) for home in homes]
        with space_errors():
            if not check:
                for directory in (self.paths.disks, self.paths.bots):
                    private_directory(directory)
            for home, change in zip(homes, changes, strict=True):
                change.changed += self._disk(home, check)
            self._mount([(home, change) for home, change in zip(homes, changes, strict=True)], check)
            for home, change in zip(homes, changes, strict=True):
                self._fill(home, change, check)
            touched = [str(self.mount_point(change.id)) for change in changes if change.changed]
            if touched and not check:
                _run("sync", "--file-system", *touched, code="disk_failed", hint="see `dmesg`")
        return changes

    def write_file(self, bot_id: str, file: HomeFile) -> None:
        """Replace one file of a mounted home, owned by whoever owns the home."""
        root = self.mounted(bot_id)
        with space_errors(), _Tree(root, root.stat().st_uid) as tree:
            tree.put(file, check=False)

    def mounted(self, bot_id: str) -> Path:
        """Where the bot's disk is mounted; ClawError("not_mounted") if it is not."""
        root = self.mount_point(bot_id)
        if not root.is_mount():
            raise ClawError(
                "not_mounted",
                f"the disk of bot {bot_id} is not mounted: `systemctl start {unit_name(root)}`.",
            )
        return root

    def read_file(self, bot_id: str, path: str) -> HomeFile | None:
        """A file of a mounted home as it is, None if there is none.

        ClawError("path_blocked") if it is no text file of a reasonable size.
        """
        root = self.mounted(bot_id)
        with _Tree(root, root.stat().st_uid) as tree:
            return tree.read(path)

    def put_back(self, bot_id: str, files: Sequence[HomeFile], absent: Sequence[str]) -> None:
        """Let these files be as they were before, and those that were not there be gone."""
        root = self.mounted(bot_id)
        with space_errors(), _Tree(root, root.stat().st_uid) as tree:
            for file in files:
                tree.put(file, check=False)
            for path in absent:
                tree.remove(path)

    def touch(self, bot_id: str, path: str) -> None:
        """Let a file of a mounted home look changed now, as it is; an empty one if there was none."""
        root = self.mounted(bot_id)
        with space_errors(), _Tree(root, root.stat().st_uid) as tree:
            tree.touch(path)

    def remove(self, bot_id: str) -> None:
        """Undo all of it, the data included. Goes on where an earlier attempt stopped."""
        self.put_away(bot_id)
        self.image(bot_id).unlink(missing_ok=True)

    def mount(self, bot_id: str) -> bool:
        """Mount the bot's disk if it has one that is not; whether that had to be done."""
        unit = self.unit(bot_id)
        if not unit.exists() or self.mount_point(bot_id).is_mount():
            return False
        self._systemctl("start", unit.name)
        return True

    def put_away(self, bot_id: str) -> None:
        """Undo all but the disk itself, which a later ``apply`` finds again."""
        root, unit = self.mount_point(bot_id), self.unit(bot_id)
        if unit.exists():
            self._systemctl("disable", "--now", "--no-reload", unit.name)
            unit.unlink()
            self._systemctl("daemon-reload")
        if root.is_mount():
            _run("umount", str(root), code="mount_failed", hint="find what uses it with `fuser -vm`")
        if root.exists():
            _run("chattr", "-i", str(root), code="disk_failed", hint="see `lsattr -d`")
            root.rmdir()

    def _disk(self, home: HomeRequest, check: bool) -> list[str]:
        image = self.image(home.id)
        if not image.exists():
            if not check:
                self._make_image(home, image)
            return ["disk"]
        if image.stat().st_size >= home.disk_size:
            return []
        if not check:
            self._grow_image(home, image)
        return ["disk"]

    def _make_image(self, home: HomeRequest, image: Path) -> None:
        fresh = image.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, home.disk_size)
        finally:
            os.close(descriptor)
        # The file is all holes, so there is nothing to zero, now or by the kernel in the background.
        options = f"assume_storage_prezeroed=1,nodiscard,root_owner={home.uid}:{home.uid}"
        _run(
            *("mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=4", "-E", options, str(fresh)),
            code="disk_failed",
            hint="is e2fsprogs installed?",
        )
        fresh.replace(image)

    def _grow_image(self, home: HomeRequest, image: Path) -> None:
        size = image.stat().st_size
        os.truncate(image, home.disk_size)
        try:
            self._grow_file_system(image, self.mount_point(home.id))
        except ClawError:
            os.truncate(image, size)  # the file system never used the rest; the next run tries again
            raise

    @staticmethod
    def _grow_file_system(image: Path, root: Path) -> None:
        hint = "stop the bot, unmount its disk, then run again"
        if root.is_mount():
            device = _device_of(root)
            _run("losetup", "--set-capacity", device, code="disk_failed", hint=hint)
            _run("resize2fs", device, code="disk_failed", hint=hint)
        else:
            _run("e2fsck", "-f", "-p", str(image), code="disk_failed", hint="check that disk with e2fsck")
            _run("resize2fs", str(image), code="disk_failed", hint="check that disk with e2fsck")

    def _mount(self, homes: Sequence[tuple[HomeRequest, HomeChange]], check: bool) -> None:
        reload, enable, start, bare = False, list[str](), list[str](), list[str]()
        for home, change in homes:
            root, unit = self.mount_point(home.id), self.unit(home.id)
            text = unit_text(home.id, self.image(home.id), root)
            stale = not unit.exists() or unit.read_text() != text
            disabled = not (self.paths.units / f"{_WANTED_BY}.wants" / unit.name).is_symlink()
            unmounted = not root.is_mount()
            if not (stale or disabled or unmounted):
                continue
            change.changed.append("mount")
            if check:
                continue
            if stale:
                write_atomic(unit, text, 0o644)
                reload = True
            if disabled:
                enable.append(unit.name)
            if unmounted:
                root.mkdir(mode=0o700, exist_ok=True)
                bare.append(str(root))
                start.append(unit.name)
        if bare:
            # What is not mounted cannot be written to, not even by root.
            _run(
                "chattr",
                "+i",
                *bare,
                code="disk_failed",
                hint="the file system of /var/lib must know attributes",
            )
        if enable:
            self._systemctl("enable", "--no-reload", *enable)
        if reload:
            self._systemctl("daemon-reload")
        if start:
            self._systemctl("start", *start)

    def _fill(self, home: HomeRequest, change: HomeChange, check: bool) -> None:
        root = self.mount_point(home.id)
        if not root.is_mount():
            if not check:
                raise ClawError(
                    "not_mounted", f"{root} is not mounted though its unit started: see `losetup --list`."
                )
            change.changed += [directory.path for directory in home.directories]
            change.changed += [file.path for file in home.files]
            return
        with _Tree(root, home.uid) as tree:
            if tree.own(".", 0o700, check) and "disk" not in change.changed:
                change.changed.append(".")
            change.changed += [d.path for d in home.directories if tree.own(d.path, int(d.mode, 8), check)]
            change.changed += [file.path for file in home.files if tree.put(file, check)]


@contextmanager
def space_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full() from None
        raise


def _device_of(mount_point: Path) -> str:
    done = subprocess.run(
        ["findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", str(mount_point)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


# --- inside a home ----------------------------------------------------------------------------------


class _Tree:
    """A mounted home, walked by descriptors only."""

    def __init__(self, root: Path, uid: int) -> None:
        self._uid, self._stack = uid, ExitStack()
        self._root_path, self._root = root, -1

    def __enter__(self) -> "_Tree":
        self._root = self._keep(os.open(self._root_path, _OPEN_DIRECTORY))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _keep(self, descriptor: int) -> int:
        self._stack.callback(os.close, descriptor)
        return descriptor

    def own(self, path: str, mode: int, check: bool) -> bool:
        """Make sure the directory exists, is the bot's and has that mode; returns whether it was not so."""
        descriptor = self._enter(path, create=False)
        if descriptor is not None:
            found = os.fstat(descriptor)
            if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (self._uid, self._uid, mode):
                return False
        if not check and (descriptor := self._enter(path, create=True)) is not None:
            os.fchown(descriptor, self._uid, self._uid)
            os.fchmod(descriptor, mode)
        return True

    def put(self, file: HomeFile, check: bool) -> bool:
        """Make sure the file is there with that content, mode and owner; returns whether it was not so."""
        folder, _, name = file.path.rpartition("/")
        directory = self._enter(folder or ".", create=not check)
        if directory is None:
            return True
        if self._is_there(directory, name) if file.seed else self._is_same(directory, name, file):
            return False
        if not check:
            self._replace(directory, name, file)
        return True

    def read(self, path: str) -> HomeFile | None:
        """The file as it is; None if there is none."""
        folder, _, name = path.rpartition("/")
        directory = self._enter(folder or ".", create=False)
        if directory is None:
            return None
        try:
            descriptor = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            raise self._in_the_way(path, "a file") from None
        with os.fdopen(descriptor, "rb") as handle:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES:
                raise self._in_the_way(path, f"a file of at most {_MOST_BYTES >> 20} MiB")
            try:
                content = handle.read(_MOST_BYTES).decode()
            except UnicodeDecodeError:
                raise self._in_the_way(path, "a text file") from None
        return HomeFile(path=path, content=content, mode=f"{stat.S_IMODE(found.st_mode):04o}")

    def touch(self, path: str) -> None:
        """Let the file look changed now; an empty one if there is none."""
        if self.put(HomeFile(path=path, content="", mode="0600", seed=True), check=False):
            return
        folder, _, name = path.rpartition("/")
        directory = self._enter(folder or ".", create=False)
        with suppress(FileNotFoundError):  # the bot is free to remove it
            os.utime(name, dir_fd=directory, follow_symlinks=False)

    def remove(self, path: str) -> None:
        """Let there be no such file; a directory in its place is left."""
        folder, _, name = path.rpartition("/")
        directory = self._enter(folder or ".", create=False)
        if directory is not None:
            with suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(name, dir_fd=directory)

    def _enter(self, path: str, create: bool) -> int | None:
        """Descriptor of a directory; None if it is missing and must not be made."""
        current, parts = self._root, [part for part in path.split("/") if part != "."]
        for depth, part in enumerate(parts, 1):
            made = False
            try:
                descriptor = os.open(part, _OPEN_DIRECTORY, dir_fd=current)
            except FileNotFoundError:
                if not create:
                    return None
                os.mkdir(part, 0o700, dir_fd=current)
                descriptor, made = os.open(part, _OPEN_DIRECTORY, dir_fd=current), True
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                raise self._in_the_way("/".join(parts[:depth]), "a directory") from None
            current = self._keep(descriptor)
            if made:
                os.fchown(current, self._uid, self._uid)
        return current

    def _in_the_way(self, path: str, needed: str) -> ClawError:
        return ClawError(
            "path_blocked",
            f"{self._root_path}/{path} must be {needed}, but something else is there: remove it.",
        )

    @staticmethod
    def _is_there(directory: int, name: str) -> bool:
        try:
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _is_same(self, directory: int, name: str, file: HomeFile) -> bool:
        wanted = file.content.encode()
        try:
            # O_NONBLOCK: a FIFO in the file's place must not hold us up.
            descriptor = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
            )
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                return False
            raise
        try:
            found = os.fstat(descriptor)
            return (
                stat.S_ISREG(found.st_mode)
                and stat.S_IMODE(found.st_mode) == int(file.mode, 8)
                and (found.st_uid, found.st_gid) == (self._uid, self._uid)
                and found.st_size == len(wanted)
                and os.read(descriptor, len(wanted) + 1) == wanted
            )
        finally:
            os.close(descriptor)

    def _replace(self, directory: int, name: str, file: HomeFile) -> None:
        temporary = f".{name}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(file.content.encode())
                handle.flush()
                os.fchown(descriptor, self._uid, self._uid)
                os.fchmod(descriptor, int(file.mode, 8))
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException as error:
            os.unlink(temporary, dir_fd=directory)
            if isinstance(error, IsADirectoryError):
                raise self._in_the_way(file.path, "a file") from None
            raise


def with_claim_state(home: HomeRequest, owner: str | None) -> HomeRequest:
    """The home as it must be now: a bot claimed since the caller rendered it has the claimed file."""
    claim_file = home.claim_file
    if owner is None or claim_file is None:
        return home
    files = tuple(
        msgspec.structs.replace(file, content=claim_file.for_owner(owner))
        if file.path == claim_file.path
        else file
        for file in home.files
    )
    return msgspec.structs.replace(home, files=files)


def claimed_files(files: Mapping[str, FileState], path: str, content: str) -> dict[str, FileState]:
    """The files the config hash covers, once ``path`` holds ``content``."""
    fresh = FileState(mode=files[path].mode, sha256=hashlib.sha256(content.encode()).hexdigest())
    return {**files, path: fresh}
