"""Wrong settings stop the role before it changes anything, with a line that says what to do."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
GOOD: dict[str, Any] = {
    "edge_base_domain": "bots.example.test",
    "edge_public_base_url": "",
    "edge_tls_mode": "internal",
    "edge_plans": {"small": {"rate_limit_rps": 5, "rate_limit_burst": 20, "concurrency": 10}},
}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "neither address": ({"edge_base_domain": ""}, "Set either BASE_DOMAIN"),
    "both addresses": ({"edge_public_base_url": "https://203.0.113.7"}, "not both"),
    "a URL as domain": ({"edge_base_domain": "https://bots.example.test"}, "Give only the name"),
    "localhost for others": ({"edge_base_domain": "localhost"}, "not a domain name"),
    "a URL with a path": (
        {"edge_base_domain": "", "edge_public_base_url": "https://claw.example.test/bots"},
        "without port and path",
    ),
    "an address for a public CA": (
        {"edge_base_domain": "", "edge_public_base_url": "https://203.0.113.7", "edge_tls_mode": "acme"},
        "internal or files",
    ),
    "no plans": ({"edge_plans": {}}, "Name at least one"),
    "a plan without concurrency": (
        {"edge_plans": {"small": {"rate_limit_rps": 5, "rate_limit_burst": 20}}},
        "and concurrency from 1",
    ),
    "a plan that HAProxy would read as two words": (
        {"edge_plans": {"a b": GOOD["edge_plans"]["small"]}},
        "Its name may have",
    ),
    "a rate of nothing": (
        {"edge_plans": {"small": {"rate_limit_rps": 0, "rate_limit_burst": 20, "concurrency": 1}}},
        "rate_limit_rps from 0.01",
    ),
    "strangers without a burst": (
        {"edge_stranger_rate_limit_burst": 0},
        "edge_stranger_rate_limit_burst (0)",
    ),
    "an interface without connections": (
        {"edge_interface_concurrency": 0},
        "edge_interface_concurrency (0)",
    ),
    "a time without a unit": ({"edge_response_timeout": "300"}, "a number and a unit"),
    "files without files": ({"edge_tls_mode": "files"}, "edge_tls_certificate"),
    "dns01 without a provider": (
        {"edge_tls_mode": "dns01", "edge_acme_email": "a@b.test"},
        "edge_dns01_provider",
    ),
}


def attempt(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A block that lets the role check the settings and notes what it says."""
    role = {"name": "clawdeploy.fleet.edge", "tasks_from": "validate.yml"}
    noted = {"said": f"{{{{ said | combine({{'{name}': ansible_failed_result | to_json}}) }}}}"}
    return {
        "block": [{"ansible.builtin.include_role": role, "vars": GOOD | settings}],
        "rescue": [{"ansible.builtin.set_fact": noted}],
    }


def said_to(directory: Path, cases: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the role says to the settings of each case that it refuses."""
    note = {"content": "{{ said | to_json }}", "dest": f"{directory}/said.json", "mode": "0600"}
    tasks = [attempt(name, settings) for name, settings in cases.items()] + [{"ansible.builtin.copy": note}]
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"said": {}},
        "tasks": tasks,
    }
    (directory / "play.json").write_text(json.dumps([play]))
    run = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", directory / "play.json"],
        env=os.environ
        | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_PYTHON_INTERPRETER": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    said: dict[str, str] = json.loads((directory / "said.json").read_text())
    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return said_to(tmp_path_factory.mktemp("settings"), {name: case[0] for name, case in CASES.items()})


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_setting_is_explained(said: dict[str, str], name: str) -> None:
    assert CASES[name][1] in said[name]


def test_a_port_that_is_taken_is_explained_with_the_program(tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.76.1", 443))
        squatter.listen()
        told = said_to(tmp_path, {"taken": {}})["taken"]
    assert "port 443 by" in told
    assert f"(process {os.getpid()})" in told
