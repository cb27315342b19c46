"""What the tests of the gateway play: bots at 127.0.0.x and an upstream that a test scripts."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

MODEL = "vendor/fixed-model"
SERVER_KEY = "sk-or-v1-server-key-0123456789"
BOT_KEY = "sk-claw-bot"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Upstream:
    """A scripted OpenRouter: keeps what it was sent and answers with ``answer``."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Answer = self._echo
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        return await self.answer(request)

    async def _echo(self, _request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "hello"}}]})

    def answers(self, status: int, body: Any, **headers: str) -> None:
        async def answer(_request: web.Request) -> web.Response:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            return web.json_response(body, status=status, headers=names)

        self.answer = answer


class Bots:
    """The file keys.json and calls in a bot's name."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self.entries: dict[str, dict[str, Any]] = {}
        self.add(BOT_KEY, bot="botaaaaaaaaa", subnet="127.0.0.2/32")

    def add(self, key: str, *, bot: str, subnet: str, suspended: bool = False) -> None:
        digest = hashlib.sha256(key.encode()).hexdigest()
        self.entries[digest] = {"bot": bot, "subnet": subnet, "suspended": suspended}
        self.write(json.dumps({"keys": self.entries}))

    def write(self, text: str) -> None:
        """Replace the file as clawctl does: by rename."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.rename(self.path)

    def session(self, address: str = "127.0.0.2", key: str | None = BOT_KEY) -> aiohttp.ClientSession:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return aiohttp.ClientSession(
            self.url, connector=aiohttp.TCPConnector(local_addr=(address, 0)), headers=headers
        )


def chat(**fields: Any) -> dict[str, Any]:
    """A small chat completion request."""
    return {"model": "any/model", "messages": [{"role": "user", "content": "hi"}]} | fields
