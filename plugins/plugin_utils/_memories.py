"""What a new bot is to take over: of a bot of the host, or of an archive on the controller.

Whether what is in an archive is any good is the host's to say (``clawctl memories``). An archive may hold a
whole home directory; what goes to the host are only the entries that the agent's profile asks for, as they
are, links and devices included.
"""

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

MOST_BYTES = 8 << 20
MOST_ENTRIES = 500_000
MOST_UNPACKED = 8 << 30
_REFERENCE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def read_source(text: str) -> str:
    """A bot's id or name as it is, or the path of an archive or a directory, made absolute.

    ValueError with what to write instead.
    """
    if _REFERENCE.fullmatch(text):
        return text
    path = Path(text).expanduser()
    if not path.exists():
        raise ValueError(
            f"{text!r} is neither the id or name of a bot nor an archive or a directory on this machine"
        )
    return str(path.resolve())


def is_path(source: str) -> bool:
    """Whether a source that was read is on this machine."""
    return "/" in source


def patterns_of(imports: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Patterns of all paths that an agent wants; its profile has them by the agents it takes over from."""
    return {
        pattern
        for rules in imports.values()
        for pattern in (
            *rules["notes"],
            *rules.get("databases", ()),
            *(f"{name}-wal" for name in rules.get("databases", ())),
            *rules.get("files", ()),
        )
    }


def gather(source: str, patterns: Collection[str]) -> bytes:
    """A tar of what in the archive or directory fits one of the patterns, wherever it lies.

    ValueError if it is no archive, or too much.
    """
    output = io.BytesIO()
    try:
        with tarfile.open(fileobj=output, mode="w") as tar:
            for entry, content in _entries(Path(source), patterns):
                if output.tell() + entry.size > MOST_BYTES:
                    raise ValueError(
                        f"what is to be remembered in {source} is larger than {MOST_BYTES >> 20} MiB"
                    )
                tar.addfile(entry, content)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        why = str(error).partition("\n")[0].rstrip(":")  # then comes what each way of packing says to it
        raise ValueError(f"{source} is no directory and no archive that can be read ({why})") from None
    return output.getvalue()


def _entries(path: Path, patterns: Collection[str]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    if path.is_dir():
        yield from _of_directory(path, patterns)
    elif zipfile.is_zipfile(path):
        yield from _of_zip(path, patterns)
    else:
        yield from _of_tar(path, patterns)


def _of_tar(path: Path, patterns: Collection[str]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    unpacked = 0
    with tarfile.open(path) as tar:
        for number, entry in enumerate(tar):
            unpacked += max(entry.size, 0)
            if number > MOST_ENTRIES or unpacked > MOST_UNPACKED:
                raise ValueError(f"{path} holds too much; pack the workspace alone")
            if entry.isdir() or not _fits(entry.name, patterns):
                continue
            if entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                yield entry, tar.extractfile(entry)
            else:
                entry.size = 0
                yield entry, None


def _of_zip(path: Path, patterns: Collection[str]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            mode = member.external_attr >> 16
            if member.is_dir() or not _fits(member.orig_filename, patterns):
                continue
            entry = _named(member.orig_filename, mode & 0o7777 or 0o644)
            if mode & 0o170000 in (0, 0o100000):
                entry.size = member.file_size
                with archive.open(member) as content:
                    yield entry, content
            else:
                entry.type = tarfile.SYMTYPE  # or another thing that is no file
                yield entry, None


def _of_directory(
    root: Path, patterns: Collection[str]
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    for directory, folders, names in os.walk(root):
        folders.sort()
        links = [name for name in folders if Path(directory, name).is_symlink()]
        for name in sorted((*names, *links)):
            path = Path(directory, name)
            relative = path.relative_to(root).as_posix()
            if not _fits(relative, patterns):
                continue
            status = path.lstat()
            entry = _named(relative, status.st_mode & 0o7777)
            if path.is_file() and not path.is_symlink():
                entry.size = status.st_size
                with path.open("rb") as content:
                    yield entry, content
            else:
                entry.type = tarfile.SYMTYPE
                yield entry, None


def _named(name: str, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode = mode
    return entry


def _fits(path: str, patterns: Collection[str]) -> bool:
    """Whether the end of the path fits one of the patterns; a * is never more than one name."""
    names: Sequence[str] = path.removeprefix("./").split("/")
    for pattern in patterns:
        parts = pattern.split("/")
        if len(parts) <= len(names) and all(map(fnmatchcase, names[-len(parts) :], parts)):
            return True
    return False
