"""Prints a line for each overlap of the given networks with one another and with this host's routes.

Arguments: the pool of the bots, then Docker's own pools (IPv4 networks, a.b.c.d/n). Exit status 1: something
overlaps.
"""

import ipaddress
import itertools
import json
import re
import subprocess
import sys

BOTS = re.compile(r"cb-|lo$")
DOCKER = re.compile(r"docker0$|br-[0-9a-f]{12}$")


def main(arguments):
    pools = [ipaddress.ip_network(argument) for argument in arguments]
    clashes = [f"{a} overlaps {b}" for a, b in itertools.combinations(pools, 2) if a.overlaps(b)]
    output = subprocess.run(
        ["ip", "-json", "-4", "route", "show", "table", "all"], stdout=subprocess.PIPE, check=True
    ).stdout
    for route in json.loads(output or "[]"):
        if route["dst"] == "default" or route.get("type") == "broadcast":
            continue
        destination = ipaddress.ip_network(route["dst"])
        device = route.get("dev", "")
        # A VPN that takes all traffic routes two halves instead of a default.
        if destination.prefixlen <= 1 or BOTS.match(device):
            continue
        for pool in pools:
            if pool is not pools[0] and DOCKER.match(device):
                continue
            if pool.overlaps(destination):
                clashes.append(
                    f"{pool} overlaps this host's route to {destination} ({device or route.get('type')})"
                )
    print("\n".join(dict.fromkeys(clashes)))
    return 1 if clashes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
