"""The gateway's HTTP side: who may call, what is passed on, what comes back."""

import asyncio
import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import aiohttp
import msgspec
from aiohttp import hdrs, web
from aiolimiter import AsyncLimiter

from clawdeploy.ledger import NotCovered, Wanted
from clawdeploy.llm_gateway.body import Chat
from clawdeploy.llm_gateway.config import Config
from clawdeploy.llm_gateway.events import Events
from clawdeploy.llm_gateway.keys import Bot, KeyFile
from clawdeploy.llm_gateway.ledger import LedgerUnavailableError
from clawdeploy.llm_gateway.meter import Bill, Meter
from clawdeploy.llm_gateway.metrics import Metrics
from clawdeploy.llm_gateway.prices import Price, Prices
from clawdeploy.llm_gateway.refusal import RefusedError, spoken
from clawdeploy.llm_gateway.upstream import BILLED_PERHAPS, Failure, NotReachedError, Upstream
from clawdeploy.llm_gateway.usage import UsageReader

log = logging.getLogger(__name__)

_PASSED_BACK = (
    hdrs.CONTENT_TYPE,
    hdrs.CONTENT_ENCODING,
    hdrs.CONTENT_LENGTH,
    hdrs.CACHE_CONTROL,
    hdrs.RETRY_AFTER,
    "X-Generation-Id",
)
# Fewer tokens make no useful answer: a bot that cannot pay for them is told so instead.
_LEAST_TOKENS = 256
_RETRY_LATER = 30  # seconds an agent is told to wait while our own account at OpenRouter is refused
_UNAVAILABLE = "The model is not available at the moment; the operator has been told. Try again later."
_CLIENT_GONE = 499  # nginx's status for the access log; nobody receives it
_HINTS = {
    401: "check OPENROUTER_API_KEY",
    402: "add credits to the account or raise the key's limit",
    403: "check the key's limit and guardrails",
}
_USED_UP = {
    "prepaid": "This bot's prepaid balance is used up.",
    "day": "This bot has reached its spend limit for today.",
    "month": "This bot has reached its spend limit for this month.",
}


class _Request(msgspec.Struct):
    """What the access log tells about one request."""

    bot: str = "-"
    bytes_sent: int = 0
    refused: str = ""


_REQUEST = web.RequestKey("clawdeploy", _Request)


