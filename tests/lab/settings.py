"""Names, addresses and places of the lab: every fact that two of its modules share."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / "build" / "lab"
CACHE = ROOT / "build" / "cache"
LOGS = STATE / "log"
CA_DIR = STATE / "ca"
SSH_DIR = STATE / "ssh"
SSH_KEY = SSH_DIR / "id_ed25519"
KNOWN_HOSTS = SSH_DIR / "known_hosts"
INVENTORY = STATE / "inventory.yml"

# The simulated internet: addresses reserved for documentation (RFC 5737, RFC 3849), so that nothing real is
# ever shadowed by them.
NETWORK = "claw-internet"
BRIDGE = "claw-internet"
SUBNET = "198.51.100.0/24"
GATEWAY = "198.51.100.1"
SUBNET6 = "2001:db8:51::/64"
GATEWAY6 = "2001:db8:51::1"
DNS_ADDRESS = "198.51.100.2"
OPENROUTER_ADDRESS = "198.51.100.3"
TELEGRAM_ADDRESS = "198.51.100.4"
ACME_ADDRESS = "198.51.100.5"
WEBSITE_ADDRESS = "198.51.100.6"
FLY_ADDRESS = "198.51.100.7"
# For a machine that the simulated Fly.io says it runs.
FLY_MACHINE_ADDRESS = "198.51.100.20"

# Addresses that a bot must never reach, answered by the website's container one hop away from every VPS.
METADATA_ADDRESS = "169.254.169.254"
PRIVATE_ADDRESS = "192.168.77.6"
OTHER_PRIVATE_ADDRESSES = ("10.77.0.6", "172.20.77.6", "100.64.77.6", "198.18.77.6")

ACME_DIRECTORY = "https://acme.example.test/acme/local/directory"

# Label on every container, network and volume of the lab: the checkout that made it.
LABEL = "claw-lab.root"
# Label on a container: digest of what it was made from, so that `up` sees when it would be made differently.
SPEC_LABEL = "claw-lab.spec"


class LabError(Exception):
    """What went wrong in the lab, as one line that says what to do."""


@dataclass(frozen=True)
class Host:
    """One VPS of the lab: its inventory name, Debian release, addresses and domain of its bots."""

    name: str
    release: str
    address: str
    address6: str
    domain: str

    @property
    def container(self) -> str:
        """Name of the container that is this VPS."""
        return f"claw-{self.name}"


HOSTS = {
    host.name: host
    for host in (
        Host("vps1", "trixie", "198.51.100.10", "2001:db8:51::10", "bots.example.test"),
        Host("vps12", "bookworm", "198.51.100.11", "2001:db8:51::11", "bots12.example.test"),
    )
}

# Names that resolve inside the simulated internet; a leading "*." covers every depth below.
ZONE = {
    "openrouter.ai": OPENROUTER_ADDRESS,
    "api.telegram.org": TELEGRAM_ADDRESS,
    "api.machines.dev": FLY_ADDRESS,
    "acme.example.test": ACME_ADDRESS,
    "website.example.test": WEBSITE_ADDRESS,
    **{name: host.address for host in HOSTS.values() for name in (host.domain, f"*.{host.domain}")},
}
