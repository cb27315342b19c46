"""Waiting until bots answer the way a customer reaches them: through TLS and the edge, on this host."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from clawdeploy.containers import container_name
from clawdeploy.engine import ContainerState, Engine
from clawdeploy.host import Host
from clawdeploy.models import Bot

_TICK_SECONDS = 0.25
_REQUEST_SECONDS = 15.0  # an agent that reads one request at a time may be busy with an answer
_DEAD_TICKS = 4
_RECENT_SECONDS = 60

Probe = Callable[[], Mapping[str, ContainerState]]


@dataclass(frozen=True)
class Health:
    """reason is empty for a healthy bot, else a sentence that says what to do."""

    id: str
    healthy: bool
    seconds: float
    reason: str
    log_tail: list[str]


def customers_trust(host: Host) -> ssl.SSLContext:
    """What a customer's client verifies with: ``tls_ca_file`` is trusted besides the system's CAs."""
    context = ssl.create_default_context()
    if host.tls_ca_file:
        context.load_verify_locations(host.tls_ca_file)
    return context


def customer(host: Host) -> aiohttp.ClientSession:
    """A client that verifies as a customer's does."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=customers_trust(host), limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
    )


async def wait_until_healthy(
    bots: Sequence[Bot], host: Host, engine: Engine, timeout_seconds: float, port: int = 443
) -> list[Health]:
    """Wait for all bots at once; in the order given, each healthy or with the reason it is not.

    A bot is healthy once its container runs and its health path answers 200 at its public host name, over TLS
    on 127.0.0.1. One that is down for good is not waited for.
    """
    started, since = asyncio.get_running_loop().time(), time.time()
    watch = _Watch(engine.states)
    async with customer(host) as session:
        watching = asyncio.create_task(watch.run())
        waiting = asyncio.gather(
            *(_wait_for(bot, host, session, watch, port, started + timeout_seconds) for bot in bots)
        )
        try:
            either: list[asyncio.Future[Any]] = [watching, waiting]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()  # the engine went away: raises
            reasons = await waiting
        finally:
            watching.cancel()
            waiting.cancel()
            await asyncio.gather(watching, waiting, return_exceptions=True)
    ran_out = engine.out_of_memory(since, time.time()) if any(reason for reason, _ in reasons) else {}
    return [
        Health(
            id=bot.id,
            healthy=not reason,
            seconds=round(seconds - started, 3),
            reason=memory_trouble(bot, ran_out[bot.id]) if reason and bot.id in ran_out else reason,
            log_tail=await asyncio.to_thread(engine.log_tail, bot.id) if reason else [],
        )
        for bot, (reason, seconds) in zip(bots, reasons, strict=True)
    ]


async def watch_containers(bots: Sequence[Bot], engine: Engine, seconds: float) -> dict[str, str]:
    """Look on for so many seconds; bot id -> what has gone wrong with its container, for those that did.

    Only containers are watched: an agent that is busy with an answer answers nobody else. Ends early when all
    of them have failed.
    """
    loop, failed, bad = asyncio.get_running_loop(), dict[str, str](), dict[str, int]()
    # It may have ended shortly before somebody looks on.
    deadline, since = loop.time() + seconds, time.time() - _RECENT_SECONDS
    while loop.time() < deadline and len(failed) < len(bots):
        states = await asyncio.to_thread(engine.states)
        for bot in bots:
            trouble = container_trouble(bot, states.get(bot.id))
            bad[bot.id] = bad.get(bot.id, 0) + 1 if trouble else 0
            # Between two looks it may have come back.
            if times := await asyncio.to_thread(engine.restarts, bot.id):
                failed[bot.id] = f"{bot.label} ended by itself ({times} times): its last log lines say why."
            elif bad[bot.id] >= _DEAD_TICKS:
                failed[bot.id] = trouble
        await asyncio.sleep(min(_TICK_SECONDS, max(deadline - loop.time(), 0)))
    if failed:
        ran_out, names = engine.out_of_memory(since, time.time()), {bot.id: bot for bot in bots}
        failed |= {one: memory_trouble(names[one], ran_out[one]) for one in failed if one in ran_out}
    return failed


class _Watch:
    """Looks at all containers together, a few times a second."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._news = asyncio.Condition()
        self._states: Mapping[str, ContainerState] = {}

    async def run(self) -> None:
        while True:
            states = await asyncio.to_thread(self._probe)
            async with self._news:
                self._states = states
                self._news.notify_all()
            await asyncio.sleep(_TICK_SECONDS)

    async def next(self, bot_id: str) -> ContainerState | None:
        """The container's state at the next look; None if there is none."""
        async with self._news:
            await self._news.wait()
            return self._states.get(bot_id)


