"""Skills and tools as a user names them, and skills as archives that a host can check.

Whether a skill is any good is the host's to say (``clawctl skills``); here it is only found and packed.
"""

import hashlib
import io
import os
import re
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_BYTES = 8 << 20
_LIBRARY = re.compile(r"[a-z0-9][a-z0-9-]{0,63}(@[0-9A-Za-z][0-9A-Za-z.+_-]{0,31})?")
_GIT = re.compile(r"git\+(?P<url>[a-z+]+://[^\s#]+)#(?P<ref>[\w./-]+)(:(?P<folder>[\w./-]+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOOL = re.compile(r"[a-z][a-z0-9-]{0,31}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ELF = struct.Struct(
    "<4sBB10xHHIQQQ6xHH"
)  # of a 64-bit header: magic, class, byte order, … number of segments
_INTERPRETER = 3


def read_skill(value: Any) -> dict[str, str]:
    """One element of ``skills``: its source and, if it is pinned, its sha256.

    ValueError with what to write instead.
    """
    given = dict(value) if isinstance(value, Mapping) else {"source": value}
    source, sha256 = given.get("source"), given.get("sha256")
    if set(given) - {"source", "sha256"}:
        raise ValueError("a skill has source and sha256 only")
    if not isinstance(source, str) or not source.strip():
        raise ValueError("each must be a path, git+URL#REF, or name@version of the host's library")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise ValueError(f"sha256 of {source} must be 64 of 0-9 and a-f")
    source = source.strip()
    if source.startswith("git+"):
        _git_parts(source)
    elif not _LIBRARY.fullmatch(source):
        path = Path(source).expanduser().resolve()
        if not path.exists():
            raise ValueError(f"no such directory or archive on this machine: {path}")
        source = str(path)
    return {"source": source} if sha256 is None else {"source": source, "sha256": sha256}


def _git_parts(source: str) -> dict[str, str]:
    """url, ref and folder of a source in git."""
    found = _GIT.fullmatch(source)
    if not found or found["ref"].startswith("-"):
        raise ValueError(f"{source!r} must be git+URL#REF or git+URL#REF:FOLDER, REF being a tag or a commit")
    return found.groupdict("")


def fetch(source: str) -> bytes | None:
    """The archive (tar or zip) of a source that was read; None if the host has it.

    ValueError if it cannot be had.
    """
    if source.startswith("git+"):
        return _of_git(source, **_git_parts(source))
    if _LIBRARY.fullmatch(source):
        return None
    path = Path(source)
    content = _packed(path) if path.is_dir() else _read(path)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{source} is larger than {MOST_BYTES >> 20} MiB")
    return content


def _read(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(MOST_BYTES + 1)


def _packed(root: Path) -> bytes:
    """The same bytes for the same files. Links are packed as links, for the host to refuse."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for directory, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name != ".git")
            links = [name for name in folders if Path(directory, name).is_symlink()]
            for name in sorted((*names, *links)):
                path = Path(directory, name)
                entry = tar.gettarinfo(path, path.relative_to(root).as_posix())
                entry.mtime = entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
                if output.tell() + entry.size > MOST_BYTES:
                    raise ValueError(f"{root} is larger than {MOST_BYTES >> 20} MiB")
                with path.open("rb") if entry.isreg() else io.BytesIO() as content:
                    tar.addfile(entry, content)
    return output.getvalue()


def _of_git(source: str, url: str, ref: str, folder: str) -> bytes:
    """That commit and no more of the repository."""
    with tempfile.TemporaryDirectory(prefix="clawdeploy-skill-") as room:

        def git(*arguments: str) -> bytes:
            quiet = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
            done = subprocess.run(
                ["git", "-C", room, *arguments], capture_output=True, check=False, env=quiet, timeout=300
            )
            if done.returncode:
                said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
                raise ValueError(f"{source} cannot be fetched: {said}")
            return done.stdout

        git("init", "--quiet")
        git("fetch", "--quiet", "--depth=1", "--", url, ref)
        return git("archive", "--format=tar", f"FETCH_HEAD:{folder}")


# --- tools ------------------------------------------------------------------------------------------


def read_tool(value: Any) -> dict[str, Any]:
    """One element of ``tools``, filled up: name, path, sha256 of the program, args and env.

    ValueError with what to write instead.
    """
    given = dict(value) if isinstance(value, Mapping) else {"path": value}
    if unknown := set(given) - {"path", "name", "args", "env"}:
        raise ValueError(
            f"a tool has path, name, args and env only, not {', '.join(sorted(map(str, unknown)))}"
        )
    if not isinstance(given.get("path"), str):
        raise ValueError("each must be the path of a program, or a dictionary with path, name, args, env")
    path = Path(given["path"]).expanduser().resolve()
    name = given.get("name", path.name)
    if not isinstance(name, str) or not _TOOL.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a tool: give a name of a-z, 0-9 and hyphens, at most 32")
    if not path.is_file():
        raise ValueError(f"no such program on this machine: {path}")
    program = _read(path)
    if len(program) > MOST_BYTES:
        raise ValueError(
            f"{path} is larger than {MOST_BYTES >> 20} MiB; build it for size, without debug information"
        )
    if not _is_static(program):
        raise ValueError(
            f"{path} is no static program for 64-bit Linux; an agent's image has no libraries for it"
        )
    args, env = given.get("args", []), given.get("env", {})
    if not isinstance(args, list) or not all(isinstance(word, (str, int, float)) for word in args):
        raise ValueError(f"args of {name} must be a list of texts")
    if not isinstance(env, Mapping) or not all(_ENV_NAME.fullmatch(str(key)) for key in env):
        raise ValueError(f"env of {name} must be a dictionary of environment variables")
    return {
        "name": name,
        "path": str(path),
        "sha256": hashlib.sha256(program).hexdigest(),
        "args": [str(word) for word in args],
        "env": {str(key): str(content) for key, content in env.items()},
    }


def _is_static(program: bytes) -> bool:
    """Whether this is a 64-bit ELF program that asks for no dynamic linker."""
    if len(program) < _ELF.size:
        return False
    magic, bits, order, _, _, _, _, segments, _, size, count = _ELF.unpack_from(program)
    if (magic, bits, order) != (b"\x7fELF", 2, 1) or size < 4 or segments + size * count > len(program):
        return False
    kinds = (struct.unpack_from("<I", program, segments + size * one)[0] for one in range(count))
    return _INTERPRETER not in kinds
