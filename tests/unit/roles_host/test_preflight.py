"""The checks that the roles run on a host before they change it."""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.roles_host.harness import ROOT, run

POOLS = ROOT / "roles/docker/files/pools.py"
RESOLVE = ROOT / "roles/docker/files/resolve.py"
SYSCTL = ROOT / "roles/base/files/sysctl.py"


def pools(links: str, *networks: str) -> tuple[int, str]:
    """Run the check of the address pools on a host with these links; return its status and output."""
    lines = "".join(f"ip {line}\n" for line in links.splitlines() if line)
    script = f"set -e\nip link set lo up\n{lines}exec python3 {POOLS} {' '.join(networks)}"
    result = run("unshare", "--net", "sh", "-c", script, check=False)
    assert not result.stderr
    return result.returncode, result.stdout.strip()


ETH0 = """
link add eth0 type bridge
link set eth0 up
addr add 192.0.2.2/24 dev eth0
route add default via 192.0.2.1
"""


def test_pools_that_nothing_overlaps_are_accepted() -> None:
    assert pools(ETH0, "10.200.0.0/16", "10.202.0.0/16") == (0, "")


@pytest.mark.parametrize(
    ("links", "device"),
    [
        ("addr add 10.202.7.1/24 dev eth0", "eth0"),
        ("route add 10.0.0.0/8 via 192.0.2.1", "eth0"),
        ("route add 10.202.3.4/32 via 192.0.2.1", "eth0"),
        ("route add 10.202.0.0/17 via 192.0.2.1 table 100", "eth0"),
    ],
)
def test_pool_that_overlaps_a_route_is_refused_by_name(links: str, device: str) -> None:
    status, output = pools(ETH0 + links, "10.200.0.0/16", "10.202.0.0/16")
    assert status == 1
    assert "10.202.0.0/16 overlaps this host's route to 10." in output
    assert device in output


def test_pools_that_overlap_each_other_are_refused() -> None:
    assert pools(ETH0, "10.200.0.0/15", "10.201.0.0/16") == (1, "10.200.0.0/15 overlaps 10.201.0.0/16")


def test_routes_of_an_earlier_run_are_no_obstacle() -> None:
    ours = ETH0 + "addr add 10.201.255.1/32 dev lo\n"
    for bridge, address in (
        ("cb-aaaaaaaaaaaa", "10.200.0.1/28"),
        ("docker0", "10.202.0.1/24"),
        ("br-0123456789ab", "10.202.1.1/24"),
    ):
        ours += f"link add {bridge} type bridge\nlink set {bridge} up\naddr add {address} dev {bridge}\n"
    assert pools(ours, "10.200.0.0/16", "10.202.0.0/16") == (0, "")


def test_dockers_own_network_inside_the_bots_pool_is_refused() -> None:
    links = ETH0 + "link add docker0 type bridge\nlink set docker0 up\naddr add 10.200.4.1/24 dev docker0\n"
    status, output = pools(links, "10.200.0.0/16", "10.202.0.0/16")
    assert status == 1
    assert "docker0" in output


@pytest.fixture
def resolver() -> Iterator[str]:
    """A resolver on 127.0.53.53 that knows known.example."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.53.53", 53))

    def serve() -> None:
        while True:
            query, sender = sock.recvfrom(512)
            if not query:
                return
            known = b"\5known\7example\0" in query
            header = query[:2] + struct.pack(">HHHHH", 0x8180 if known else 0x8183, 1, int(known), 0, 0)
            answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + b"\x01\x02\x03\x04"
            sock.sendto(header + query[12:] + (answer if known else b""), sender)

    thread = threading.Thread(target=serve)
    thread.start()
    yield "127.0.53.53"
    sock.sendto(b"", ("127.0.53.53", 53))
    thread.join()
    sock.close()


def test_resolver_that_knows_the_name_is_accepted(resolver: str) -> None:
    assert run("python3", RESOLVE, "known.example", resolver).stdout.strip() == ""


def test_resolver_without_an_answer_is_named(resolver: str) -> None:
    result = run("python3", RESOLVE, "unknown.example", resolver, "127.0.53.54", check=False)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert lines[0] == f"{resolver} does not resolve unknown.example: the name was not found (code 3)"
    assert lines[1].startswith("127.0.53.54 does not resolve unknown.example: ")


def states(settings: dict[str, object], kind: str) -> dict[str, str]:
    """Run the comparison of kernel settings in a network namespace of its own."""
    return dict(json.loads(run("unshare", "--net", "python3", SYSCTL, json.dumps(settings), kind).stdout))


def test_kernel_settings_are_compared_with_the_running_kernel() -> None:
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    assert states(
        {
            "net.ipv4.conf.lo.rp_filter": 7,
            "net.ipv4.ip_local_port_range": " ".join(ports.split()),
            "net.ipv4.no_such_setting": 1,
            "kernel.osrelease": "another",
        },
        "none",
    ) == {
        "net.ipv4.conf.lo.rp_filter": "wrong",
        "net.ipv4.ip_local_port_range": "right",
        "net.ipv4.no_such_setting": "absent",
        "kernel.osrelease": "readonly",
    }


def test_a_container_leaves_the_machines_settings_alone() -> None:
    assert states({"kernel.kptr_restrict": 1, "net.ipv4.conf.lo.rp_filter": 7}, "lxc") == {
        "kernel.kptr_restrict": "machine",
        "net.ipv4.conf.lo.rp_filter": "wrong",
    }
