"""A bot that runs at Fly.io: its model is called through the VPS's door for such bots, and nothing else is.

Fly.io's API is the simulator; what it says it runs is run on the simulated internet, from the very image,
files, secrets and volume that it was given.
"""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests import fly_machine, lab
from tests.customer import TelegramUser, internet
from tests.e2e.conftest import Bot, Deploy, clawctl, in_bot, telegram_token
from tests.playbooks import ENV_FILE, ROOT, Run, run_playbook, write_env
from tests.standin.build import Image

TELEGRAM_ID = 7_560_000_001
TOKEN = telegram_token(TELEGRAM_ID)
NAME = "faraway"
DOOR = f"https://llm.{ENV_FILE['BASE_DOMAIN']}"
SIMULATOR = "https://api.machines.dev/_sim"
BALANCE = 3_000_000
USED_UP = "This bot's prepaid balance is used up. To top it up, write to help@example.test."
# What the door takes, by default: so many at once, and so many a second after that.
BURST, RATE = 20, 2

Answer = tuple[int, dict[str, Any]]


def play(name: str, *options: str, **variables: Any) -> Run:
    """Run a playbook from a machine of the simulated internet, where Fly.io is the simulator."""
    return run_playbook(ROOT / f"playbooks/{name}_fly.yml", lab.INVENTORY, variables, *options, on_lab=True)


@pytest.fixture
async def openrouter() -> AsyncIterator[aiohttp.ClientSession]:
    async with internet(lab.OPENROUTER_ADDRESS) as session:
        yield session


async def apps() -> dict[str, Any]:
    """What Fly.io has: apps by name, each with its machines, volumes, secrets and addresses."""
    async with internet(lab.FLY_ADDRESS) as session, session.get(f"{SIMULATOR}/state") as response:
        found: dict[str, Any] = (await response.json())["apps"]
        return found


@pytest.fixture(scope="module")
def settings(deploy: Deploy, image: Image) -> Iterator[dict[str, Any]]:
    """What the operator's file says of the bot; the token for Fly.io is in .env, once `deploy` wrote that."""
    write_env(ENV_FILE | {"FLY_API_TOKEN": "fo1_" + "k" * 40})
    yield {
        **{"token": TOKEN, "owner": "4242", "bot_name": NAME, "bot_image": image.tag},
        "balance": f"{BALANCE / 1e9}",
    }
    write_env()


