"""What uninstalling takes out of the packet filter, and what it lets stay."""

import json
from pathlib import Path

from tests.unit.roles_host.harness import ROOT, run

RULES = ROOT / "roles/uninstall/files/docker_rules.py"
FOREIGN = "iptables -A INPUT -s 192.0.2.1 -j DROP"
DOCKERS = """
iptables -P FORWARD DROP
iptables -N DOCKER
iptables -A FORWARD -o docker0 -j DOCKER
iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables -t nat -N DOCKER
iptables -t nat -A POSTROUTING -s 10.202.0.0/24 ! -o docker0 -j MASQUERADE
"""


def after(script: str, before: dict[str, str], tmp_path: Path) -> str:
    """The rule set once Docker's part was taken out of what ``script`` set up."""
    note = tmp_path / "before.json"
    forwarding = "cat /proc/sys/net/ipv4/ip_forward"
    kept = run("unshare", "--net", "sh", "-c", forwarding).stdout.strip()
    note.write_text(json.dumps({"chains": before, "forwarding": kept}))
    said = f"python3 {RULES} {note} >{tmp_path}/said && python3 {RULES} {note} >{tmp_path}/again"
    rules = run("unshare", "--net", "sh", "-c", f"set -e\n{script}\n{said}\nnft list ruleset").stdout
    assert (tmp_path / "said").read_text().strip() == "changed"
    assert (tmp_path / "again").read_text().strip() == ""
    return rules


def test_nothing_of_docker_is_left_where_nothing_was_before(tmp_path: Path) -> None:
    assert after(DOCKERS, {}, tmp_path) == ""


def test_rules_of_others_stay(tmp_path: Path) -> None:
    before = {"inet own": "", "ip filter": "", "ip filter FORWARD": "accept"}
    rules = after(f"nft add table inet own\n{FOREIGN}\n{DOCKERS}", before, tmp_path)
    assert "table inet own" in rules
    assert "ip saddr 192.0.2.1" in rules
    assert "hook forward priority filter; policy accept" in rules
    assert "docker" not in rules.lower()
    assert "table ip nat" not in rules


def test_a_machine_that_forwarded_nothing_before_forwards_nothing_again(tmp_path: Path) -> None:
    before = {"ip filter": "", "ip filter FORWARD": "drop"}
    assert "hook forward priority filter; policy drop" in after(FOREIGN + DOCKERS, before, tmp_path)
