"""Upgrades as the operator runs them and the bots' customers live through them."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import lab
from tests.customer import TelegramUser, internet
from tests.e2e.conftest import Bot, Deploy, clawctl, footprint, telegram_token
from tests.e2e.test_refusals import words
from tests.playbooks import ROOT, Run, run_playbook
from tests.standin.build import REPOSITORY, Image, build_image

NAMES = ("first", "second", "third")
TOKENS = [telegram_token(7_800_000_001 + n) for n in range(len(NAMES))]
SECRET = "only-in-bot-config-0123456789"

Upgrade = Callable[..., Run]


def release(number: int, variant: str = "healthy") -> Image:
    return build_image(lab.CA_BUNDLE, variant, number)


@pytest.fixture(scope="module")
def deployed(deploy: Deploy, tmp_path_factory: pytest.TempPathFactory) -> list[Bot]:
    """Three bots with release 1; the second one cannot live with images that are picky."""
    settings = {"owner": "4242", "bot_config": {"custom": {"key": SECRET}}, "rotate_gateway_token": True}
    entries = [
        {"token": token, "bot_name": f"{name}-up", "bot_env": {"TZ": "UTC"}, **settings}
        for name, token in zip(NAMES, TOKENS, strict=True)
    ]
    entries[1]["bot_env"] = {"TZ": "UTC", "STANDIN_BREAKS": "1"}
    result = tmp_path_factory.mktemp("upgrade") / "fleet.json"
    deploy(bots=entries, result_file=str(result)).check()
    cards = json.loads(result.read_text())["bots"]
    return [Bot(token, card) for token, card in zip(TOKENS, cards, strict=True)]


@pytest.fixture
def now(vps: lab.Vps, deploy: Deploy, deployed: list[Bot]) -> int:
    """The release that all three bots run, wherever the test before left the second one."""
    tags = {bot.token: clawctl(vps, "show", bot.id)["image"] for bot in deployed}
    number = int(tags[TOKENS[1]].removeprefix(f"{REPOSITORY}:"))
    image = release(number)
    if others := [{"token": token} for token, tag in tags.items() if tag != image.tag]:
        deploy(bots=others, bot_image=image.tag, bot_image_archive=image.archive).check()
    return number


@pytest.fixture
def fleet(now: int, deployed: list[Bot]) -> list[Bot]:
    """The three bots, all at release `now`."""
    return deployed


@pytest.fixture
def upgrade(fleet: list[Bot], tmp_path: Path) -> Upgrade:
    """Runs upgrade_bots for the three bots; the result goes to upgraded.json."""

    def run(image: Image, *options: str, **variables: Any) -> Run:
        settings = {
            "bots": [bot.id for bot in fleet],
            "bot_image": image.tag,
            "bot_image_archive": image.archive,
            "canary_seconds": 1,
            "bot_health_timeout": 20,
            "result_file": str(tmp_path / "upgraded.json"),
        }
        return run_playbook(
            ROOT / "playbooks" / "upgrade_bots.yml", lab.INVENTORY, settings | variables, *options
        )

    return run


@pytest.fixture
def results(tmp_path: Path) -> Callable[[], dict[str, str]]:
    """What became of each bot, by name, as programs read it."""

    def read() -> dict[str, str]:
        found = json.loads((tmp_path / "upgraded.json").read_text())["bots"]
        return {bot["label"].removesuffix("-up"): bot["result"] for bot in found}

    return read


def images(vps: lab.Vps, fleet: list[Bot]) -> dict[str, str]:
    """Name of each bot and the image that its container runs; the registry says the same."""
    running = {
        name: vps.exec(
            "docker", "inspect", "--format", "{{.Image}} {{.State.Running}}", bot.container
        ).split()
        for name, bot in zip(NAMES, fleet, strict=True)
    }
    assert {alive for _, alive in running.values()} == {"true"}
    recorded = [clawctl(vps, "show", bot.id)["image_digest"] for bot in fleet]
    assert [image for image, _ in running.values()] == recorded
    return {name: image for name, (image, _) in running.items()}


def settings_of(vps: lab.Vps, bot: Bot) -> dict[str, Any]:
    """What an upgrade must leave as it is."""
    shown = clawctl(vps, "show", bot.id)
    kept = {name: shown[name] for name in ("owner", "plan", "name", "open_to_all", "uid", "address")}
    config = json.loads(vps.exec("cat", f"/var/lib/clawdeploy/bots/{bot.id}/config/config.json"))
    secrets = json.loads(vps.exec("cat", f"/var/lib/clawdeploy/secrets/{bot.id}.json"))
    return {**kept, "config": config, "secrets": secrets}


def everything(vps: lab.Vps) -> dict[str, Any]:
    """The footprint of all bots, but for the ids of containers."""
    found = footprint(vps)
    found["docker"] = len(found["docker"])
    found["rollbacks"] = vps.ssh("ls -A /var/lib/clawdeploy/rollbacks").stdout
    return found


@asynccontextmanager
async def asking(web: aiohttp.ClientSession, bot: Bot) -> AsyncIterator[list[float]]:
    """Ask a bot's URL all the time; the list gets the seconds of each gap between two answers."""
    gaps: list[float] = []

    async def ask() -> None:
        last = time.monotonic()
        while True:
            try:
                async with web.get(f"{bot.url}health") as response:
                    if response.status == 200:
                        gaps.append(time.monotonic() - last)
                        last = time.monotonic()
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)

    task = asyncio.create_task(ask())
    yield gaps
    task.cancel()


