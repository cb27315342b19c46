"""Ansible inventory of the lab's VPSs: how to reach them, and the only settings a real VPS would not have."""

import shlex
from pathlib import Path

import yaml

from tests.lab import settings
from tests.lab.settings import INVENTORY, KNOWN_HOSTS, SSH_KEY, Host

# Everything that is different because the internet is simulated, in one place, and what tests want besides.
LAB_VARIABLES = {
    # Bots ask this resolver; on a real VPS the default is a public one.
    "docker_dns": [settings.DNS_ADDRESS],
    # Only Debian's own packages can be counted on where the lab runs.
    "edge_caddy_repository": "debian",
    "edge_acme_directory": settings.ACME_DIRECTORY,
    "edge_acme_email": "operator@example.test",
    # For tests of edge_tls_mode dns01: the lab's DNS server takes records by lego's httpreq protocol.
    "edge_dns01_provider": "httpreq",
    "edge_dns01_environment": {"HTTPREQ_ENDPOINT": f"http://{settings.DNS_ADDRESS}"},
    "edge_dns01_resolvers": [f"{settings.DNS_ADDRESS}:53"],
    # The door for bots at Fly.io.
    "platform_remote_bots": True,
}


def write_inventory(hosts: list[Host]) -> Path:
    """Write build/lab/inventory.yml with `hosts` in group `vps`; return its path."""
    # The operator's own ssh configuration has no say, and host keys are checked against the lab's own list.
    common = [
        "-F/dev/null",
        f"-oUserKnownHostsFile={KNOWN_HOSTS}",
        "-oStrictHostKeyChecking=yes",
        "-oIdentitiesOnly=yes",
    ]
    variables = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(SSH_KEY),
        "ansible_ssh_common_args": shlex.join(common),
        "ansible_python_interpreter": "/usr/bin/python3",
        **LAB_VARIABLES,
    }
    content = {
        "vps": {
            "hosts": {host.name: {"ansible_host": host.address} for host in hosts},
            "vars": variables,
        }
    }
    INVENTORY.parent.mkdir(parents=True, exist_ok=True)
    INVENTORY.write_text("---\n" + yaml.safe_dump(content, sort_keys=False))
    return INVENTORY
