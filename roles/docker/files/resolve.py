"""Asks each resolver for the IPv4 addresses of a name, over UDP; prints a line for each that has no answer.

Arguments: the name, then the resolvers' IPv4 addresses. Exit status 1: at least one has no answer. The
system's own resolver is not asked: containers do not use it. Message format: RFC 1035, section 4.
"""

import os
import socket
import struct
import sys

TRIES = 3
TIMEOUT = 3.0  # seconds, each try


def ask(name, resolver):
    """Returns what is wrong with the resolver's answer, or None."""
    identity = os.urandom(2)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    query = identity + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        try:
            sock.connect((resolver, 53))
        except OSError as error:
            return str(error)
        problem = "no answer"
        for _ in range(TRIES):
            try:
                sock.send(query)
                answer = sock.recv(4096)
            except OSError as error:
                problem = str(error)
                continue
            if len(answer) < 12 or answer[:2] != identity:
                problem = "an answer to something else"
                continue
            flags, _questions, answers = struct.unpack(">HHH", answer[2:8])
            if flags & 15 == 0 and answers > 0:
                return None
            return f"the name was not found (code {flags & 15})"
    return problem


def main(name, resolvers):
    problems = [
        f"{resolver} does not resolve {name}: {problem}"
        for resolver in resolvers
        if (problem := ask(name, resolver))
    ]
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
