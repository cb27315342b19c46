"""A gateway on loopback, with bots at 127.0.0.x and an upstream that a test scripts."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from clawdeploy.llm_gateway.app import Gateway
from clawdeploy.llm_gateway.config import Config
from tests.unit.llm_gateway.harness import MODEL, SERVER_KEY, Bots, Upstream


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A scripted upstream that is listening."""
    script = Upstream()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/api/v1/chat/completions", script.handle)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server(shutdown_timeout=0.1)
    script.url = str(server.make_url("/api/v1"))
    yield script
    await server.close()


@pytest.fixture
def settings(tmp_path: Path, upstream: Upstream) -> dict[str, Any]:
    """The gateway's settings, with limits that a test reaches quickly."""
    return {
        "address": "127.0.0.1",
        "port": 0,
        "base_url": upstream.url,
        "model": MODEL,
        "api_key_file": tmp_path / "openrouter_api_key",
        "keys_file": tmp_path / "keys.json",
        "bot_pool": IPv4Network("127.0.0.0/8"),
        "max_body_bytes": 64 * 1024,
        "calls_per_bot": 2,
        "connect_timeout": 0.5,
        "read_timeout": 0.5,
        "stop_timeout": 1.0,
    }


@pytest_asyncio.fixture
async def start(settings: dict[str, Any]) -> AsyncIterator[Callable[..., Awaitable[Bots]]]:
    """Starts a gateway with changed settings and returns its bots: one, at 127.0.0.2."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> Bots:
            config = Config(**settings | changes)
            runner = web.AppRunner(
                Gateway(config, SERVER_KEY).app(),
                access_log=None,
                handler_cancellation=True,
                auto_decompress=False,
                shutdown_timeout=0.1,
            )
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            await web.TCPSite(runner, config.address, config.port).start()
            return Bots(config.keys_file, f"http://127.0.0.1:{runner.addresses[0][1]}")

        yield start


@pytest_asyncio.fixture
async def bots(start: Callable[..., Awaitable[Bots]]) -> Bots:
    """The bots of a gateway with the ordinary settings."""
    return await start()
