"""OpenRouter, as the gateway speaks to it: with the server's key, and again where nothing was billed."""

import random
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
from aiohttp import hdrs
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_attempt

from clawdeploy.llm_gateway.config import Config

# Answers after which another try may help: nothing was billed for them.
_RETRIED = frozenset({429, 500, 502, 503, 529})
# Somebody gave up waiting (524 is Cloudflare's): the model may have answered, and been paid, all the same.
BILLED_PERHAPS = frozenset({408, 504, 524})
_BODY_LIMIT = 64 * 1024
_LONGEST_WAIT = 10.0  # seconds; when OpenRouter asks for more, the agent is told at once
_LOOKUP_SECONDS = 20
# Below what servers and proxies allow an idle connection: a question must not meet a closing door.
_IDLE_SECONDS = 10


class NotReachedError(Exception):
    """No connection stood, so nothing was asked."""


class Failure(msgspec.Struct, frozen=True):
    """An answer that is an error (status 300 and above), with the first 64 KiB of its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def generation(self) -> str | None:
        return self.headers.get("X-Generation-Id")

    @property
    def metadata(self) -> dict[str, Any]:
        """``error.metadata`` of the body, or nothing."""
        try:
            match msgspec.json.decode(self.body):
                case {"error": {"metadata": dict(metadata)}}:
                    return metadata
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
        return {}

    @property
    def retry_after(self) -> int | None:
        """Seconds that the answer asks to wait (RFC 9110, 10.2.3; dates are not used there)."""
        wait = self.headers.get(hdrs.RETRY_AFTER, "")
        return int(wait) if wait.isascii() and wait.isdecimal() and len(wait) < 7 else None

    @property
    def transient(self) -> bool:
        """Whether another try may help: also when only the calls under way exhaust the account."""
        if self.status == 402:
            return self.metadata.get("limit_source") == "openrouter_in_flight_budget"
        return self.status in _RETRIED


class Upstream:
    """OpenRouter's API."""

    def __init__(self, config: Config, api_key: str) -> None:
        """``api_key``: the server's key, sent upstream and nowhere else. Needs a running event loop."""
        self._base = config.base_url.rstrip("/")
        self._retrying = AsyncRetrying(
            retry=retry_if_result(_transient),
            wait=_wait,
            stop=lambda state: _wait(state) > _LONGEST_WAIT or stop_after_attempt(config.attempts)(state),
            retry_error_callback=_last,
        )
        self._key: dict[str, str] = {hdrs.AUTHORIZATION: f"Bearer {api_key}"}
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_IDLE_SECONDS
            ),  # calls_per_bot bounds it
            timeout=aiohttp.ClientTimeout(
                total=None, connect=config.connect_timeout, sock_read=config.read_timeout
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={hdrs.USER_AGENT: "clawdeploy-llm-gateway", hdrs.ACCEPT_ENCODING: "identity"},
        )

    @property
    def models_url(self) -> str:
        """The table of prices (public)."""
        return f"{self._base}/models"

    async def close(self) -> None:
        await self.session.close()

    async def generation(self, generation: str) -> tuple[int, bytes]:
        """Status and body of the question what a call cost. Raises aiohttp.ClientError and TimeoutError."""
        async with self.session.get(
            f"{self._base}/generation",
            params={"id": generation},
            headers=self._key,
            timeout=aiohttp.ClientTimeout(total=_LOOKUP_SECONDS),
            allow_redirects=False,
        ) as answer:
            return answer.status, await answer.read()

    async def chat(self, body: bytes, accept: str) -> aiohttp.ClientResponse | Failure:
        """Ask; answers that were not billed are asked for again, as long as the agent has seen nothing.

        Returns the open answer (status 200 to 299) or the last failure. Raises NotReachedError when no
        connection stood, and aiohttp.ClientError or TimeoutError when the connection broke after that.
        """
        headers = {**self._key, hdrs.CONTENT_TYPE: "application/json", hdrs.ACCEPT: accept}
        answer = await self._ask(body, headers)
        if not _transient(answer):
            return answer  # the rule; tenacity takes longer than all else that the gateway does for a call
        tried: list[aiohttp.ClientResponse | Failure] = [answer]

        async def ask_again() -> aiohttp.ClientResponse | Failure:
            return tried.pop() if tried else await self._ask(body, headers)

        # A copy: it keeps the state of one call.
        return await self._retrying.copy()(ask_again)

    async def _ask(self, body: bytes, headers: Mapping[str, str]) -> aiohttp.ClientResponse | Failure:
        try:
            answer = await self.session.post(
                f"{self._base}/chat/completions",
                data=body,
                headers=headers,
                allow_redirects=False,  # the key goes to the configured address only
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotReachedError(str(error)) from None
        if answer.status < 300:
            return answer
        async with answer:
            return Failure(answer.status, dict(answer.headers), await _start_of(answer))


def _transient(answer: aiohttp.ClientResponse | Failure) -> bool:
    return isinstance(answer, Failure) and answer.transient


def _last(state: RetryCallState) -> Any:
    assert state.outcome is not None  # noqa: S101 # tenacity calls this after an attempt
    return state.outcome.result()


def _wait(state: RetryCallState) -> float:
    """Seconds until the next try: what OpenRouter asks for, or up to 1, 2, 4, with some luck."""
    failure = _last(state)
    if failure.retry_after is not None:
        return float(failure.retry_after)
    return float(2 ** (state.attempt_number - 1)) * (0.5 + random.random() / 2)  # noqa: S311 # no secret


async def _start_of(answer: aiohttp.ClientResponse) -> bytes:
    """At most the first 64 KiB of an error's body; what arrived if the connection breaks."""
    raw = b""
    try:
        while len(raw) < _BODY_LIMIT and (piece := await answer.content.readany()):
            raw += piece
    except (aiohttp.ClientError, TimeoutError):
        pass
    return raw[:_BODY_LIMIT]
