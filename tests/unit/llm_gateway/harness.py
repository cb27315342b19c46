"""What the tests of the gateway play: bots at 127.0.0.x and an upstream that a test scripts."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from clawdeploy.money import parse_dollars

MODEL = "vendor/fixed-model"
SIMULATED = "openai/gpt-5-pro"  # a model of the simulator, dear enough for a call to cost something
SERVER_KEY = "sk-or-v1-server-key-0123456789"
BOT_KEY = "sk-claw-bot"
BOT = "botaaaaaaaaa"
NEIGHBOUR = "botbbbbbbbbb"
CHAT = "/api/v1/chat/completions"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Upstream:
    """A scripted OpenRouter: keeps what it was sent and answers with ``answer``."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Answer = self._echo
        self.generations: dict[str, Any] = {}
        self.lookups: list[str] = []
        self.look_up: Answer = self._known
        self.models: Any = {"data": [{"id": MODEL, "pricing": {"prompt": "1", "completion": "1"}}]}
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        return await self.answer(request)

    async def generation(self, request: web.Request) -> web.StreamResponse:
        """``look_up``; if that is not scripted: ``generations`` by id, and 404 for others."""
        self.lookups.append(request.query["id"])
        return await self.look_up(request)

    async def _known(self, request: web.Request) -> web.StreamResponse:
        found = self.generations.get(request.query["id"])
        return web.json_response({"data": found} if found else {}, status=200 if found else 404)

    async def list_models(self, _request: web.Request) -> web.Response:
        """``models``: the table of prices."""
        return web.json_response(self.models)

    async def _echo(self, _request: web.Request) -> web.Response:
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "cost": 0.0000123}
        return web.json_response({"choices": [{"message": {"content": "hello"}}], "usage": usage})

    def answers(self, status: int, body: Any, **headers: str) -> None:
        async def answer(_request: web.Request) -> web.Response:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            return web.json_response(body, status=status, headers=names)

        self.answer = answer


class Simulator:
    """The simulator of OpenRouter, and its books."""

    def __init__(self, url: str, control: aiohttp.ClientSession) -> None:
        """``url``: of its API; ``control``: a session at its root."""
        self.url = url
        self._control = control

    async def order(self, what: str, **order: Any) -> None:
        """Give an order to the control endpoint ``what``."""
        async with self._control.post(f"/_sim/{what}", json=order) as response:
            assert response.status == 200, await response.text()

    async def charges(self) -> list[dict[str, Any]]:
        async with self._control.get("/_sim/charges") as response:
            return list((await response.json())["charges"])

    async def asked(self, count: int) -> list[dict[str, Any]]:
        """The chat requests that it got, once there are so many."""
        query = {"count": str(count), "wait": "10"}
        async with self._control.get("/_sim/requests", params=query) as response:
            return list((await response.json())["requests"])


def disagreements(charges: list[dict[str, Any]], calls: list[dict[str, Any]]) -> list[str]:
    """Where OpenRouter's books and ours differ by more than the rules allow; all ``calls`` are settled.

    A call whose generation OpenRouter charged is charged the same, to the nano-dollar, or its hold if that is
    less, or its hold if OpenRouter never told. What OpenRouter charged without our knowing the name is
    covered by a call of its own that is charged its whole hold. Nothing else is charged.
    """
    wrong = []
    theirs = {charge["generation"]: charge["nano"] for charge in charges}
    bounds = []
    for call in calls:
        cost = theirs.pop(call["generation"], None) if call["generation"] else None
        if call["how"] == "bound" and cost is None:
            bounds.append(call["charged"])
        expected = {
            "usage": cost, "generation": cost, "bound": call["held"], "released": 0 if cost is None else None
        }[call["how"]]  # fmt: skip
        if expected is None or call["charged"] != min(expected, call["held"]):
            wrong.append(f"{call} but OpenRouter charged {cost}")
    for cost in sorted(theirs.values(), reverse=True):
        cover = max(bounds, default=-1)
        if cover < cost:
            wrong.append(f"OpenRouter charged {cost} for a call that we do not know")
        else:
            bounds.remove(cover)
    return wrong