async def say(web: aiohttp.ClientSession, bot: Bot, text: str) -> str:
    async with web.post(f"{bot.url}webhook", json={"message": text}, headers=bot.authorization) as response:
        assert response.status == 200
        return str((await response.json())["response"])


async def remembers(web: aiohttp.ClientSession, bot: Bot, word: str) -> bool:
    """Whether a bot that is asked something tells its model that somebody said `word` before."""
    question = f"and now {time.time_ns()}?"
    await say(web, bot, question)
    query = {"contains": question}
    async with (
        internet(lab.OPENROUTER_ADDRESS) as session,
        session.get("https://openrouter.ai/_sim/requests", params=query) as response,
    ):
        (asked,) = (await response.json())["requests"]
    return word in json.dumps(asked["body"]["messages"])


def test_check_mode_says_what_would_be_upgraded_and_does_nothing(
    vps: lab.Vps, fleet: list[Bot], now: int, upgrade: Upgrade
) -> None:
    before = footprint(vps) | {"images": sorted(vps.exec("docker", "images", "-q").split())}
    run = upgrade(release(now + 1), "--check", "--diff").check()
    assert run.output.count("would be upgraded") == 3
    assert run.changed > 0
    after = footprint(vps) | {"images": sorted(vps.exec("docker", "images", "-q").split())}
    assert after == before


# Before any upgrade that succeeds: the way back from that one would be gone, and `everything` shows it.
async def test_a_canary_that_does_not_become_healthy_ends_the_run_and_goes_back(
    vps: lab.Vps,
    fleet: list[Bot],
    now: int,
    upgrade: Upgrade,
    web: aiohttp.ClientSession,
    results: Callable[[], dict[str, str]],
) -> None:
    word = f"word-{time.time_ns()}"
    await say(web, fleet[1], word)
    before, running = everything(vps), images(vps, fleet)

    run = await asyncio.to_thread(upgrade, release(now + 1, "sick"), canary="second-up", bot_health_timeout=8)
    assert run.returncode != 0
    assert "second-up was rolled back" in words(run.output)
    assert results() == {"second": "rolled_back", "first": "pending", "third": "pending"}
    assert "not reached" in run.output
    assert images(vps, fleet) == running
    assert everything(vps) == before
    there = vps.exec("docker", "images", "--quiet", "--no-trunc")
    assert release(now + 1, "sick").image_id not in there, "its image is of no use to anybody"
    assert await remembers(web, fleet[1], word)


def test_a_canary_that_dies_while_it_is_watched_goes_back(
    vps: lab.Vps, fleet: list[Bot], now: int, upgrade: Upgrade, results: Callable[[], dict[str, str]]
) -> None:
    running = images(vps, fleet)
    run = upgrade(release(now + 1, "late"), canary_seconds=15)
    assert run.returncode != 0
    assert "ended by itself" in words(run.output)
    assert 'variant "late" ends here' in run.output, "its last log lines are shown"
    assert results() == {"first": "rolled_back", "second": "pending", "third": "pending"}
    assert images(vps, fleet) == running


