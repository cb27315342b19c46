"""Ports for servers that tests start."""

import random
import socket

# Below the ports that Linux gives to outgoing connections (ip_local_port_range begins at 32768): no
# connection of another test can take one between the look and the server's bind.
_BELOW_EPHEMERAL = range(20_000, 32_000)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    while True:
        port = random.choice(_BELOW_EPHEMERAL)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
