"""Takes out of the packet filter what a stopped Docker has left there; prints "changed" if that was anything.

Argument: the note of what was there before. Rules of others stay; a table that is empty now and was not there
before goes; forwarding, which Docker switches on and guards, is again what it was.
"""

import json
import pathlib
import shutil
import subprocess
import sys

PROGRAMS = "/usr/sbin:/usr/bin"


def run(*command, stdin=None):
    return subprocess.run(
        command, input=stdin and stdin.encode(), stdout=subprocess.PIPE, check=True
    ).stdout.decode()


def without_docker(rules, accept):
    """The text of iptables-save without Docker's chains and rules; ``accept``: also without its policy."""
    lines = [line for line in rules.splitlines() if "docker" not in line.lower()]
    if accept:
        lines = [line.replace(":FORWARD DROP", ":FORWARD ACCEPT") for line in lines]
    return "\n".join(lines) + "\n"


def main(path):
    before = json.loads(pathlib.Path(path).read_text())
    changed = False
    for program, family in (("iptables", "ip"), ("ip6tables", "ip6")):
        if not shutil.which(program, path=PROGRAMS):
            continue
        rules = run(f"/usr/sbin/{program}-save")
        if "docker" in rules.lower():
            accept = before["chains"].get(f"{family} filter FORWARD", "accept") == "accept"
            run(f"/usr/sbin/{program}-restore", stdin=without_docker(rules, accept))
            changed = True
    if shutil.which("nft", path=PROGRAMS):
        items = json.loads(run("/usr/sbin/nft", "--json", "list", "ruleset"))["nftables"]
        used = {(item["rule"]["family"], item["rule"]["table"]) for item in items if "rule" in item}
        for table in (item["table"] for item in items if "table" in item):
            place = (table["family"], table["name"])
            ours = place[0] in ("ip", "ip6") and place[1] in ("filter", "nat", "raw", "mangle")
            if ours and place not in used and " ".join(place) not in before["chains"]:
                run("/usr/sbin/nft", "delete", "table", *place)
                changed = True
    forwarding = pathlib.Path("/proc/sys/net/ipv4/ip_forward")
    if changed and forwarding.read_text().strip() != before["forwarding"]:
        forwarding.write_text(before["forwarding"])
    print("changed" if changed else "")


if __name__ == "__main__":
    main(*sys.argv[1:])
