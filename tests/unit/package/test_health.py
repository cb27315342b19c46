"""Health as a customer sees it: a real TLS server stands where Caddy would be."""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from aiohttp import web

from clawdeploy.engine import ContainerState
from clawdeploy.errors import ClawError
from clawdeploy.health import Health, customer, edge_trouble, wait_until_healthy
from clawdeploy.host import Host

from .conftest import make_host
from .test_edge import make_bot

UP = ContainerState("running", "Up 3 seconds (health: starting)")
BOT = make_bot(1, name="support")


class Engine:
    """Containers in the states the test wants."""

    def __init__(self, **states: ContainerState) -> None:
        self.current: Mapping[str, ContainerState] = states
        self.error: ClawError | None = None
        self.starved = Counter[str]()

    def states(self) -> Mapping[str, ContainerState]:
        if self.error:
            raise self.error
        return self.current

    def out_of_memory(self, since: float, until: float) -> Counter[str]:
        return self.starved

    def log_tail(self, bot_id: str, lines: int = 20) -> list[str]:
        return [f"last words of {bot_id}"]


class Edge:
    """Answers each path with a status, over TLS, and notes the names it was asked for."""

    def __init__(self) -> None:
        self.statuses: dict[str, int] = {}
        self.hosts: list[str] = []
        self.asked = asyncio.Event()
        self.port = 0
        self.hang = False

    async def handle(self, request: web.Request) -> web.Response:
        self.hosts.append(request.host)
        self.asked.set()
        if self.hang:
            await asyncio.sleep(30)
        return web.Response(status=self.statuses.get(request.path, 404))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def host(authority: trustme.CA, tmp_path: Path) -> Host:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return make_host(tls_ca_file=str(ca_file))


@pytest.fixture
async def edge(authority: trustme.CA) -> AsyncIterator[Edge]:
    answering = Edge()
    application = web.Application()
    application.router.add_get("/{path:.*}", answering.handle)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("*.bots.example.test", "203.0.113.7").configure_cert(context)
    runner = web.AppRunner(application, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    answering.port = runner.addresses[0][1]
    yield answering
    await runner.cleanup()


async def look(host: Host, engine: Engine, port: int, *bots: Any, seconds: float = 0.6) -> list[Health]:
    return await wait_until_healthy(bots or (BOT,), host, engine, seconds, port)  # type: ignore[arg-type]


async def trouble(host: Host, port: int) -> str:
    async with customer(host) as session:
        return await edge_trouble(BOT, host, session, port)


async def test_a_bot_that_answers_under_its_public_name_is_healthy(host: Host, edge: Edge) -> None:
    edge.statuses["/health"] = 200
    result = (await look(host, Engine(**{BOT.id: UP}), edge.port))[0]
    assert (result.id, result.healthy, result.reason, result.log_tail) == (BOT.id, True, "", [])
    assert result.seconds < 1.5
    assert edge.hosts == ["support.bots.example.test"]


async def test_an_address_as_public_url_is_verified_too(host: Host, edge: Edge) -> None:
    by_path = msgspec.structs.replace(host, base_domain="", public_base_url="https://203.0.113.7")
    edge.statuses["/support/health"] = 200
    assert (await look(by_path, Engine(**{BOT.id: UP}), edge.port))[0].healthy
    elsewhere = msgspec.structs.replace(by_path, public_base_url="https://203.0.113.8")
    assert "203.0.113.8 is not trusted" in await trouble(elsewhere, edge.port)


async def test_it_waits_until_the_bot_answers(host: Host, edge: Edge) -> None:
    engine = Engine(**{BOT.id: ContainerState("restarting", "Restarting (1) 1 second ago")})
    waiting = asyncio.create_task(look(host, engine, edge.port, seconds=5))
    await asyncio.sleep(0.3)
    engine.current = {BOT.id: UP}
    await asyncio.wait_for(edge.asked.wait(), 5)
    edge.statuses["/health"] = 200
    assert (await waiting)[0].healthy


async def test_each_bot_gets_its_own_verdict_in_the_order_asked_for(host: Host, edge: Edge) -> None:
    edge.statuses["/health"] = 200
    other = make_bot(2)
    results = await look(host, Engine(**{BOT.id: UP}), edge.port, other, BOT)
    assert [(result.id, result.healthy) for result in results] == [(other.id, False), (BOT.id, True)]


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("exited", "Exited (1) 2 seconds ago"),
        # Docker would go on for ever, but the agent has said that its settings are wrong.
        ("restarting", "Restarting (78) 2 seconds ago"),
    ],
)
async def test_a_container_that_will_not_come_up_is_not_waited_for(
    host: Host, edge: Edge, state: str, status: str
) -> None:
    engine = Engine(**{BOT.id: ContainerState(state, status)})
    result = (await look(host, engine, edge.port, seconds=30))[0]
    assert not result.healthy
    assert result.seconds < 5
    assert status in result.reason
    assert result.log_tail == [f"last words of {BOT.id}"]