@pytest.mark.parametrize(
    ("on_failure", "third"), [("stop", "pending"), ("continue", "upgraded")], ids=["stop", "continue"]
)
def test_a_bot_that_breaks_in_the_middle_goes_back(
    vps: lab.Vps,
    fleet: list[Bot],
    now: int,
    upgrade: Upgrade,
    results: Callable[[], dict[str, str]],
    on_failure: str,
    third: str,
) -> None:
    picky = release(now + 1, "picky")
    running = images(vps, fleet)
    run = upgrade(picky, on_failure=on_failure)
    assert run.returncode != 0
    assert results() == {"first": "upgraded", "second": "rolled_back", "third": third}
    assert images(vps, fleet) == running | {"first": picky.image_id} | (
        {"third": picky.image_id} if third == "upgraded" else {}
    )

    # The way back of those that were upgraded is one command.
    back = run_playbook(ROOT / "playbooks" / "rollback_bot.yml", lab.INVENTORY, {"bot": "first-up"}).check()
    assert back.changed == 1
    assert images(vps, fleet)["first"] == running["first"]


async def test_bots_are_upgraded_one_after_the_other_and_keep_all_that_is_theirs(
    vps: lab.Vps,
    fleet: list[Bot],
    now: int,
    upgrade: Upgrade,
    deploy: Deploy,
    web: aiohttp.ClientSession,
    results: Callable[[], dict[str, str]],
    tmp_path: Path,
) -> None:
    before = [settings_of(vps, bot) for bot in fleet]
    assert SECRET in json.dumps(before[0]["config"])
    word = f"word-{time.time_ns()}"
    await say(web, fleet[2], word)

    async with asking(web, fleet[2]) as gaps:
        run = (await asyncio.to_thread(upgrade, release(now + 1), "-vvv", "--diff")).check()
    assert results() == dict.fromkeys(NAMES, "upgraded")
    assert run.output.count("TASK [clawdeploy.fleet.bot : Upgrade 1 more]") == 2
    assert images(vps, fleet) == dict.fromkeys(NAMES, release(now + 1).image_id)
    assert [settings_of(vps, bot) for bot in fleet] == before
    for secret in (
        SECRET,
        fleet[0].token,
        before[0]["secrets"]["llm_key"],
        before[0]["secrets"]["internal_token"],
    ):
        assert secret not in run.output
    # Its customer: a pause of seconds, the same address and token, and a bot that knows what was said before.
    told = {bot["id"]: bot for bot in json.loads((tmp_path / "upgraded.json").read_text())["bots"]}
    assert max(gaps) < 10
    assert told[fleet[2].id]["downtime"] < 10
    print(
        f"downtime as told {[bot['downtime'] for bot in told.values()]}, as a customer saw it {max(gaps):.2f}"
    )
    assert await remembers(web, fleet[2], word)
    async with TelegramUser(7_800_000_003) as owner:
        await owner.write("still mine?")
        assert "still mine?" in await owner.read(wait=45)

    # A second run finds nothing to do, and neither does a deploy that names no settings.
    again = upgrade(release(now + 1)).check()
    assert again.changed == 0
    assert results() == dict.fromkeys(NAMES, "unchanged")
    entries = [{"token": token, "bot_image": "", "bot_image_archive": ""} for token in TOKENS]
    assert deploy(bots=entries, bot_image="", bot_image_archive="").check().changed == 0


def killed(vps: lab.Vps) -> None:
    """End clawctl at once: nothing tidies up."""
    assert vps.ssh("pkill -9 -f '[c]lawctl upgrade'").returncode == 0


def interrupted(vps: lab.Vps, bot: Bot, run: Callable[[], Run], interrupt: Callable[[], None]) -> None:
    """A run in which something happens in the middle of that bot's turn."""
    point = f"/var/lib/clawdeploy/rollbacks/{bot.id}.json"

    def wait_and_interrupt() -> None:
        deadline = time.monotonic() + 60
        while vps.ssh(f"grep -q '\"ended\":false' {point}").returncode:
            assert time.monotonic() < deadline, "its turn never came"
        interrupt()

    with ThreadPoolExecutor() as pool:
        watching = pool.submit(wait_and_interrupt)
        done = run()
        watching.result()
    assert done.returncode != 0


def test_a_run_that_was_cut_off_goes_on_where_it_was(
    vps: lab.Vps, fleet: list[Bot], now: int, upgrade: Upgrade, results: Callable[[], dict[str, str]]
) -> None:
    before = [settings_of(vps, bot) for bot in fleet]
    interrupted(vps, fleet[1], lambda: upgrade(release(now + 1)), lambda: killed(vps))
    assert clawctl(vps, "show", fleet[0].id)["image"] == release(now + 1).tag
    assert clawctl(vps, "show", fleet[1].id)["image"] == release(now).tag, "recorded only when healthy"

    upgrade(release(now + 1)).check()
    assert results() == {"first": "unchanged", "second": "upgraded", "third": "upgraded"}
    assert images(vps, fleet) == dict.fromkeys(NAMES, release(now + 1).image_id)
    assert [settings_of(vps, bot) for bot in fleet] == before