async def _wait_for(
    bot: Bot, host: Host, session: aiohttp.ClientSession, watch: _Watch, port: int, deadline: float
) -> tuple[str, float]:
    reason, dead = f"{bot.label} did not answer before the time was over: see its log lines.", 0
    loop = asyncio.get_running_loop()
    with suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            while True:
                state = await watch.next(bot.id)
                trouble = container_trouble(bot, state) or await edge_trouble(bot, host, session, port)
                if not trouble:
                    return "", loop.time()
                reason = trouble
                dead = dead + 1 if state is None or state.dead else 0
                if dead >= _DEAD_TICKS or (state is not None and state.misconfigured):
                    break
    return reason, loop.time()


def container_trouble(bot: Bot, state: ContainerState | None) -> str:
    """Why the container cannot answer; empty if it can."""
    name = container_name(bot.id)
    if state is None:
        return f"container {name} does not exist: run deploy_bot for {bot.label} again."
    if state.running:
        return ""
    if state.killed:
        return (
            f"container {name} was killed ({state.state}: {state.status}): by hand, or because memory ran "
            f"out, its own or the host's; see `clawctl events {bot.label}` and `clawctl top`."
        )
    return (
        f"container {name} is not up ({state.state}: {state.status}): its last log lines say why; correct "
        f"the bot's settings and run deploy_bot for {bot.label} again."
    )


def memory_trouble(bot: Bot, kills: int) -> str:
    """What to say of a bot that the kernel ended so many processes of."""
    return (
        f"{bot.label} ran out of memory: the kernel ended {kills} of its processes. Plan {bot.plan} is too "
        "small for it: deploy it with a larger one (`clawctl limits` shows what it has)."
    )


async def edge_trouble(bot: Bot, host: Host, session: aiohttp.ClientSession, port: int) -> str:
    """One request to the bot's health path as a customer sends it; empty if it answers 200."""
    path = bot.edge.health()
    if path is None:
        return ""
    url = urlsplit(host.origin(bot.label))
    name = url.hostname or ""
    target = f"https://127.0.0.1:{port}{url.path.rstrip('/')}{path}"
    try:
        # The address is ours, the name that is sent, and checked in the certificate, is the public one.
        async with session.get(
            target, headers={"Host": url.netloc}, server_hostname=name, allow_redirects=False
        ) as answer:
            return "" if answer.status == 200 else _status_trouble(bot, path, answer.status)
    except aiohttp.ClientConnectorCertificateError as error:
        return (
            f"the certificate for {name} is not trusted ({error.certificate_error}): with a private CA set "
            "tls_ca_file in host.json, with ACME use a directory that clients trust."
        )
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, ConnectionRefusedError):
            return f"nothing listens on 127.0.0.1:{port}: see `systemctl status caddy`."
        return await asyncio.to_thread(_no_certificate, name, host)
    except TimeoutError:
        return f"{name}{path} did not answer within {_REQUEST_SECONDS:.0f} s: see the agent's log lines."
    except aiohttp.ClientError as error:
        return f"{name}{path} broke off ({type(error).__name__}): see `journalctl -u caddy -u haproxy`."


def _status_trouble(bot: Bot, path: str, status: int) -> str:
    advice = {
        401: "the edge wants a token there: make the path public in the agent's profile",
        404: "the edge does not know this bot or path yet: run `clawctl sync`",
        502: "the agent does not answer on its port: see its log lines",
        503: f"the bot is suspended or does not take connections: see `clawctl show {bot.label}`",
        504: "the agent takes too long to answer: see its log lines",
    }.get(status, "see `journalctl -u haproxy`")
    return f"{path} answered HTTP {status}: {advice}."


def _no_certificate(name: str, host: Host) -> str:
    """Why Caddy has no certificate for the name; a failed handshake itself does not say."""
    if host.tls_mode == "acme":
        try:
            found = sorted(
                {str(entry[4][0]) for entry in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)}
            )
        except OSError:
            return (
                f"{name} has no certificate because it does not resolve: create the DNS record "
                f"*.{host.base_domain} -> this host's address, then run deploy_bot again."
            )
        return (
            f"{name} has no certificate yet: it resolves to {', '.join(found)}, which must be this host, "
            "and ports 80 and 443 must be reachable from the internet for ACME; `journalctl -u caddy` has "
            "the CA's answer."
        )
    return f"{name} has no certificate (edge_tls_mode {host.tls_mode}): see `journalctl -u caddy`."
