"""What a customer of a bot sees through TLS, and what strangers see."""

import aiohttp
import pytest

from tests import lab
from tests.customer import TelegramUser, internet
from tests.e2e.conftest import Bot


async def ask(web: aiohttp.ClientSession, bot: Bot, message: str, token: str | None = None) -> str:
    """Send a message to the bot's webhook and return its answer."""
    headers = bot.authorization if token is None else {"Authorization": f"Bearer {token}"}
    async with web.post(f"{bot.url}webhook", json={"message": message}, headers=headers) as response:
        response.raise_for_status()
        return str((await response.json())["response"])


async def test_the_bot_answers_over_https_with_its_gateway_token(
    web: aiohttp.ClientSession, bot: Bot
) -> None:
    assert "hello over https" in await ask(web, bot, "hello over https")


async def test_the_bot_answers_its_owner_on_telegram(bot: Bot) -> None:
    async with TelegramUser(bot.card["telegram_id"]) as owner:
        await owner.write("hello over telegram")
        assert "hello over telegram" in await owner.read()


async def test_the_bot_ignores_strangers_on_telegram(bot: Bot) -> None:
    async with (
        TelegramUser(bot.card["telegram_id"], 6666, "mallory") as stranger,
        TelegramUser(bot.card["telegram_id"]) as owner,
    ):
        await stranger.write("let me in")
        await owner.write("are you there?")
        assert (
            "are you there?" in await owner.read()
        )  # the stranger's message came first and is dealt with by now
        with pytest.raises(TimeoutError):
            await stranger.read(wait=0)


async def test_the_bot_answers_over_a_websocket(web: aiohttp.ClientSession, bot: Bot) -> None:
    url = f"{bot.url}ws?token={bot.card['gateway_token']}&session_id=s1"
    async with web.ws_connect(url) as socket:
        await socket.send_json(
            {"v": 1, "type": "user_message", "session_id": "s1", "payload": {"content": "hello over ws"}}
        )
        answer = await socket.receive_json(timeout=20)
        assert answer["type"] == "assistant_final"
        assert "hello over ws" in answer["payload"]["content"]


async def test_health_and_agent_card_are_public(web: aiohttp.ClientSession, bot: Bot) -> None:
    for path in ("health", ".well-known/agent-card.json"):
        async with web.get(bot.url + path) as response:
            assert response.status == 200, path
            assert response.headers["Strict-Transport-Security"]


@pytest.mark.parametrize(
    "path", ["telegram", "pair", "ready", "metrics", "slack/events", "", "health/../telegram"]
)
async def test_no_other_path_passes_not_even_for_the_token_holder(
    web: aiohttp.ClientSession, bot: Bot, path: str
) -> None:
    async with web.post(bot.url + path, json={}, headers=bot.authorization) as response:
        assert response.status == 404


@pytest.mark.parametrize("token", ["", "cg_wrong", "Bearer"])
async def test_a_wrong_gateway_token_is_refused(web: aiohttp.ClientSession, bot: Bot, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with web.post(f"{bot.url}webhook", json={"message": "hi"}, headers=headers) as response:
        assert response.status == 401
        assert "WWW-Authenticate" in response.headers


async def test_one_bots_gateway_token_does_not_open_another_bot(
    web: aiohttp.ClientSession, bots: list[Bot]
) -> None:
    first, second = bots
    async with web.post(
        f"{second.url}webhook", json={"message": "hi"}, headers=first.authorization
    ) as response:
        assert response.status == 401


async def test_a_request_the_agent_could_not_read_is_refused(web: aiohttp.ClientSession, bot: Bot) -> None:
    message = {"message": "x" * 5000}
    async with web.post(f"{bot.url}webhook", json=message, headers=bot.authorization) as response:
        assert response.status == 413


async def test_plain_http_is_sent_to_https(web: aiohttp.ClientSession, bot: Bot) -> None:
    plain = bot.url.replace("https://", "http://")
    async with web.get(f"{plain}health", allow_redirects=False) as response:
        assert response.status in (301, 308)
        assert response.headers["Location"] == f"{bot.url}health"


async def test_no_certificate_is_made_for_a_name_that_is_no_bot(web: aiohttp.ClientSession, bot: Bot) -> None:
    stranger = bot.url.replace(bot.card["label"], "nosuchbot")
    with pytest.raises(aiohttp.ClientConnectorError):
        await web.get(f"{stranger}health")


async def test_the_model_is_the_operators_whatever_the_user_asks_for(bot: Bot) -> None:
    async with (
        internet(lab.OPENROUTER_ADDRESS) as simulator,
        TelegramUser(bot.card["telegram_id"]) as owner,
    ):
        await owner.write("/model openai/gpt-5-pro")
        await owner.read()
        await owner.write("which model is this?")
        assert "which model is this?" in await owner.read()
        query = {"contains": "which model is this?"}
        async with simulator.get("https://openrouter.ai/_sim/requests", params=query) as response:
            requests = (await response.json())["requests"]
        assert {request["body"]["model"] for request in requests} == {"openai/gpt-4o-mini"}
