"""Addresses and ports for servers that tests start, each process of a parallel run with its own."""

import os
import random
import socket

# Below the ports that Linux gives to outgoing connections (ip_local_port_range begins at 32768): no
# connection of another test can take one between the look and the server's bind.
_BELOW_EPHEMERAL = range(20_000, 32_000)
# pytest-xdist calls its processes gw0, gw1, ….
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PROCESSES = 8


def loopback(network: int, host: int) -> str:
    """An address that no other process of a parallel run has, for what a whole session uses."""
    return f"127.{_PROCESS}.{network}.{host}"


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    while True:
        port = random.choice(_BELOW_EPHEMERAL[_PROCESS % _PROCESSES :: _PROCESSES])
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
