"""The simulated internet itself: one bridge with extra addresses for its servers, and the plain website."""

import hashlib
import ipaddress
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import settings
from tests.lab.engine import LABEL_ARGS, docker, inspect
from tests.lab.settings import (
    BRIDGE,
    LABEL,
    METADATA_ADDRESS,
    NETWORK,
    OTHER_PRIVATE_ADDRESSES,
    PRIVATE_ADDRESS,
    ROOT,
    SPEC_LABEL,
    WEBSITE_ADDRESS,
    LabError,
)

SERVERS = (
    settings.DNS_ADDRESS,
    settings.OPENROUTER_ADDRESS,
    settings.TELEGRAM_ADDRESS,
    settings.ACME_ADDRESS,
    settings.FLY_ADDRESS,
)
WEBSITE_CONTAINER = "claw-website"
WEBSITE_PORTS = ("25", "80", "443", "465", "587", "2525", "8080")
WEBSITE_SCRIPT = Path(__file__).parent / "website.py"


def ip(*arguments: str) -> str:
    """Run iproute2 with JSON output; LabError with its words if it fails."""
    result = subprocess.run(["ip", "-json", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError(f"ip {' '.join(arguments)} failed: {result.stderr.strip()}")
    return result.stdout


def ensure_network() -> bool:
    """Make the network of the simulated internet and the addresses of its servers; True if it was made.

    Machines on it reach the real internet through this one (Debian's mirrors), masqueraded, by IPv4.
    """
    made = inspect("network", NETWORK) is None
    if made:
        docker(
            *("network", "create", *LABEL_ARGS, "--driver", "bridge", "--ipv6"),
            *("--subnet", settings.SUBNET, "--gateway", settings.GATEWAY),
            *("--subnet", settings.SUBNET6, "--gateway", settings.GATEWAY6),
            *("--opt", f"com.docker.network.bridge.name={BRIDGE}"),
            *("--opt", f"com.docker.network.driver.mtu={uplink_mtu()}"),
            NETWORK,
        )
    [bridge] = json.loads(ip("address", "show", "dev", BRIDGE))
    present = {address["local"] for address in bridge["addr_info"]}
    for address in SERVERS:
        if address not in present:
            ip("address", "add", f"{address}/32", "dev", BRIDGE)
    return made


def uplink_mtu() -> int:
    """Return the largest packet (bytes) that the machine's default route takes: bigger ones would be lost."""
    routes = json.loads(ip("route", "show", "default"))
    if not routes:
        return 1500
    [link] = json.loads(ip("link", "show", "dev", routes[0]["dev"]))
    return int(link["mtu"])


def ensure_website(image: str) -> bool:
    """Start the container of the plain website, with any image of ours; True if it was started."""
    made_of = (WEBSITE_SCRIPT.read_text(), WEBSITE_PORTS, decoy_networks())
    spec = hashlib.sha256(repr(made_of).encode()).hexdigest()
    present = inspect("container", WEBSITE_CONTAINER)
    if present and present["State"]["Running"] and present["Config"]["Labels"][SPEC_LABEL] == spec:
        return False
    if present:
        docker("rm", "--force", WEBSITE_CONTAINER)
    add_decoys = "".join(
        f"ip address add {address}/32 dev lo; "
        for address in (METADATA_ADDRESS, PRIVATE_ADDRESS, *OTHER_PRIVATE_ADDRESSES)
    )
    docker(
        *("run", "--detach", "--name", WEBSITE_CONTAINER, *LABEL_ARGS),
        *("--label", f"{SPEC_LABEL}={spec}"),
        *("--network", NETWORK, "--ip", WEBSITE_ADDRESS, "--cap-add", "NET_ADMIN", "--init"),
        *("--volume", f"{WEBSITE_SCRIPT}:/website.py:ro"),
        *(image, "sh", "-c", f"{add_decoys}exec python3 /website.py {' '.join(WEBSITE_PORTS)}"),
    )
    return True


def website(command: str) -> str:
    """Run a shell command in the website's container, another visitor on the internet; return its output."""
    return docker("exec", WEBSITE_CONTAINER, "sh", "-c", command)


def on_internet(*command: str) -> tuple[str, ...]:
    """Return what runs `command` with the simulated internet's resolver, in a mount namespace of its own."""
    settings.STATE.mkdir(parents=True, exist_ok=True)
    resolv_conf = settings.STATE / "resolv.conf"
    resolv_conf.write_text(f"nameserver {settings.DNS_ADDRESS}\n")
    script = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh", str(resolv_conf), *command)


@contextmanager
def cut_off() -> Iterator[None]:
    """Take away the simulated internet's way out to the real one while a flood or an attack is tested."""
    rule = ("DOCKER-USER", "--in-interface", BRIDGE, "!", "--out-interface", BRIDGE, "--jump", "DROP")
    subprocess.run(["iptables", "--wait", "--insert", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "--wait", "--delete", *rule], check=True)


def decoy_networks() -> tuple[str, ...]:
    """Return the networks that a VPS reaches through the website: the metadata address and private ones."""
    private = ipaddress.ip_network(f"{PRIVATE_ADDRESS}/24", strict=False)
    others = (f"{address}/32" for address in OTHER_PRIVATE_ADDRESSES)
    return (f"{METADATA_ADDRESS}/32", str(private), *others)


def foreign_root() -> str | None:
    """Return the checkout whose lab is up on this machine if it is not this one, else None."""
    network = inspect("network", NETWORK)
    owner = network["Labels"].get(LABEL) if network else None
    return owner if owner != str(ROOT) else None
