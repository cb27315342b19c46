"""What the firewall's rules let through, tried with real packets between network namespaces."""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from clawdeploy.watchdog.sensors import parse_denials
from tests.unit.roles_host.harness import (
    BOT,
    BOT6,
    BOT_HOST,
    BOT_HOST6,
    BOT_PORT,
    GATEWAY,
    GATEWAY_PORT,
    HOST,
    HOST6,
    HOST_PORTS,
    INTERNET,
    INTERNET6,
    NEIGHBOUR,
    NEIGHBOUR_HOST,
    OTHER_CONTAINER,
    PRIVATE,
    STRAY,
    Namespace,
    Network,
    render,
    run,
)

VARIANTS: list[dict[str, Any]] = [
    {},
    {"firewall_bot_host_endpoints": []},
    {
        "firewall_bot_host_endpoints": [
            {"address": "10.201.255.1", "port": 8788},
            {"address": "10.201.255.2", "port": 1},
        ]
    },
    {"firewall_tcp_ports": [], "firewall_udp_ports": []},
    {"firewall_confined_users": []},
    {"__firewall_ssh_ports": [22, 2222]},
    {"firewall_bots_only": True},
]


def refusals(targets: Iterable[str]) -> dict[str, str]:
    """TCP is refused with a reset at once; the ICMP errors that answer UDP are limited by the kernel."""
    return {target: "refused" if target.startswith("tcp:") else "silent" for target in targets}


def answers(namespace: Namespace, *targets: str, **how: str) -> dict[str, str]:
    """Probe; a UDP datagram that was not answered counts as silence, with an ICMP error or without."""
    return {
        target: "silent" if target.startswith("udp:") and answer == "refused" else answer
        for target, answer in namespace.probe(*targets, **how).items()
    }


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: ",".join(settings) or "defaults")
def test_rules_are_valid_and_can_be_loaded_twice(settings: dict[str, Any]) -> None:
    rules = render(**settings)
    run("unshare", "--net", "nft", "-c", "-f", "-", stdin=rules)
    run("unshare", "--net", "nft", "-f", "-", stdin=rules + rules)


def test_loading_the_rules_leaves_other_tables_alone() -> None:
    foreign = "table ip nat {\nchain DOCKER {\n}\n}\n"
    listing = run(
        "unshare", "--net", "sh", "-c", "nft -f - && nft list tables", stdin=foreign + render()
    ).stdout
    assert set(listing.split("\n")) == {"table ip nat", "table inet clawdeploy", ""}


def test_fingerprint_follows_the_rules() -> None:
    def fingerprint(rules: str) -> str:
        return re.findall(r'comment "sha256:([0-9a-f]{64})"', rules)[0]  # type: ignore[no-any-return]

    assert fingerprint(render()) == fingerprint(render())
    assert fingerprint(render()) != fingerprint(render(firewall_https_rate=99))


def test_bot_reaches_the_public_internet(net: Network) -> None:
    targets = [
        f"tcp:{INTERNET}:80",
        f"tcp:{INTERNET}:443",
        f"tcp:{INTERNET}:53",
        f"udp:{INTERNET}:53",
        f"udp:{INTERNET}:443",
    ]
    assert net.bot.probe(*targets) == dict.fromkeys(targets, "open")


def test_bot_reaches_the_llm_gateway_and_nothing_else_on_the_host(net: Network) -> None:
    gateway = f"tcp:{GATEWAY}:{GATEWAY_PORT}"
    targets = [
        f"{protocol}:{address}:{port}"
        for protocol in ("tcp", "udp")
        for address in (GATEWAY, BOT_HOST, NEIGHBOUR_HOST, HOST)
        for port in HOST_PORTS
    ]
    assert answers(net.bot, *targets) == {**refusals(targets), gateway: "open"}


def test_bot_reaches_no_private_address(net: Network) -> None:
    targets = [f"{protocol}:{address}:80" for protocol in ("tcp", "udp") for address in PRIVATE]
    assert answers(net.bot, *targets) == refusals(targets)


def test_bot_sends_no_mail(net: Network) -> None:
    targets = [f"tcp:{INTERNET}:{port}" for port in (25, 465, 587, 2525)]
    assert answers(net.bot, *targets) == refusals(targets)


def test_bot_reaches_no_other_bot(net: Network) -> None:
    targets = [f"tcp:{NEIGHBOUR}:{BOT_PORT}", f"udp:{NEIGHBOUR}:{BOT_PORT}", f"tcp:{STRAY}:{BOT_PORT}"]
    assert answers(net.bot, *targets) == refusals(targets)


