"""Telling systemd how a service of Type=notify is (sd_notify(3))."""

import os
import socket


def notify(state: str) -> None:
    """Send ``state``, one datagram to $NOTIFY_SOCKET; where there is none do nothing."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(state.encode())
