"""What a customer does from the internet: HTTPS with real certificate checks, and a chat on Telegram."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from tests import lab

TIMEOUT = aiohttp.ClientTimeout(total=30)


class OneAddress(AbstractResolver):
    """Resolves every name to one address: this machine does not ask the simulated internet's DNS."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=self.address, port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def internet(address: str, authority: str = "") -> AsyncIterator[aiohttp.ClientSession]:
    """Give a session in which every name is at `address`.

    It trusts the simulated internet's CA, or only `authority` (PEM text).
    """
    context = ssl.create_default_context(cadata=authority or lab.CA_BUNDLE.read_text())
    connector = aiohttp.TCPConnector(resolver=OneAddress(address), ssl=context)
    async with aiohttp.ClientSession(connector=connector, connector_owner=False, timeout=TIMEOUT) as session:
        yield session
    # Not awaited politely: a peer that never says goodbye must not hold up a test.
    await connector.close(abort_ssl=True)


class TelegramUser:
    """A person on the simulated Telegram who writes to one bot and reads what it answers."""

    def __init__(self, bot_id: int, user_id: int = 4242, username: str = "owner") -> None:
        self.bot_id = bot_id
        self.user_id = user_id
        self.user = {"id": user_id, "username": username}
        self.seen = 0
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.session = await self.stack.enter_async_context(internet(lab.TELEGRAM_ADDRESS))
        self.seen = max((message["message_id"] for message in await self._messages(wait=0)), default=0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stack.aclose()

    async def _messages(self, wait: float) -> list[dict[str, Any]]:
        query: dict[str, str | int | float] = {
            "bot_id": self.bot_id,
            "chat_id": self.user_id,
            "after": self.seen,
            "wait": wait,
        }
        limit = aiohttp.ClientTimeout(total=wait + 10)
        where = "https://api.telegram.org/_sim/messages"
        async with self.session.get(where, params=query, timeout=limit) as response:
            response.raise_for_status()
            messages: list[dict[str, Any]] = (await response.json())["messages"]
            return messages

    async def write(self, text: str) -> None:
        """Send `text` to the bot in a private chat."""
        update = {"bot_id": self.bot_id, "user": self.user, "text": text, "chat_type": "private"}
        async with self.session.post("https://api.telegram.org/_sim/send", json=update) as response:
            response.raise_for_status()

    async def read(self, wait: float = 20) -> str:
        """Return the bot's next message to this user; TimeoutError if none comes within `wait` seconds."""
        messages = await self._messages(wait)
        if not messages:
            raise TimeoutError(f"bot {self.bot_id} wrote nothing to {self.user['username']} in {wait} s")
        self.seen = messages[0]["message_id"]
        return str(messages[0]["text"])
