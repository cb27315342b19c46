"""The few calls of Telegram's Bot API an owner claim needs (https://core.telegram.org/bots/api).

The token is part of each URL, so no URL and no exception of the HTTP client ever leaves this module.
"""

from typing import Any

import aiohttp
import msgspec

API = "https://api.telegram.org"
_ANSWER_SECONDS = 15


class TelegramError(Exception):
    """What Telegram, or the way to it, answered. status: HTTP status, 0 if there was none.

    retry_after: seconds Telegram wants us to wait (429), else None.
    """

    def __init__(self, status: int, description: str, retry_after: int | None = None) -> None:
        super().__init__(f"{status}: {description}" if status else description)
        self.status, self.description, self.retry_after = status, description, retry_after

    def advice(self) -> str:
        """One sentence for the log: what happened and what to do."""
        match self.status:
            case 401 | 404:
                return "Telegram does not know this token: it was revoked; deploy the bot with its new token"
            case 409 if "webhook" in self.description:
                return "a webhook is set for this token: delete it (deleteWebhook), then the claim goes on"
            case 409:
                return "this token is polled somewhere else: stop the other program, then the claim goes on"
            case 429:
                return f"Telegram asks to wait {self.retry_after} s"
            case _:
                return f"Telegram cannot be used right now ({self})"


class User(msgspec.Struct, frozen=True):
    id: int
    is_bot: bool = False


class Chat(msgspec.Struct, frozen=True):
    id: int
    type: str


class Message(msgspec.Struct, frozen=True):
    chat: Chat
    date: int
    sender: User | None = msgspec.field(name="from", default=None)
    text: str | None = None


class Update(msgspec.Struct, frozen=True):
    update_id: int
    message: Message | None = None


class _Parameters(msgspec.Struct, frozen=True):
    retry_after: int | None = None


class _Answer(msgspec.Struct, frozen=True):
    ok: bool
    result: msgspec.Raw = msgspec.Raw(b"null")
    description: str = ""
    parameters: _Parameters = _Parameters()


class Telegram:
    """One bot's account. Every method raises TelegramError."""

    def __init__(self, session: aiohttp.ClientSession, token: str, api: str = API) -> None:
        self._session, self._base = session, f"{api}/bot{token}"

    async def updates(self, offset: int | None, wait_seconds: int) -> list[Update]:
        """Messages sent to the bot, waiting for the first; those before ``offset`` are confirmed and gone."""
        # No allowed_updates: Telegram would remember it and keep other kinds from the agent later.
        wanted: dict[str, Any] = {"timeout": wait_seconds}
        if offset is not None:
            wanted["offset"] = offset
        result = await self._call("getUpdates", wanted, wait_seconds + _ANSWER_SECONDS)
        try:
            return msgspec.json.decode(result, type=list[Update])
        except msgspec.DecodeError:
            raise TelegramError(200, "the answer is not Telegram's") from None

    async def send(self, chat: int, text: str) -> None:
        """Send a plain text message."""
        await self._call("sendMessage", {"chat_id": chat, "text": text}, _ANSWER_SECONDS)

    async def _call(self, method: str, arguments: dict[str, Any], seconds: float) -> msgspec.Raw:
        try:
            async with self._session.post(
                f"{self._base}/{method}", json=arguments, timeout=aiohttp.ClientTimeout(total=seconds)
            ) as response:
                status, body = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TelegramError(0, f"no connection ({type(error).__name__})") from None
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except msgspec.DecodeError:
            raise TelegramError(status, "the answer is not Telegram's") from None
        if not answer.ok:
            raise TelegramError(status, answer.description, answer.parameters.retry_after)
        return answer.result
