"""Builds the stand-in for NullClaw and its container image: `python -m tests.standin.build`.

`--ca FILE` is the CA bundle the image trusts (default: the system's). `--variant` makes an agent that ends
right after its start (`crash`), only if STANDIN_BREAKS is in its environment (`picky`), or some seconds
later (`late`), or whose `/ready` never says 200 (`sick`), or the healthy agent with a program beside it
that attacks from inside (`hostile`, hostile/hostile.c). `--release N`: the same under another tag.
Prints `{"archive", "tag", "image_id"}` as JSON; the archive is for `docker load`. Everything is deterministic
and cached by content under build/cache/standin/.

Needs gcc, libjansson-dev, libsqlite3-dev, libssl-dev and busybox-static.

The chat message `!sh COMMAND` runs a command in the container. Its tools are Debian's busybox: there
`wget -T` crashes (use `timeout 3 wget ...`), `nc` has no `-z` (use `nc -w 3 HOST PORT </dev/null`), and
`wget` speaks no TLS that today's servers accept.
"""

import argparse
import hashlib
import io
import json
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent / "nullclaw"
HOSTILE = Path(__file__).resolve().parent / "hostile"
CACHE = ROOT / "build" / "cache" / "standin"
BUSYBOX = Path("/bin/busybox")
SYSTEM_CA = Path("/etc/ssl/certs/ca-certificates.crt")
REPOSITORY = "clawdeploy/standin-nullclaw"
VARIANTS = ("healthy", "crash", "sick", "late", "picky", "hostile")
NOBODY = 65534
EPOCH = "2026-01-01T00:00:00Z"

COMPILE = ["gcc", "-std=gnu11", "-Os", "-Wall", "-Wextra", "-ffunction-sections", "-fdata-sections"]
LINK = ["-static", "-Wl,--gc-sections,-s"]
LIBRARIES = ["-ljansson", "-lsqlite3", "-lm", "-lssl", "-lcrypto", "-pthread"]
# What `setcap cap_net_raw=ep` writes (struct vfs_cap_data, revision 2).
FILE_CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


@dataclass(frozen=True)
class Image:
    """A container image ready for `docker load`."""

    archive: str
    tag: str
    image_id: str


def digest(*parts: bytes) -> str:
    """A short hash over the parts, each with its length."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()[:16]


def keep(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Put a file into the cache so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
        temporary.write(content)
    Path(temporary.name).chmod(mode)
    Path(temporary.name).replace(path)


def build_binary(sources: Path = SOURCES, libraries: Sequence[str] = LIBRARIES) -> Path:
    """Compile a program if its sources, the compiler or the flags have changed; return its path.

    It is named like the directory of its sources. Raises RuntimeError with the compiler's words and the
    packages it needs.
    """
    version = subprocess.run(["gcc", "--version"], check=True, capture_output=True).stdout
    content = [path.read_bytes() for path in sorted(sources.iterdir())]
    flags = [*COMPILE, *LINK, *libraries]
    program = CACHE / f"{sources.name}-{digest(version, ' '.join(flags).encode(), *content)}"
    if not program.exists():
        with tempfile.TemporaryDirectory() as directory:
            output = Path(directory) / sources.name
            files = map(str, sorted(sources.glob("*.c")))
            command = [*COMPILE, "-o", str(output), *files, *LINK, *libraries]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode != 0:
                needs = "the stand-in needs gcc, libjansson-dev, libsqlite3-dev and libssl-dev"
                raise RuntimeError(f"{needs}; the compiler says:\n{result.stderr}")
            keep(program, output.read_bytes(), 0o755)
    return program


def make_layer(program: bytes, ca: bytes, hostile: bytes = b"") -> bytes:
    """The image's one file system layer as a tar; `hostile`: the program that attacks, if it is in it."""
    output = io.BytesIO()
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()

    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as layer:

        def add(
            name: str,
            kind: bytes,
            mode: int,
            content: bytes = b"",
            target: str = "",
            owner: int = 0,
            capability: bytes = b"",
        ) -> None:
            entry = tarfile.TarInfo(name)
            if capability:
                # Every byte is below 0x80, so it is the same as text.
                entry.pax_headers = {"SCHILY.xattr.security.capability": capability.decode("ascii")}
            entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), target
            entry.uid = entry.gid = owner
            layer.addfile(entry, io.BytesIO(content))

        directories = ("bin", "dev", "etc", "etc/ssl", "etc/ssl/certs", "proc", "sys", "usr", "usr/local")
        for name in (*directories, "usr/local/bin"):
            add(name, tarfile.DIRTYPE, 0o755)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        for name in ("nullclaw-data", "nullclaw-data/workspace"):
            add(name, tarfile.DIRTYPE, 0o755, owner=NOBODY)
        add("usr/local/bin/nullclaw", tarfile.REGTYPE, 0o755, program)
        add("bin/busybox", tarfile.REGTYPE, 0o755, BUSYBOX.read_bytes())
        if hostile:
            add("usr/local/bin/hostile", tarfile.REGTYPE, 0o755, hostile)
            add("usr/local/bin/hostile-setuid", tarfile.REGTYPE, 0o6755, hostile)
            add("usr/local/bin/hostile-filecap", tarfile.REGTYPE, 0o755, hostile, capability=FILE_CAPABILITY)
        for applet in sorted(applets):
            if applet != "busybox":
                add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, target="busybox")
        users = f"root:x:0:0::/:/bin/sh\nnobody:x:{NOBODY}:{NOBODY}::/nullclaw-data:/bin/sh\n"
        add("etc/passwd", tarfile.REGTYPE, 0o644, users.encode())
        add("etc/group", tarfile.REGTYPE, 0o644, f"root:x:0:\nnogroup:x:{NOBODY}:\n".encode())
        add("etc/nsswitch.conf", tarfile.REGTYPE, 0o644, b"hosts: files dns\n")
        add("etc/ssl/certs/ca-certificates.crt", tarfile.REGTYPE, 0o644, ca)
    return output.getvalue()


