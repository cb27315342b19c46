"""The release's id follows what would be installed, and an archive is made once."""

import importlib.util
import subprocess
import tarfile
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def release() -> types.ModuleType:
    """The controller's script as a module."""
    spec = importlib.util.spec_from_file_location("release", ROOT / "roles/platform/files/release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small collection that looks like ours."""
    files = {
        "pyproject.toml": '[project]\nname = "clawdeploy"\nversion = "1"\n',
        "README.md": "read me\n",
        "LICENSE": "MIT\n",
        "requirements/vps.txt": "click==8.3.0 --hash=sha256:0\n",
        "src/clawdeploy/__init__.py": "",
        "src/clawdeploy/store/1.sql": "create table a (b);\n",
    }
    for name, text in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "source"


def test_the_id_is_the_same_wherever_the_sources_lie(release: types.ModuleType, source: Path) -> None:
    before = release.release_id(source, "3.13", "x86_64")
    (source / "src/clawdeploy/__pycache__").mkdir()
    (source / "src/clawdeploy/__pycache__/a.pyc").write_text("compiled")
    (source / "src/clawdeploy.egg-info").mkdir()
    (source / "src/clawdeploy.egg-info/SOURCES.txt").write_text("built")
    (source / "README.md").write_text("read me again\n")
    moved = source.rename(source.with_name("elsewhere"))
    assert release.release_id(moved, "3.13", "x86_64") == before
    assert len(before) == 16


@pytest.mark.parametrize(
    "name",
    ["pyproject.toml", "requirements/vps.txt", "src/clawdeploy/__init__.py", "src/clawdeploy/store/1.sql"],
)
def test_the_id_changes_with_each_file_that_is_installed(
    release: types.ModuleType, source: Path, name: str
) -> None:
    before = release.release_id(source, "3.13", "x86_64")
    path = source / name
    path.write_text(path.read_text() + "# more\n")
    assert release.release_id(source, "3.13", "x86_64") != before


def test_the_id_changes_with_a_files_name_the_python_and_the_machine(
    release: types.ModuleType, source: Path
) -> None:
    ids = {
        release.release_id(source, python, machine)
        for python in ("3.11", "3.13")
        for machine in ("x86_64", "aarch64")
    }
    (source / "src/clawdeploy/store/1.sql").rename(source / "src/clawdeploy/store/2.sql")
    ids.add(release.release_id(source, "3.13", "x86_64"))
    assert len(ids) == 5


def test_an_incomplete_collection_is_told_by_the_missing_file(
    release: types.ModuleType, source: Path
) -> None:
    (source / "requirements/vps.txt").unlink()
    with pytest.raises(release.ReleaseError, match=r"vps\.txt is missing"):
        release.release_id(source, "3.13", "x86_64")


def test_an_archive_is_made_once_and_its_wheels_are_shared(
    release: types.ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def pip(*arguments: str) -> None:
        calls.append(arguments[0])
        target = next(a.split("=", 1)[1] for a in arguments if a.startswith(("--dest=", "--wheel-dir=")))
        Path(target).mkdir()
        (Path(target) / f"{arguments[0]}.whl").write_text("")

    monkeypatch.setattr(release, "pip", pip)
    cache = tmp_path / "cache"
    cache.mkdir()
    first = release.build(source, cache, "one", "3.13", "x86_64")
    assert release.build(source, cache, "one", "3.13", "x86_64") == first
    assert calls == ["download", "wheel"]
    with tarfile.open(first) as tar:
        assert tar.getnames() == ["download.whl", "wheel.whl", "requirements.txt"]
    release.build(source, cache, "two", "3.13", "x86_64")
    assert calls == ["download", "wheel", "wheel"]


def test_a_failed_download_leaves_nothing_that_looks_whole(
    release: types.ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: noise\nERROR: no index\n")

    monkeypatch.setattr(subprocess, "run", fails)
    cache = tmp_path / "cache"
    cache.mkdir()
    with pytest.raises(release.ReleaseError, match="ERROR: no index"):
        release.build(source, cache, "one", "3.13", "x86_64")
    assert list(cache.iterdir()) == []


def test_a_checkout_keeps_its_archives_and_a_collection_uses_the_users_cache(
    release: types.ModuleType, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert release.cache_directory(source) == tmp_path / "xdg" / "clawdeploy"
    (source / ".git").mkdir()
    assert release.cache_directory(source) == source / "build" / "wheelhouse"
