#!/usr/bin/env python3
"""Runs the Zig compiler that is locked in requirements/zig.txt: `tools/zig.py build-exe …`, as `zig` itself.

It is installed from PyPI into build/cache/zig/ when it is not there.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "zig.txt"
CACHE = ROOT / "build" / "cache" / "zig"


def compiler() -> Path:
    """The compiler's path; fetched first, checked against the lock, if it is not there."""
    place = CACHE / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    if not place.is_dir():
        print("fetching the Zig compiler (100 MB)", file=sys.stderr)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as room:
            uv = Path(sys.executable).with_name("uv")
            target = Path(room) / "zig"
            command = [str(uv), "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
            subprocess.run([*command, f"--target={target}", f"--requirement={LOCK}"], check=True)
            shutil.move(target, place)
    return place / "ziglang" / "zig"


if __name__ == "__main__":
    zig = compiler()
    for name in ("LOCAL", "GLOBAL"):
        os.environ[f"ZIG_{name}_CACHE_DIR"] = str(CACHE / name.lower())
    os.execv(zig, [str(zig), *sys.argv[1:]])  # noqa: S606 # the caller's own arguments