async def test_a_container_that_was_killed_is_told_apart(host: Host, edge: Edge) -> None:
    engine = Engine(**{BOT.id: ContainerState("restarting", "Restarting (137) 2 seconds ago")})
    reason = (await look(host, engine, edge.port))[0].reason
    assert "was killed (restarting: Restarting (137)" in reason
    engine.starved[BOT.id] = 3
    reason = (await look(host, engine, edge.port))[0].reason
    assert reason.startswith("support ran out of memory: the kernel ended 3 of its processes. Plan small ")


async def test_a_healthy_bot_may_have_been_short_of_memory(host: Host, edge: Edge) -> None:
    edge.statuses["/health"] = 200
    engine = Engine(**{BOT.id: UP})
    engine.starved[BOT.id] = 1
    assert (await look(host, engine, edge.port))[0].healthy


async def test_a_container_that_fails_its_own_check_is_not_healthy(host: Host, edge: Edge) -> None:
    edge.statuses["/health"] = 200
    engine = Engine(**{BOT.id: ContainerState("running", "Up 1 minute (unhealthy)")})
    assert "(unhealthy)" in (await look(host, engine, edge.port))[0].reason


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (404, "clawctl sync"),
        (401, "agent's profile"),
        (502, "log lines"),
        (503, "suspended"),
        (418, "haproxy"),
    ],
)
async def test_a_refusing_edge_is_explained(host: Host, edge: Edge, status: int, advice: str) -> None:
    edge.statuses["/health"] = status
    reason = await trouble(host, edge.port)
    assert f"HTTP {status}" in reason
    assert advice in reason


async def test_a_hanging_agent_ends_with_the_time_and_is_unhealthy(host: Host, edge: Edge) -> None:
    edge.hang = True
    result = (await look(host, Engine(**{BOT.id: UP}), edge.port))[0]
    assert not result.healthy
    assert "did not answer before the time was over" in result.reason


async def test_nobody_on_443_names_caddy(host: Host) -> None:
    assert "systemctl status caddy" in await trouble(host, 1)


async def test_an_unknown_authority_names_the_setting(host: Host, edge: Edge) -> None:
    assert "tls_ca_file" in await trouble(make_host(), edge.port)


@pytest.fixture
async def refusing_port() -> AsyncIterator[int]:
    """A port whose TLS handshake fails as Caddy's does while it has no certificate."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(bytes([21, 3, 3, 0, 2, 2, 80]))  # alert, TLS 1.2 record, fatal, internal_error
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("mode", "addresses", "advice"),
    [
        ("acme", None, "create the DNS record *.bots.example.test"),
        ("acme", "198.51.100.9", "resolves to 198.51.100.9, which must be this host"),
        ("files", None, "edge_tls_mode files"),
    ],
)
async def test_a_missing_certificate_is_traced_to_its_cause(
    refusing_port: int,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    addresses: str | None,
    advice: str,
) -> None:
    def resolve(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        if addresses is None:
            raise OSError("Name or service not known")
        return [(2, 1, 6, "", (addresses, 443))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert advice in await trouble(make_host(tls_mode=mode), refusing_port)


async def test_without_the_engine_nothing_can_be_said(host: Host, edge: Edge) -> None:
    engine = Engine()
    engine.error = ClawError("engine_down", "Docker is down.")
    with pytest.raises(ClawError, match="Docker is down"):
        await look(host, engine, edge.port, seconds=30)


async def test_a_bot_without_health_path_is_judged_by_its_container(host: Host) -> None:
    silent = make_bot(1, edge={"body_limit": 1, "routes": []})
    assert (await look(host, Engine(**{silent.id: UP}), 1, silent))[0].healthy
