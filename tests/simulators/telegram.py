"""A simulator of Telegram's Bot API.

Run: `python -m tests.simulators.telegram --host H --port P [--cert C --key K]`

Wire format after https://core.telegram.org/bots/api. Every token `<digits>:<35 characters>` whose secret
part starts with `AA` is a living bot called `claw<digits>_bot`; other well-formed tokens are refused with
401, malformed ones with 404.

Control endpoints:

* `POST /_sim/send` `{"bot_id", "user": {"id", "username"}, "text", "chat_type": "private", "chat_id"}`:
  somebody writes to the bot (the chat's id is the user's unless given). Returns
  `{"update_id", "message_id", "chat_id"}`.
* `GET /_sim/messages?bot_id=B&chat_id=C&after=MESSAGE_ID&count=1&wait=S`: `{"messages": [Message]}` the bot
  sent, waiting up to S seconds for `count` whose id is greater than `after` (ids count both directions).
* `GET /_sim/calls?bot_id=B&method=M&count=1&wait=S`: `{"calls": {method: number}}`, waiting up to S seconds
  for `count` calls of `method`. Without `bot_id`: of all bots.
* `POST /_sim/revoke` `{"token"}`: the token is dead from now on (401), a long poll in progress included.
* `POST /_sim/reset`: forgets messages, updates, calls, webhooks and revocations; ids go on counting.
"""

import html
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.simulators.common import Changes, json_object, query_number, run

TOKEN = re.compile(r"([0-9]{6,16}):([A-Za-z0-9_-]{35})")
# What parse_mode HTML knows (https://core.telegram.org/bots/api#html-style); any other tag is an error.
TAG = re.compile(
    r"</?(?:b|strong|i|em|u|ins|s|strike|del|code|pre|a|span|tg-spoiler|blockquote)(?:\s[^<>]*)?>"
)
POLL_SECONDS_MAX = 50
TEXT_MAX = 4096


class ApiError(Exception):
    """An answer with `ok: false`."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.description = description


UNAUTHORIZED = (401, "Unauthorized")
OTHER_POLLER = (
    409,
    "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running",
)
WEBHOOK_IS_SET = (
    409,
    "Conflict: can't use getUpdates method while webhook is active; "
    "use deleteWebhook to delete the webhook first",
)


@dataclass
class Bot:
    """One bot's side of Telegram."""

    id: int
    updates: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    chats: dict[int, dict[str, Any]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    commands: list[Any] = field(default_factory=list)
    webhook: str = ""
    poller: int = 0  # the number of the newest getUpdates; older ones end with 409
    # Later than anything a client remembers of an earlier run of the simulator.
    next_update: int = field(default_factory=lambda: int(time.time()))
    next_message: int = 1

    @property
    def user(self) -> dict[str, Any]:
        """The bot as a User object."""
        name = f"claw{self.id}_bot"
        return {"id": self.id, "is_bot": True, "first_name": name, "username": name}

    def message_id(self) -> int:
        """The next message id."""
        self.next_message += 1
        return self.next_message - 1


@dataclass
class State:
    """Everything the simulator remembers."""

    changes: Changes = field(default_factory=Changes)
    bots: dict[int, Bot] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)

    def bot(self, identity: int) -> Bot:
        """The bot with this id; it has always existed."""
        return self.bots.setdefault(identity, Bot(identity))


STATE = web.AppKey("state", State)


async def parameters(request: web.Request) -> dict[str, Any]:
    """The call's parameters: query, form or JSON, as the Bot API takes them."""
    given: dict[str, Any] = dict(request.query)
    if request.content_type == "application/json":
        try:
            body = json.loads(await request.read() or b"{}")
        except ValueError as error:
            raise ApiError(400, "Bad Request: can't parse JSON object") from error
        given |= body
    else:
        given |= dict(await request.post())
    return given


def integer(given: dict[str, Any], name: str, default: int) -> int:
    """The parameter as an integer, given as a number or as text."""
    try:
        return int(given.get(name, default))
    except (TypeError, ValueError) as error:
        raise ApiError(400, f"Bad Request: invalid {name} specified") from error


async def get_me(state: State, token: str, bot: Bot, given: dict[str, Any]) -> Any:
    """`getMe`."""
    abilities = {
        "can_join_groups": True,
        "can_read_all_group_messages": False,
        "supports_inline_queries": False,
        "can_connect_to_business": False,
        "has_main_web_app": False,
    }
    return bot.user | abilities


async def get_webhook_info(state: State, token: str, bot: Bot, given: dict[str, Any]) -> Any:
    """`getWebhookInfo`."""
    return {"url": bot.webhook, "has_custom_certificate": False, "pending_update_count": len(bot.updates)}


