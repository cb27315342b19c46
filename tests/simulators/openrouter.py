"""A simulator of OpenRouter's API.

Run: `python -m tests.simulators.openrouter --host H --port P [--cert C --key K]`

Wire format after https://openrouter.ai/docs (api_reference/overview, streaming, errors-and-debugging, limits;
openapi/openapi.yaml). A key is good if it looks like `sk-or-v1-<16 or more characters>` and was not revoked.
The answer to a chat is `ECHO: <the last user message>` unless ordered; a token is four bytes. Books are kept
in exact decimals. A model that is dearer than the request's `provider.max_price` has no provider (404).

Control endpoints (no key needed):

* `POST /_sim/fail` `{"kind", "times": 1, "status": 502, "retry_after": 1, "after": 2, "contains": ""}`:
  the next `times` chat requests (whose last user message contains `contains`) fail. Kinds: `credits`,
  `key_limit`, `in_flight` (the three sorts of 402), `rate_limit` (429), `server_error` (with `status`),
  `mid_stream` (an error after `after` pieces of the answer; not streaming: HTTP 200 with
  `finish_reason: error`), `cut` (the connection ends there), `cut_before` (it ends before any header).
  Charged like good answers: both cuts, `gave_up` (the error `status`, meant for 408 and 524: somebody on the
  way did not wait for the answer), `no_usage` and `no_cost` (a good answer whose usage, or whose
  `usage.cost`, is missing or null), and `dear` (it costs a thousand times the price).
* `POST /_sim/generation` `{"unknown": N}`: `GET /generation` says 404 to the first N questions for each id.
* `GET /_sim/charges`: what each generation was charged (`{"generation", "nano", "user", "key"}`);
  `nano` is nano-dollars, rounded up once per generation, `user` the request's.
* `POST /_sim/latency` `{"first": seconds before the answer, "chunk": seconds between pieces}`.
* `POST /_sim/say` `{"text"}`: what all answers are from now on (null: the echo again).
* `POST /_sim/call` `{"name", "arguments"}`: the next answer is a call of that tool, if the request offers it;
  the one after that repeats what the tool said (`TOOL: <its result>`).
* `GET /_sim/requests?count=N&wait=S&contains=TEXT`: the recorded chat requests (with a good key and a
  valid body), waiting up to S seconds for N of them.
* `POST /_sim/revoke` `{"key"}` and `POST /_sim/reset` (forgets requests, failures, latency, revocations
  and what to say and call).
"""

import asyncio
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Any

from aiohttp import web

from tests.simulators.common import Changes, json_object, query_number, run

KEY = re.compile(r"sk-or-v1-[0-9A-Za-z_-]{16,}")
KEEP_ALIVE = b": OPENROUTER PROCESSING\n\n"
KEEP_ALIVE_SECONDS = 0.25
PIECE = 8  # characters of the answer in one chunk of a stream

# USD per token, as strings like the real list has them: (name, prompt, completion, context length).
PRICES = {
    "anthropic/claude-sonnet-4": ("Anthropic: Claude Sonnet 4", "0.000003", "0.000015", 1_000_000),
    "google/gemini-2.5-flash": ("Google: Gemini 2.5 Flash", "0.0000003", "0.0000025", 1_048_576),
    "meta-llama/llama-3.3-70b-instruct": ("Meta: Llama 3.3 70B", "0.000000042", "0.00000028", 131_072),
    "openai/gpt-4o-mini": ("OpenAI: GPT-4o-mini", "0.00000015", "0.0000006", 128_000),
    "openai/gpt-5-pro": ("OpenAI: GPT-5 Pro", "0.000015", "0.00012", 400_000),
}

FAILURES: dict[str, dict[str, Any]] = {
    "credits": {
        "code": 402,
        "message": "Insufficient credits. Add more using https://openrouter.ai/credits",
        "metadata": {"limit_source": "openrouter_credits"},
    },
    "key_limit": {
        "code": 402,
        "message": "Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys",
        "metadata": {"limit_source": "openrouter_key_limit"},
    },
    "in_flight": {
        "code": 402,
        "message": "This request would exceed your available credits given your current in-flight requests. "
        "Retry after in-flight requests settle, or add credits.",
        "metadata": {
            "reason": "in_flight_budget_exhausted",
            "limit_source": "openrouter_in_flight_budget",
            "remedy_hint": "Retry after in-flight requests settle, or add credits.",
        },
    },
    "rate_limit": {
        "code": 429,
        "message": "Rate limit exceeded",
        "metadata": {"error_type": "rate_limit_exceeded"},
    },
    "server_error": {
        "code": 502,
        "message": "Provider returned error",
        "metadata": {"error_type": "provider_unavailable"},
    },
}
WITH_RETRY_AFTER = {"in_flight", "rate_limit"}
MID_STREAM = {"mid_stream", "cut"}
# Answers that were made, whatever the caller is told about them.
CHARGED = {"cut_before", "gave_up", "no_usage", "no_cost", "dear"}
KINDS = FAILURES.keys() | MID_STREAM | CHARGED
TIMES_DEARER = 1000
PROVIDER_ERROR = {
    "code": 502,
    "message": "Provider disconnected",
    "metadata": {"error_type": "provider_unavailable"},
}


