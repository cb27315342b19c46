"""Bots that break a rule are warned of, throttled and suspended; a neighbour who works all the time is not.

Offenders aim at nothing but the lab's own addresses. Windows are a second long here.
"""

import asyncio
import contextlib
import json
import shlex
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from tests import lab
from tests.customer import TelegramUser
from tests.e2e.conftest import Bot, Deploy, clawctl, telegram_token

TOKENS = [telegram_token(7_600_000_001), telegram_token(7_600_000_002)]
OPERATORS_BOT = 7_690_000_001
OPERATOR = 990_001
CONFIG = "/etc/clawdeploy/watchdog.json"
TOKEN_FILE = "/etc/clawdeploy/secrets/operator_telegram_token"
QUICK = {"hits": 3, "of": 5, "calm": 30}
PATIENCE = 60


def write(vps: lab.Vps, path: str, text: str, mode: str) -> None:
    vps.exec("sh", "-c", f"umask 077; printf %s {shlex.quote(text)} > {path}; chmod {mode} {path}")


@pytest.fixture(scope="module")
def quick(vps: lab.Vps) -> Iterator[None]:
    """Windows of a second, no grace, and an operator on Telegram."""
    original = vps.exec("cat", CONFIG)
    config = json.loads(original)
    config |= {"interval": 1.0, "window": 1.0, "grace": 0.0}
    config["rules"] = {name: rule | QUICK for name, rule in config["rules"].items()}
    # Docker waits longer and longer between two starts.
    config["rules"]["restarts"] |= {"of": 40, "calm": 60}
    config["notify"] |= {"telegram_token_file": TOKEN_FILE, "telegram_chat": OPERATOR}
    write(vps, TOKEN_FILE, telegram_token(OPERATORS_BOT), "0600")
    write(vps, CONFIG, json.dumps(config), "0644")
    vps.exec("systemctl", "restart", "clawdeploy-watchdog")
    yield
    write(vps, CONFIG, original + "\n", "0644")
    vps.exec("rm", TOKEN_FILE)
    vps.exec("systemctl", "restart", "clawdeploy-watchdog")


@pytest.fixture(scope="module")
def pair(deploy: Deploy, tmp_path_factory: pytest.TempPathFactory) -> list[Bot]:
    """A bot that will offend, and one that will not."""
    result = tmp_path_factory.mktemp("watchdog") / "bots.json"
    entries = [{"token": token, "owner": "4242", "rotate_gateway_token": True} for token in TOKENS]
    deploy(bots=entries, result_file=str(result)).check()
    cards = json.loads(result.read_text())["bots"]
    return [Bot(token, card) for token, card in zip(TOKENS, cards, strict=True)]


@pytest.fixture
async def innocent(
    quick: None, pair: list[Bot], web: aiohttp.ClientSession, vps: lab.Vps
) -> AsyncIterator[Bot]:
    """The neighbour, who is asked something all the time, answers, and is left alone for it."""
    bot, answers, stop = pair[1], list[int](), asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            message = {"message": "a lawful question"}
            async with web.post(f"{bot.url}webhook", json=message, headers=bot.authorization) as response:
                answers.append(response.status)
                await response.read()
            with contextlib.suppress(TimeoutError):
                # NullClaw itself takes sixty a minute.
                await asyncio.wait_for(stop.wait(), 1.5)

    working = asyncio.create_task(work())
    yield bot
    stop.set()
    await working
    assert set(answers) == {200}
    assert watched(vps, bot) == []


@pytest.fixture
def offender(quick: None, pair: list[Bot], vps: lab.Vps) -> Iterator[Bot]:
    """The other one, running; afterwards it runs again."""
    clawctl(vps, "resume", pair[0].id)
    yield pair[0]
    clawctl(vps, "resume", pair[0].id)


def watched(vps: lab.Vps, bot: Bot, after: int = 0) -> list[dict[str, Any]]:
    """What the watchdog decided about a bot since the event with that number."""
    found: list[dict[str, Any]] = clawctl(vps, "events", bot.id, "--lines", "1000")["events"]
    return [event for event in found if event["kind"].startswith("watchdog_") and event["id"] > after]


def newest(vps: lab.Vps) -> int:
    found = clawctl(vps, "events", "--lines", "1")["events"]
    return int(found[-1]["id"]) if found else 0


async def suspension(vps: lab.Vps, bot: Bot) -> dict[str, Any]:
    """Why the bot is suspended, as soon as it is."""
    for _ in range(PATIENCE):
        shown = await asyncio.to_thread(clawctl, vps, "show", bot.id)
        if shown["suspended"]:
            return dict(shown["suspension"])
        await asyncio.sleep(1)
    journal = vps.exec("journalctl", "--unit=clawdeploy-watchdog", "--output=cat", "--lines=40")
    status = vps.ssh("clawctl watch status").stdout
    raise AssertionError(f"not suspended within {PATIENCE} s\n{journal}\n{status}")


def unleash(vps: lab.Vps, bot: Bot, script: str) -> None:
    """Run a shell script in the bot's container and leave it there."""
    vps.exec("docker", "exec", "--detach", bot.container, "/bin/sh", "-c", script)


async def test_a_burner_climbs_the_whole_ladder_and_the_operator_is_told(
    vps: lab.Vps, offender: Bot, innocent: Bot, web: aiohttp.ClientSession
) -> None:
    async with TelegramUser(OPERATORS_BOT, OPERATOR, "operator") as operator:
        await operator.write("/start")
        before = newest(vps)
        unleash(vps, offender, "while :; do :; done")
        why = await suspension(vps, offender)
        assert why["reason"].startswith("watchdog: cpu ")
        events = watched(vps, offender, before)
        assert [event["kind"] for event in events] == [
            "watchdog_warn",
            "watchdog_throttle",
            "watchdog_suspend",
        ]
        for event in events:
            assert len([one for one in event["details"]["samples"] if one >= 0.9]) >= 3
        told = [await operator.read() for _ in range(3)]
        assert [offender.id in message for message in told] == [True] * 3
        assert "suspended: watchdog: cpu" in told[2]
    async with web.get(f"{offender.url}health") as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "suspended"
    running = vps.exec("docker", "inspect", "--format", "{{.State.Status}}", offender.container)
    assert running.strip() == "exited"


