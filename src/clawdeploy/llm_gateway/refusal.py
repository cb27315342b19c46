"""What the gateway says when it does not pass a call on."""

import secrets
import time
from typing import Any

import msgspec
from aiohttp import web

_encoder = msgspec.json.Encoder()


class RefusedError(Exception):
    """A call that gets an answer of our own instead of the upstream's.

    ``status``: HTTP status; ``message``: one sentence for the agent's user; ``retry_after``: seconds or None;
    ``spoken``: whether an agent that hides errors from its user may get the sentence as a normal answer;
    ``reason``: one word for the metrics.
    """

    def __init__(
        self,
        status: int,
        message: str,
        retry_after: int | None = None,
        *,
        spoken: bool = False,
        reason: str = "request",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after
        self.spoken = spoken
        self.reason = reason

    def response(self) -> web.Response:
        """The answer in OpenRouter's error shape: status = ``error.code`` (docs, "errors-and-debugging")."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        body = {"error": {"code": self.status, "message": self.message}}
        return web.json_response(body, status=self.status, headers=headers)


def spoken(message: str, model: str, *, stream: bool) -> web.Response:
    """``message`` as the model's own answer, which cost nothing: a chat completion, or a stream of one."""
    base = {"id": f"claw-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cost": 0}
    said = {"role": "assistant", "content": message}
    if not stream:
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        whole = base | {"object": "chat.completion", "choices": [choice], "usage": usage}
        return web.Response(body=_encoder.encode(whole), content_type="application/json")
    chunk = base | {"object": "chat.completion.chunk"}
    chunks: list[dict[str, Any]] = [
        chunk | {"choices": [{"index": 0, "delta": said, "finish_reason": None}]},
        chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        chunk | {"choices": [], "usage": usage},
    ]
    events = [*(_encoder.encode(piece) for piece in chunks), b"[DONE]"]
    return web.Response(
        body=b"".join(b"data: " + event + b"\n\n" for event in events),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-cache"},
    )
