"""Load of streams: ``python -m tests.bench.streams URL CONNECTIONS SECONDS KEYS BODY``, one JSON line.

Each connection asks for one stream after the other, and no new one after SECONDS. KEYS: a file with an LLM
key per line, used in turn; BODY: a file with the request's body. Answers: ``streams``; ``rate`` (streams
a second); ``first_ms`` (median time to the first byte of an answer's body); ``whole_ms`` (median time to its
end). Anything but whole streams with status 200 ends the program with an error.

aiohttp's client would need more CPU than what is measured, so this speaks the little HTTP that it needs.
"""

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

_PATIENCE = 30  # seconds for streams that are under way at the end


class Connection(asyncio.Protocol):
    """One connection; times in seconds go to ``first`` and ``whole``."""

    def __init__(
        self, requests: Iterator[bytes], until: float, first: list[float], whole: list[float]
    ) -> None:
        self._requests = requests
        self._until = until
        self._first = first
        self._whole = whole
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's
        self._ask()

    def _ask(self) -> None:
        self._received = b""
        self._begun = False
        self._asked = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._begun:
            head, _, body = self._received.partition(b"\r\n\r\n")
            if not body:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self._fail(head + body)
                return
            self._begun = True
            self._first.append(time.perf_counter() - self._asked)
        if self._received.endswith(b"0\r\n\r\n"):
            self._end()

    def _end(self) -> None:
        if b"data: [DONE]" not in self._received:
            self._fail(self._received)
            return
        self._whole.append(time.perf_counter() - self._asked)
        if time.perf_counter() < self._until:
            self._ask()
            return
        self.over.set_result(None)
        self._transport.close()

    def _fail(self, received: bytes) -> None:
        if not self.over.done():
            self.over.set_exception(RuntimeError(f"no whole stream: {received[-1000:]!r}"))
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self._fail(self._received)


async def load(
    host: str, port: int, connections: int, seconds: float, requests: list[bytes]
) -> dict[str, float]:
    """The figures."""
    first: list[float] = []
    whole: list[float] = []
    turns = itertools.cycle(requests)
    start = time.perf_counter()
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Connection(turns, start + seconds, first, whole), host, port)
        for _ in range(connections)
    ]
    async with asyncio.timeout(seconds + _PATIENCE):
        await asyncio.gather(*(connection.over for _, connection in made))
    return {
        "streams": len(whole),
        "rate": len(whole) / (time.perf_counter() - start),
        "first_ms": statistics.median(first) * 1000,
        "whole_ms": statistics.median(whole) * 1000,
    }


def main(url: str, connections: str, seconds: str, keys: str, body: str) -> None:
    """Measure and print."""
    target = urlsplit(url)
    host, port = str(target.hostname), int(target.port or 80)
    content = Path(body).read_bytes()
    requests = [
        f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        + content
        for key in Path(keys).read_text().split()
    ]
    print(json.dumps(uvloop.run(load(host, port, int(connections), float(seconds), requests))))


if __name__ == "__main__":
    main(*sys.argv[1:])
