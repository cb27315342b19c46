"""Backups as the operator makes them, and what is there again after the worst has happened."""

import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests import lab
from tests.customer import TelegramUser
from tests.e2e.conftest import Deploy, clawctl, result_of, telegram_token
from tests.e2e.test_refusals import words
from tests.playbooks import ROOT, Run, run_playbook

TOKEN = telegram_token(7_530_000_001)
BLOCKER = telegram_token(7_530_000_002)
PASSWORD = "a password of the lab, for backups"
KEY = "an S3 key that nothing needs"
SETTINGS = {
    "backup_repository": "/srv/backups",
    "backup_password": PASSWORD,
    "backup_environment": {"AWS_SECRET_ACCESS_KEY": KEY},
}
PREPARE = ROOT / "playbooks" / "prepare_host.yml"


def play(name: str, *options: str, **variables: Any) -> Run:
    return run_playbook(ROOT / "playbooks" / f"{name}.yml", lab.INVENTORY, variables, *options)


@pytest.fixture(scope="module")
def host_with_backups(vps: lab.Vps) -> Iterator[Run]:
    """The first run of prepare_host with a repository; afterwards the host makes no backups again."""
    yield run_playbook(PREPARE, lab.INVENTORY, SETTINGS, "-vvv", "--diff").check()
    run_playbook(PREPARE, lab.INVENTORY).check()
    left = vps.ssh(
        "ls /etc/clawdeploy/secrets/backup* /etc/systemd/system/clawdeploy-backup* 2>/dev/null"
    ).stdout
    assert left == ""
    assert vps.ssh("systemctl is-active clawdeploy-backup.timer").stdout.strip() == "inactive"
    assert vps.ssh("ls /srv/backups/config").stdout, "the repository is the operator's"


