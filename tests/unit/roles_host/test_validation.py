"""What the roles refuse before they change anything: one clear line that says what to do.

All cases are hosts of one check-mode run on this machine: even a check that let one pass would not
change anything.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.roles_host.harness import GATEWAY, POOL, ROOT

FIREWALL = {
    "role": "firewall",
    "firewall_bot_pool": POOL,
    "firewall_bot_host_endpoints": [{"address": GATEWAY, "port": 8788}],
}
DOCKER = {"role": "docker", "docker_reserved_pool": POOL}
# name of the case -> its variables, what the message must say
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unsupported_system": (
        {"role": "base", "system": "Ubuntu"},
        ["unsupported_system runs Ubuntu 24.04", "Debian 12 and 13", "reinstall"],
    ),
    "unsupported_debian": ({"role": "base"}, ["unsupported_debian runs Debian 24.04", "Debian 12 and 13"]),
    "private_resolver": (
        {
            **DOCKER,
            "docker_dns": ["9.9.9.9", "10.0.0.2", "100.64.0.1", "172.31.0.2", "169.254.169.254", "fd00::1"],
        },
        ["docker_dns: fd00::1, 10.0.0.2, 100.64.0.1, 172.31.0.2, 169.254.169.254: not a public", "9.9.9.9"],
    ),
    "no_resolver": ({**DOCKER, "docker_dns": []}, ["docker_dns is empty", "9.9.9.9"]),
    "no_pool": ({**DOCKER, "docker_address_pools": []}, ["docker_address_pools is empty", "10.202.0.0/16"]),
    "pools_overlap": (
        {**DOCKER, "docker_address_pools": [{"base": "10.200.128.0/17", "size": 24}]},
        ["10.200.0.0/16 overlaps 10.200.128.0/17", "docker_address_pools", "platform_bot_pool"],
    ),
    "not_a_port": (
        {**FIREWALL, "firewall_tcp_ports": [80, 70000], "firewall_ssh_ports": [0]},
        ["Not a port from 1 to 65535: 0, 70000", "firewall_"],
    ),
    "not_a_pool": (
        {**FIREWALL, "firewall_bot_pool": "10.200.0.0"},
        ["firewall_bot_pool (10.200.0.0)", "10.200.0.0/16"],
    ),
    "not_a_user": (
        {**FIREWALL, "firewall_confined_users": [{"user": "x { }", "reach": "bots"}]},
        ["firewall_confined_users", "x { }"],
    ),
    "no_connection_allowed": (
        {**FIREWALL, "firewall_https_connections": 0},
        ["firewall_https_connections (0)", "at least 1"],
    ),
    "trial_too_short": (
        {**FIREWALL, "firewall_rollback_seconds": 1},
        ["firewall_rollback_seconds (1) from 5"],
    ),
}
PLAY = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "ansible.builtin.set_fact": {
                    "distribution": "{{ system | default('Debian') }}",
                    "distribution_version": "24.04",
                    "distribution_major_version": "24",
                    "cacheable": True,
                }
            },
            {"ansible.builtin.include_role": {"name": "clawdeploy.fleet.{{ role }}"}},
        ],
    }
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The last task of each case's host."""
    directory: Path = tmp_path_factory.mktemp("validation")
    connection = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    hosts = {name: {**connection, **variables} for name, (variables, _) in CASES.items()}
    (directory / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    (directory / "play.yml").write_text(yaml.safe_dump(PLAY))
    result = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            "--check",
            "-i",
            directory / "inventory.yml",
            directory / "play.yml",
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last: dict[str, dict[str, Any]] = {}
    for task in json.loads(result.stdout[result.stdout.index("{") :])["plays"][0]["tasks"]:
        last |= task["hosts"]
    return last


@pytest.mark.parametrize("case", CASES)
def test_bad_setting_or_host_is_refused_with_the_cure(results: dict[str, dict[str, Any]], case: str) -> None:
    result = results[case]
    assert result.get("failed") is True
    for part in CASES[case][1]:
        assert part in result["msg"]
