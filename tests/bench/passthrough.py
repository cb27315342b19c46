"""The least that aiohttp can do between a bot and OpenRouter: ``python -m tests.bench.passthrough PORT URL``.

No keys, no checks, no books, no log: what our gateway adds is measured against it.
"""

import sys
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from aiohttp import web

_PASSED = ("Content-Type", "Content-Length")


async def application(url: str) -> web.Application:
    """One route; ``url``: the API that it passes requests on to."""

    async def relay(request: web.Request) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in ("Authorization", "Content-Type")}
        body = await request.read()
        async with session.post(f"{url}/chat/completions", data=body, headers=headers) as answer:
            passed = {name: answer.headers[name] for name in _PASSED if name in answer.headers}
            response = web.StreamResponse(status=answer.status, headers=passed)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    async def closing(_app: web.Application) -> AsyncIterator[None]:
        yield
        await session.close()

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )
    app = web.Application()
    app.cleanup_ctx.append(closing)
    app.router.add_post("/api/v1/chat/completions", relay)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(
        application(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None
    )
