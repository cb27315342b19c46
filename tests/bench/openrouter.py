"""A simulated OpenRouter that costs next to no CPU: ``python -m tests.bench.openrouter PORT``.

Every chat completion is answered after 20 ms; a stream then brings 20 chunks 2 ms apart, the usage, and
``[DONE]``. It keeps no books and checks nothing: the simulator of the tests does.
"""

import asyncio
import json
import re
import sys
from typing import cast

import uvloop

LATENCY = 0.020  # seconds until the first byte
CHUNKS = 20
GAP = 0.002  # seconds between chunks
MODEL = "vendor/fixed-model"

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')
_ID = "gen-0123456789abcdef"
_USAGE = {"prompt_tokens": 250, "completion_tokens": 20, "total_tokens": 270, "cost": 0.0000123}
_ABOUT = {"id": _ID, "created": 1, "model": MODEL, "provider": "Vendor"}


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _whole(content: object) -> bytes:
    body = _json(content)
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        f"X-Generation-Id: {_ID}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _piece(text: bytes) -> bytes:
    event = b"data: " + text + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _piece(_json({**_ABOUT, "object": "chat.completion.chunk", "choices": [choice]}))


_SAID = {"role": "assistant", "content": "word " * CHUNKS}
_ANSWER = _whole(
    {
        **_ABOUT,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": _SAID, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
)
_PRICES = {"prompt": "0.000001", "completion": "0.000002"}
_MODELS = _whole({"data": [{"id": MODEL, "pricing": _PRICES}]})
_STREAM_HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    f"X-Generation-Id: {_ID}\r\nTransfer-Encoding: chunked\r\n\r\n"
).encode()
_WORD = _chunk({"role": "assistant", "content": "word "})
_LAST = (
    _chunk({"content": ""}, "stop")
    + _piece(_json({**_ABOUT, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE}))
    + _piece(b"[DONE]")
    + b"0\r\n\r\n"
)


class Connection(asyncio.Protocol):
    """One client, whose requests come one after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._transport.write(_MODELS)
        elif _STREAM.search(body):
            self._loop.call_later(LATENCY, self._stream, _STREAM_HEAD, CHUNKS)
        else:
            self._loop.call_later(LATENCY, self._transport.write, _ANSWER)

    def _stream(self, before: bytes, left: int) -> None:
        if self._transport.is_closing():
            return
        if left:
            self._transport.write(before + _WORD)
            self._loop.call_later(GAP, self._stream, b"", left - 1)
        else:
            self._transport.write(_LAST)


async def serve(port: int) -> None:
    """Answer on loopback, for ever."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