class Bots:
    """The file keys.json, calls in a bot's name, and the ledger behind the admin socket."""

    def __init__(
        self, path: Path, url: str, admin_socket: Path, stop: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """``stop``: ends their gateway in an orderly way."""
        self.stop = stop
        self.path = path
        self.url = url
        self.admin_socket = admin_socket
        self.entries: dict[str, dict[str, Any]] = {}
        self.add(BOT_KEY, bot=BOT, subnet="127.0.0.2/32")

    def add(
        self, key: str, *, bot: str, subnet: str, suspended: bool = False, refusal: str = "error"
    ) -> None:
        digest = hashlib.sha256(key.encode()).hexdigest()
        self.entries[digest] = {
            "bot": bot, "subnet": subnet, "suspended": suspended, "refusal": refusal
        }  # fmt: skip
        self.write(json.dumps({"keys": self.entries}))

    def write(self, text: str) -> None:
        """Replace the file as clawctl does: by rename."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.rename(self.path)

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and answer of the admin socket."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.admin_socket))) as session,
            session.request("POST" if body else "GET", f"http://ledger/v1{path}", json=body) as response,
        ):
            return response.status, await response.json()

    async def account(self, bot: str = BOT) -> dict[str, Any]:
        status, account = await self.ask(f"/accounts/{bot}")
        assert status == 200, account
        return dict(account)

    async def calls(self, bot: str = BOT) -> list[dict[str, Any]]:
        return list((await self.ask(f"/accounts/{bot}/calls"))[1]["calls"])

    async def settled(self, count: int = 1, bot: str = BOT) -> list[dict[str, Any]]:
        """The bot's calls, once so many of them are settled."""
        until = AsyncRetrying(
            retry=retry_if_result(lambda done: len(done) < count),
            wait=wait_fixed(0.02),
            stop=stop_after_delay(10),
        )
        calls: list[dict[str, Any]] = await until(self._settled, bot)
        return calls

    async def _settled(self, bot: str) -> list[dict[str, Any]]:
        return [call for call in await self.calls(bot) if call["state"] == "settled"]

    async def top_up(self, dollars: int | str, ref: str, bot: str = BOT) -> None:
        body = {"amount": parse_dollars(str(dollars)), "ref": ref}
        status, answer = await self.ask(f"/accounts/{bot}/top-ups", body)
        assert status == 200, answer

    async def verify(self) -> None:
        """The books are in order."""
        _, answer = await self.ask("/verify")
        assert answer["problems"] == []

    def session(self, address: str = "127.0.0.2", key: str | None = BOT_KEY) -> aiohttp.ClientSession:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return aiohttp.ClientSession(
            self.url, connector=aiohttp.TCPConnector(local_addr=(address, 0)), headers=headers
        )


def chat(**fields: Any) -> dict[str, Any]:
    """A small chat completion request."""
    return {"model": "any/model", "messages": [{"role": "user", "content": "hi"}]} | fields


Start = Callable[..., Awaitable[Bots]]
Billed = Callable[..., Awaitable[Bots]]


async def refusal(response: aiohttp.ClientResponse) -> tuple[int, str]:
    """The answer's status and message, after a check that it has OpenRouter's error shape."""
    error = (await response.json())["error"]
    assert set(error) == {"code", "message"}
    assert error["code"] == response.status
    return response.status, error["message"]


async def post(
    bots: Bots, address: str = "127.0.0.2", key: str | None = BOT_KEY, **fields: Any
) -> tuple[int, str]:
    """Make a call that is refused: its status and message."""
    async with bots.session(address, key) as bot, bot.post(CHAT, json=chat(**fields)) as response:
        return await refusal(response)


async def status_of(session: aiohttp.ClientSession, **fields: Any) -> int:
    """Make a call and read its answer to the end: its status."""
    async with session.post(CHAT, json=chat(**fields)) as response:
        await response.read()
        return response.status


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Wait until ``condition`` holds. Raises RetryError when it does not in time."""
    until = AsyncRetrying(
        retry=retry_if_result(lambda holds: not holds),
        wait=wait_fixed(0.02),
        stop=stop_after_delay(seconds),
    )
    await until(condition)
