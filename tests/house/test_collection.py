"""The checkout works as a repository and, built and installed, as a collection."""

import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT, Run

PLAYBOOKS = [Path("deploy_bot.yml"), *sorted(path.relative_to(ROOT) for path in ROOT.glob("playbooks/*.yml"))]
# What an operator's checkout also holds and no artifact may.
PRIVATE = [
    ".env",
    ".venv/bin/python",
    "build/lab/ca/ca.key",
    "inventory/vps/group_vars/vps/vault.yml",
    "fleet.vault-pass",
]
WANTED = [
    "pyproject.toml",
    "LICENSE",
    "README.md",
    "meta/runtime.yml",
    "requirements/vps.txt",
    "playbooks/prepare_host.yml",
    "playbooks/deploy_bot.yml",
    "plugins/lookup/server_env.py",
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, tracked: list[Path], run: Run) -> Path:
    """The collection, built from a copy of the tree that an operator has worked in."""
    tree = tmp_path_factory.mktemp("tree")
    for path in tracked:
        target = tree / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
    for name in PRIVATE:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("secret")
    out = tmp_path_factory.mktemp("out")
    run("ansible-galaxy", "collection", "build", "--output-path", out, cwd=tree)
    return next(out.glob("clawdeploy-fleet-*.tar.gz"))


@pytest.fixture(scope="module")
def members(artifact: Path) -> set[str]:
    """Names of the files in the artifact."""
    with tarfile.open(artifact) as archive:
        return {member.name for member in archive if member.isfile()}


def test_artifact_holds_what_a_host_needs(members: set[str], tracked: list[Path]) -> None:
    names = {str(path.relative_to(ROOT)) for path in tracked}
    rooms = ("src/", "roles/", "plugins/", "playbooks/")
    needed = set(WANTED) | {name for name in names if name.startswith(rooms)}
    assert needed - members == set()


def test_artifact_holds_no_secret_and_no_workshop(members: set[str]) -> None:
    assert members.intersection(PRIVATE) == set()
    files = {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "FILES.json",
        "LICENSE",
        "MANIFEST.json",
        "README.md",
        "SECURITY.md",
    }
    rooms = {"changelogs", "docs", "meta", "playbooks", "plugins", "requirements", "roles", "src"}
    assert {name.partition("/")[0] for name in members} == files | rooms | {"pyproject.toml"}


def test_installed_collection_runs_its_playbook_by_name(artifact: Path, tmp_path: Path, run: Run) -> None:
    install = ("ansible-galaxy", "collection", "install", "--offline", "--no-deps", "-p", tmp_path)
    run(*install, artifact, cwd=tmp_path)
    check = ("ansible-playbook", "--syntax-check", "-i", ROOT / "inventory/example")
    run(*check, "clawdeploy.fleet.deploy_bot", cwd=tmp_path, ANSIBLE_COLLECTIONS_PATH=str(tmp_path))


def test_the_artifact_builds_the_package_that_goes_to_a_host(
    artifact: Path, tmp_path: Path, run: Run
) -> None:
    run("tar", "-xf", artifact, cwd=tmp_path)
    pip_wheel = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    )
    run(*pip_wheel, "--wheel-dir", tmp_path, ".", cwd=tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("clawdeploy-*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("clawdeploy/")}
        (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
        scripts = wheel.read(entry_points).decode()
    sources = tmp_path / "src"
    files = {str(path.relative_to(sources)) for path in sources.glob("clawdeploy/**/*") if path.is_file()}
    assert packed == files
    assert "clawctl = clawdeploy.cli:main" in scripts


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=str)
def test_playbook_has_no_syntax_error(playbook: Path, run: Run) -> None:
    run("ansible-playbook", "-i", "inventory/example", "--syntax-check", playbook)


@pytest.mark.parametrize("playbook", sorted(ROOT.glob("playbooks/*.yml")), ids=lambda path: path.stem)
def test_every_playbook_is_explained(playbook: Path) -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    assert [page for page in pages if playbook.stem in page.read_text()] != []


def test_example_inventory_names_one_host_in_the_group_that_playbooks_use(run: Run) -> None:
    listed = json.loads(run("ansible-inventory", "-i", "inventory/example", "--list"))
    assert listed["vps"]["hosts"] == ["vps1"]


def test_a_misspelt_group_stops_the_run(tmp_path: Path, run: Run) -> None:
    playbook = tmp_path / "typo.yml"
    playbook.write_text("- hosts: vsp\n  gather_facts: false\n  tasks: []\n")
    with pytest.raises(AssertionError, match=r"Could not match supplied host pattern.*vsp"):
        run("ansible-playbook", "-i", "inventory/example", playbook)
