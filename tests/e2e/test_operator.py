"""What the operator sees: second runs, rotation, check mode, two deploys at once, a lock-out averted."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from tests import lab
from tests.e2e.conftest import Bot, Deploy, clawctl, footprint, result_of, telegram_token
from tests.playbooks import ENV_FILE, ROOT, run_playbook, write_env


def test_the_same_token_again_changes_nothing_and_prints_no_secret(
    deploy: Deploy, bot: Bot, tmp_path: Path
) -> None:
    result = tmp_path / "again.json"
    run = deploy(token=bot.token, owner="4242", result_file=str(result)).check()
    assert run.changed == 0
    assert bot.card["gateway_token"] not in run.output
    assert bot.token.partition(":")[2] not in run.output
    again = result_of(result)
    assert again["gateway_token"] is None
    assert again["id"] == bot.id


def test_no_verbosity_prints_a_secret(vps: lab.Vps, deploy: Deploy, tmp_path: Path) -> None:
    result = tmp_path / "verbose.json"
    token = telegram_token(7_400_000_001)
    run = deploy("-vvv", "--diff", token=token, owner="4242", result_file=str(result)).check()
    card = result_of(result)
    assert token.partition(":")[2] not in run.output
    # Once: on the card.
    assert run.output.count(card["gateway_token"]) == 1
    secrets = json.loads(vps.exec("cat", f"/var/lib/clawdeploy/secrets/{card['id']}.json"))
    for name, value in secrets.items():
        assert value not in run.output, name


def test_the_result_file_is_only_the_operators(deploy: Deploy, bot: Bot, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    deploy(token=bot.token, owner="4242", result_file=str(result)).check()
    assert stat.S_IMODE(result.stat().st_mode) == 0o600


async def test_rotation_ends_the_old_gateway_token_at_once(
    deploy: Deploy, web: aiohttp.ClientSession, vps: lab.Vps, tmp_path: Path
) -> None:
    token, result = telegram_token(7_400_000_001), tmp_path / "rotated.json"

    async def status(gateway_token: str) -> int:
        headers = {"Authorization": f"Bearer {gateway_token}"}
        async with web.post(f"{card['url']}webhook", json={"message": "hi"}, headers=headers) as response:
            return response.status

    deploy(token=token, owner="4242", rotate_gateway_token=True, result_file=str(result)).check()
    card = result_of(result)
    started = vps.exec("docker", "inspect", "--format", "{{.State.StartedAt}}", f"clawdeploy-{card['id']}")
    assert await status(card["gateway_token"]) == 200
    deploy(token=token, owner="4242", rotate_gateway_token=True, result_file=str(result)).check()
    assert await status(card["gateway_token"]) == 401
    assert await status(result_of(result)["gateway_token"]) == 200
    assert started == vps.exec(
        "docker", "inspect", "--format", "{{.State.StartedAt}}", f"clawdeploy-{card['id']}"
    ), "a new token needs no restart"


def test_check_mode_says_what_would_happen_and_does_nothing(vps: lab.Vps, deploy: Deploy, bot: Bot) -> None:
    before = footprint(vps)
    run = deploy("--check", "--diff", token=telegram_token(7_400_000_002)).check()
    assert run.changed > 0
    assert footprint(vps) == before


def test_two_deploys_of_one_bot_at_once_leave_one_working_bot(vps: lab.Vps, deploy: Deploy, bot: Bot) -> None:
    token = telegram_token(7_400_000_003)
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _: deploy(token=token, owner="4242"), range(2)))
    assert sorted(run.returncode for run in runs)[0] == 0, runs[0].output
    for run in runs:
        if run.returncode:
            assert "another" in run.output.lower()
    same = [entry for entry in clawctl(vps, "list")["bots"] if entry["telegram_id"] == 7_400_000_003]
    assert len(same) == 1
    assert deploy(token=token, owner="4242").check().changed == 0


def test_two_deploys_of_different_bots_at_once_both_work(vps: lab.Vps, deploy: Deploy, bot: Bot) -> None:
    tokens = [telegram_token(7_400_000_010 + n) for n in range(2)]
    with ThreadPoolExecutor() as pool:
        for run in pool.map(lambda token: deploy(token=token, owner="4242"), tokens):
            run.check()
    listed = clawctl(vps, "list")["bots"]
    assert len({entry["address"] for entry in listed}) == len(listed)
    assert len({entry["uid"] for entry in listed}) == len(listed)


def test_the_collection_name_of_the_playbook_works_too(bot: Bot) -> None:
    run = run_playbook(
        "clawdeploy.fleet.deploy_bot", lab.INVENTORY, {"token": bot.token, "owner": "4242"}
    ).check()
    assert run.changed == 0


@pytest.mark.parametrize("missing", ["OPENROUTER_API_KEY", "OPENROUTER_MODEL"])
def test_prepare_host_names_the_setting_that_is_missing(vps: lab.Vps, missing: str) -> None:
    write_env({name: value for name, value in ENV_FILE.items() if name != missing})
    try:
        run = run_playbook(ROOT / "playbooks" / "prepare_host.yml", lab.INVENTORY)
    finally:
        write_env()
    assert run.returncode != 0
    assert missing in run.output
    assert run.changed == 0


def test_firewall_rules_that_lock_the_operator_out_are_taken_back(vps: lab.Vps) -> None:
    write_env()
    show = "nft --stateless --terse list table inet clawdeploy"
    rules = vps.ssh(show).stdout
    saved = vps.ssh("cat /etc/clawdeploy/firewall.nft").stdout
    run = run_playbook(
        ROOT / "playbooks" / "prepare_host.yml",
        lab.INVENTORY,
        {"firewall_ssh_ports": [2222], "firewall_rollback_seconds": 10},
    )
    assert run.returncode != 0
    assert "firewall" in run.output
    vps.wait(timeout=30)
    assert vps.ssh("cat /etc/clawdeploy/firewall.nft").stdout == saved
    assert vps.ssh(show).stdout == rules