@pytest.fixture(scope="module")
def bot(deploy: Deploy, host_with_backups: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The card of a bot with a name, owned by Telegram user 4242."""
    result = tmp_path_factory.mktemp("backup") / "bot.json"
    options = {"owner": "4242", "bot_name": "kept", "rotate_gateway_token": True}
    deploy(token=TOKEN, result_file=str(result), **options).check()
    return result_of(result)


def account(vps: lab.Vps, bot: str) -> dict[str, Any]:
    (found,) = clawctl(vps, "balance", bot)["accounts"]
    return dict(found)


def memory(vps: lab.Vps, bot: dict[str, Any]) -> str:
    """What the stand-in remembers of its talks."""
    return vps.exec("sh", "-c", f"cat /var/lib/clawdeploy/bots/{bot['id']}/data/workspace/memory.json")


def test_wrong_settings_are_told_at_once_and_change_nothing(vps: lab.Vps) -> None:
    wrong = {"backup_repository": "somewhere", "backup_password": "2brief4us", "backup_schedule": "at night"}
    run = run_playbook(PREPARE, lab.INVENTORY, wrong)
    assert run.returncode != 0
    assert run.changed == 0
    for name in ("backup_repository", "backup_password"):
        assert f"{name} is" in words(run.output)
    assert "2brief4us" not in run.output
    run = run_playbook(PREPARE, lab.INVENTORY, SETTINGS | {"backup_schedule": "at night"})
    assert (run.returncode != 0, run.changed) == (True, 0)
    assert 'backup_schedule is "at night"' in words(run.output)


def test_a_second_run_changes_nothing_and_no_run_shows_a_secret(vps: lab.Vps, host_with_backups: Run) -> None:
    again = run_playbook(PREPARE, lab.INVENTORY, SETTINGS, "--diff").check()
    assert again.changed == 0
    for run in (host_with_backups, again):
        assert PASSWORD not in run.output
        assert KEY not in run.output
    for name in ("backup_password", "backup_environment.json"):
        assert vps.exec("stat", "--format=%U %a", f"/etc/clawdeploy/secrets/{name}").strip() == "root 600"
    assert vps.exec("systemctl", "is-active", "clawdeploy-backup.timer").strip() == "active"


async def test_a_destroyed_bot_comes_back_with_its_talks_and_its_balance(
    vps: lab.Vps, deploy: Deploy, bot: dict[str, Any], web: aiohttp.ClientSession
) -> None:
    headers = {"Authorization": f"Bearer {bot['gateway_token']}"}

    async def say(text: str) -> str:
        async with web.post(f"{bot['url']}webhook", json={"message": text}, headers=headers) as response:
            assert response.status == 200
            return str((await response.json())["response"])

    async with TelegramUser(bot["telegram_id"]) as owner:
        await owner.write("remember the number 4711")
        assert "4711" in await owner.read()
    # What the timer starts is the service: its sandbox must let all of it through.
    vps.exec("systemctl", "start", "clawdeploy-backup.service")
    journal = vps.exec("journalctl", "--identifier=clawdeploy-backup", "--output=cat")
    assert "event=backup_done" in journal
    saved = memory(vps, bot)
    assert "4711" in saved
    listed = clawctl(vps, "backups", "kept")["backups"]
    assert [one["what"] for one in listed] == ["kept"]
    assert clawctl(vps, "backup", "verify", "--read", "100%")["ok"]

    await say("this is said after the backup")
    spent = account(vps, bot["id"])
    vps.exec("clawctl", "destroy", "kept", "--yes")
    deploy(token=BLOCKER, owner="4242").check()  # somebody else has its place now

    rehearsal = play("restore_bot", "--check", "--diff", bot="kept").check()
    assert rehearsal.changed == 1
    assert "+kept: as of" in rehearsal.output
    assert [entry["label"] for entry in clawctl(vps, "list")["bots"] if entry["label"] == "kept"] == []

    run = play("restore_bot", "-vvv", "--diff", bot="kept").check()
    secrets = json.loads(vps.exec("cat", f"/var/lib/clawdeploy/secrets/{bot['id']}.json"))
    for secret in (PASSWORD, KEY, *secrets.values()):
        assert secret not in run.output
    after = clawctl(vps, "show", "kept")
    assert (after["state"], after["id"]) == ("active", bot["id"])
    assert account(vps, bot["id"]) == spent, "what was spent after the backup stays spent"
    assert json.loads(memory(vps, bot)) == json.loads(saved)
    assert "are you there?" in await say("are you there?")
    async with TelegramUser(bot["telegram_id"]) as owner:
        await owner.write("still there?")
        assert "still there?" in await owner.read()
    owners = vps.exec(
        *("find", f"/var/lib/clawdeploy/bots/{bot['id']}", "-not", "-path", "*/lost+found*"),
        *("-not", "-uid", str(after["uid"])),
    )
    assert owners == ""
    assert deploy(token=TOKEN, owner="4242", bot_name="kept").check().changed == 0

    again = play("restore_bot", bot="kept")
    assert again.returncode != 0
    assert "nothing is overwritten" in words(again.output)


async def test_a_bot_hardly_notices_its_backup(
    vps: lab.Vps, bot: dict[str, Any], web: aiohttp.ClientSession
) -> None:
    started = (
        "docker",
        "inspect",
        "--format",
        "{{.State.StartedAt}} {{.State.Status}}",
        f"clawdeploy-{bot['id']}",
    )
    before = vps.exec(*started)
    run = play("backup", bot="kept").check()
    assert run.changed == 1
    assert vps.exec(*started) == before
    (made,) = clawctl(vps, "backup", "run", "kept")["snapshots"]
    assert made["stood_still_ms"] < 3000
    async with web.get(f"{bot['url']}health") as response:
        assert response.status == 200


def test_a_failed_backup_is_an_event_and_a_failed_unit(vps: lab.Vps, bot: dict[str, Any]) -> None:
    vps.exec("mv", "/srv/backups", "/srv/unplugged")
    try:
        started = vps.ssh("systemctl start clawdeploy-backup.service")
        verdict = vps.ssh("systemctl is-failed clawdeploy-backup.service").stdout.strip()
    finally:
        vps.exec("mv", "/srv/unplugged", "/srv/backups")
        vps.exec("systemctl", "reset-failed", "clawdeploy-backup.service")
    assert started.returncode != 0
    assert verdict == "failed"
    journal = vps.exec("journalctl", "--identifier=clawdeploy-backup", "--output=cat")
    assert "event=backup_failed repository_missing: there is no repository at /srv/backups" in journal


def test_no_process_shows_a_secret_of_the_backup(vps: lab.Vps, bot: dict[str, Any]) -> None:
    watched = "clawctl backup >/dev/null & while kill -0 $! 2>/dev/null; do ps axww -o args; done; wait $!"
    seen = vps.exec("bash", "-c", watched)
    assert "restic --password-file=/etc/clawdeploy/secrets/backup_password backup" in seen
    for secret in (PASSWORD, KEY):
        assert secret not in seen
