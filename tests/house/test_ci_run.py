"""The script that CI runs fails when `make test` does, or tests nothing, and ends with the counts."""

import shutil
import subprocess
from pathlib import Path

import pytest

CLOSING = "================= \x1b[32m7 passed\x1b[0m, 1 skipped in 0.52s ================="


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    """A tree with CI's script and nothing else."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(root / ".ci/run", tmp_path / ".ci/run")
    return tmp_path


def ci(tree: Path, *recipe: str) -> "subprocess.CompletedProcess[str]":
    """Runs CI's script where `make test` does what is given."""
    (tree / "Makefile").write_text("test:\n" + "".join(f"\t@{line}\n" for line in recipe))
    return subprocess.run(["bash", ".ci/run"], cwd=tree, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("closing", [CLOSING, "12 passed in 3.10s"])
def test_counts_are_the_last_line(tree: Path, closing: str) -> None:
    done = ci(tree, f"printf '%s\\n' '{closing}'", "echo destroying the VPS")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == closing


def test_failing_tests_fail_the_run(tree: Path) -> None:
    done = ci(tree, "echo '=== 1 failed, 3 passed in 0.10s ==='", "exit 1")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1] == "=== 1 failed, 3 passed in 0.10s ==="


def test_a_run_without_tests_fails(tree: Path) -> None:
    assert ci(tree, "echo all is well").returncode == 1