@pytest.mark.parametrize("source", [NEIGHBOUR, BOT_HOST, "10.9.9.9", INTERNET])
def test_bot_cannot_use_another_source_address(net: Network, source: str) -> None:
    net.bot.ip(f"addr replace {source}/32 dev eth0")
    try:
        targets = [f"tcp:{GATEWAY}:{GATEWAY_PORT}", "tcp:198.51.100.10:443"]
        assert net.bot.probe(*targets, source=source) == dict.fromkeys(targets, "silent")
    finally:
        net.bot.ip(f"addr del {source}/32 dev eth0")


def test_bot_has_no_ipv6(net: Network) -> None:
    targets = [f"tcp:{address}:443" for address in (INTERNET6, HOST6, BOT_HOST6)]
    assert "open" not in net.bot.probe(*targets).values()


def test_bot_on_a_bridge_with_another_name_reaches_nothing(net: Network) -> None:
    targets = [
        f"tcp:{INTERNET}:443",
        f"tcp:{GATEWAY}:{GATEWAY_PORT}",
        f"tcp:{HOST}:443",
        f"tcp:{BOT}:{BOT_PORT}",
    ]
    assert net.stray.probe(*targets) == dict.fromkeys(targets, "silent")


def test_host_reaches_bots(net: Network) -> None:
    targets = [f"tcp:{BOT}:{BOT_PORT}", f"tcp:{NEIGHBOUR}:{BOT_PORT}"]
    assert net.host.probe(*targets) == dict.fromkeys(targets, "open")


def test_world_reaches_ssh_http_and_https_only(net: Network) -> None:
    opened = [("tcp", 22), ("tcp", 80), ("tcp", 443), ("udp", 443)]
    everything = [(protocol, port) for protocol in ("tcp", "udp") for port in HOST_PORTS]
    for address in (HOST, HOST6):
        assert net.internet.probe(*(f"{protocol}:{address}:{port}" for protocol, port in everything)) == {
            f"{protocol}:{address}:{port}": "open" if (protocol, port) in opened else "silent"
            for protocol, port in everything
        }


def test_world_reaches_no_bot_and_no_llm_gateway(net: Network) -> None:
    net.internet.ip(f"route replace {GATEWAY}/32 via {HOST}")
    targets = [
        f"tcp:{BOT}:{BOT_PORT}",
        f"udp:{BOT}:{BOT_PORT}",
        f"tcp:{BOT6}:{BOT_PORT}",
        f"tcp:{GATEWAY}:{GATEWAY_PORT}",
    ]
    assert net.internet.probe(*targets) == dict.fromkeys(targets, "silent")


def test_world_cannot_use_a_bots_address(net: Network) -> None:
    net.internet.ip("addr replace 10.200.9.9/32 dev lo")
    assert net.internet.probe(f"tcp:{HOST}:443", source="10.200.9.9") == {f"tcp:{HOST}:443": "silent"}


def test_published_port_of_a_container_is_not_open_to_the_world(net: Network) -> None:
    net.host.load(
        "table ip published {\nchain pre {\ntype nat hook prerouting priority dstnat\n"
        f"iifname eth0 tcp dport 80 dnat to {OTHER_CONTAINER}:{BOT_PORT}\n}}\n}}\n"
    )
    try:
        net.host.run("nft", "delete", "table", "inet", "clawdeploy")
        assert net.internet.probe(f"tcp:{HOST}:80") == {f"tcp:{HOST}:80": "open"}
        net.host.load(render())
        assert net.internet.probe(f"tcp:{HOST}:80") == {f"tcp:{HOST}:80": "silent"}
    finally:
        net.host.load("delete table ip published\n" + render())


def test_container_that_is_no_bot_is_not_held_back_but_out_of_the_worlds_reach(net: Network) -> None:
    inside, outside = f"tcp:{OTHER_CONTAINER}:{BOT_PORT}", f"tcp:{INTERNET}:443"
    assert net.stray.probe(outside, source=OTHER_CONTAINER) == {outside: "open"}
    assert net.internet.probe(inside) == {inside: "silent"}


def test_world_can_ping(net: Network) -> None:
    targets = [f"icmp:{HOST}:", f"icmp:{HOST6}:"]
    assert net.internet.probe(*targets) == dict.fromkeys(targets, "open")


