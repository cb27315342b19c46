"""What users hand over: directories and archives, read into memory before anything of them is written.

Only plain files of a harmless name come out of it, so there is nothing that an archive could aim at.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from clawdeploy.errors import ClawError

_UNPACKERS: Mapping[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
# All that Python's own modules raise for an archive that is damaged, or of a kind they do not know.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError),
    *(tarfile.TarError, zipfile.BadZipFile, zipfile.LargeZipFile),
)


class File(NamedTuple):
    content: bytes
    executable: bool


@dataclass(frozen=True)
class Entry:
    """What a directory or an archive holds at ``path``; mode with the kind in it, as in ``st_mode``."""

    path: str
    mode: int
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Rules:
    """What may be handed over, and how it is refused.

    what: what messages call it ("skill"); code: of the refusals; part: what a name between two slashes may
    be, and names: the same in words; sizes are bytes, most_unpacked that of an archive with its own headers
    and padding; smaller: what can be done about something too large.
    """

    what: str
    code: str
    part: re.Pattern[str]
    names: str
    most_files: int
    most_bytes: int
    most_unpacked: int
    most_depth: int
    smaller: str

    def refuse(self, source: str, *problems: str) -> ClawError:
        """The refusal of ``source``, for all that is wrong with it."""
        return ClawError.several([(self.code, f"{self.what} {source}: {problem}.") for problem in problems])

    def too_big(self, source: str) -> ClawError:
        return self.refuse(source, f"it is larger than {self.most_bytes >> 20} MiB; {self.smaller}")


Choose = Callable[[Sequence[Entry]], Sequence[Entry]]


def files_at(rules: Rules, source: str, path: Path) -> dict[str, File]:
    """The files in a directory or an archive (tar, zip); ``source`` is what messages call it.

    ClawError(rules.code) with all that is wrong with them.
    """
    if path.is_dir():
        return plain_files(rules, source, of_directory(path, rules.most_bytes))
    try:
        with path.open("rb") as handle:
            content = handle.read(rules.most_unpacked + 1)
    except OSError as error:
        raise rules.refuse(source, f"{path} cannot be read ({error.strerror})") from None
    return files_in(rules, source, content)


def files_in(rules: Rules, source: str, content: bytes, choose: Choose = tuple) -> dict[str, File]:
    """The files in an archive's bytes, or those of its entries that ``choose`` wants; see ``files_at``."""
    try:
        if len(content) > rules.most_unpacked:
            raise rules.too_big(source)
        if content.startswith(b"PK"):
            found = _of_zip(rules, source, zipfile.ZipFile(io.BytesIO(content)))
            return plain_files(rules, source, choose(tuple(found)))
        with tarfile.open(fileobj=io.BytesIO(_unpacked(rules, source, content)), mode="r:") as tar:
            return plain_files(rules, source, choose(tuple(_of_tar(rules, tar))))
    except _UNREADABLE as error:
        raise rules.refuse(
            source, f"it is neither a tar nor a zip archive that can be read ({error})"
        ) from None


def plain_files(rules: Rules, source: str, entries: Iterable[Entry]) -> dict[str, File]:
    """The files among ``entries``; see ``files_at``."""
    files, problems, size = dict[str, File](), list[str](), 0
    for entry in entries:
        path = entry.path.removeprefix("./")
        parts, shown = path.split("/"), path[:80]
        size += max(entry.size, 0)
        if len(files) + len(problems) >= rules.most_files:
            raise rules.refuse(source, f"it has more than {rules.most_files} files")
        if size > rules.most_bytes:
            raise rules.too_big(source)
        if not all(rules.part.fullmatch(part) for part in parts) or len(parts) > rules.most_depth + 1:
            problems.append(
                f"{shown!r} is no name for a file: it must be relative, without .., {rules.names} and "
                f"at most {rules.most_depth} directories deep"
            )
        elif not stat.S_ISREG(entry.mode):
            problems.append(f"{shown} is no plain file: links, devices and pipes are refused")
        elif entry.mode & (stat.S_ISUID | stat.S_ISGID):
            problems.append(f"{shown} is setuid or setgid")
        elif path in files:
            problems.append(f"{shown} is in it twice")
        else:
            content = entry.read()
            size += max(len(content) - entry.size, 0)
            files[path] = File(content, bool(entry.mode & 0o111))
    if size > rules.most_bytes:
        raise rules.too_big(source)
    if problems:
        raise rules.refuse(source, *problems)
    return files


def of_directory(root: Path, most: int | None = None) -> Iterator[Entry]:
    """All files below ``root``; of each no more than ``most`` bytes and one are read."""
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in (*folders, *sorted(names)):
            path = Path(directory, name)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode):
                relative = path.relative_to(root).as_posix()
                yield Entry(relative, found.st_mode, found.st_size, partial(read_plain, path, most))


def read_plain(path: Path | str, most: int | None = None, directory: int | None = None) -> bytes:
    """A file that is no link (in the directory of that descriptor); at most ``most`` bytes and one."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, dir_fd=directory), "rb") as handle:
        return handle.read(-1 if most is None else most + 1)


def _unpacked(rules: Rules, source: str, content: bytes) -> bytes:
    for magic, opened in _UNPACKERS.items():
        if content.startswith(magic):
            with opened(io.BytesIO(content)) as stream:
                content = stream.read(rules.most_unpacked + 1)
    if len(content) > rules.most_unpacked:
        raise rules.too_big(source)
    return content


def _of_tar(rules: Rules, tar: tarfile.TarFile) -> Iterator[Entry]:
    def read(member: tarfile.TarInfo) -> bytes:
        content = tar.extractfile(member)
        return content.read(rules.most_bytes + 1) if content else b""

    for member in tar:
        if member.isdir() or member.type == tarfile.XGLTYPE:
            continue
        # Whatever is no plain file (a link, a device, a sparse file) is called a device here.
        kind = stat.S_IFREG if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else stat.S_IFBLK
        yield Entry(member.name, kind | member.mode & 0o7777, member.size, partial(read, member))


def _of_zip(rules: Rules, source: str, archive: zipfile.ZipFile) -> Iterator[Entry]:
    def read(member: zipfile.ZipInfo) -> bytes:
        with archive.open(member) as content:
            return content.read(rules.most_bytes + 1)

    for member in archive.infolist():
        mode = member.external_attr >> 16
        if member.is_dir():
            continue
        if member.flag_bits & 1:
            raise rules.refuse(source, "it is encrypted")
        mode |= 0 if stat.S_IFMT(mode) else stat.S_IFREG
        yield Entry(member.orig_filename, mode, member.file_size, partial(read, member))


def checksum(files: Mapping[str, File]) -> str:
    """SHA-256 (hex) over paths, contents and which files are executable."""
    whole = hashlib.sha256()
    for path, file in sorted(files.items()):
        head = f"{path}\0{'x' if file.executable else '-'}\0{len(file.content)}\0"
        whole.update(head.encode() + file.content)
    return whole.hexdigest()


# --- written out ------------------------------------------------------------------------------------


def write_files(root: Path, files: Mapping[str, File]) -> None:
    """The files below a new directory ``root``, for everybody to read and nobody but root to change."""
    make_directory(root)
    for path, file in files.items():
        for parent in reversed(Path(path).parents[:-1]):
            make_directory(root / parent)
        target = root / path
        target.write_bytes(file.content)
        target.chmod(0o755 if file.executable else 0o644)


def make_directory(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
