"""The Telegram simulator behaves as the Bot API is documented, 401, 404 and 409 included."""

import asyncio
from typing import Any

import pytest

from .conftest import BOT, OWNER, TOKEN, Client


async def call(client: Client, method: str, token: str = TOKEN, **parameters: Any) -> tuple[int, Any]:
    """Call a method; return (HTTP status, result or description)."""
    async with client.post(f"/bot{token}/{method}", json=parameters) as reply:
        answer = await reply.json()
        assert answer["ok"] == (reply.status == 200)
        return reply.status, answer["result"] if answer["ok"] else answer["description"]


async def write(client: Client, text: str, **more: Any) -> dict[str, int]:
    """Let the owner write to the bot; return the ids."""
    order = {"bot_id": BOT, "user": OWNER, "text": text} | more
    sent: dict[str, int] = await (await client.post("/_sim/send", json=order)).json()
    return sent


async def polls(client: Client, number: int) -> None:
    """Wait until the bot has asked for updates this often."""
    query: dict[str, str | int] = {"bot_id": BOT, "method": "getUpdates", "count": number, "wait": 5}
    calls = (await (await client.get("/_sim/calls", params=query)).json())["calls"]
    assert calls["getUpdates"] >= number


async def test_every_token_of_the_right_form_is_a_bot(telegram_api: Client) -> None:
    status, me = await call(telegram_api, "getMe")
    assert (status, me["id"], me["username"], me["is_bot"]) == (200, BOT, f"claw{BOT}_bot", True)
    assert (await call(telegram_api, "getme"))[0] == 200


@pytest.mark.parametrize(
    ("token", "status"), [(f"{BOT}:BB{'x' * 33}", 401), (f"{BOT}:AAshort", 404), ("", 404)]
)
async def test_other_tokens_are_refused(telegram_api: Client, token: str, status: int) -> None:
    assert (await call(telegram_api, "getMe", token))[0] == status


async def test_update_ends_a_waiting_poll_and_stays_until_confirmed(telegram_api: Client) -> None:
    poll = asyncio.ensure_future(call(telegram_api, "getUpdates", timeout=10))
    await polls(telegram_api, 1)
    sent = await write(telegram_api, "/start abc")
    [update] = (await poll)[1]
    assert update["update_id"] == sent["update_id"]
    assert update["message"]["from"]["id"] == OWNER["id"]
    assert update["message"]["entities"] == [{"type": "bot_command", "offset": 0, "length": 6}]
    assert (await call(telegram_api, "getUpdates"))[1] == [update]
    assert (await call(telegram_api, "getUpdates", offset=sent["update_id"] + 1))[1] == []


async def test_second_poller_ends_the_first_with_409(telegram_api: Client) -> None:
    first = asyncio.ensure_future(call(telegram_api, "getUpdates", timeout=10))
    await polls(telegram_api, 1)
    second = asyncio.ensure_future(call(telegram_api, "getUpdates", timeout=10))
    status, description = await first
    assert status == 409
    assert "terminated by other getUpdates request" in description
    await write(telegram_api, "hi")
    assert (await second)[0] == 200


async def test_webhook_excludes_polling_until_it_is_deleted(telegram_api: Client) -> None:
    await write(telegram_api, "hi")
    assert await call(telegram_api, "setWebhook", url="https://elsewhere.example/") == (200, True)
    assert (await call(telegram_api, "getUpdates"))[0] == 409
    info = (await call(telegram_api, "getWebhookInfo"))[1]
    assert (info["url"], info["pending_update_count"]) == ("https://elsewhere.example/", 1)
    await call(telegram_api, "deleteWebhook")
    assert len((await call(telegram_api, "getUpdates"))[1]) == 1


async def test_sent_html_arrives_as_text(telegram_api: Client) -> None:
    sent = await write(telegram_api, "hi")
    query = {"bot_id": BOT, "after": sent["message_id"], "wait": 5}
    waiting = asyncio.ensure_future(telegram_api.get("/_sim/messages", params=query))
    text = "<b>1 &lt; 2</b>"
    await call(telegram_api, "sendMessage", chat_id=sent["chat_id"], text=text, parse_mode="HTML")
    messages = (await (await waiting).json())["messages"]
    assert [message["text"] for message in messages] == ["1 < 2"]


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"text": "x" * 4097}, "message is too long"),
        ({"text": " "}, "message text is empty"),
        ({"text": "a < b", "parse_mode": "HTML"}, "can't parse entities"),
        ({"text": "hi", "chat_id": 5}, "chat not found"),
    ],
)
async def test_message_that_cannot_be_sent_is_400(
    telegram_api: Client, parameters: dict[str, Any], error: str
) -> None:
    await write(telegram_api, "hi")
    status, description = await call(telegram_api, "sendMessage", **{"chat_id": OWNER["id"], **parameters})
    assert status == 400
    assert error in description


async def test_commands_are_kept_and_invalid_ones_refused(telegram_api: Client) -> None:
    commands = [{"command": "new", "description": "Start anew"}]
    assert await call(telegram_api, "setMyCommands", commands=commands) == (200, True)
    assert await call(telegram_api, "getMyCommands") == (200, commands)
    assert (await call(telegram_api, "setMyCommands", commands=[{"command": "No!"}]))[0] == 400


async def test_revoked_token_ends_its_poll(telegram_api: Client) -> None:
    poll = asyncio.ensure_future(call(telegram_api, "getUpdates", timeout=10))
    await polls(telegram_api, 1)
    await telegram_api.post("/_sim/revoke", json={"token": TOKEN})
    assert (await poll)[0] == 401
    assert (await call(telegram_api, "getMe"))[0] == 401


async def test_reset_forgets_messages_but_no_id(telegram_api: Client) -> None:
    before = await write(telegram_api, "one")
    await telegram_api.post("/_sim/reset")
    assert (await call(telegram_api, "getUpdates"))[1] == []
    after = await write(telegram_api, "two")
    assert after["update_id"] == before["update_id"] + 1