TALK = """
import socket, sys
with socket.create_connection((sys.argv[1], 443), 2) as s:
    print("connected", flush=True)
    sys.stdin.readline()
    s.send(b"still here")
    print(s.recv(20).decode(), flush=True)
"""


def test_open_connection_survives_rules_that_refuse_new_ones(net: Network) -> None:
    command = ["ip", "netns", "exec", net.bot.name, sys.executable, "-S", "-c", TALK, INTERNET]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as talk:
        assert talk.stdout is not None
        assert talk.stdout.readline() == "connected\n"
        net.host.load(render(__firewall_smtp_ports=[443]))
        try:
            assert net.bot.probe(f"tcp:{INTERNET}:443") == {f"tcp:{INTERNET}:443": "refused"}
            assert talk.communicate("now\n", timeout=5)[0] == "still here\n"
        finally:
            net.host.load(render())


def test_open_connections_of_one_bot_are_bounded(net: Network) -> None:
    net.host.load(render(firewall_bot_connections=20))
    try:
        assert net.bot.hold(40, f"tcp:{INTERNET}:443") == 20
        assert net.neighbour.hold(5, f"tcp:{INTERNET}:443") == 5
    finally:
        net.host.load(render())


def test_new_https_connections_of_one_source_are_bounded(net: Network) -> None:
    net.host.load(render(firewall_https_rate=1, firewall_https_burst=10))
    try:
        assert 10 <= net.internet.hold(40, f"tcp:{HOST}:443") <= 12
        net.internet.ip("addr replace 198.51.100.7/24 dev eth0")
        assert net.internet.probe(f"tcp:{HOST}:443", source="198.51.100.7") == {f"tcp:{HOST}:443": "open"}
        assert net.internet.probe(f"tcp:{HOST}:80", f"tcp:{HOST}:22") == {
            f"tcp:{HOST}:80": "open",
            f"tcp:{HOST}:22": "open",
        }
    finally:
        net.host.load(render())


def test_open_https_connections_of_one_source_are_bounded(net: Network) -> None:
    net.host.load(render(firewall_https_connections=20))
    try:
        assert net.internet.hold(40, f"tcp:{HOST}:443") == 20
        net.internet.ip("addr replace 198.51.100.7/24 dev eth0")
        assert net.internet.probe(f"tcp:{HOST}:443", source="198.51.100.7") == {f"tcp:{HOST}:443": "open"}
    finally:
        net.host.load(render())


def test_open_https_connections_of_one_ipv6_network_are_bounded(net: Network) -> None:
    net.host.load(render(firewall_https_connections=20))
    try:
        assert net.internet.hold(40, f"tcp:{HOST6}:443") == 20
    finally:
        net.host.load(render())


@pytest.fixture
def bots_only(net: Network) -> Iterator[Network]:
    """The network whose host is somebody's own machine."""
    net.host.load(render(firewall_bots_only=True))
    yield net
    net.host.load(render())


def test_own_machine_keeps_all_ports_of_its_own(bots_only: Network) -> None:
    targets = [
        f"{protocol}:{address}:{port}"
        for protocol in ("tcp", "udp")
        for address in (HOST, HOST6)
        for port in HOST_PORTS
    ]
    assert bots_only.internet.probe(*targets) == dict.fromkeys(targets, "open")


def test_own_machine_keeps_the_ports_that_its_containers_publish(bots_only: Network) -> None:
    inside, outside = f"tcp:{OTHER_CONTAINER}:{BOT_PORT}", f"tcp:{INTERNET}:443"
    assert bots_only.internet.probe(inside) == {inside: "open"}
    assert bots_only.stray.probe(outside, source=OTHER_CONTAINER) == {outside: "open"}


def test_bots_of_an_own_machine_are_held_as_on_a_server(bots_only: Network) -> None:
    opened = [f"tcp:{INTERNET}:443", f"tcp:{GATEWAY}:{GATEWAY_PORT}"]
    closed = [
        f"tcp:{INTERNET}:25",
        f"tcp:{NEIGHBOUR}:{BOT_PORT}",
        *(f"tcp:{address}:80" for address in PRIVATE),
        *(f"tcp:{address}:{port}" for address in (BOT_HOST, HOST) for port in HOST_PORTS),
    ]
    assert bots_only.bot.probe(*opened, *closed) == {
        **dict.fromkeys(opened, "open"),
        **dict.fromkeys(closed, "refused"),
    }
    stray = [f"tcp:{INTERNET}:443", f"tcp:{HOST}:443", f"tcp:{BOT}:{BOT_PORT}"]
    assert bots_only.stray.probe(*stray) == dict.fromkeys(stray, "silent")


