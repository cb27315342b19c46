"""Fixtures of the checks of the repository itself."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The tools of the environment that runs the tests, also when it is not activated.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


class Run(Protocol):
    """Runs a command and returns what it printed; a test whose command fails shows everything it said."""

    def __call__(self, *command: str | Path, cwd: Path = ROOT, **env: str) -> str: ...


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def run() -> Run:
    def _run(*command: str | Path, cwd: Path = ROOT, **env: str) -> str:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "PATH": PATH, "ANSIBLE_NOCOLOR": "1", **env},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return _run


@pytest.fixture(scope="session")
def tracked(run: Run) -> list[Path]:
    """Every file that git knows or would add (links as they are), without files already deleted."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    paths = (ROOT / name for name in listed.split("\0") if name)
    return [path for path in paths if path.is_symlink() or path.is_file()]
