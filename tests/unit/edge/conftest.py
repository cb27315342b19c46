"""One HAProxy for most tests, a second one in path mode; both with the role's own configuration."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import loopback
from tests.unit.edge.harness import API, Edge, Loop, edge_settings


@dataclass
class Site:
    """An edge with its bots (see _site), and what the bot `nully`, which reads only once, has read."""

    edge: Edge
    reads: list[bytes]


def _site(directory: Path, loop: Loop, network: int, **settings: object) -> Site:
    # HAProxy binds its sockets as root and runs as its own user, which must be able to reach them.
    edge = Edge(directory, edge_settings(directory, **settings))
    for host in (2, 3, 4, 5, 8):
        loop.serve_bot(loopback(network, host), 3000)
    loop.serve_bot(loopback(network, 2), 4000)
    reads = loop.serve_single_read(loopback(network, 6), 3000)
    edge.add_bot("alice", loopback(network, 2), routes=API)
    edge.add_bot("small", loopback(network, 3), plan="small", routes=API)
    edge.add_bot("neighbour", loopback(network, 4), plan="small", routes=API)
    edge.add_bot("narrow", loopback(network, 5), plan="narrow", routes=API)
    edge.add_bot("nully", loopback(network, 6), routes={"/webhook": "3000,token"})
    halted = edge.add_bot("halted", loopback(network, 2), routes=API)
    edge.maps["flags"][halted] = "suspended"
    edge.add_bot("asleep", loopback(network, 7), routes=API)
    edge.add_bot("planless", loopback(network, 2), plan="gone", routes=API)
    homeless = edge.add_bot("homeless", loopback(network, 2), routes=API)
    del edge.maps["addresses"][homeless]
    edge.add_bot(
        "ui",
        loopback(network, 8),
        routes={"/health": "3000,public"},
        prefixes={"/": "3000,agent", "/api/": "3000,token", "/api/open/": "3000,public"},
        limit=1_000_000,
    )
    edge.start()
    return Site(edge, reads)


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    with Loop() as running:
        yield running


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, loop: Loop) -> Iterator[Site]:
    site = _site(tmp_path_factory.mktemp("edge"), loop, 71)
    yield site
    site.edge.stop()


@pytest.fixture(scope="session")
def edge(site: Site) -> Edge:
    return site.edge


@pytest.fixture(scope="session")
def path_edge(tmp_path_factory: pytest.TempPathFactory, loop: Loop) -> Iterator[Edge]:
    settings = {"edge_base_domain": "", "edge_public_base_url": "https://203.0.113.7"}
    site = _site(tmp_path_factory.mktemp("path_edge"), loop, 72, **settings)
    yield site.edge
    site.edge.stop()
