"""Root file systems of the lab's VPSs: made of Debian packages by mmdebstrap, imported as images, cached."""

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.lab.engine import docker, inspect
from tests.lab.settings import CACHE, LOGS, LabError

IMAGE_FILES = Path(__file__).parent / "image"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
VARIANT = "minbase"
# What a hosting company's smallest image has. Docker, HAProxy, Caddy and the rest are the roles' business.
PACKAGES = (
    "apt-utils,ca-certificates,cron,curl,dbus,debian-archive-keyring,e2fsprogs,iproute2,iputils-ping,kmod,less,"
    "libpam-systemd,logrotate,nftables,openssh-server,procps,python3,python3-apt,sudo,systemd,systemd-sysv"
)
# Translations of package descriptions are a third of what `apt update` downloads.
APT_OPTIONS = 'Acquire::Languages "none";'
SOURCES = """\
Types: deb
URIs: {mirror}
Suites: {release} {release}-updates
Components: main
Signed-By: {keyring}

Types: deb
URIs: {security}
Suites: {release}-security
Components: main
Signed-By: {keyring}
"""


def image_name(release: str) -> str:
    """Return the image's name for a Debian release: its tag changes whenever the recipe does."""
    recipe = hashlib.sha256()
    for part in (VARIANT, PACKAGES, APT_OPTIONS, SOURCES):
        recipe.update(part.encode() + b"\0")
    for path in sorted(IMAGE_FILES.iterdir()):
        recipe.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"claw-lab/vps:{release}-{recipe.hexdigest()[:12]}"


def ensure_image(release: str) -> bool:
    """Make the image of a Debian release unless it is there; True if it was made.

    A root file system kept in build/cache is imported in seconds; a new one takes about a minute and needs
    Debian's mirror. Raises LabError with the reason.
    """
    image = image_name(release)
    if inspect("image", image):
        return False
    archive = CACHE / f"vps-{image.partition(':')[2]}.tar"
    if not archive.exists():
        _build(release, archive)
    docker("import", "--change", 'CMD ["/usr/local/sbin/lab-init"]', str(archive), image)
    return True


def _mirror(label: str) -> str:
    """Return where this machine gets Debian's packages with this label from; LabError if it does not."""
    if not (found := _mirrors(label)):  # an image of a machine may come without apt's lists
        subprocess.run(["apt-get", "update"], capture_output=True, check=True)
        found = _mirrors(label)
    if not found:
        raise LabError(f"apt knows no mirror for {label} packages: see /etc/apt/sources.list")
    return found[0]


def _mirrors(label: str) -> list[str]:
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Label: {label}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()


def _build(release: str, archive: Path) -> None:
    if not shutil.which("mmdebstrap"):
        raise LabError("mmdebstrap is not installed: run `apt-get install mmdebstrap`")
    CACHE.mkdir(parents=True, exist_ok=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    # mmdebstrap leaves the file in the image under this very name.
    sources = CACHE / "debian.sources"
    sources.write_text(
        SOURCES.format(
            release=release, keyring=KEYRING, mirror=_mirror("Debian"), security=_mirror("Debian-Security")
        )
    )
    partial = archive.with_name(f"partial-{archive.name}")
    log = LOGS / f"mmdebstrap-{release}.log"
    with log.open("w") as output:
        result = subprocess.run(
            [
                "mmdebstrap",
                "--mode=root",
                "--format=tar",
                f"--variant={VARIANT}",
                f"--include={PACKAGES}",
                f"--aptopt={APT_OPTIONS}",
                f'--customize-hook={IMAGE_FILES / "customize"} "$1"',
                release,
                str(partial),
                str(sources),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if result.returncode:
        partial.unlink(missing_ok=True)
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise LabError(
            f"mmdebstrap could not make a Debian {release} root file system, see {log} (if a signature could "
            f"not be verified: `apt-get install debian-archive-keyring` brings the newest keys):\n{tail}"
        )
    for outdated in CACHE.glob(f"vps-{release}-*.tar"):
        outdated.unlink()
    partial.rename(archive)
