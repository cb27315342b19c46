"""Make the archive that installs the clawdeploy package on a VPS that reaches no package index.

Runs on the controller: `release.py --source DIR --python 3.13 --machine x86_64 [--build]`. Prints one JSON
object {"id", "archive"}: the release's id, which depends only on the package's sources, the lock and the
VPS's Python, and (with --build) the archive's path. Archive: the package's wheel, those of the lock, and the
lock as requirements.txt. Needs pip; an archive that was made before is used again.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Changed by hand when archives that were made before must not be used any more.
FORMAT = b"1"
# glibc of the oldest supported system (Debian 12); pip matches each tag exactly.
GLIBC_MINORS = range(36, 4, -1)
ARCHIVES_KEPT = 8


class ReleaseError(Exception):
    """The archive cannot be made; the message says why and what to do."""


def package_files(source: Path) -> Iterator[Path]:
    """The files that make up the package and its lock, in a fixed order."""
    yield source / "pyproject.toml"
    yield source / "requirements" / "vps.txt"
    for path in sorted((source / "src" / "clawdeploy").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def release_id(source: Path, python: str, machine: str) -> str:
    """16 hex digits that change when, and only when, the installed release would."""
    digest = hashlib.sha256(b"\0".join([FORMAT, python.encode(), machine.encode()]))
    for path in package_files(source):
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise ReleaseError(
                f"{error.filename} is missing: the checkout or collection is not whole"
            ) from None
        digest.update(f"\0{path.relative_to(source)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def pip(*arguments: str) -> None:
    """Run this Python's pip. Raises ReleaseError with its last words."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")][-3:]
        raise ReleaseError(
            f"pip {arguments[0]} failed on the controller: {' '.join(last)}"
            " (platform_controller_python must be a Python with pip; a mirror is set as usual in pip.conf)"
        )


def download_wheels(lock: Path, python: str, machine: str, target: Path) -> None:
    """Fill ``target`` with the wheels of the lock for that Python and machine, checked by hash."""
    tag = python.replace(".", "")
    pip(
        "download",
        "--no-deps",  # the lock is complete; pip would judge markers by the controller's Python
        "--require-hashes",
        f"--requirement={lock}",
        "--only-binary=:all:",
        f"--python-version={python}",
        "--implementation=cp",
        *(f"--abi={abi}" for abi in (f"cp{tag}", "abi3", "none")),
        *(f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS),
        f"--platform=manylinux2014_{machine}",
        f"--dest={target}",
    )


def build_wheel(source: Path, target: Path) -> None:
    """Put the package's wheel into ``target``; built from a copy, as building leaves files behind."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "package")
        for path in [*package_files(source), source / "README.md", source / "LICENSE"]:
            place = copy / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        pip("wheel", "--no-deps", f"--wheel-dir={target}", str(copy))


def build(source: Path, cache: Path, identity: str, python: str, machine: str) -> Path:
    """The release's archive in ``cache``, made if it is not there yet."""
    archive = cache / f"{identity}.tar"
    if archive.exists():
        archive.touch()
        return archive
    lock = source / "requirements" / "vps.txt"
    wheels_id = hashlib.sha256(
        b"\0".join([FORMAT, python.encode(), machine.encode(), lock.read_bytes()])
    ).hexdigest()
    wheels = cache / f"wheels-{wheels_id[:16]}"
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        work = Path(directory)
        if not wheels.exists():
            download_wheels(lock, python, machine, work / "wheels")
            (work / "wheels").rename(wheels)
        build_wheel(source, work / "own")
        with tarfile.open(work / "archive.tar", "w") as tar:
            for wheel in [*sorted(wheels.iterdir()), *sorted((work / "own").iterdir())]:
                tar.add(wheel, wheel.name)
            tar.add(lock, "requirements.txt")
        (work / "archive.tar").rename(archive)
    for old in sorted(cache.glob("*.tar"), key=lambda path: path.stat().st_mtime)[:-ARCHIVES_KEPT]:
        old.unlink()
    return archive


def cache_directory(source: Path) -> Path:
    """build/wheelhouse in a checkout; the user's cache for a collection, which may not be writable."""
    if (source / ".git").exists():
        return source / "build" / "wheelhouse"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clawdeploy"


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """One build at a time: the playbook asks once for each host."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--machine", choices=["x86_64", "aarch64"], required=True)
    parser.add_argument("--build", action="store_true")
    options = parser.parse_args()
    source = options.source.resolve()
    try:
        identity = release_id(source, options.python, options.machine)
        archive = None
        if options.build:
            cache = cache_directory(source)
            with locked(cache):
                archive = str(build(source, cache, identity, options.python, options.machine))
    except (ReleaseError, OSError) as error:
        sys.exit(f"clawdeploy release: {error}")
    json.dump({"id": identity, "archive": archive}, sys.stdout)


if __name__ == "__main__":
    main()
