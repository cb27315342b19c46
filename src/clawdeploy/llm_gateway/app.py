"""The gateway's HTTP side: who may call, what is passed on, what comes back."""

import ipaddress
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp import hdrs, web

from clawdeploy.llm_gateway.body import upstream_body
from clawdeploy.llm_gateway.config import Config
from clawdeploy.llm_gateway.keys import Bot, KeyFile
from clawdeploy.llm_gateway.refusal import RefusedError

log = logging.getLogger(__name__)

_PASSED_BACK = (
    hdrs.CONTENT_TYPE,
    hdrs.CONTENT_ENCODING,
    hdrs.CONTENT_LENGTH,
    hdrs.CACHE_CONTROL,
    hdrs.RETRY_AFTER,
    "X-Generation-Id",
)
_ERROR_BODY_LIMIT = 64 * 1024
_RETRY_LATER = 30  # seconds an agent is told to wait while our own account at OpenRouter is refused
_CLIENT_GONE = 499  # nginx's status for the access log; nobody receives it
_HINTS = {
    401: "check OPENROUTER_API_KEY",
    402: "add credits to the account or raise the key's limit",
    403: "check the key's limit and guardrails",
}


class _Call(msgspec.Struct):
    """What the access log tells about one request."""

    bot: str = "-"
    bytes_sent: int = 0


_CALL = web.RequestKey("call", _Call)