@pytest.fixture(scope="module")
def app(vps: lab.Vps, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The bot's app, as it is after the first deploy."""
    asyncio.run(reset())
    vps.ssh(f"clawctl remote forget {NAME}")
    play("deploy", **settings).check()
    (found,) = asyncio.run(apps()).values()
    yield found
    vps.ssh(f"clawctl remote forget {NAME}")


async def reset() -> None:
    async with internet(lab.FLY_ADDRESS) as session:
        await session.post(f"{SIMULATOR}/reset")


@pytest.fixture(scope="module")
def machine(app: dict[str, Any], image: Image) -> Iterator[None]:
    """The bot's machine, running on the simulated internet."""
    with fly_machine.running(app["machines"][0], image.archive):
        yield


@pytest.fixture(scope="module")
def key(app: dict[str, Any]) -> str:
    """The LLM key that Fly.io was given among the bot's secrets."""
    config = json.loads(base64.b64decode(app["secrets"]["AGENT_CONFIG"]))
    return str(config["models"]["providers"]["clawdeploy"]["api_key"])


async def ask(web: aiohttp.ClientSession, key: str, text: str = "hello", **more: Any) -> Answer:
    """One question to the model through the door."""
    question = {"messages": [{"role": "user", "content": text}], "max_tokens": 500} | more
    headers = {"Authorization": f"Bearer {key}"}
    async with web.post(f"{DOOR}/api/v1/chat/completions", json=question, headers=headers) as response:
        return response.status, await response.json()


def said(answer: Answer) -> str:
    status, body = answer
    assert status == 200, body
    return str(body["choices"][0]["message"]["content"])


def account(vps: lab.Vps) -> dict[str, Any]:
    (found,) = clawctl(vps, "balance", NAME)["accounts"]
    return dict(found)


async def calls_with(openrouter: aiohttp.ClientSession, text: str) -> list[dict[str, Any]]:
    """The calls that reached OpenRouter with that text in their last message."""
    query = {"contains": text}
    async with openrouter.get("https://openrouter.ai/_sim/requests", params=query) as response:
        return [one["body"] for one in (await response.json())["requests"]]


async def test_it_answers_its_owner_from_elsewhere_and_the_call_is_charged_to_its_balance(
    vps: lab.Vps, machine: None, key: str, web: aiohttp.ClientSession, openrouter: aiohttp.ClientSession
) -> None:
    async with TelegramUser(TELEGRAM_ID) as owner:
        await owner.write("hello from afar")
        assert "hello from afar" in await owner.read(wait=45)
    (call,) = await calls_with(openrouter, "hello from afar")
    assert call["model"] == ENV_FILE["OPENROUTER_MODEL"]
    assert "and by hand" in said(await ask(web, key, "and by hand", model="openai/gpt-5-pro"))
    (call,) = await calls_with(openrouter, "and by hand")
    assert call["model"] == ENV_FILE["OPENROUTER_MODEL"]
    async with openrouter.get("https://openrouter.ai/_sim/charges") as response:
        charges = (await response.json())["charges"]
    now = account(vps)
    assert now["calls"] == 2
    assert now["spent"] == sum(one["nano"] for one in charges if one["user"] == now["id"]) > 0
    assert now["balance"] == BALANCE - now["spent"]
    assert clawctl(vps, "ledger", "verify")["ok"]


def test_a_second_deploy_changes_nothing_and_the_host_is_as_registered(
    vps: lab.Vps, app: dict[str, Any], settings: dict[str, Any]
) -> None:
    assert play("deploy", **settings).check().changed == 0
    assert not clawctl(vps, "reconcile", "--check")["changed"]


async def test_without_money_it_is_refused_in_the_models_name_until_it_is_topped_up(
    vps: lab.Vps, machine: None, key: str, web: aiohttp.ClientSession, openrouter: aiohttp.ClientSession
) -> None:
    answer, number = "", 0
    while answer != USED_UP:
        assert number < BURST
        number += 1
        answer = said(await ask(web, key, f"{number}. " + "spend it " * 300, max_tokens=2000))
    assert number > 1
    assert await calls_with(openrouter, f"{number}. spend it") == []
    async with TelegramUser(TELEGRAM_ID) as owner:
        await owner.write("are you still there?")
        assert await owner.read() == USED_UP
        assert await calls_with(openrouter, "are you still there?") == []
        assert clawctl(vps, "top-up", NAME, "5.00", "--ref", f"{account(vps)['id']}-1")["changed"]
        await owner.write("welcome back")
        assert "welcome back" in await owner.read()
    assert "by hand again" in said(await ask(web, key, "by hand again"))


async def test_a_key_is_good_at_its_own_door_only(
    vps: lab.Vps, key: str, bot: Bot, web: aiohttp.ClientSession
) -> None:
    secrets = json.loads(vps.exec("cat", f"/var/lib/clawdeploy/secrets/{bot.id}.json"))
    assert [(await ask(web, one))[0] for one in (key, secrets["llm_key"])] == [200, 401]
    gateway = json.loads(vps.exec("cat", "/etc/clawdeploy/host.json"))["llm_gateway_url"]

    def models(key: str) -> str:
        return in_bot(vps, bot, f"wget -O - --header 'Authorization: Bearer {key}' {gateway}/models")[1]

    assert ENV_FILE["OPENROUTER_MODEL"] in models(secrets["llm_key"])
    assert "401" in models(key)


async def test_nothing_but_the_model_is_behind_the_door(key: str, web: aiohttp.ClientSession) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    for method, path in (
        ("GET", "/api/v1/chat/completions"),
        ("POST", "/api/v1/chat/completions/"),
        ("POST", "/api/v1//chat/completions"),
        ("POST", "/api/v1/models/../chat/completions"),
        ("POST", "/chat/completions"),
        ("POST", "/v1/accounts"),
        ("POST", "/api/v1/completions"),
        ("POST", "/api/v1/models"),
        ("GET", "/api/v1/generation?id=1"),
        ("GET", "/api/v1/key"),
        ("GET", "/api/v1/credits"),
        *(("GET", path) for path in ("/", "/healthz", "/health", "/metrics", "/webhook", "/.env")),
    ):
        where = URL(f"{DOOR}{path}", encoded=True)
        async with web.request(method, where, headers=headers, json={}) as response:
            assert response.status == 404, (method, path)
            assert (await response.json())["error"]["code"] == "unknown_path"
    for sent in ({}, {"Authorization": "Bearer sk-claw-guessed"}, {"Authorization": f"Basic {key}"}):
        async with web.get(f"{DOOR}/api/v1/models", headers=sent) as response:
            assert response.status == 401


async def test_a_flood_is_answered_within_its_rate_and_harms_nobody_else(
    vps: lab.Vps, key: str, bot: Bot, web: aiohttp.ClientSession
) -> None:
    async def models(key: str) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"}
        async with web.get(f"{DOOR}/api/v1/models", headers=headers) as response:
            return response.status, response.headers.get("Retry-After", "")

    async def flood(key: str) -> list[tuple[int, str]]:
        """Sixty questions, six at a time."""
        return [one for _ in range(10) for one in await asyncio.gather(*(models(key) for _ in range(6)))]

    with lab.cut_off():
        strangers = await flood("sk-claw-guessed")
        assert {status for status, _ in strangers} == {401, 429}
        began = time.monotonic()
        answers = await flood(key)
        seconds = time.monotonic() - began
    good = [status for status, _ in answers].count(200)
    assert BURST / 2 <= good <= BURST + RATE * seconds + 1
    refused = [(status, wait) for status, wait in answers if status != 200]
    assert {status for status, _ in refused} == {429}
    assert all(int(wait) >= 1 for _, wait in refused)
    message = {"message": "and you?"}
    async with web.post(f"{bot.url}webhook", json=message, headers=bot.authorization) as response:
        assert response.status == 200
    await asyncio.sleep(max(int(wait) for _, wait in refused))
    assert (await models(key))[0] == 200


async def test_the_kill_switch_stops_the_machine_and_closes_the_door_though_it_ran_on(
    vps: lab.Vps, machine: None, key: str, web: aiohttp.ClientSession, openrouter: aiohttp.ClientSession
) -> None:
    assert play("suspend", bot=NAME, reason="abuse report 4711").check().changed == 2
    (app,) = (await apps()).values()
    assert (app["machines"][0]["state"], app["machines"][0]["cordoned"]) == ("stopped", True)
    status, body = await ask(web, key, "one more?")
    assert (status, body["error"]["message"]) == (
        403,
        "This bot is suspended; its operator can resume it.",
    )
    async with TelegramUser(TELEGRAM_ID) as owner:
        await owner.write("anybody home?")
        await owner.read(wait=45)
    assert await calls_with(openrouter, "anybody home?") == await calls_with(openrouter, "one more?") == []
    assert "abuse report 4711" in vps.exec("clawctl", "remote", "list")
    assert play("resume", bot=NAME).check().changed == 2
    assert "up again" in said(await ask(web, key, "up again"))


async def test_destroying_it_leaves_nothing_at_fly_and_no_key_here(
    vps: lab.Vps, app: dict[str, Any], key: str, web: aiohttp.ClientSession
) -> None:
    (known,) = clawctl(vps, "remote", "list")["bots"]
    assert play("destroy", bot=NAME).check().changed == 2
    assert await apps() == {}
    assert clawctl(vps, "remote", "list")["bots"] == []
    assert (await ask(web, key))[0] == 401
    places = ("/var/lib/clawdeploy/secrets", "/var/lib/clawdeploy/llm_gateway", "/etc/haproxy/maps")
    digest = hashlib.sha256(key.encode()).hexdigest()
    look = (
        f"find {' '.join(places)} -name '*{known['id']}*'; grep -rlF -e {digest} -e {key} {' '.join(places)}"
    )
    assert vps.ssh(look).stdout == ""
    assert play("destroy", bot=NAME).check().changed == 0