def make_config(layer: bytes, variant: str, release: int = 1) -> bytes:
    """The image's configuration, as upstream's image has it."""
    environment = {
        "PATH": "/usr/local/bin:/bin",
        "HOME": "/nullclaw-data",
        "NULLCLAW_HOME": "/nullclaw-data",
        "NULLCLAW_WORKSPACE": "/nullclaw-data/workspace",
        "NULLCLAW_GATEWAY_PORT": "3000",
        "STANDIN_VARIANT": variant,
    }
    if release > 1:
        environment["STANDIN_RELEASE"] = str(release)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": {
            "User": f"{NOBODY}:{NOBODY}",
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Entrypoint": ["nullclaw"],
            "Cmd": ["gateway", "--port", "3000", "--host", "::"],
            "WorkingDir": "/nullclaw-data",
            "ExposedPorts": {"3000/tcp": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": EPOCH, "created_by": "tests.standin.build"}],
    }
    return json.dumps(config, sort_keys=True).encode()


def build_image(ca: Path = SYSTEM_CA, variant: str = "healthy", release: int = 1) -> Image:
    """Build the image (or find it in the cache) that trusts the CA bundle `ca`.

    The tag is `clawdeploy/standin-nullclaw:1`, 1 being the release, with the name of a variant behind it.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant}: must be one of {', '.join(VARIANTS)}")
    if not BUSYBOX.exists():
        raise RuntimeError(f"{BUSYBOX} is missing: install busybox-static")
    tag = f"{REPOSITORY}:{release}" + ("" if variant == "healthy" else f"-{variant}")
    hostile = build_binary(HOSTILE, ()).read_bytes() if variant == "hostile" else b""
    layer = make_layer(build_binary().read_bytes(), ca.read_bytes(), hostile)
    config = make_config(layer, variant, release)
    image_id = hashlib.sha256(config).hexdigest()
    archive = CACHE / f"image-{variant}-{image_id[:16]}.tar"
    if not archive.exists():
        manifest = [{"Config": f"{image_id}.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
        output = io.BytesIO()
        files = {
            f"{image_id}.json": config,
            "layer.tar": layer,
            "manifest.json": json.dumps(manifest).encode(),
        }
        with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        keep(archive, output.getvalue())
    return Image(str(archive), tag, f"sha256:{image_id}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the stand-in NullClaw image.")
    parser.add_argument("--ca", type=Path, default=SYSTEM_CA, help="CA bundle that the image trusts")
    parser.add_argument("--variant", choices=VARIANTS, default="healthy")
    parser.add_argument("--release", type=int, default=1)
    arguments = parser.parse_args()
    print(json.dumps(asdict(build_image(arguments.ca, arguments.variant, arguments.release))))


if __name__ == "__main__":
    main()
