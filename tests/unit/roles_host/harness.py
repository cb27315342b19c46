"""Renders the firewall's rules as the role does, and a small internet of network namespaces for them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[3]
FIREWALL = ROOT / "roles" / "firewall"
COMMAND = FIREWALL / "files" / "clawdeploy-firewall"
PEER = Path(__file__).with_name("peer.py")

POOL = "10.200.0.0/16"
GATEWAY, GATEWAY_PORT = "10.201.255.1", 8788
BOT, BOT_HOST = "10.200.0.2", "10.200.0.1"
NEIGHBOUR, NEIGHBOUR_HOST = "10.200.0.18", "10.200.0.17"
STRAY = "10.200.0.34"  # a bot on a bridge whose name is wrong
OTHER_CONTAINER = "10.202.0.2"  # on the same wrong bridge: a container that is no bot
HOST, INTERNET = "198.51.100.10", "198.51.100.6"
HOST6, INTERNET6 = "2001:db8:51::10", "2001:db8:51::6"
PRIVATE = (
    "10.9.9.9",
    "100.64.9.9",
    "172.16.9.9",
    "192.168.9.9",
    "169.254.169.254",
    "192.0.0.9",
    "198.18.9.9",
)
BOT6, BOT_HOST6 = "2001:db8:b::2", "2001:db8:b::1"

INTERNET_PORTS = (25, 53, 80, 443, 465, 587, 2525)
HOST_PORTS = (22, 53, 80, 443, 2375, GATEWAY_PORT)
BOT_PORT = 3000


def render(**settings: Any) -> str:
    """Return the rules that the role writes for its defaults plus `settings` (role variables)."""
    variables: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        variables |= yaml.safe_load((FIREWALL / part / "main.yml").read_text())
    variables |= {
        "firewall_bot_pool": POOL,
        "firewall_bot_host_endpoints": [{"address": GATEWAY, "port": GATEWAY_PORT}],
        "__firewall_ssh_ports": [22],
        "ansible_managed": "Ansible managed",
        **settings,
    }
    template = (FIREWALL / "templates" / "firewall.nft.j2").read_text()
    return str(Templar(DataLoader(), variables).template(trust_as_template(template)))


def run(
    *command: str | Path, check: bool = True, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, output captured; a failure shows what the command said."""
    result = subprocess.run(
        list(map(str, command)), input=stdin, capture_output=True, text=True, timeout=20, check=False
    )
    if check and result.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: {result.stderr}{result.stdout}")
    return result


