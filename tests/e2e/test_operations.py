"""What the operator does to running bots: stop them at once, bring them back, end them, repair the host."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import lab
from tests.customer import TelegramUser
from tests.e2e.conftest import Bot, Deploy, clawctl, footprint, result_of, telegram_token
from tests.e2e.test_refusals import words
from tests.playbooks import ROOT, Run, run_playbook
from tests.standin.build import build_image


def play(name: str, *options: str, **variables: Any) -> Run:
    return run_playbook(ROOT / "playbooks" / name, lab.INVENTORY, variables, *options)


def status_of(vps: lab.Vps, bot: Bot) -> str:
    """Docker's word for the bot's container."""
    return vps.exec("docker", "inspect", "--format", "{{.State.Status}}", bot.container).strip()


async def answer(web: aiohttp.ClientSession, bot: Bot) -> tuple[int, dict[str, Any]]:
    """Status and body of a message to the bot over HTTPS."""
    body = {"message": "still there?"}
    async with web.post(f"{bot.url}webhook", json=body, headers=bot.authorization) as response:
        return response.status, await response.json()


@pytest.fixture
def resumed(vps: lab.Vps, bot: Bot) -> Iterator[Bot]:
    """A bot that may be suspended; it is brought back when the test is over."""
    yield bot
    clawctl(vps, "resume", bot.id)


async def test_one_call_ends_everything_a_bot_does_and_touches_no_data(
    vps: lab.Vps, web: aiohttp.ClientSession, resumed: Bot
) -> None:
    bot, home = resumed, f"/var/lib/clawdeploy/bots/{resumed.id}"
    headers = bot.authorization
    async with web.ws_connect(f"{bot.url}ws?session_id=held", headers=headers) as socket:
        result = clawctl(vps, "suspend", bot.id, "--reason", "abuse report 4711")
        with contextlib.suppress(aiohttp.ClientError):
            message = await socket.receive(timeout=5)
            assert message.type in (
                aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR,
            )  # fmt: skip
    assert [step["step"] for step in result["steps"]][:5] == ["registry", "edge", "llm", "freeze", "kill"]
    status, body = await answer(web, bot)
    assert (status, body["error"]["code"]) == (503, "suspended")
    assert status_of(vps, bot) == "exited"
    keys = json.loads(vps.exec("cat", "/var/lib/clawdeploy/llm_gateway/keys.json"))["keys"].values()
    assert [key["suspended"] for key in keys if key["bot"] == bot.id] == [True]
    before = vps.ssh(f"cd {home} && find . -type f -exec sha256sum {{}} + | sort").stdout
    assert not clawctl(vps, "suspend", bot.id)["changed"]
    async with TelegramUser(bot.card["telegram_id"]) as owner:
        await owner.write("are you asleep?")
        with pytest.raises(TimeoutError):
            await owner.read(wait=5)
    assert vps.ssh(f"cd {home} && find . -type f -exec sha256sum {{}} + | sort").stdout == before
    assert "abuse report 4711" in vps.exec("clawctl", "events", bot.id)


async def test_a_neighbour_notices_nothing(
    vps: lab.Vps, web: aiohttp.ClientSession, bots: list[Bot], resumed: Bot
) -> None:
    clawctl(vps, "suspend", resumed.id)
    (neighbour,) = (bot for bot in bots if bot.id != resumed.id)
    assert (await answer(web, neighbour))[0] == 200


async def test_a_suspended_bot_stays_so_through_docker_reconcile_and_a_deploy(
    vps: lab.Vps, web: aiohttp.ClientSession, deploy: Deploy, resumed: Bot
) -> None:
    clawctl(vps, "suspend", resumed.id)
    vps.exec("systemctl", "restart", "docker")
    assert status_of(vps, resumed) == "exited"
    assert not clawctl(vps, "reconcile")["changed"]
    deploy(token=resumed.token, owner="4242").check()
    assert status_of(vps, resumed) == "exited"
    assert (await answer(web, resumed))[0] == 503
    vps.exec("docker", "start", resumed.container)
    (repair,) = clawctl(vps, "reconcile")["done"]
    assert repair["was"] == "running though suspended"
    assert status_of(vps, resumed) == "exited"


async def test_a_resumed_bot_answers_and_remembers(
    vps: lab.Vps, web: aiohttp.ClientSession, resumed: Bot
) -> None:
    clawctl(vps, "suspend", resumed.id)
    (health,) = clawctl(vps, "resume", resumed.id)["bots"]
    assert health["healthy"], health
    assert (await answer(web, resumed))[0] == 200
    async with TelegramUser(resumed.card["telegram_id"]) as owner:
        await owner.write("awake again")
        assert "awake again" in await owner.read(wait=45)


async def test_the_playbooks_do_the_same_and_a_second_run_nothing(
    vps: lab.Vps, web: aiohttp.ClientSession, resumed: Bot
) -> None:
    assert play("suspend_bot.yml", "--check", bot=resumed.id).check().changed == 1
    assert (await answer(web, resumed))[0] == 200
    assert play("suspend_bot.yml", bot=resumed.id, reason="a second look").check().changed == 1
    assert (await answer(web, resumed))[0] == 503
    assert play("suspend_bot.yml", bot=resumed.id, reason="a second look").check().changed == 0
    assert play("resume_bot.yml", bot=resumed.id).check().changed == 1
    assert (await answer(web, resumed))[0] == 200
    assert play("resume_bot.yml", bot=resumed.id).check().changed == 0


def test_a_playbook_says_which_setting_is_missing_or_unknown() -> None:
    run = play("suspend_bot.yml")
    assert run.returncode != 0
    assert "give bot or all_bots" in run.output
    assert "reson" in play("suspend_bot.yml", bot="x", reson="abuse").output
    assert play("suspend_bot.yml", bot="nobody").returncode != 0


# --- the end ----------------------------------------------------------------------------------------


def host_state(vps: lab.Vps) -> dict[str, Any]:
    """All that a bot could leave behind: what ``footprint`` sees, units, loops, links, certificates, keys."""
    state = footprint(vps)
    state["units"] = vps.ssh("ls /etc/systemd/system /etc/systemd/system/local-fs.target.wants").stdout
    state["loops"] = vps.ssh("losetup --list --noheadings --output BACK-FILE | sort").stdout
    state["links"] = vps.ssh("ip -o link | grep -o 'cb-[a-z0-9]*' | sort -u || :").stdout
    state["certificates"] = vps.ssh("ls /var/lib/caddy/.local/share/caddy/certificates/*").stdout
    state["keys"] = vps.exec("sha256sum", "/var/lib/clawdeploy/llm_gateway/keys.json")
    return state


async def test_a_destroyed_bot_leaves_nothing_behind(vps: lab.Vps, deploy: Deploy, tmp_path: Path) -> None:
    before = host_state(vps)
    result = tmp_path / "result.json"
    deploy(token=telegram_token(7_520_000_001), owner="4242", result_file=str(result)).check()
    bot_id = result_of(result)["id"]
    assert host_state(vps) != before
    assert play("destroy_bot.yml", "--check", bot=bot_id).check().changed == 1
    run = play("destroy_bot.yml", bot=bot_id).check()
    assert run.changed == 1
    assert "@BotFather" in run.output
    assert "Its account: $" in run.output
    assert host_state(vps) == before
    assert play("destroy_bot.yml", bot=bot_id).check().changed == 0


async def test_kept_data_is_there_again_after_a_deploy(vps: lab.Vps, deploy: Deploy, tmp_path: Path) -> None:
    result, token = tmp_path / "result.json", telegram_token(7_520_000_002)
    deploy(token=token, owner="4242", result_file=str(result)).check()
    first = result_of(result)
    note = f"/var/lib/clawdeploy/bots/{first['id']}/data/workspace/note"
    vps.exec("sh", "-c", f"echo remembered > {note}")
    clawctl(vps, "top-up", first["id"], "3.00", "--ref", f"e2e-{first['id']}")
    balance = clawctl(vps, "balance", first["id"])["accounts"][0]["balance"]
    play("destroy_bot.yml", bot=first["id"], keep_data=True).check()
    assert [bot["id"] for bot in clawctl(vps, "list", "--kept")["kept"]] == [first["id"]]
    # Neither does a deploy that fails take it away.
    sick = build_image(lab.CA_BUNDLE, "sick")
    failed = deploy(
        token=token, bot_image=sick.tag, bot_image_archive=sick.archive, bot_health_timeout=5, owner="4242"
    )
    assert failed.returncode != 0
    assert "was removed again, but for its data" in words(failed.output)
    assert [bot["id"] for bot in clawctl(vps, "list", "--kept")["kept"]] == [first["id"]]
    deploy(token=token, owner="4242", result_file=str(result)).check()
    assert result_of(result)["id"] == first["id"]
    assert vps.exec("cat", note).strip() == "remembered"
    assert clawctl(vps, "balance", first["id"])["accounts"][0]["balance"] == balance
    play("destroy_bot.yml", bot=first["id"]).check()


# --- repairs ----------------------------------------------------------------------------------------


def test_a_host_that_is_as_registered_needs_no_repair(bot: Bot) -> None:
    assert play("reconcile.yml").check().changed == 0


@pytest.mark.parametrize(
    ("damage", "repaired"),
    [
        ("docker rm --force {container}", "container of {label}"),
        ("docker stop --time 1 {container}", "container of {label}"),
        ("docker pause {container}", "container of {label}"),
        ("rm /etc/haproxy/maps/hosts.map && systemctl restart haproxy; true", "hosts.map"),
        ("echo '{{}}' > /var/lib/clawdeploy/llm_gateway/keys.json", "keys.json"),
        ("docker network create --label clawdeploy.bot=zzzzzzzzzzzz stray", "network of zzzzzzzzzzzz"),
    ],
)
async def test_damage_is_found_and_repaired(
    vps: lab.Vps, web: aiohttp.ClientSession, bot: Bot, damage: str, repaired: str
) -> None:
    names = {"container": bot.container, "label": clawctl(vps, "show", bot.id)["label"]}
    vps.ssh(damage.format(**names))
    found = clawctl(vps, "reconcile", "--check")["done"]
    assert any(repaired.format(**names) in one["what"] for one in found), found
    clawctl(vps, "reconcile")
    assert clawctl(vps, "wait", "--timeout", "60", bot.id)["bots"][0]["healthy"]
    assert (await answer(web, bot))[0] == 200
    assert not clawctl(vps, "reconcile")["changed"]


@pytest.mark.parametrize("unit", ["haproxy", "caddy", "clawdeploy-llm-gateway", "docker"])
def test_a_daemon_that_was_killed_is_back_by_itself(vps: lab.Vps, bot: Bot, unit: str) -> None:
    vps.exec("systemctl", "kill", "--signal=KILL", unit)
    deadline = time.monotonic() + 60
    while vps.ssh(f"systemctl is-active {unit}").stdout.strip() != "active":
        assert time.monotonic() < deadline, vps.failed_units()
        time.sleep(0.5)
    assert clawctl(vps, "wait", "--timeout", "60", bot.id)["bots"][0]["healthy"]
    assert not clawctl(vps, "reconcile")["changed"]


def test_the_repair_at_boot_is_enabled_and_works(vps: lab.Vps, bot: Bot) -> None:
    unit = "clawdeploy-reconcile.service"
    assert vps.exec("systemctl", "is-enabled", unit).strip() == "enabled"
    vps.exec("docker", "rm", "--force", bot.container)
    vps.exec("systemctl", "start", unit)
    assert clawctl(vps, "wait", "--timeout", "60", bot.id)["bots"][0]["healthy"]


# --- looking ----------------------------------------------------------------------------------------


async def test_what_a_bot_uses_is_shown(vps: lab.Vps, web: aiohttp.ClientSession, bot: Bot) -> None:
    await answer(web, bot)
    (usage,) = (one["usage"] for one in clawctl(vps, "list")["bots"] if one["id"] == bot.id)
    assert usage["cpu"] is not None
    assert 0 < usage["memory"] < 64 * 2**20
    assert usage["rps"] > 0
    assert time.time() - usage["last_seen"] < 60
    limits = clawctl(vps, "limits", bot.id)["limits"]
    assert 0 < limits["disk"]["used"] < limits["disk"]["limit"]
    assert clawctl(vps, "top", "--count", "1")["bots"]


def test_the_doctor_finds_a_host_well_or_says_what_is_wrong(vps: lab.Vps, bot: Bot) -> None:
    well = clawctl(vps, "doctor")
    assert well["good"], well
    vps.exec("systemctl", "stop", "clawdeploy-watchdog")
    try:
        assert vps.ssh("systemctl start clawdeploy-doctor").returncode != 0
    finally:
        vps.exec("systemctl", "start", "clawdeploy-watchdog")
        vps.exec("systemctl", "reset-failed", "clawdeploy-doctor.service")
    assert vps.exec("systemctl", "is-enabled", "clawdeploy-doctor.timer").strip() == "enabled"
    told = clawctl(vps, "events")["events"][-1]
    assert told["kind"] == "doctor_failed"
    assert told["message"].startswith("services: not running: clawdeploy-watchdog.service")


def test_a_host_is_verified_from_the_controller_with_offenders_of_its_own(vps: lab.Vps, bot: Bot) -> None:
    before = vps.exec("docker", "ps", "--all", "--quiet")
    run = play("verify_host.yml").check()
    assert run.changed == 0
    assert "all is well" in run.output
    for check in ("services", "certificates", "cpu", "memory", "processes"):
        assert f"{check} " in run.output
    assert vps.exec("docker", "ps", "--all", "--quiet") == before
