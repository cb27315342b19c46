"""Fixtures of the host's tests: the network namespaces are made once."""

from collections.abc import Iterator

import pytest

from tests.unit.roles_host.harness import Network, network, render


@pytest.fixture(scope="session")
def net() -> Iterator[Network]:
    """A network with the role's rules loaded on its host."""
    with network() as net:
        net.host.load(render())
        yield net
