"""What holds for the tree as a whole."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from antsibull_changelog.cli import run as antsibull_changelog

from .conftest import Run

# Package indexes and mirrors are the choice of whoever runs pip and apt; paths of one machine are true on no
# other. The patterns are put together so that this file does not hold what it looks for.
FORBIDDEN = [
    r"(?<![\w.{}/-])/" + "work/",
    r"pypi\." + "org",
    r"python" + "hosted",
    r"deb\.deb" + "ian",
    r"security\.deb" + "ian",
    r"registry\.npm" + "js",
    r"/\.py" + "env/",
]
TEST_DIRECTORIES = ("tests/unit", "tests/house")


def test_no_file_names_a_machine_or_a_package_index(root: Path, tracked: list[Path]) -> None:
    pattern = re.compile("|".join(FORBIDDEN))
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in tracked
        if not path.is_symlink()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_collection_and_package_have_one_version(root: Path) -> None:
    galaxy = yaml.safe_load((root / "galaxy.yml").read_text())
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert galaxy["version"] == project["version"]


def test_needed_collections_are_named_and_used(root: Path, tracked: list[Path]) -> None:
    galaxy = yaml.safe_load((root / "galaxy.yml").read_text())["dependencies"]
    wanted = yaml.safe_load((root / "requirements.yml").read_text())["collections"]
    assert galaxy == {entry["name"]: entry["version"] for entry in wanted}
    parts = (root / "roles", root / "playbooks")
    tasks = (path for path in tracked if path.suffix == ".yml" and any(map(path.is_relative_to, parts)))
    used = {
        name
        for path in tasks
        for name in re.findall(r"\b((?:ansible|community)\.\w+)\.\w+", path.read_text())
        if name != "ansible.builtin"
    }
    assert used == set(galaxy)


def test_changelog_fragments_are_valid(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert antsibull_changelog(["antsibull-changelog", "lint"]) == 0


@pytest.mark.parametrize("top", TEST_DIRECTORIES)
def test_every_test_directory_has_tests(root: Path, top: str) -> None:
    rooms = [path for path in (root / top).iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [str(room) for room in rooms if not list(room.rglob("test_*.py"))] == []


def test_secrets_of_an_operator_cannot_be_committed(root: Path, run: Run) -> None:
    names = [".env", "inventory/vps/hosts.yml", "inventory/vps/group_vars/vps/vault.yml", "fleet.vault-pass"]
    assert run("git", "check-ignore", "--no-index", *names).split() == names


def test_the_example_inventory_is_in_the_repository(root: Path, tracked: list[Path]) -> None:
    names = {str(path.relative_to(root)) for path in tracked}
    assert {"inventory/example/hosts.yml", "inventory/example/group_vars/vps/main.yml"} <= names


def test_every_target_of_the_makefile_is_explained(root: Path) -> None:
    text = (root / "Makefile").read_text()
    phony = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    explained = re.findall(r"^([a-z-]+):.*## ", text, flags=re.MULTILINE)
    assert sorted(phony) == sorted(explained)


def test_every_file_that_a_page_links_to_exists(root: Path, tracked: list[Path]) -> None:
    pages = [path for path in tracked if path.suffix == ".md" and not path.is_symlink()]
    broken = [
        f"{page.relative_to(root)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def names_of(lines: Iterable[str]) -> set[str]:
    """Names of the packages in requirement lines."""
    return {match[0].lower() for line in lines if (match := re.match(r"[A-Za-z0-9][\w.-]*", line))}


def test_what_the_package_needs_is_what_is_locked_for_a_host(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert names_of(project["dependencies"]) == names_of(
        (root / "requirements/vps.in").read_text().splitlines()
    )


def test_a_host_and_the_tests_run_the_same_versions(root: Path) -> None:
    def pins(name: str) -> dict[str, str]:
        text = (root / "requirements" / name).read_text()
        return dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, flags=re.MULTILINE))

    host, controller, tests = pins("vps.txt"), pins("controller.txt"), pins("dev.txt")
    assert {name: tests.get(name) for name in host | controller} == host | controller


@pytest.mark.parametrize("lock", ["vps.txt", "controller.txt", "dev.txt"])
def test_every_locked_version_has_hashes_and_no_index(root: Path, lock: str) -> None:
    text = (root / "requirements" / lock).read_text()
    entries = re.split(r"\n(?=[\w.-]+==)", text)[1:]
    assert entries
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert not re.search(r"^(--(extra-)?index-url|--find-links|-[if]) ", text, flags=re.MULTILINE)


def test_hooks_run_the_tools_of_make_lint(root: Path) -> None:
    lint = (root / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    (local,) = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    entries = " ".join(hook["entry"] for hook in local["hooks"])
    tools = {"shellcheck"}.intersection(entries.split()).union(re.findall(r"\.venv/bin/([\w-]+)", entries))
    assert tools == {"ruff", "mypy", "yamllint", "shellcheck", "ansible-lint"}
    assert {tool for tool in tools if not re.search(rf"\b{tool}\b", lint)} == set()
