"""Files that are either old or new, never half written."""

import os
import secrets
from pathlib import Path


def write_atomic(path: Path, content: str, mode: int = 0o600, group: int = 0, owner: int = 0) -> None:
    """Replace ``path`` by temporary file, fsync and rename; group or owner -1 is the writer's own.

    OSError if the directory is missing or the disk full; then the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            os.fchown(handle.fileno(), owner, group)
            os.fchmod(handle.fileno(), mode)
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def private_directory(path: Path) -> None:
    """Make sure ``path`` is a directory that only root can enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
