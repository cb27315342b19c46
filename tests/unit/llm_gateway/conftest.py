"""A gateway on loopback, with bots at 127.0.0.x and an upstream that a test scripts."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from clawdeploy.llm_gateway.__main__ import serving
from clawdeploy.llm_gateway.config import Config
from clawdeploy.money import SpendLimit, parse_dollars
from clawdeploy.store import LedgerStore, migrate_ledger
from tests.simulators import openrouter
from tests.unit.llm_gateway.harness import (
    BOT,
    MODEL,
    NEIGHBOUR,
    SERVER_KEY,
    SIMULATED,
    Bots,
    Simulator,
    Upstream,
    eventually,
)


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A scripted upstream that is listening."""
    script = Upstream()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/api/v1/chat/completions", script.handle)
    app.router.add_get("/api/v1/generation", script.generation)
    app.router.add_get("/api/v1/models", script.list_models)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server(shutdown_timeout=0.1)
    script.url = str(server.make_url("/api/v1"))
    yield script
    await server.close()


@pytest.fixture
def settings(tmp_path: Path, upstream: Upstream) -> dict[str, Any]:
    """The gateway's settings, with limits that a test reaches quickly."""
    (tmp_path / "remote_keys.json").write_text('{"keys": {}}')
    return {
        "address": "127.0.0.1",
        "port": 0,
        "base_url": upstream.url,
        "model": MODEL,
        "api_key_file": tmp_path / "openrouter_api_key",
        "keys_file": tmp_path / "keys.json",
        "remote_keys_file": tmp_path / "remote_keys.json",
        "bot_pool": IPv4Network("127.0.0.0/8"),
        "max_body_bytes": 64 * 1024,
        "calls_per_bot": 2,
        "calls_per_minute": 600,
        "max_tokens": 1000,
        "connect_timeout": 10.0,
        "read_timeout": 10.0,
        "drain_timeout": 0.3,
        "call_timeout": 20.0,
        "stop_timeout": 0.1,
        "attempts": 1,
        "lookup_delays": (0.01, 0.05, 0.2),
        "ledger_file": tmp_path / "ledger.db",
        "prices_file": tmp_path / "prices.json",
        "price": {"prompt": "1", "completion": "2"},
        "price_refresh": 3600.0,
        "low_balance": "0.50",
        "top_up_hint": "Write to help@example.test.",
        "event_command": (),
        "admin_socket": tmp_path / "admin.sock",
        "metrics_port": 0,
    }


def open_accounts(ledger: Path, dollars: str, limit: str = "prepaid") -> None:
    """A ledger in which two bots have that much."""
    migrate_ledger(ledger)
    store = LedgerStore(ledger)
    with store.transaction():
        for bot in (BOT, NEIGHBOUR):
            if store.account(bot) is None:
                store.open_account(bot, SpendLimit.parse(limit), parse_dollars(dollars), time.time())
    store.close()


@pytest_asyncio.fixture
async def start(settings: dict[str, Any]) -> AsyncIterator[Callable[..., Awaitable[Bots]]]:
    """Starts a gateway with changed settings and returns its bots: one, at 127.0.0.2, with 100 dollars."""
    async with AsyncExitStack() as stack:

        async def start(balance: str = "100", limit: str = "prepaid", **changes: Any) -> Bots:
            config = Config(**settings | changes)
            open_accounts(config.ledger_file, balance, limit)
            process = AsyncExitStack()
            port = await process.enter_async_context(serving(config, SERVER_KEY))
            stack.push_async_callback(process.aclose)
            return Bots(config.keys_file, f"http://127.0.0.1:{port}", config.admin_socket, process.aclose)

        yield start


@pytest_asyncio.fixture
async def bots(start: Callable[..., Awaitable[Bots]]) -> Bots:
    """The bots of a gateway with the ordinary settings."""
    return await start()


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """The simulator of OpenRouter, which keeps books."""
    server = TestServer(openrouter.make_app(), host="127.0.0.1")
    await server.start_server(shutdown_timeout=0.1)
    async with aiohttp.ClientSession(str(server.make_url("/"))) as session:
        yield Simulator(str(server.make_url("/api/v1")), session)
    await server.close()


@pytest_asyncio.fixture
async def billed(
    start: Callable[..., Awaitable[Bots]], simulator: Simulator
) -> Callable[..., Awaitable[Bots]]:
    """Starts a gateway in front of the simulator, and waits until it knows the simulator's prices."""

    async def begin(**changes: Any) -> Bots:
        ours = {"base_url": simulator.url, "model": SIMULATED, "price": None}
        bots = await start(**ours | changes)

        async def priced() -> bool:
            return (await bots.ask("/price"))[0] == 200

        await eventually(priced)
        return bots

    return begin