async def test_after_a_resume_it_has_all_its_cpus_and_a_clean_slate(
    vps: lab.Vps, offender: Bot, innocent: Bot, web: aiohttp.ClientSession
) -> None:
    cpus = vps.exec("docker", "inspect", "--format", "{{.HostConfig.NanoCpus}}", offender.container)
    assert cpus.strip() == "500000000"
    before = newest(vps)
    async with web.get(f"{offender.url}health") as response:
        assert response.status == 200
    await asyncio.sleep(8)
    assert watched(vps, offender, before) == []


async def flood(web: aiohttp.ClientSession, bot: Bot, headers: dict[str, str], stop: asyncio.Event) -> None:
    """Forty requests a second, whatever the answer."""

    async def ask() -> None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with web.get(f"{bot.url}health", headers=headers) as response:
                await response.read()

    asking = set[asyncio.Task[None]]()
    while not stop.is_set():
        asking.add(asyncio.create_task(ask()))
        asking = {task for task in asking if not task.done()}
        await asyncio.sleep(0.025)
    await asyncio.gather(*asking)


async def test_a_flood_by_a_holder_of_the_token_is_stopped(
    vps: lab.Vps, offender: Bot, innocent: Bot, web: aiohttp.ClientSession
) -> None:
    stop = asyncio.Event()
    flooding = asyncio.create_task(flood(web, offender, offender.authorization, stop))
    try:
        why = await suspension(vps, offender)
    finally:
        stop.set()
        await flooding
    assert why["reason"].startswith("watchdog: requests ")


async def test_a_flood_by_strangers_suspends_nobody(
    vps: lab.Vps, offender: Bot, innocent: Bot, web: aiohttp.ClientSession
) -> None:
    await asyncio.sleep(11)  # the edge's rate of holders is that of the last ten seconds
    before, stop = newest(vps), asyncio.Event()
    flooding = asyncio.create_task(flood(web, offender, {}, stop))
    await asyncio.sleep(20)
    stop.set()
    await flooding
    assert watched(vps, offender, before) == []
    assert not clawctl(vps, "show", offender.id)["suspended"]


async def test_a_scanner_of_ports_is_stopped(vps: lab.Vps, offender: Bot, innocent: Bot) -> None:
    before = newest(vps)
    targets = " ".join((lab.vps().host.address, lab.METADATA_ADDRESS, lab.PRIVATE_ADDRESS))
    unleash(
        vps,
        offender,
        f"port=1; while [ $port -lt 60000 ]; do for host in {targets}; do "
        "nc -w 1 $host $port </dev/null 2>/dev/null; done; port=$((port+1)); done",
    )
    await suspension(vps, offender)
    rules = [event["details"]["rule"] for event in watched(vps, offender, before)]
    assert "denied" in rules


async def test_a_crash_loop_is_stopped(vps: lab.Vps, offender: Bot, innocent: Bot) -> None:
    before = newest(vps)
    ask = f"docker inspect --format '{{{{.State.Pid}}}}' {offender.container}"
    # Between two starts there is no process, and its number is 0.
    crashing = f'for i in $(seq 60); do pid=$({ask}); [ "$pid" = 0 ] || kill -9 "$pid"; sleep 0.7; done'
    vps.exec("systemd-run", "--unit=crasher", "--collect", "sh", "-c", crashing)
    try:
        why = await suspension(vps, offender)
    finally:
        vps.ssh("systemctl stop crasher")
    assert why["reason"].startswith("watchdog: restarts ")
    assert [event["details"]["rule"] for event in watched(vps, offender, before)] == ["restarts"] * 2


def test_its_figures_are_for_the_host_alone(vps: lab.Vps, pair: list[Bot], quick: None) -> None:
    figures = vps.exec("curl", "-fsS", "http://127.0.0.1:9466/metrics")
    assert f'clawdeploy_bot_cpu_seconds_total{{bot="{pair[1].id}"' in figures
    assert "clawdeploy_host_memory_bytes" in figures
    listening = vps.exec("ss", "--listening", "--tcp", "--numeric", "--no-header", "sport", "=", "9466")
    assert listening.split()[3] == "127.0.0.1:9466"


def test_all_its_sensors_work_in_its_sandbox(vps: lab.Vps, pair: list[Bot], quick: None) -> None:
    status = clawctl(vps, "watch", "status")
    assert status["failed"] == {}
    (seen,) = [bot for bot in status["bots"] if bot["id"] == pair[1].id]
    assert {name for name, rule in seen["rules"].items() if rule["value"] is None} == set()
    table = vps.exec("clawctl", "watch", "status")
    assert pair[1].card["label"] in table
    shown = vps.exec("systemctl", "show", "clawdeploy-watchdog", "--property=NoNewPrivileges,ProtectSystem")
    assert {"NoNewPrivileges=yes", "ProtectSystem=strict"} <= set(shown.split())


def test_it_comes_back_when_it_is_killed(vps: lab.Vps, quick: None) -> None:
    vps.exec("systemctl", "kill", "--signal=KILL", "clawdeploy-watchdog")
    vps.exec("sh", "-c", "sleep 6; systemctl is-active clawdeploy-watchdog")
    assert clawctl(vps, "watch", "status")["failed"] == {}
