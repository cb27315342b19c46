"""A program for one network namespace: listens or connects. Run by its path: imports nothing of ours.

    peer.py serve PORT…            echo on TCP and UDP, IPv4 and IPv6; prints "ready"
    peer.py probe SOURCE TARGET…   prints a JSON object of target -> "open", "refused" (an answer) or "silent"
    peer.py hold COUNT TARGET      opens COUNT connections at once, prints how many were answered

A target is `tcp:ADDRESS:PORT`, `udp:ADDRESS:PORT` or `icmp:ADDRESS:` (a ping); SOURCE is an address
to send from, or "-".
"""

import json
import selectors
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

PATIENCE = 0.7  # seconds without any answer that count as silence; answers here take microseconds


def serve(ports: list[int]) -> None:
    selector = selectors.DefaultSelector()
    for port in ports:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sock = socket.socket(socket.AF_INET6, kind)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("::", port))
            if kind == socket.SOCK_STREAM:
                sock.listen(512)
            selector.register(sock, selectors.EVENT_READ, sock)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            sock = key.data
            if sock.type == socket.SOCK_DGRAM:
                data, sender = sock.recvfrom(1500)
                sock.sendto(data, sender)
            elif sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                selector.register(accepted := sock.accept()[0], selectors.EVENT_READ, accepted)
            elif data := sock.recv(1500):
                sock.send(data)
            else:
                selector.unregister(sock)
                sock.close()


def ping(address: str) -> str:
    """Send one echo request (RFC 792, RFC 4443) and wait for the reply."""
    if ":" in address:
        family, protocol, request, reply = socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129
    else:
        family, protocol, request, reply = socket.AF_INET, socket.IPPROTO_ICMP, 8, 0
    # The one's complement checksum of a packet that is all zero but for its type; the kernel makes ICMPv6's.
    packet = bytes([request, 0, 0xFF - request, 0xFF, 0, 0, 0, 0])
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((address, 0))
        sock.send(packet)
        try:
            while True:
                answer = sock.recv(1500)
                if answer[0 if family == socket.AF_INET6 else 20] == reply:
                    return "open"
        except TimeoutError:
            return "silent"


def probe(source: str, target: str) -> str:
    protocol, rest = target.split(":", 1)
    address, port = rest.rsplit(":", 1)
    if protocol == "icmp":
        return ping(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as sock:
        sock.settimeout(PATIENCE)
        try:
            if source != "-":
                sock.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
                sock.bind((source, 0))
            sock.connect((address, int(port)))
            if kind == socket.SOCK_DGRAM:
                sock.send(b"?")
                sock.recv(10)
        except TimeoutError:
            return "silent"
        except OSError:
            return "refused"
    return "open"


def hold(count: int, target: str) -> int:
    """Open connections until `count` are open or one is not answered; return how many were."""
    address, _, port = target.partition(":")[2].rpartition(":")
    held = []
    for _ in range(count):
        try:
            sock = socket.create_connection((address, int(port)), PATIENCE)
        except OSError:
            break
        held.append(sock)
    return len(held)


def main(verb: str, *arguments: str) -> None:
    if verb == "serve":
        serve([int(port) for port in arguments])
    elif verb == "hold":
        print(hold(int(arguments[0]), arguments[1]))
    else:
        source, *targets = arguments
        with ThreadPoolExecutor(len(targets)) as pool:
            answers = list(pool.map(lambda target: probe(source, target), targets))
        print(json.dumps(dict(zip(targets, answers, strict=True))))


if __name__ == "__main__":
    main(*sys.argv[1:])
