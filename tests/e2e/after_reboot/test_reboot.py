"""The VPS was restarted: everything is back without anybody's help."""

import json

import aiohttp

from tests import lab
from tests.customer import TelegramUser
from tests.e2e.conftest import Bot, clawctl

RECONCILE = "clawdeploy-reconcile.service"


def test_no_unit_failed(vps: lab.Vps) -> None:
    assert vps.failed_units() == ""


def test_every_bot_is_back_and_answers_through_tls(vps: lab.Vps) -> None:
    ids = [bot["id"] for bot in clawctl(vps, "list")["bots"]]
    assert ids
    assert all(bot["healthy"] for bot in clawctl(vps, "wait", "--timeout", "90", *ids)["bots"])


def test_the_boot_found_nothing_to_repair(vps: lab.Vps) -> None:
    vps.exec("systemctl", "start", RECONCILE)  # these tests are also run on a host that never booted since
    assert vps.exec("systemctl", "show", "--property=Result", "--value", RECONCILE).strip() == "success"
    said = vps.exec("journalctl", "--boot", "--output=cat", "--unit", RECONCILE)
    assert "all is as it should be" in said
    assert "was made anew" not in said


def test_every_bot_is_on_its_own_disk(vps: lab.Vps) -> None:
    for bot in clawctl(vps, "list")["bots"]:
        mount = json.loads(vps.exec("findmnt", "-J", "-T", f"/var/lib/clawdeploy/bots/{bot['id']}"))
        (found,) = mount["filesystems"]
        assert found["target"] == f"/var/lib/clawdeploy/bots/{bot['id']}"
        assert {"nodev", "nosuid"} <= set(found["options"].split(","))


def test_the_firewall_is_back(vps: lab.Vps) -> None:
    assert "hook forward" in vps.exec("nft", "list", "table", "inet", "clawdeploy")


async def test_a_deploy_finds_nothing_to_do_and_the_customer_is_answered(
    bot: Bot, web: aiohttp.ClientSession
) -> None:
    async with web.post(
        f"{bot.url}webhook", json={"message": "after reboot"}, headers=bot.authorization
    ) as response:
        assert "after reboot" in (await response.json())["response"]
    async with TelegramUser(bot.card["telegram_id"]) as owner:
        await owner.write("after reboot")
        assert "after reboot" in await owner.read(wait=45)


def test_the_books_are_in_order(vps: lab.Vps) -> None:
    books = clawctl(vps, "ledger", "verify")
    assert books["ok"], books["problems"]
    assert books["calls"]