def test_a_turn_that_was_cut_off_is_undone_by_reconcile(
    vps: lab.Vps, fleet: list[Bot], now: int, upgrade: Upgrade
) -> None:
    before = settings_of(vps, fleet[1])
    interrupted(vps, fleet[1], lambda: upgrade(release(now + 1)), lambda: killed(vps))
    assert "cut off in an upgrade" in json.dumps(clawctl(vps, "reconcile"))
    assert images(vps, fleet)["second"] == release(now).image_id
    assert settings_of(vps, fleet[1]) == before


def test_the_turn_of_a_bot_ends_in_good_order_when_the_operator_has_gone(
    vps: lab.Vps, fleet: list[Bot], now: int, upgrade: Upgrade, results: Callable[[], dict[str, str]]
) -> None:
    def control_c() -> None:
        (playbook,) = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", "upgrade_bots"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        os.kill(int(playbook), signal.SIGINT)

    interrupted(vps, fleet[1], lambda: upgrade(release(now + 1)), control_c)
    deadline = time.monotonic() + 60
    while clawctl(vps, "show", fleet[1].id)["image"] != release(now + 1).tag:
        assert time.monotonic() < deadline, "the second bot's turn never ended"
    assert clawctl(vps, "show", fleet[2].id)["image"] == release(now).tag
    upgrade(release(now + 1)).check()
    assert results() == {"first": "unchanged", "second": "unchanged", "third": "upgraded"}


def test_a_suspended_bot_stays_suspended_and_is_left_for_later(
    vps: lab.Vps, fleet: list[Bot], now: int, upgrade: Upgrade, results: Callable[[], dict[str, str]]
) -> None:
    clawctl(vps, "suspend", fleet[0].id)
    try:
        run = upgrade(release(now + 1)).check()
        assert results() == {"first": "skipped", "second": "upgraded", "third": "upgraded"}
        assert "resume it, then start the upgrade again" in words(run.output)
        assert clawctl(vps, "show", fleet[0].id)["suspended"]
    finally:
        clawctl(vps, "resume", fleet[0].id)
    assert upgrade(release(now + 1)).check().changed > 0
    assert results() == {"first": "upgraded", "second": "unchanged", "third": "unchanged"}


def test_two_upgrades_at_once_leave_every_bot_whole(
    vps: lab.Vps, fleet: list[Bot], now: int, upgrade: Upgrade
) -> None:
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _: upgrade(release(now + 1), result_file=""), range(2)))
    for run in runs:
        assert run.returncode == 0 or "another upgrade is at work" in words(run.output), run.output
    upgrade(release(now + 1)).check()
    assert images(vps, fleet) == dict.fromkeys(NAMES, release(now + 1).image_id)


def test_old_images_go_and_the_one_before_stays(
    vps: lab.Vps, fleet: list[Bot], now: int, upgrade: Upgrade
) -> None:
    upgrade(release(now + 1)).check()
    there = vps.exec("docker", "images", "--quiet", "--no-trunc")
    assert release(now).image_id in there, "the way back"
    upgrade(release(now + 2)).check()
    upgrade(release(now + 3)).check()
    there = vps.exec("docker", "images", "--quiet", "--no-trunc")
    assert release(now + 1).image_id not in there
    assert {release(now + 2).image_id, release(now + 3).image_id} <= set(there.split())


BAD_SETTINGS: dict[str, dict[str, str]] = {
    "bots: this host has no 'second-u'": {"bots": "second-u"},
    "canary: 'nobody' is none of the bots": {"canary": "nobody"},
    "bot_image: 'agent:latest' names no fixed version": {"bot_image": "agent:latest"},
    "on_failure: 'panic' is unknown": {"batch": "0", "on_failure": "panic"},
    "canary": {"canery": "x"},
}


def test_bad_settings_are_refused_before_anything_is_changed(
    vps: lab.Vps, fleet: list[Bot], now: int, upgrade: Upgrade
) -> None:
    before = everything(vps)
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda bad: upgrade(release(now + 1), **bad), BAD_SETTINGS.values()))
    for message, run in zip(BAD_SETTINGS, runs, strict=True):
        assert run.returncode != 0, message
        assert message in words(run.output)
    assert everything(vps) == before