class Gateway:
    """The bots' door to OpenRouter."""

    def __init__(
        self,
        config: Config,
        upstream: Upstream,
        prices: Prices,
        meter: Meter,
        events: Events,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._upstream = upstream
        self._prices = prices
        self._meter = meter
        self._events = events
        self._metrics = metrics
        self._keys = KeyFile(config.keys_file, config.bot_pool, self._bots_changed)
        self._remote_keys = KeyFile(config.remote_keys_file, None, self._bots_changed)
        self._running: Counter[str] = Counter()
        self._rates: dict[str, AsyncLimiter] = {}

    def app(self) -> web.Application:
        """The aiohttp application: two routes, one health path, and a refusal for all else."""
        app = web.Application(client_max_size=self._config.max_body_bytes, middlewares=[self._answer_and_log])
        app.router.add_get("/healthz", self._health, allow_head=False)
        app.router.add_get("/api/v1/models", self._models, allow_head=False)
        app.router.add_post("/api/v1/chat/completions", self._chat)
        return app

    def _bots_changed(self) -> None:
        bots = self._keys.ids | self._remote_keys.ids
        self._metrics.forget_others(bots)
        self._rates = {bot: rate for bot, rate in self._rates.items() if bot in bots}

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _models(self, request: web.Request) -> web.Response:
        self._authenticate(request)
        model = {"id": self._config.model, "name": self._config.model, "object": "model"}
        return web.json_response({"object": "list", "data": [model]})

    @web.middleware
    async def _answer_and_log(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Give refusals OpenRouter's shape and write one line per call; never prompts, answers or keys."""
        started = time.monotonic()
        told = request[_REQUEST] = _Request()
        status = _CLIENT_GONE
        try:
            response = await _refusals_shaped(request, handler)
            status = response.status
            if isinstance(response, web.Response) and isinstance(response.body, bytes):
                told.bytes_sent = len(response.body)
            return response
        finally:
            if request.path != "/healthz":
                spent = time.monotonic() - started
                self._metrics.latency.observe(spent)
                if told.refused:
                    self._metrics.refusals.labels(told.bot, told.refused).inc()
                log.info("bot=%s status=%d bytes=%d ms=%.0f", told.bot, status, told.bytes_sent, spent * 1000)

    # --- who may call -------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        bot = self._authenticate(request)
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity") != "identity":
            raise RefusedError(415, "Compressed request bodies are not accepted.")
        if (request.content_length or 0) > self._config.max_body_bytes:
            raise self._too_large()
        with self._slot(bot):
            try:
                async with asyncio.timeout(self._config.read_timeout):
                    body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                raise self._too_large() from None
            except TimeoutError:
                raise RefusedError(408, "The request did not arrive in time.") from None
            chat = Chat(body)
            try:
                await self._keep_rate(bot)
                price = self._price()
                bill = await self._reserve(bot, chat, price)
            except RefusedError as refusal:
                if not (refusal.spoken and bot.refusal == "message"):
                    raise
                request[_REQUEST].refused = refusal.reason
                return spoken(refusal.message, self._config.model, stream=chat.stream)
            try:
                body = chat.upstream(self._config.model, bot.bot, bill.tokens, price)
                return await self._forward(request, bot, body, bill, stream=chat.stream)
            finally:
                bill.unknown()  # unless its cost is known by now, which is the rule

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"The request is larger than {self._config.max_body_bytes} bytes.")

    def _authenticate(self, request: web.Request) -> Bot:
        """The bot whose key was sent from where it is good. Raises RefusedError for all else."""
        scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        bot = self._keys.find(key) or self._remote_keys.find(key)
        if bot is None:
            raise RefusedError(401, "No valid LLM key was sent.")
        request[_REQUEST].bot = bot.bot
        peer = _peer(request)
        if not bot.good_from(peer):
            # Same answer as for an unknown key: a thief must not learn that the key is good.
            log.error(
                "bot=%s its LLM key was sent from %s, outside of %s: refused",
                *(bot.bot, peer, bot.subnet or "the edge"),
            )
            raise RefusedError(401, "No valid LLM key was sent.")
        if bot.suspended:
            raise RefusedError(403, "This bot is suspended; its operator can resume it.", reason="suspended")
        return bot

    @contextmanager
    def _slot(self, bot: Bot) -> Iterator[None]:
        """Room for one call; bounds what one bot holds in the gateway's memory. Raises RefusedError."""
        if self._running[bot.bot] >= self._config.calls_per_bot:
            raise RefusedError(
                429,
                f"At most {self._config.calls_per_bot} calls may run at once.",
                retry_after=1,
                reason="concurrency",
            )
        self._running[bot.bot] += 1
        try:
            yield
        finally:
            self._running[bot.bot] -= 1

    async def _keep_rate(self, bot: Bot) -> None:
        rate = self._rates.get(bot.bot)
        if rate is None:
            rate = self._rates[bot.bot] = AsyncLimiter(self._config.calls_per_minute, 60)
        if not rate.has_capacity():
            raise RefusedError(
                429,
                "This bot asks its model too often; wait a minute, then try again.",
                retry_after=max(1, 60 // self._config.calls_per_minute),
                spoken=True,
                reason="rate",
            )
        await rate.acquire()  # at once: there is room

    # --- money --------------------------------------------------------------------------------------

    def _price(self) -> Price:
        price = self._prices.find(self._config.model)
        if price is None:
            self._events.tell(
                "no_price", f"no price is known for {self._config.model}: bots are refused until one is"
            )
            raise RefusedError(503, _UNAVAILABLE, retry_after=_RETRY_LATER, reason="no_price")
        return price

    async def _reserve(self, bot: Bot, chat: Chat, price: Price) -> Bill:
        tokens = chat.tokens(self._config.max_tokens)
        wanted = Wanted(bot.bot, self._config.model, chat.bound(price), tokens, _LEAST_TOKENS)
        try:
            held = await self._meter.reserve(wanted)
        except LedgerUnavailableError:
            self._events.tell("ledger_unavailable", "the ledger cannot be written: every call is refused")
            raise RefusedError(503, _UNAVAILABLE, retry_after=_RETRY_LATER, reason="ledger") from None
        if isinstance(held, NotCovered):
            sentence = f"{_USED_UP[held.limit.kind]} {self._config.top_up_hint}".strip()
            raise RefusedError(402, sentence, spoken=True, reason="balance")
        return held

    # --- there and back -----------------------------------------------------------------------------

    async def _forward(
        self, request: web.Request, bot: Bot, body: bytes, bill: Bill, *, stream: bool
    ) -> web.StreamResponse:
        """Send one paid call upstream and pass the answer back."""
        try:
            answer = await self._upstream.chat(body, request.headers.get(hdrs.ACCEPT, "*/*"))
        except NotReachedError as error:
            bill.free()
            log.warning("bot=%s the upstream cannot be reached: %s", bot.bot, error)
            raise RefusedError(502, "The model's provider cannot be reached.", reason="upstream") from None
        except (TimeoutError, aiohttp.ClientError) as error:
            log.warning("bot=%s no answer from the upstream: %s", bot.bot, type(error).__name__)
            raise RefusedError(
                504, "The model's provider did not answer in time.", reason="upstream"
            ) from None
        self._metrics.upstream.labels(str(answer.status)).inc()
        if isinstance(answer, Failure):
            if answer.status in BILLED_PERHAPS:
                bill.generation = answer.generation
            else:
                bill.free()
            return self._failed(bot, answer)
        async with answer:
            reader = UsageReader(answer.headers.get("X-Generation-Id"), stream=stream)
            if reader.generation and not answer.content.is_eof():
                bill.note(reader.generation)
            return await self._relay(request, answer, reader, bill)

    def _failed(self, bot: Bot, failure: Failure) -> web.Response:
        """What the bot gets for an upstream error: the error itself, unless our own account is at fault.

        A 403 about the prompt (OpenRouter's moderation; it has ``error.metadata.reasons``) passes as it is.
        """
        if 300 <= failure.status < 400:
            log.error(
                "bot=%s the upstream redirects (%d); check OPENROUTER_BASE_URL", bot.bot, failure.status
            )
            raise RefusedError(502, "The model's provider gave an unusable answer.", reason="upstream")
        hint = _HINTS.get(failure.status)
        if hint is None or (failure.status == 403 and "reasons" in failure.metadata):
            headers = _passed_back(failure.headers)
            headers.pop(hdrs.CONTENT_LENGTH, None)
            return web.Response(status=failure.status, body=failure.body, headers=headers)
        # The message itself is not told: it may quote the key or the prompt.
        source = str(failure.metadata.get("limit_source", "-"))[:60]
        self._events.tell(
            "account_refused",
            f"OpenRouter refused the server's account: status={failure.status} limit_source={source}; {hint}",
        )
        wait = failure.retry_after or _RETRY_LATER
        raise RefusedError(503, _UNAVAILABLE, retry_after=wait, reason="account")

    async def _relay(
        self, request: web.Request, answer: aiohttp.ClientResponse, reader: UsageReader, bill: Bill
    ) -> web.StreamResponse:
        """Pass an answer back as it arrives, without keeping more of it than its usage needs.

        ``write`` waits while the bot reads slowly, and then nothing more is read from upstream. When the bot
        hangs up, the rest is read for a while without it, for its end tells what the call cost.
        """
        response = web.StreamResponse(status=answer.status, headers=_passed_back(answer.headers))
        there = True
        try:
            async with asyncio.timeout(self._config.call_timeout) as patience:
                there = await _arrives(response.prepare(request))
                self._hurry(patience, there)
                while piece := await _next_piece(answer):
                    reader.feed(piece)
                    if answer.content.at_eof():
                        bill.read(reader)  # before the bot has the last word, and asks again
                    if there:
                        request[_REQUEST].bytes_sent += len(piece)
                        there = await _arrives(response.write(piece))
                        self._hurry(patience, there)
        except TimeoutError:
            raise _UpstreamLostError("call_timeout" if there else "drain_timeout") from None
        finally:
            bill.generation = reader.generation
        bill.read(reader)
        if there:
            await response.write_eof()
        return response

    def _hurry(self, patience: asyncio.Timeout, there: bool) -> None:
        """Without the bot, the rest of the answer gets less time."""
        if not there:
            soon = asyncio.get_running_loop().time() + self._config.drain_timeout
            patience.reschedule(min(soon, patience.when() or soon))


async def _arrives(sending: Awaitable[object]) -> bool:
    """Whether the bot is still there to get it."""
    try:
        await sending
    except ConnectionResetError:
        return False
    return True


class _UpstreamLostError(Exception):
    """The upstream connection broke in the middle of an answer whose beginning the bot already has."""


async def _next_piece(upstream: aiohttp.ClientResponse) -> bytes:
    try:
        return await upstream.content.readany()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _UpstreamLostError(type(error).__name__) from None


def _passed_back(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in _PASSED_BACK if name in headers}


def _peer(request: web.Request) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address the connection comes from; no header is asked."""
    if request.transport is None:
        raise ConnectionResetError
    return ipaddress.ip_address(request.transport.get_extra_info("peername")[0])


async def _refusals_shaped(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefusedError as refusal:
        request[_REQUEST].refused = refusal.reason
        return refusal.response()
    except web.HTTPException:  # aiohttp's own: unknown path, wrong method
        return RefusedError(
            404, "Only POST /api/v1/chat/completions and GET /api/v1/models exist here."
        ).response()
    except _UpstreamLostError as lost:
        log.warning(
            "bot=%s the upstream broke off in the middle of an answer: %s", request[_REQUEST].bot, lost
        )
        # An orderly end would make half an answer look whole.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError from None
    except ConnectionResetError:  # the bot hung up; nobody is left to answer
        raise
    except Exception:
        log.exception("bot=%s internal error", request[_REQUEST].bot)
        return RefusedError(500, "Internal error of the LLM gateway.").response()