async def set_webhook(state: State, token: str, bot: Bot, given: dict[str, Any]) -> Any:
    """`setWebhook`: only remembered; updates stay pending, as with a webhook that does not answer."""
    url = str(given.get("url", ""))
    if url and not url.startswith("https://"):
        raise ApiError(400, "Bad Request: bad webhook: An HTTPS URL must be provided for webhook")
    bot.webhook = url
    bot.poller += 1
    await state.changes.notify()
    return True


async def delete_webhook(state: State, token: str, bot: Bot, given: dict[str, Any]) -> Any:
    """`deleteWebhook`."""
    bot.webhook = ""
    if str(given.get("drop_pending_updates", "")).lower() in {"true", "1"}:
        bot.updates.clear()
    return True


async def set_my_commands(state: State, token: str, bot: Bot, given: dict[str, Any]) -> Any:
    """`setMyCommands`."""
    commands = given.get("commands")
    if isinstance(commands, str):
        commands = json.loads(commands)
    if not isinstance(commands, list) or not all(
        isinstance(entry, dict) and re.fullmatch("[a-z0-9_]{1,32}", str(entry.get("command")))
        for entry in commands
    ):
        raise ApiError(400, "Bad Request: can't parse BotCommand: invalid command specified")
    bot.commands = commands
    return True


async def get_my_commands(state: State, token: str, bot: Bot, given: dict[str, Any]) -> Any:
    """`getMyCommands`."""
    return bot.commands


async def get_updates(state: State, token: str, bot: Bot, given: dict[str, Any]) -> Any:
    """`getUpdates`: a long poll. A newer call ends an older one with 409; so does a webhook."""
    if bot.webhook:
        raise ApiError(*WEBHOOK_IS_SET)
    offset = integer(given, "offset", 0)
    limit = integer(given, "limit", 100)
    bot.poller += 1
    mine = bot.poller
    await state.changes.notify()
    if offset < 0:
        bot.updates = bot.updates[offset:]
    else:
        bot.updates = [update for update in bot.updates if update["update_id"] >= offset]
    seconds = min(integer(given, "timeout", 0), POLL_SECONDS_MAX)
    await state.changes.wait_for(
        lambda: bool(bot.updates) or bot.poller != mine or token in state.revoked, seconds
    )
    if token in state.revoked:
        raise ApiError(*UNAUTHORIZED)
    if bot.poller != mine:
        raise ApiError(*(WEBHOOK_IS_SET if bot.webhook else OTHER_POLLER))
    return bot.updates[:limit]


async def send_message(state: State, token: str, bot: Bot, given: dict[str, Any]) -> Any:
    """`sendMessage`: only to chats that wrote to the bot before; parse_mode HTML is checked and resolved."""
    chat = bot.chats.get(integer(given, "chat_id", 0))
    if chat is None:
        raise ApiError(400, "Bad Request: chat not found")
    text = str(given.get("text", ""))
    if str(given.get("parse_mode", "")).upper() == "HTML":
        plain = TAG.sub("", text)
        if stray := re.search("<[^>]*>?", plain):
            at = stray.start()
            raise ApiError(
                400, f"Bad Request: can't parse entities: Unsupported start tag at byte offset {at}"
            )
        text = html.unescape(plain)
    if not text.strip():
        raise ApiError(400, "Bad Request: message text is empty")
    if len(text.encode("utf-16-le")) // 2 > TEXT_MAX:
        raise ApiError(400, "Bad Request: message is too long")
    message = {
        "message_id": bot.message_id(),
        "from": bot.user,
        "chat": chat,
        "date": int(time.time()),
        "text": text,
    }
    bot.messages.append(message)
    await state.changes.notify()
    return message


async def send_chat_action(state: State, token: str, bot: Bot, given: dict[str, Any]) -> Any:
    """`sendChatAction`."""
    if integer(given, "chat_id", 0) not in bot.chats:
        raise ApiError(400, "Bad Request: chat not found")
    return True


METHODS = {
    "getme": ("getMe", get_me),
    "getwebhookinfo": ("getWebhookInfo", get_webhook_info),
    "setwebhook": ("setWebhook", set_webhook),
    "deletewebhook": ("deleteWebhook", delete_webhook),
    "setmycommands": ("setMyCommands", set_my_commands),
    "getmycommands": ("getMyCommands", get_my_commands),
    "getupdates": ("getUpdates", get_updates),
    "sendmessage": ("sendMessage", send_message),
    "sendchataction": ("sendChatAction", send_chat_action),
}


