"""The simulated internet's DNS server: what its own zone answers, asked over a real socket."""

import json
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from dnslib import QTYPE, RCODE, DNSRecord
from dnslib.server import DNSLogger, DNSServer

from tests.lab.dns import LabResolver, text_server
from tests.lab.settings import HOSTS, OPENROUTER_ADDRESS


@pytest.fixture(scope="module")
def resolver() -> LabResolver:
    return LabResolver(upstream="127.0.0.1")


@pytest.fixture(scope="module")
def dns_port(resolver: LabResolver) -> Iterator[int]:
    server = DNSServer(resolver, address="127.0.0.1", port=0, logger=DNSLogger("-request,-reply"))
    server.start_thread()
    yield server.server.server_address[1]
    server.stop()
    server.server.server_close()


def ask(port: int, name: str, kind: str = "A") -> tuple[str, list[str]]:
    """Return (response code, answers as text)."""
    packet = DNSRecord.question(name, kind).send("127.0.0.1", port, timeout=5)
    reply = DNSRecord.parse(packet)
    return RCODE[reply.header.rcode], [
        str(record.rdata) for record in reply.rr if QTYPE[record.rtype] == kind
    ]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("openrouter.ai", OPENROUTER_ADDRESS),
        ("OpenRouter.AI", OPENROUTER_ADDRESS),
        ("bots.example.test", HOSTS["vps1"].address),
        ("my-bot.bots.example.test", HOSTS["vps1"].address),
        ("a.my-bot.bots.example.test", HOSTS["vps1"].address),
        ("my-bot.bots12.example.test", HOSTS["vps12"].address),
    ],
)
def test_names_of_the_zone_have_their_address(dns_port: int, name: str, address: str) -> None:
    assert ask(dns_port, name) == ("NOERROR", [address])


@pytest.mark.parametrize(
    "name", ["mybots.example.test", "nobody.example.test", "www.telegram.org", "machines.dev"]
)
def test_other_names_below_the_zones_parents_do_not_exist(dns_port: int, name: str) -> None:
    assert ask(dns_port, name) == ("NXDOMAIN", [])


def test_a_name_without_ipv6_exists_all_the_same(dns_port: int) -> None:
    assert ask(dns_port, "openrouter.ai", "AAAA") == ("NOERROR", [])


def test_a_challenge_is_answered_from_present_until_cleanup(dns_port: int, resolver: LabResolver) -> None:
    http = text_server("127.0.0.1", 0, resolver.texts)
    threading.Thread(target=http.serve_forever).start()
    record = {"fqdn": "_acme-challenge.bots.example.test.", "value": "proof"}

    def post(path: str) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{http.server_port}/{path}", json.dumps(record).encode(), method="POST"
        )
        urllib.request.urlopen(request, timeout=5).close()

    try:
        post("present")
        assert ask(dns_port, "_acme-challenge.bots.example.test", "TXT") == ("NOERROR", ['"proof"'])
        post("cleanup")
        assert ask(dns_port, "_acme-challenge.bots.example.test", "TXT") == ("NOERROR", [])
    finally:
        http.shutdown()
        http.server_close()