class Namespace:
    """One network namespace of a test."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(
        self, *command: str | Path, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace."""
        return run("ip", "netns", "exec", self.name, *command, check=check, stdin=stdin)

    def ip(self, *lines: str) -> None:
        """Run `ip` commands in the namespace, in one process."""
        run("ip", "-netns", self.name, "-batch", "-", stdin="\n".join(lines))

    def load(self, rules: str) -> None:
        """Load nftables rules."""
        self.run("nft", "-f", "-", stdin=rules)

    def probe(self, *targets: str, source: str = "-", user: str = "root") -> dict[str, str]:
        """Return target -> "open", "refused" or "silent" for connections out of the namespace."""
        become = ["setpriv", "--reuid", user, "--clear-groups"] if user != "root" else []
        return dict(
            json.loads(self.run(*become, sys.executable, "-S", PEER, "probe", source, *targets).stdout)
        )

    def hold(self, count: int, target: str) -> int:
        """Return how many of `count` connections held open at once are answered."""
        return int(self.run(sys.executable, "-S", PEER, "hold", str(count), target).stdout)

    @contextmanager
    def serving(self, ports: Sequence[int]) -> Iterator[None]:
        """Answer on TCP and UDP ports, every address, for as long as the context lasts."""
        command = [
            "ip",
            "netns",
            "exec",
            self.name,
            sys.executable,
            "-S",
            str(PEER),
            "serve",
            *map(str, ports),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n"
                yield
            finally:
                process.kill()


class Network:
    """A host with two bots and a stray one, and the internet it hangs on.

    The internet's one machine has private and metadata addresses too and routes the bots' pool to the host,
    so that only the rules keep them apart.
    """

    def __init__(self, prefix: str) -> None:
        self.host, self.bot, self.neighbour, self.stray, self.internet = (
            Namespace(f"{prefix}-{name}") for name in ("host", "bot", "neighbour", "stray", "internet")
        )

    def build(self) -> None:
        """Make links, addresses and routes."""
        host = self.host
        for peer in (self.bot, self.neighbour, self.stray, self.internet):
            run(
                "ip",
                "-netns",
                host.name,
                "link",
                "add",
                f"v-{peer.name[-8:]}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                peer.name,
            )
            peer.ip("link set lo up", "link set eth0 up")
        bridges = {
            "cb-aaaaaaaaaaaa": (self.bot, BOT_HOST, BOT),
            "cb-bbbbbbbbbbbb": (self.neighbour, NEIGHBOUR_HOST, NEIGHBOUR),
            "br-misnamed": (self.stray, "10.200.0.33", STRAY),
        }
        host.ip("link set lo up", f"addr add {GATEWAY}/32 dev lo")
        for bridge, (bot, gateway, address) in bridges.items():
            link = f"v-{bot.name[-8:]}"
            host.ip(
                f"link add {bridge} type bridge",
                f"link set {bridge} up",
                f"link set {link} master {bridge}",
                f"link set {link} up",
                f"addr add {gateway}/28 dev {bridge}",
            )
            bot.ip(f"addr add {address}/28 dev eth0", f"route add default via {gateway}")
        host.ip("addr add 10.202.0.1/24 dev br-misnamed")
        self.stray.ip(f"addr add {OTHER_CONTAINER}/24 dev eth0")
        host.ip(f"addr add {BOT_HOST6}/64 dev cb-aaaaaaaaaaaa nodad")
        self.bot.ip(f"addr add {BOT6}/64 dev eth0 nodad", f"route add default via {BOT_HOST6}")
        link = f"v-{self.internet.name[-8:]}"
        host.ip(
            f"link set {link} name eth0",
            "link set eth0 up",
            f"addr add {HOST}/24 dev eth0",
            f"addr add {HOST6}/64 dev eth0 nodad",
            f"route add default via {INTERNET}",
            f"route add default via {INTERNET6}",
        )
        self.internet.ip(
            f"addr add {INTERNET}/24 dev eth0",
            f"addr add {INTERNET6}/64 dev eth0 nodad",
            *(f"addr add {address}/32 dev lo" for address in PRIVATE),
            f"route add {POOL} via {HOST}",
            f"route add 10.202.0.0/16 via {HOST}",
            f"route add 2001:db8:b::/64 via {HOST6}",
        )
        host.run(
            "sysctl",
            "-qw",
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
        )

    def wait(self, timeout: float = 10) -> None:
        """Wait until every side answers every other: new links take a moment."""
        checks = {
            self.bot: [
                f"tcp:{NEIGHBOUR}:{BOT_PORT}",
                f"tcp:{STRAY}:{BOT_PORT}",
                f"tcp:{GATEWAY}:22",
                f"tcp:{BOT_HOST6}:22",
            ],
            self.internet: [
                f"tcp:{BOT}:{BOT_PORT}",
                f"tcp:{HOST}:22",
                f"tcp:{HOST6}:22",
                f"tcp:{BOT6}:{BOT_PORT}",
            ],
        }
        deadline = time.monotonic() + timeout
        for namespace, targets in checks.items():
            while set((answers := namespace.probe(*targets)).values()) != {"open"}:
                assert time.monotonic() < deadline, f"without any rule, this should be open: {answers}"


@contextmanager
def network() -> Iterator[Network]:
    """A network with servers on it, on every side; removed afterwards."""
    net = Network(f"claw{os.getpid()}")
    with ExitStack() as stack:
        for namespace in (net.host, net.bot, net.neighbour, net.stray, net.internet):
            run("ip", "netns", "add", namespace.name)
            stack.callback(run, "ip", "netns", "delete", namespace.name)
        net.build()
        stack.enter_context(net.host.serving(HOST_PORTS))
        stack.enter_context(net.internet.serving(INTERNET_PORTS))
        for bot in (net.bot, net.neighbour, net.stray):
            stack.enter_context(bot.serving([BOT_PORT]))
        net.wait()
        yield net
