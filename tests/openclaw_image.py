"""The real OpenClaw as the tests run it: the image that `make image-openclaw` builds, trusting one CA more.

The product's archive is cached in build/cache/images/, like the lab's root file systems: building it takes
two minutes, and `python -m tests.openclaw_image` begins with it while other things wait. OpenClaw finds the
simulated internet's CA through NODE_EXTRA_CA_CERTS: nothing in it is changed.
"""

import fcntl
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import IO, Any

from tests.lab.settings import CACHE
from tests.playbooks import ROOT, Run, run_playbook
from tests.standin.build import Image

FOLDER = CACHE / "images"
PRODUCT = FOLDER / "openclaw.tar"
CA_PATH = "etc/ssl/tests-ca.pem"
VARIABLE = f"NODE_EXTRA_CA_CERTS=/{CA_PATH}"


def build_product(archive: Path) -> Run:
    """Run the product's playbook, on this machine, for an archive at that place."""
    playbook, machine = ROOT / "playbooks" / "build_image.yml", Path("localhost,")
    return run_playbook(playbook, machine, {"agent_image_archive": str(archive)}, host="localhost")


def ensure_product() -> None:
    """Build the archive unless it is there; if somebody else is at it, wait."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "openclaw.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build_product(PRODUCT).check()


def build_openclaw(ca: Path) -> Image:
    """Build the image with the product's playbook (or find it in the cache); let it trust the bundle `ca`."""
    ensure_product()
    layer = _layer(ca.read_bytes())
    with tarfile.open(PRODUCT) as product:
        (manifest,) = _read(product, "manifest.json")
        config = _read(product, manifest["Config"])
        config["config"]["Env"].append(VARIABLE)
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
        config["history"].append(config["history"][0])
        packed = json.dumps(config, sort_keys=True).encode()
        image_id = hashlib.sha256(packed).hexdigest()
        tag = f"{manifest['RepoTags'][0]}-{image_id[:8]}"
        archive = FOLDER / f"openclaw-{image_id[:16]}.tar"
        if not archive.exists():
            for outdated in FOLDER.glob("openclaw-*.tar"):
                outdated.unlink()
            entry = {"Config": f"{image_id}.json", "RepoTags": [tag]}
            entry |= {"Layers": [*manifest["Layers"], "tests.tar"]}
            partial = archive.with_suffix(".partial")
            with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
                _add(tar, "manifest.json", json.dumps([entry]).encode())
                _add(tar, f"{image_id}.json", packed)
                for name in manifest["Layers"]:
                    member = product.getmember(name)
                    tar.addfile(member, _content(product, name))
                _add(tar, "tests.tar", layer)
            partial.rename(archive)
    return Image(str(archive), tag, f"sha256:{image_id}")


def _layer(ca: bytes) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, CA_PATH, ca)
    return output.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))


def _content(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    found = tar.extractfile(name)
    assert found is not None
    return found


def _read(tar: tarfile.TarFile, name: str) -> Any:
    return json.load(_content(tar, name))


if __name__ == "__main__":
    ensure_product()