async def api(request: web.Request) -> web.Response:
    """`/bot<token>/<method>`, GET or POST; method names are case-insensitive, as documented."""
    state = request.app[STATE]
    token = request.match_info["token"]
    try:
        parts = TOKEN.fullmatch(token)
        if parts is None:
            raise ApiError(404, "Not Found")
        if not parts[2].startswith("AA") or token in state.revoked:
            raise ApiError(*UNAUTHORIZED)
        if request.match_info["method"].lower() not in METHODS:
            raise ApiError(404, "Not Found: method not found")
        name, method = METHODS[request.match_info["method"].lower()]
        bot = state.bot(int(parts[1]))
        bot.calls[name] += 1
        await state.changes.notify()
        result = await method(state, token, bot, await parameters(request))
    except ApiError as error:
        answer = {"ok": False, "error_code": error.code, "description": error.description}
        return web.json_response(answer, status=error.code)
    return web.json_response({"ok": True, "result": result})


async def sim_send(request: web.Request) -> web.Response:
    """Let somebody write to a bot."""
    order = await json_object(request)
    state = request.app[STATE]
    bot = state.bot(int(order["bot_id"]))
    user = {"is_bot": False, "first_name": str(order["user"].get("username", "User"))} | order["user"]
    kind = order.get("chat_type", "private")
    chat: dict[str, Any] = {"id": int(order.get("chat_id", user["id"])), "type": kind}
    if kind != "private":
        chat["title"] = "Group"
    elif "username" in user:
        chat["username"] = user["username"]
    text = str(order["text"])
    message: dict[str, Any] = {
        "message_id": bot.message_id(),
        "from": user,
        "chat": chat,
        "date": int(time.time()),
        "text": text,
    }
    if command := re.match(r"/[A-Za-z0-9_@]+", text):
        message["entities"] = [{"type": "bot_command", "offset": 0, "length": command.end()}]
    bot.chats[chat["id"]] = chat
    bot.updates.append({"update_id": bot.next_update, "message": message})
    bot.next_update += 1
    await state.changes.notify()
    return web.json_response(
        {"update_id": bot.next_update - 1, "message_id": message["message_id"], "chat_id": chat["id"]}
    )


async def sim_messages(request: web.Request) -> web.Response:
    """List what a bot sent, oldest first."""
    state = request.app[STATE]
    bot = state.bot(int(query_number(request, "bot_id", 0)))
    after = query_number(request, "after", 0)
    chat = request.query.get("chat_id")

    def matching() -> list[dict[str, Any]]:
        return [
            message
            for message in bot.messages
            if message["message_id"] > after and chat in (None, str(message["chat"]["id"]))
        ]

    count = query_number(request, "count", 1)
    await state.changes.wait_for(lambda: len(matching()) >= count, query_number(request, "wait", 0))
    return web.json_response({"messages": matching()})


async def sim_calls(request: web.Request) -> web.Response:
    """Count the calls per method."""
    state = request.app[STATE]
    wanted = request.query.get("bot_id")

    def calls() -> Counter[str]:
        bots = [bot for bot in state.bots.values() if wanted in (None, str(bot.id))]
        return sum((bot.calls for bot in bots), Counter())

    if method := request.query.get("method"):
        count = query_number(request, "count", 1)
        await state.changes.wait_for(lambda: calls()[method] >= count, query_number(request, "wait", 0))
    return web.json_response({"calls": calls()})


async def sim_revoke(request: web.Request) -> web.Response:
    """Kill a token."""
    state = request.app[STATE]
    state.revoked.add(str((await json_object(request))["token"]))
    await state.changes.notify()
    return web.json_response({})


async def sim_reset(request: web.Request) -> web.Response:
    """Forget everything but how far the ids have counted; running long polls go on."""
    state = request.app[STATE]
    state.revoked.clear()
    for bot in state.bots.values():
        bot.updates.clear()
        bot.messages.clear()
        bot.chats.clear()
        bot.calls.clear()
        bot.commands.clear()
        bot.webhook = ""
    return web.json_response({})


def make_app() -> web.Application:
    """The simulator as an aiohttp application."""
    app = web.Application()
    app[STATE] = State()
    app.router.add_route("*", "/bot{token:[^/]*}/{method}", api)
    app.router.add_post("/_sim/send", sim_send)
    app.router.add_get("/_sim/messages", sim_messages)
    app.router.add_get("/_sim/calls", sim_calls)
    app.router.add_post("/_sim/revoke", sim_revoke)
    app.router.add_post("/_sim/reset", sim_reset)
    return app


if __name__ == "__main__":
    run("A simulator of Telegram's Bot API.", make_app)