def test_neighbours_of_an_own_machine_reach_neither_bots_nor_the_gateway(bots_only: Network) -> None:
    bots_only.internet.ip(f"route replace {GATEWAY} via {HOST}")
    targets = [f"tcp:{BOT}:{BOT_PORT}", f"tcp:{GATEWAY}:{GATEWAY_PORT}"]
    assert bots_only.internet.probe(*targets) == dict.fromkeys(targets, "silent")
    assert bots_only.stray.probe(*targets, source=OTHER_CONTAINER) == dict.fromkeys(targets, "silent")


CONFINED = [{"user": "nobody", "reach": "bots"}, {"user": "daemon", "reach": "internet"}]


@pytest.fixture
def confined(net: Network) -> Iterator[Network]:
    net.host.load(
        render(firewall_confined_users=CONFINED)
        + "add element inet clawdeploy user_nobody { 65534 }\nadd element inet clawdeploy user_daemon { 1 }\n"
    )
    yield net
    net.host.load(render())


def test_edge_user_reaches_bots_only(confined: Network) -> None:
    bot = f"tcp:{BOT}:{BOT_PORT}"
    closed = [
        f"tcp:127.0.0.1:{GATEWAY_PORT}",
        f"tcp:{GATEWAY}:{GATEWAY_PORT}",
        f"tcp:{BOT_HOST}:22",
        f"tcp:{INTERNET}:443",
        "tcp:::1:22",
    ]
    assert confined.host.probe(bot, *closed, user="nobody") == {
        bot: "open",
        **dict.fromkeys(closed, "refused"),
    }


def test_edge_user_reaches_the_llm_gateway_where_bots_that_run_elsewhere_are_served(
    confined: Network,
) -> None:
    endpoints = [{"address": GATEWAY, "port": GATEWAY_PORT}]
    confined.host.load(
        render(firewall_confined_users=CONFINED, firewall_edge_endpoints=endpoints)
        + "add element inet clawdeploy user_nobody { 65534 }\n"
    )
    gateway = f"tcp:{GATEWAY}:{GATEWAY_PORT}"
    closed = [f"tcp:{GATEWAY}:22", f"tcp:127.0.0.1:{GATEWAY_PORT}", f"tcp:{INTERNET}:443"]
    assert confined.host.probe(gateway, *closed, user="nobody") == {
        gateway: "open",
        **dict.fromkeys(closed, "refused"),
    }


def test_gateway_user_reaches_the_internet_but_no_bot_and_no_metadata(confined: Network) -> None:
    opened = [f"tcp:{INTERNET}:443", "tcp:127.0.0.1:22", "tcp:169.254.169.254:53"]
    closed = [f"tcp:{BOT}:{BOT_PORT}", "tcp:169.254.169.254:80"]
    assert confined.host.probe(*opened, *closed, user="daemon") == {
        **dict.fromkeys(opened, "open"),
        **dict.fromkeys(closed, "refused"),
    }


def test_other_users_of_the_host_are_not_confined(confined: Network) -> None:
    targets = [f"tcp:{BOT}:{BOT_PORT}", f"tcp:{INTERNET}:443", "tcp:127.0.0.1:22"]
    assert confined.host.probe(*targets) == dict.fromkeys(targets, "open")


def test_what_a_bot_was_refused_is_counted_for_that_bot(net: Network) -> None:
    """The watchdog finds its counts in what the rules keep, under the bot's own address."""

    def counted() -> dict[str, int]:
        listing = net.host.run("nft", "--json", "list", "set", "inet", "clawdeploy", "bot_denials").stdout
        return parse_denials(listing.encode())

    before = counted()
    net.bot.probe(
        f"tcp:{PRIVATE[0]}:80", f"tcp:{INTERNET}:25", f"tcp:{HOST}:22", f"tcp:{NEIGHBOUR}:{BOT_PORT}"
    )
    net.bot.probe(f"tcp:{INTERNET}:443", f"tcp:{GATEWAY}:{GATEWAY_PORT}")
    after = counted()
    assert after[BOT] - before.get(BOT, 0) == 4, "one packet each, and none for what is allowed"
    assert after.get(NEIGHBOUR, 0) == before.get(NEIGHBOUR, 0)
