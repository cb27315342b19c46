"""Wrong settings of the roles of the package end the run before anything changes, with a line that helps."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
DEBIAN = {
    "distribution": "Debian",
    "distribution_version": "13.1",
    "distribution_major_version": "13",
    "architecture": "x86_64",
    "memtotal_mb": 2000,
}
PLAN = {
    "cpus": 0.5,
    "memory_limit": "64m",
    "memory_reserved": "16m",
    "pids_limit": 64,
    "nofile_limit": 1024,
    "disk_size": "1g",
    "rate_limit_rps": 5,
    "rate_limit_burst": 20,
    "concurrency": 10,
}
GOOD = {
    "platform_base_domain": "bots.example.com",
    "platform_openrouter_model": "openai/gpt-4o-mini",
    "llm_gateway_openrouter_model": "openai/gpt-4o-mini",
    "llm_gateway_openrouter_api_key": "sk-or-v1-SECRET",
    "llm_gateway_address": "10.201.255.1",
    "llm_gateway_port": 8788,
    "llm_gateway_bot_pool": "10.200.0.0/16",
    "watchdog_plans": ["small", "large"],
}


def plan(**changes: Any) -> dict[str, Any]:
    """The setting platform_plans with one plan that has these changes; a limit that is None is left out."""
    limits = {name: value for name, value in (PLAN | changes).items() if value is not None}
    return {"platform_plans": {"small": limits}}


# case: (what is set differently, what the one line must hold); an empty second part means that it must pass
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "all good": ({}, []),
    "good without a domain": (
        {"platform_base_domain": "", "platform_public_base_url": "https://203.0.113.7"},
        [],
    ),
    "good with sizes in bytes": (plan(memory_limit=67108864, disk_size="1.5g", cpus="2"), []),
    "good in a pool beside the gateway": ({"platform_bot_pool": "10.201.0.0/24"}, []),
    "good on an own machine, with a model of its own": (
        {
            "platform_local": True,
            "platform_base_domain": "localhost",
            "platform_tls_mode": "internal",
            "platform_openrouter_model": "library/llama3.2:3b",
            "llm_gateway_openrouter_model": "library/llama3.2:3b",
            "llm_gateway_openrouter_base_url": "http://127.0.0.1:11434/v1",
            "llm_gateway_openrouter_api_key": "ollama",
            "llm_gateway_price": {"prompt": 0, "completion": 0},
        },
        [],
    ),
    "localhost for others": ({"platform_base_domain": "localhost"}, ["BASE_DOMAIN", "localhost"]),
    "an own machine with certificates of the internet": (
        {"platform_local": True, "platform_base_domain": "localhost", "platform_tls_mode": "acme"},
        ["platform_local", "internal"],
    ),
    "no address": ({"platform_base_domain": ""}, ["BASE_DOMAIN", "PUBLIC_BASE_URL", ".env"]),
    "a domain with a scheme": (
        {"platform_base_domain": "https://a.example"},
        ["BASE_DOMAIN", "https://a.example"],
    ),
    "plain http": (
        {"platform_base_domain": "", "platform_public_base_url": "http://203.0.113.7"},
        ["PUBLIC_BASE_URL", "https"],
    ),
    "no model": ({"platform_openrouter_model": ""}, ["OPENROUTER_MODEL", "openai/gpt-4o-mini"]),
    "no model for the gateway": (
        {"llm_gateway_openrouter_model": ""},
        ["OPENROUTER_MODEL", "openai/gpt-4o-mini"],
    ),
    "no key": ({"llm_gateway_openrouter_api_key": " "}, ["OPENROUTER_API_KEY is empty", ".env"]),
    "two keys": ({"llm_gateway_openrouter_api_key": "SECRET SECRET"}, ["OPENROUTER_API_KEY is not one word"]),
    "a base url without TLS": (
        {"llm_gateway_openrouter_base_url": "http://openrouter.ai/api/v1"},
        ["OPENROUTER_BASE_URL", "http://openrouter.ai/api/v1", "https"],
    ),
    "a wildcard without a domain": (
        {
            "platform_tls_mode": "dns01",
            "platform_base_domain": "",
            "platform_public_base_url": "https://203.0.113.7",
        },
        ["platform_tls_mode", "dns01", "BASE_DOMAIN"],
    ),
    "a public pool": (
        {"platform_bot_pool": "8.8.0.0/16"},
        ["platform_bot_pool", "8.8.0.0/16", "10.200.0.0/16"],
    ),
    "a pool with host bits": ({"platform_bot_pool": "10.200.1.0/16"}, ["platform_bot_pool", "host bits"]),
    "a pool that is no network": ({"platform_bot_pool": "bots"}, ["platform_bot_pool", "bots"]),
    "a pool without room": ({"platform_bot_pool": "10.200.0.0/28"}, ["platform_bot_subnet_prefix"]),
    "the gateway inside the pool": (
        {"platform_llm_gateway_address": "10.200.255.1"},
        ["platform_llm_gateway_address", "outside of platform_bot_pool"],
    ),
    "no memory left": ({"platform_reserved_memory": "4g"}, ["platform_reserved_memory", "4g", "2000m"]),
    "a size in words": ({"platform_disk_floor": "a lot"}, ["platform_disk_floor", "a lot", "1g"]),
    "a plan without a limit": (plan(pids_limit=None), ["plan small", "missing: pids_limit", "unknown: none"]),
    "a plan with a typo": (plan(cpu=1), ["plan small", "missing: none", "unknown: cpu"]),
    "a plan with wrong numbers": (
        plan(cpus="half", concurrency=0, disk_size="big"),
        ['cpus is "half"', "concurrency is 0", 'disk_size is "big"'],
    ),
    "a plan too small for gVisor": (
        {**plan(memory_limit="127m"), "platform_bot_runtime": "runsc"},
        ["memory_limit", "127m", "128m"],
    ),
    "an unknown runtime": ({"platform_bot_runtime": "kata"}, ["platform_bot_runtime", "kata", "runsc"]),
    "a library beside the root": (
        {"platform_skills_library": "skills"},
        ["platform_skills_library", "absolute"],
    ),
    "a plan that reserves too much": (plan(memory_reserved="65m"), ["memory_reserved", "65m"]),
    "no plan": ({"platform_plans": {}}, ["platform_plans"]),
    "another system": (
        {"facts": DEBIAN | {"distribution": "Ubuntu", "distribution_major_version": "24"}},
        ["Ubuntu", "Debian 12 and 13"],
    ),
    "an old Debian": ({"facts": DEBIAN | {"distribution_major_version": "11"}}, ["Debian 12 and 13"]),
    "another machine": ({"facts": DEBIAN | {"architecture": "riscv64"}}, ["riscv64", "x86_64"]),
    "another pool without bots": ({"bots": 0, "platform_bot_pool": "10.199.0.0/16"}, []),
    "another port with bots": ({"bots": 1, "platform_llm_gateway_port": 8789}, []),
    "another pool with bots": (
        {"bots": 1, "platform_bot_pool": "10.199.0.0/16"},
        ["they would move: platform_bot_pool was 10.200.0.0/16 and is now 10.199.0.0/16."],
    ),
    "other sizes and uids with bots": (
        {"bots": 2, "platform_bot_subnet_prefix": 27, "platform_bot_uid_base": 300000},
        [
            "platform_bot_subnet_prefix was 28 and is now 27.",
            "platform_bot_uid_base was 200000 and is now 300000.",
        ],
    ),
    "good rules": (
        {
            "watchdog_rules": {"cpu": {"limit": 0.8, "ladder": ["warn", "suspend"]}, "spend": {"ladder": []}},
            "watchdog_plan_rules": {"large": {"cpu": {"hits": 19}, "memory": {"limit": 1}}},
            "watchdog_telegram_token": "7000000001:AASECRETSECRETSECRETSECRETSECRETSECR",
            "watchdog_telegram_chat": -100123,
            "watchdog_email": "ops@example.com",
        },
        [],
    ),
    "a rule nobody knows": ({"watchdog_rules": {"gpu": {}}}, ["no rule gpu", "cpu, memory"]),
    "a rule with a typo": ({"watchdog_rules": {"cpu": {"limits": 1}}}, ["watchdog_rules.cpu may have limit"]),
    "a rule that is a number": ({"watchdog_rules": {"cpu": 1}}, ["watchdog_rules.cpu may have limit"]),
    "rules that are no rules": ({"watchdog_rules": ["cpu"]}, ["watchdog_rules", "rules by name"]),
    "a ladder upside down": (
        {"watchdog_rules": {"cpu": {"ladder": ["suspend", "warn"]}}},
        ['ladder is ["suspend", "warn"]', "in this order"],
    ),
    "a ladder of a word": ({"watchdog_rules": {"cpu": {"ladder": "warn"}}}, ['ladder is "warn"']),
    "a plan's rule that makes no sense with the host's": (
        {
            "watchdog_rules": {"cpu": {"of": 10, "hits": 5}},
            "watchdog_plan_rules": {"small": {"cpu": {"hits": 11}}},
        },
        ["watchdog_plan_rules.small.cpu: hits (11), of (10)"],
    ),
    "rules of no plan": (
        {"watchdog_plan_rules": {"huge": {}}},
        ["watchdog_plan_rules.huge: this host has no such plan, only small, large"],
    ),
    "a window shorter than a look": ({"watchdog_window": 1}, ["watchdog_window is 1", "watchdog_interval"]),
    "all of a throttled bot": ({"watchdog_throttle": 1}, ["watchdog_throttle", "such as 0.5"]),
    "a chat without a token": ({"watchdog_telegram_chat": 42}, ["watchdog_telegram_chat", "together"]),
    "a token that is none": (
        {"watchdog_telegram_token": "SECRET", "watchdog_telegram_chat": 42},
        ["watchdog_telegram_token", "@BotFather"],
    ),
    "several of the watchdog at once": (
        {"watchdog_interval": 0, "watchdog_email": "me", "watchdog_command": ["notify"]},
        ["watchdog_interval", "watchdog_email", "watchdog_command"],
    ),
    "wrong settings of a backup that is off": ({"backup_password": "x"}, []),
    "backups that are all wrong": (
        {
            "backup_repository": "backups",
            "backup_password": "SECRET",
            "backup_environment": {"aws key": "SECRET"},
            "backup_keep_daily": 0,
        },
        [
            'backup_repository is "backups"',
            'backup_password is "6 characters long"',
            'backup_environment is ["aws key"]',
            "backup_keep_daily is 0",
        ],
    ),
    "a repository with a password in it": (
        {"backup_repository": "sftp:user:SECRET@host:/x", "backup_password": "SECRET-SECRET"},
        ["backup_repository", "without a password"],
    ),
    "restic's own variables": (
        {
            "backup_repository": "s3:https://s3.example.com/bucket",
            "backup_password": "SECRET-SECRET",
            "backup_environment": {"RESTIC_PASSWORD": "SECRET"},
        },
        ["backup_environment", "none of them restic's own"],
    ),
    "two at once": (
        {"platform_disk_floor": "x", "platform_reserved_names": ["A b"]},
        ["platform_disk_floor", "platform_reserved_names"],
    ),
}
PLAYBOOK = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            # "cacheable" makes them facts of the host, as if gathered.
            {
                "ansible.builtin.set_fact": {name: f"{{{{ facts.{name} }}}}" for name in DEBIAN}
                | {"cacheable": True}
            },
            {
                "block": [
                    {
                        "ansible.builtin.include_role": {
                            "name": f"clawdeploy.fleet.{role}",
                            "tasks_from": "validate.yml",
                        },
                        "vars": {
                            "__platform_host_file": "{{ results }}/host.json",
                            "__platform_registry": "{{ results }}/registry-{{ bots | default('none') }}.db",
                        },
                    }
                    for role in ("platform", "llm_gateway", "watchdog", "backup")
                ],
                "rescue": [
                    {
                        "ansible.builtin.copy": {
                            "content": "{{ ansible_failed_result.msg }}",
                            "dest": "{{ results }}/{{ number }}",
                            "mode": "0600",
                        },
                    }
                ],
            },
        ],
    }
]


def prepared(directory: Path) -> None:
    """Leave what an earlier run would have, with registries that have no bot, one and two."""
    placement = {"bot_pool": "10.200.0.0/16", "bot_subnet_prefix": 28, "bot_uid_base": 200000}
    (directory / "host.json").write_text(json.dumps(placement))
    for bots in range(3):
        with contextlib.closing(sqlite3.connect(directory / f"registry-{bots}.db")) as db, db:
            db.execute("CREATE TABLE bot (slot INTEGER)")
            db.executemany("INSERT INTO bot VALUES (?)", [(slot,) for slot in range(bots)])


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each case was told (nothing if it passed), all from one run with one pretended host for each."""
    directory = tmp_path_factory.mktemp("settings")
    prepared(directory)
    (directory / "playbook.yml").write_text(json.dumps(PLAYBOOK))
    hosts = {}
    for number, (changes, _) in enumerate(CASES.values()):
        own = {"results": str(directory), "number": f"result-{number}", "facts": DEBIAN}
        hosts[f"case{number}"] = own | GOOD | changes
    inventory = {
        "all": {
            "hosts": hosts,
            "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
        }
    }
    (directory / "inventory.yml").write_text(json.dumps(inventory))
    # A working directory without .env, so that nothing but the cases is set.
    run = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            "-i",
            "inventory.yml",
            "-f",
            "8",
            "playbook.yml",
        ],
        cwd=directory,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
            "ANSIBLE_INJECT_FACT_VARS": "false",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SECRET" not in run.stdout + run.stderr
    assert run.returncode == 0, run.stdout + run.stderr
    return {
        name: path.read_text() if (path := directory / f"result-{number}").exists() else ""
        for number, name in enumerate(CASES)
    }


@pytest.mark.parametrize("case", CASES)
def test_settings_are_judged_before_anything_changes(case: str, messages: dict[str, str]) -> None:
    _, parts = CASES[case]
    message = messages[case]
    assert bool(message) == bool(parts), message
    for part in parts:
        assert part in message
    assert len(message) < 600
    assert "SECRET" not in message
