"""Both simulators on loopback, and a stand-in NullClaw that finds them there."""

import asyncio
import contextlib
import json
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import ClientSession, TCPConnector
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from tests.ports import free_port
from tests.simulators import openrouter, telegram
from tests.standin.build import SYSTEM_CA, build_binary

Client = TestClient[Request, Application]
Config = dict[str, Any]

BOT = 123456789
TOKEN = f"{BOT}:AA{'x' * 33}"
KEY = "sk-or-v1-0123456789abcdef"
GATEWAY_TOKEN = "ci_0123456789abcdefghij"
OWNER = {"id": 4242, "username": "owner"}


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_bundle(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authority's certificate behind all of the system's: as much as the agent ever has to load."""
    bundle = tmp_path_factory.mktemp("ca") / "bundle.pem"
    bundle.write_bytes(SYSTEM_CA.read_bytes() + authority.cert_pem.bytes())
    return bundle


@pytest.fixture
async def openrouter_api() -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with TestClient(TestServer(openrouter.make_app()), headers=headers) as client:
        yield client


@pytest.fixture
async def telegram_api(authority: trustme.CA) -> AsyncIterator[Client]:
    """The Telegram simulator behind TLS, with a certificate for the name that the agent insists on."""
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("api.telegram.org", "127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    server = TestServer(telegram.make_app(), scheme="https")
    await server.start_server(ssl=theirs, shutdown_timeout=0.1)
    async with TestClient(server, connector=TCPConnector(ssl=ours)) as client:
        yield client


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction of a connection until it ends."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def proxy(telegram_api: Client) -> AsyncIterator[str]:
    """An HTTP proxy whose CONNECT leads to the Telegram simulator, whatever host is asked for."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        there, here = await asyncio.open_connection("127.0.0.1", telegram_api.port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, here), pump(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def merged(base: Config, over: Config) -> Config:
    """Return `base` with `over` laid over it, objects merged."""
    both = dict(base)
    for name, value in over.items():
        before = both.get(name)
        both[name] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return both


@dataclass
class Agent:
    """A running stand-in."""

    process: asyncio.subprocess.Process
    url: str
    port: int
    home: Path
    session: ClientSession

    async def say(self, message: str) -> str:
        """Send a message to /webhook and return the answer."""
        headers = {"Authorization": f"Bearer {GATEWAY_TOKEN}"}
        async with self.session.post(
            f"{self.url}/webhook", json={"message": message}, headers=headers
        ) as reply:
            answer = await reply.json()
            assert reply.status == 200, answer
            response: str = answer["response"]
            return response

    async def log_until(self, pattern: str) -> str:
        """Read the log up to the first line that matches."""
        assert self.process.stderr is not None
        while line := (await asyncio.wait_for(self.process.stderr.readline(), 10)).decode():
            if re.search(pattern, line):
                return line
        raise AssertionError(f"the log ended without {pattern}")

    def memory(self) -> int:
        """Resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    async def stop(self) -> None:
        """End the process, if it has not ended itself."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.communicate()
        await self.session.close()


Start = Callable[..., Awaitable[Agent]]


@pytest.fixture
async def start(tmp_path: Path, openrouter_api: Client, ca_bundle: Path) -> AsyncIterator[Start]:
    """Starts stand-ins, all with the same home directory, and ends them after the test."""
    binary = build_binary()
    agents = []

    async def run(
        config: Config | None = None, *, host: str = "0.0.0.0", variant: str = "healthy", **environment: str
    ) -> Agent:
        base: Config = {
            "models": {
                "providers": {
                    "clawgw": {"api_key": KEY, "base_url": f"http://127.0.0.1:{openrouter_api.port}/api/v1"}
                }
            },
            "agents": {"defaults": {"model": {"primary": "clawgw/anthropic/claude-sonnet-4"}}},
            "reliability": {"provider_backoff_ms": 1},
            "memory": {"backend": "sqlite"},
            "messages": {"inbound": {"debounce_ms": 0}},
            "gateway": {"paired_tokens": [GATEWAY_TOKEN], "webhook_sync_for_workers": True},
            "a2a": {"enabled": True, "url": "https://bot.example.test"},
        }
        (tmp_path / "config.json").write_text(json.dumps(merged(base, config or {})))
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            *(binary, "gateway", "--host", host, "--port", str(port)),
            env={
                "PATH": os.environ["PATH"],
                "NULLCLAW_HOME": str(tmp_path),
                "SSL_CERT_FILE": str(ca_bundle),
                "STANDIN_VARIANT": variant,
                **environment,
            },
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        session = ClientSession(connector=TCPConnector(force_close=True))
        agent = Agent(process, f"http://127.0.0.1:{port}", port, tmp_path, session)
        agents.append(agent)
        await agent.log_until("listening")
        return agent

    yield run
    for agent in agents:
        await agent.stop()


@pytest.fixture
def telegram_config(proxy: str) -> Config:
    """The channel of the bot BOT, open to OWNER."""
    account = {"bot_token": TOKEN, "allow_from": [str(OWNER["id"])], "proxy": proxy}
    return {"channels": {"telegram": {"accounts": {"main": account}}}}