@dataclass
class Failure:
    """One order to fail: how, how often, and for which requests."""

    kind: str
    times: int = 1
    status: int = 502
    retry_after: int = 1
    after: int = 2
    contains: str = ""


@dataclass
class State:
    """Everything the simulator remembers."""

    changes: Changes = field(default_factory=Changes)
    failures: list[Failure] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    generations: dict[str, dict[str, Any]] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    usage: dict[str, Decimal] = field(default_factory=dict)
    charges: list[dict[str, Any]] = field(default_factory=list)
    unknown: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    say: str | None = None
    call: dict[str, Any] | None = None
    first: float = 0.0
    chunk: float = 0.0

    def take_failure(self, text: str) -> Failure | None:
        """Return the failure ordered for a request with this last user message, counting it down."""
        for failure in self.failures:
            if failure.contains in text:
                failure.times -= 1
                if failure.times <= 0:
                    self.failures.remove(failure)
                return failure
        return None

    def take_call(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return the tool call ordered, if this request offers that tool; it is ordered once."""
        offered = [tool["function"]["name"] for tool in body.get("tools") or []]
        if not self.call or self.call["name"] not in offered:
            return None
        call, self.call = self.call, None
        function = {"name": call["name"], "arguments": json.dumps(call.get("arguments", {}))}
        return {"id": f"call_{secrets.token_hex(8)}", "type": "function", "function": function}


STATE = web.AppKey("state", State)


def error_response(
    code: int, message: str, metadata: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    """OpenRouter's error shape; the HTTP status is the error's code."""
    error: dict[str, Any] = {"code": code, "message": message}
    if metadata:
        error["metadata"] = metadata
    return web.json_response({"error": error}, status=code, headers=headers)


def bearer(request: web.Request) -> str | None:
    """Return the request's key if it is a good one."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme != "Bearer" or not KEY.fullmatch(key) or key in request.app[STATE].revoked:
        return None
    return key


def unauthorized(request: web.Request) -> web.Response:
    """401 as OpenRouter words it for no key and for a wrong one."""
    known = "Authorization" in request.headers
    return error_response(401, "User not found." if known else "No auth credentials found")


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def last_user_message(body: dict[str, Any]) -> str:
    """The text of the last message with the role `user`, or an empty string."""
    for message in reversed(body["messages"]):
        if isinstance(message, dict) and message.get("role") == "user":
            return text_of(message.get("content"))
    return ""


def tokens(text: str) -> int:
    """The simulator's tokenizer: four bytes are a token, and nothing is less than one."""
    return max(1, -(-len(text.encode()) // 4))


def completion(body: dict[str, Any], say: str | None) -> tuple[str, str, dict[str, Any], Decimal]:
    """Return (answer, finish reason, usage object, cost in USD) of a valid chat request."""
    last = body["messages"][-1]
    answer = f"ECHO: {last_user_message(body)}" if say is None else say
    if isinstance(last, dict) and last.get("role") == "tool":
        answer = f"TOOL: {text_of(last.get('content'))}"
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    reason = "stop"
    if isinstance(limit, int) and tokens(answer) > limit:
        answer = answer.encode()[: limit * 4].decode(errors="ignore")
        reason = "length"
    _, prompt_price, completion_price, _ = PRICES[body["model"]]
    prompt_tokens = tokens(json.dumps(body["messages"], ensure_ascii=False))
    completion_tokens = tokens(answer)
    cost = prompt_tokens * Decimal(prompt_price) + completion_tokens * Decimal(completion_price)
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "cost": float(cost),
        "cost_details": {"upstream_inference_cost": None},
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    return answer, reason, usage, cost


async def models(request: web.Request) -> web.Response:
    """`GET /api/v1/models`: the list with prices (public, like the real one)."""
    data = [
        {
            "id": model,
            "canonical_slug": model,
            "name": name,
            "created": 1747929600,
            "context_length": length,
            "architecture": {
                "modality": "text->text",
                "input_modalities": ["text"],
                "output_modalities": ["text"],
                "tokenizer": "Other",
                "instruct_type": None,
            },
            "pricing": {
                "prompt": prompt,
                "completion": answer,
                "request": "0",
                "image": "0",
                "web_search": "0",
                "internal_reasoning": "0",
            },
            "top_provider": {
                "context_length": length,
                "max_completion_tokens": 65_536,
                "is_moderated": False,
            },
            "per_request_limits": None,
            "supported_parameters": ["max_tokens", "temperature", "tools", "tool_choice", "stop"],
        }
        for model, (name, prompt, answer, length) in PRICES.items()
    ]
    return web.json_response({"data": data})


async def key_info(request: web.Request) -> web.Response:
    """`GET /api/v1/key`: limits and usage of the key asked with."""
    key = bearer(request)
    if key is None:
        return unauthorized(request)
    used = float(request.app[STATE].usage.get(key, Decimal(0)))
    data = {
        "label": f"{key[:12]}...{key[-3:]}",
        "limit": None,
        "limit_remaining": None,
        "limit_reset": None,
        "usage": used,
        "usage_daily": used,
        "usage_weekly": used,
        "usage_monthly": used,
        "is_free_tier": False,
        "is_management_key": False,
    }
    return web.json_response({"data": data})


async def generation(request: web.Request) -> web.Response:
    """`GET /api/v1/generation?id=`: what one call really cost."""
    if bearer(request) is None:
        return unauthorized(request)
    wanted = request.query.get("id", "")
    state = request.app[STATE]
    found = state.generations.get(wanted)
    state.asked[wanted] += 1
    if found is None or state.asked[wanted] <= state.unknown:
        return error_response(404, f"Generation {wanted} not found")
    return web.json_response({"data": found})


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /api/v1/chat/completions`, streaming or not."""
    state = request.app[STATE]
    key = bearer(request)
    if key is None:
        return unauthorized(request)
    try:
        body = await request.json()
    except ValueError:
        return error_response(400, "Invalid JSON in request body")
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        return error_response(400, 'Input required: specify "prompt" or "messages"')
    if body.get("model") not in PRICES:
        return error_response(400, f"{body.get('model')} is not a valid model ID")
    if too_dear(body):
        return error_response(404, "No endpoints found that satisfy the given max price.")

    text = last_user_message(body)
    state.requests.append(
        {
            "at": time.time(),
            "remote": request.remote,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": body,
            "last_user_message": text,
        }
    )
    await state.changes.notify()
    failure = state.take_failure(text)
    identity = f"gen-{int(time.time())}-{secrets.token_urlsafe(15)}"
    if failure and failure.kind in ("cut_before", "gave_up"):
        await asyncio.sleep(state.first)
        _, _, usage, cost = completion(body, state.say)
        settle(state, key, body, identity, usage, cost, "cancelled")
        if failure.kind == "gave_up":
            return error_response(failure.status, "Timed out", headers={"X-Generation-Id": identity})
        if request.transport is not None:
            request.transport.abort()
        return web.Response()
    if failure and failure.kind in FAILURES:
        await asyncio.sleep(state.first)
        error = FAILURES[failure.kind]
        code = failure.status if failure.kind == "server_error" else error["code"]
        headers = {"X-Generation-Id": identity}
        if failure.kind in WITH_RETRY_AFTER:
            headers["Retry-After"] = str(failure.retry_after)
        return error_response(code, error["message"], error["metadata"], headers)
    answer = stream if body.get("stream") is True else whole
    return await answer(request, key, body, identity, failure)


def too_dear(body: dict[str, Any]) -> bool:
    """Whether the model costs more than `provider.max_price` (USD per million tokens) allows."""
    most = (body.get("provider") or {}).get("max_price") or {}
    prices = dict(zip(("prompt", "completion"), PRICES[body["model"]][1:3], strict=True))
    return any(
        Decimal(price) * 1_000_000 > Decimal(str(most[what]))
        for what, price in prices.items()
        if what in most
    )


def settle(
    state: State,
    key: str,
    body: dict[str, Any],
    identity: str,
    usage: dict[str, Any],
    cost: Decimal,
    reason: str,
) -> None:
    """Charge the key and make the call visible to `GET /generation`; the first word about it counts."""
    if identity in state.generations:
        return
    state.usage[key] = state.usage.get(key, Decimal(0)) + cost
    nano = int((cost * 10**9).to_integral_value(ROUND_CEILING))
    state.charges.append({"generation": identity, "nano": nano, "user": body.get("user"), "key": key})
    state.generations[identity] = {
        "id": identity,
        "model": body["model"],
        "total_cost": float(cost),
        "usage": float(cost),
        "cancelled": reason == "cancelled",
        "streamed": body.get("stream") is True,
        "finish_reason": None if reason == "cancelled" else reason,
        "native_tokens_prompt": usage["prompt_tokens"],
        "native_tokens_completion": usage["completion_tokens"],
        "native_tokens_reasoning": 0,
        "provider_name": "Simulated",
        "external_user": body.get("user"),
    }


async def whole(
    request: web.Request, key: str, body: dict[str, Any], identity: str, failure: Failure | None
) -> web.StreamResponse:
    """A chat answered in one piece."""
    state = request.app[STATE]
    answer, reason, usage, cost = completion(body, state.say)
    if failure and failure.kind == "dear":
        cost = dearer(usage, cost)
    try:
        await asyncio.sleep(state.first)
    except asyncio.CancelledError:  # the caller went away
        settle(state, key, body, identity, usage, cost, "cancelled")
        raise
    if failure and failure.kind == "cut":
        settle(state, key, body, identity, usage, cost, "cancelled")
        if request.transport is not None:
            request.transport.abort()
        return web.Response()
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "native_finish_reason": reason}
    if (
        failure and failure.kind == "mid_stream"
    ):  # a provider that fails late: HTTP 200, no tokens, no charge (zero completion insurance)
        choice |= {"finish_reason": "error", "error": PROVIDER_ERROR}
        answer, cost = "", Decimal(0)
        usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"], "cost": 0.0}
    choice["message"] = {"role": "assistant", "content": answer, "refusal": None}
    if call := state.take_call(body):
        choice["message"] |= {"content": None, "tool_calls": [call]}
        choice |= {"finish_reason": "tool_calls", "native_finish_reason": "tool_calls"}
    settle(state, key, body, identity, usage, cost, choice["finish_reason"])
    result = {
        "id": identity,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "provider": "Simulated",
        "choices": [choice],
        **reported(usage, failure),
    }
    return web.json_response(result, headers={"X-Generation-Id": identity})


def dearer(usage: dict[str, Any], cost: Decimal) -> Decimal:
    """A cost that nobody could expect; the usage object says it too."""
    cost *= TIMES_DEARER
    usage["cost"] = float(cost)
    return cost


def reported(usage: dict[str, Any], failure: Failure | None) -> dict[str, Any]:
    """The answer's member `usage`, as far as the failure lets the caller see it."""
    if failure and failure.kind == "no_usage":
        return {}
    return {"usage": usage | {"cost": None} if failure and failure.kind == "no_cost" else usage}


def call_parts(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A tool call as a stream tells it: which tool, then its arguments in pieces."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    yield {**call, "function": {"name": name, "arguments": ""}}
    for at in range(0, len(arguments), PIECE):
        yield {"function": {"arguments": arguments[at : at + PIECE]}}


async def stream(
    request: web.Request, key: str, body: dict[str, Any], identity: str, failure: Failure | None
) -> web.StreamResponse:
    """A chat answered as server-sent events."""
    state = request.app[STATE]
    answer, reason, usage, cost = completion(body, state.say)
    if failure and failure.kind == "dear":
        cost = dearer(usage, cost)
    broken = failure is not None and failure.kind in MID_STREAM
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Generation-Id": identity}
    response = web.StreamResponse(headers=headers)
    head = {
        "id": identity,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body["model"],
        "provider": "Simulated",
    }

    async def send(**fields: Any) -> None:
        await response.write(b"data: " + json.dumps(head | fields).encode() + b"\n\n")

    def choice(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text, **more}
        return {"index": 0, "delta": delta, "finish_reason": finish}

    try:
        await response.prepare(request)
        await response.write(KEEP_ALIVE)
        remaining = state.first
        while remaining > 0:
            await asyncio.sleep(min(remaining, KEEP_ALIVE_SECONDS))
            remaining -= KEEP_ALIVE_SECONDS
            await response.write(KEEP_ALIVE)
        if call := state.take_call(body):
            answer, reason = "", "tool_calls"
            for part in call_parts(call):
                await send(choices=[choice("", tool_calls=[{"index": 0, **part}])])
        pieces = [answer[at : at + PIECE] for at in range(0, len(answer), PIECE)]
        for number, piece in enumerate(pieces):
            if broken and failure and number == failure.after:
                break
            await send(choices=[choice(piece)])
            await asyncio.sleep(state.chunk)
        if failure and failure.kind == "cut":
            settle(state, key, body, identity, usage, cost, "cancelled")
            if request.transport is not None:
                request.transport.abort()
            return response
        if broken:
            await send(choices=[choice("", "error")], error=PROVIDER_ERROR)
            settle(state, key, body, identity, usage, Decimal(0), "error")
        else:
            await send(choices=[choice("", reason)])
            settle(state, key, body, identity, usage, cost, reason)
            if told := reported(usage, failure):
                await send(choices=[], **told)
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
    except (ConnectionResetError, asyncio.CancelledError) as gone:
        # The caller went away: charged all the same, as by providers that cannot cancel.
        settle(state, key, body, identity, usage, cost, "cancelled")
        if isinstance(gone, asyncio.CancelledError):
            raise
    return response


async def sim_fail(request: web.Request) -> web.Response:
    """Order failures."""
    order = await json_object(request)
    try:
        failure = Failure(**order)
    except TypeError as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error
    if failure.kind not in KINDS:
        raise web.HTTPBadRequest(text=f"kind must be one of {sorted(KINDS)}\n")
    request.app[STATE].failures.append(failure)
    return web.json_response({})


async def sim_latency(request: web.Request) -> web.Response:
    """Set the delays."""
    order = await json_object(request)
    state = request.app[STATE]
    state.first = float(order.get("first", 0))
    state.chunk = float(order.get("chunk", 0))
    return web.json_response({})


async def sim_say(request: web.Request) -> web.Response:
    """Set what the answers are."""
    request.app[STATE].say = (await json_object(request)).get("text")
    return web.json_response({})


async def sim_call(request: web.Request) -> web.Response:
    """Set which tool is called next."""
    request.app[STATE].call = await json_object(request)
    return web.json_response({})


async def sim_generation(request: web.Request) -> web.Response:
    """Say how late `GET /generation` knows a call."""
    request.app[STATE].unknown = int((await json_object(request)).get("unknown", 0))
    return web.json_response({})


async def sim_charges(request: web.Request) -> web.Response:
    """List what was charged, oldest first."""
    return web.json_response({"charges": request.app[STATE].charges})


async def sim_requests(request: web.Request) -> web.Response:
    """List the recorded chat requests, oldest first."""
    state = request.app[STATE]
    contains = request.query.get("contains", "")

    def matching() -> list[dict[str, Any]]:
        return [entry for entry in state.requests if contains in entry["last_user_message"]]

    count = query_number(request, "count", 0)
    await state.changes.wait_for(lambda: len(matching()) >= count, query_number(request, "wait", 0))
    return web.json_response({"requests": matching()})


async def sim_revoke(request: web.Request) -> web.Response:
    """Make a key a wrong one."""
    request.app[STATE].revoked.add(str((await json_object(request))["key"]))
    return web.json_response({})


async def sim_reset(request: web.Request) -> web.Response:
    """Forget everything but what was charged, which OpenRouter would not forget either."""
    state = request.app[STATE]
    state.failures.clear()
    state.requests.clear()
    state.revoked.clear()
    state.asked.clear()
    state.unknown = 0
    state.say = state.call = None
    state.first = state.chunk = 0.0
    return web.json_response({})


def make_app() -> web.Application:
    """The simulator as an aiohttp application."""
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app[STATE] = State()
    app.router.add_get("/api/v1/models", models)
    app.router.add_get("/api/v1/key", key_info)
    app.router.add_get("/api/v1/generation", generation)
    app.router.add_post("/api/v1/chat/completions", chat_completions)
    app.router.add_post("/_sim/fail", sim_fail)
    app.router.add_post("/_sim/latency", sim_latency)
    app.router.add_post("/_sim/say", sim_say)
    app.router.add_post("/_sim/call", sim_call)
    app.router.add_post("/_sim/generation", sim_generation)
    app.router.add_get("/_sim/charges", sim_charges)
    app.router.add_get("/_sim/requests", sim_requests)
    app.router.add_post("/_sim/revoke", sim_revoke)
    app.router.add_post("/_sim/reset", sim_reset)
    return app


if __name__ == "__main__":
    run("A simulator of OpenRouter's API.", make_app)