class Gateway:
    """The bots' door to OpenRouter."""

    def __init__(self, config: Config, api_key: str) -> None:
        """``api_key``: the server's key, sent upstream and nowhere else."""
        self._config = config
        self._api_key = api_key
        self._keys = KeyFile(config.keys_file, config.bot_pool)
        self._running: Counter[str] = Counter()
        self._session: aiohttp.ClientSession

    def app(self) -> web.Application:
        """The aiohttp application: two routes, one health path, and a refusal for all else."""
        app = web.Application(client_max_size=self._config.max_body_bytes, middlewares=[_answer_and_log])
        app.router.add_get("/healthz", self._health, allow_head=False)
        app.router.add_get("/api/v1/models", self._models, allow_head=False)
        app.router.add_post("/api/v1/chat/completions", self._chat)
        app.cleanup_ctx.append(self._open_session)
        return app

    async def _open_session(self, _app: web.Application) -> AsyncIterator[None]:
        config = self._config
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # bounded by calls_per_bot
            timeout=aiohttp.ClientTimeout(
                total=None, connect=config.connect_timeout, sock_read=config.read_timeout
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={hdrs.USER_AGENT: "clawdeploy-llm-gateway", hdrs.ACCEPT_ENCODING: "identity"},
        )
        async with self._session:
            yield

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _models(self, request: web.Request) -> web.Response:
        self._authenticate(request)
        model = {"id": self._config.model, "name": self._config.model, "object": "model"}
        return web.json_response({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        bot = self._authenticate(request)
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
            raise RefusedError(415, "Compressed request bodies are not accepted.")
        if (request.content_length or 0) > self._config.max_body_bytes:
            raise self._too_large()
        with self._slot(bot):
            try:
                body = upstream_body(await request.read(), self._config.model)
            except web.HTTPRequestEntityTooLarge:
                raise self._too_large() from None
            return await self._forward(request, bot, body)

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"The request is larger than {self._config.max_body_bytes} bytes.")

    def _authenticate(self, request: web.Request) -> Bot:
        """The bot whose key was sent from its own subnet. Raises RefusedError for all else."""
        scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        bot = self._keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if bot is None:
            raise RefusedError(401, "No valid LLM key was sent.")
        request[_CALL].bot = bot.bot
        peer = _peer(request)
        if peer not in bot.subnet:
            # Same answer as for an unknown key: a thief must not learn that the key is good.
            log.error(
                "bot=%s its LLM key was sent from %s, outside of %s: refused", bot.bot, peer, bot.subnet
            )
            raise RefusedError(401, "No valid LLM key was sent.")
        if bot.suspended:
            raise RefusedError(403, "This bot is suspended; its operator can resume it.")
        return bot

    @contextmanager
    def _slot(self, bot: Bot) -> Iterator[None]:
        """Room for one call; bounds what one bot holds in the gateway's memory. Raises RefusedError."""
        if self._running[bot.bot] >= self._config.calls_per_bot:
            raise RefusedError(
                429, f"At most {self._config.calls_per_bot} calls may run at once.", retry_after=1
            )
        self._running[bot.bot] += 1
        try:
            yield
        finally:
            self._running[bot.bot] -= 1

    async def _forward(self, request: web.Request, bot: Bot, body: bytes) -> web.StreamResponse:
        """Send one allowed call upstream and pass the answer back: the one place where a call costs money."""
        try:
            upstream = await self._session.post(
                f"{self._config.base_url.rstrip('/')}/chat/completions",
                data=body,
                headers={
                    hdrs.AUTHORIZATION: f"Bearer {self._api_key}",
                    hdrs.CONTENT_TYPE: "application/json",
                    hdrs.ACCEPT: request.headers.get(hdrs.ACCEPT, "*/*"),
                },
                allow_redirects=False,  # the key goes to the configured address only
            )
        except TimeoutError:
            log.warning("bot=%s the upstream did not answer in time", bot.bot)
            raise RefusedError(504, "The model's provider did not answer in time.") from None
        except aiohttp.ClientError as error:
            log.warning("bot=%s the upstream cannot be reached: %s", bot.bot, error)
            raise RefusedError(502, "The model's provider cannot be reached.") from None
        async with upstream:
            if upstream.status in _HINTS:
                return await self._refused_upstream(upstream, bot)
            if 300 <= upstream.status < 400:
                log.error(
                    "bot=%s the upstream redirects (%d); check OPENROUTER_BASE_URL", bot.bot, upstream.status
                )
                raise RefusedError(502, "The model's provider gave an unusable answer.")
            return await _relay(request, upstream)

    async def _refused_upstream(self, upstream: aiohttp.ClientResponse, bot: Bot) -> web.Response:
        """An upstream 401, 402 or 403: 503 for the agent, because the operator's account is at fault.

        A 403 about the prompt (OpenRouter's moderation; it has ``error.metadata.reasons``) passes as it is.
        """
        raw = await _read_start(upstream)
        metadata = _error_metadata(raw)
        if upstream.status == 403 and "reasons" in metadata:
            return web.Response(status=403, body=raw, headers=_passed_back(upstream, without_length=True))
        # The message itself is not logged: it may quote the key or the prompt.
        log.error(
            "bot=%s OpenRouter refused the server's account: status=%d limit_source=%.60s; %s",
            bot.bot,
            upstream.status,
            metadata.get("limit_source", "-"),
            _HINTS[upstream.status],
        )
        wait = upstream.headers.get(hdrs.RETRY_AFTER, "")
        raise RefusedError(
            503,
            "The model is not available at the moment; the operator has been told. Try again later.",
            retry_after=int(wait) if wait.isdecimal() else _RETRY_LATER,
        )


async def _relay(request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    """Pass an answer back as it arrives, whatever it is, without keeping more than one piece of it.

    ``write`` waits while the bot reads slowly, and then nothing more is read from upstream.
    """
    response = web.StreamResponse(status=upstream.status, headers=_passed_back(upstream))
    await response.prepare(request)
    while piece := await _next_piece(upstream):
        request[_CALL].bytes_sent += len(piece)
        await response.write(piece)
    await response.write_eof()
    return response


class _UpstreamLostError(Exception):
    """The upstream connection broke in the middle of an answer whose beginning the bot already has."""


async def _next_piece(upstream: aiohttp.ClientResponse) -> bytes:
    try:
        return await upstream.content.readany()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _UpstreamLostError(type(error).__name__) from None


async def _read_start(upstream: aiohttp.ClientResponse) -> bytes:
    """At most the first 64 KiB of an error's body; what arrived if the connection breaks."""
    raw = b""
    try:
        while len(raw) < _ERROR_BODY_LIMIT and (piece := await _next_piece(upstream)):
            raw += piece
    except _UpstreamLostError:
        pass
    return raw


def _error_metadata(raw: bytes) -> dict[str, Any]:
    try:
        match msgspec.json.decode(raw):
            case {"error": {"metadata": dict(metadata)}}:
                return metadata
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    return {}


def _passed_back(upstream: aiohttp.ClientResponse, *, without_length: bool = False) -> dict[str, str]:
    names = [name for name in _PASSED_BACK if not (without_length and name == hdrs.CONTENT_LENGTH)]
    return {name: upstream.headers[name] for name in names if name in upstream.headers}


def _peer(request: web.Request) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address the connection comes from; no header is asked."""
    if request.transport is None:
        raise ConnectionResetError
    return ipaddress.ip_address(request.transport.get_extra_info("peername")[0])


@web.middleware
async def _answer_and_log(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Give every refusal OpenRouter's shape and write one line per call; never prompts, answers or keys."""
    started = time.monotonic()
    call = request[_CALL] = _Call()
    status = _CLIENT_GONE
    try:
        response = await _refusals_shaped(request, handler)
        status = response.status
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            call.bytes_sent = len(response.body)
        return response
    finally:
        if request.path != "/healthz":
            spent = (time.monotonic() - started) * 1000
            log.info("bot=%s status=%d bytes=%d ms=%.0f", call.bot, status, call.bytes_sent, spent)


async def _refusals_shaped(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefusedError as refusal:
        return refusal.response()
    except web.HTTPException:  # aiohttp's own: unknown path, wrong method
        return RefusedError(
            404, "Only POST /api/v1/chat/completions and GET /api/v1/models exist here."
        ).response()
    except _UpstreamLostError as lost:
        log.warning("bot=%s the upstream broke off in the middle of an answer: %s", request[_CALL].bot, lost)
        # An orderly end would make half an answer look whole.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError from None
    except ConnectionResetError:  # the bot hung up; nobody is left to answer
        raise
    except Exception:
        log.exception("bot=%s internal error", request[_CALL].bot)
        return RefusedError(500, "Internal error of the LLM gateway.").response()
