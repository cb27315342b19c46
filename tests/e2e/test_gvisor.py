"""A host whose bots run on gVisor: the same bot, the same limits, a kernel of its own."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import lab
from tests.e2e.conftest import Bot, Deploy, in_bot, result_of, telegram_token
from tests.e2e.test_customer import ask
from tests.playbooks import run_playbook

SETTINGS = {"docker_reserved_pool": "10.200.0.0/16", "docker_dns": [lab.DNS_ADDRESS]}


@pytest.fixture(scope="module")
def gvisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Docker as prepare_host sets it up where platform_bot_runtime is runsc; afterwards as it was."""
    playbook = tmp_path_factory.mktemp("docker") / "docker.yml"
    playbook.write_text(
        "[{hosts: vps, become: true, gather_facts: false, roles: [clawdeploy.fleet.docker]}]\n"
    )
    run_playbook(playbook, lab.INVENTORY, SETTINGS | {"docker_gvisor": True}).check()
    yield
    run_playbook(playbook, lab.INVENTORY, SETTINGS).check()


@pytest.fixture
def bot_on_gvisor(
    vps: lab.Vps,
    deploy: Deploy,
    gvisor: None,
    host_setting: Callable[[str, Any], None],
    tmp_path: Path,
) -> Iterator[Bot]:
    plans = json.loads(vps.exec("cat", "/etc/clawdeploy/host.json"))["plans"]
    plans["nullclaw-small"]["memory_limit"] = 128 << 20
    host_setting("plans", plans)
    host_setting("bot_runtime", "runsc")
    token, result = telegram_token(7_100_000_777), tmp_path / "bot.json"
    deploy(token=token, owner="4242", rotate_gateway_token=True, result_file=str(result)).check()
    bot = Bot(token, result_of(result))
    yield bot
    vps.exec("clawctl", "destroy", bot.id, "--yes", "--json")


async def test_a_bot_on_gvisor_has_a_kernel_of_its_own_and_answers(
    vps: lab.Vps, web: aiohttp.ClientSession, bot: Bot, bot_on_gvisor: Bot
) -> None:
    assert "Starting gVisor" in in_bot(vps, bot_on_gvisor, "dmesg")[1]
    assert "hello" in await ask(web, bot_on_gvisor, "hello")
    (container,) = json.loads(vps.exec("docker", "inspect", bot_on_gvisor.container))
    assert container["HostConfig"]["Runtime"] == "runsc"
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    # The firewall holds it as it holds the others.
    assert in_bot(vps, bot_on_gvisor, f"echo | timeout 3 nc -w 2 {lab.WEBSITE_ADDRESS} 80")[0] == 0
    for address, port in ((lab.METADATA_ADDRESS, 80), ("198.51.100.10", 22), (lab.WEBSITE_ADDRESS, 25)):
        assert in_bot(vps, bot_on_gvisor, f"echo | timeout 3 nc -w 2 {address} {port}")[0] != 0
