"""What the simulators share: the command line, TLS, reading a request, and waiting for a condition."""

import argparse
import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

from aiohttp import web


class Changes:
    """Lets a handler wait until something recorded by another handler satisfies a condition."""

    def __init__(self) -> None:
        self._condition = asyncio.Condition()

    async def notify(self) -> None:
        """Wake every waiter so that it looks at its condition again."""
        async with self._condition:
            self._condition.notify_all()

    async def wait_for(self, predicate: Callable[[], bool], seconds: float) -> bool:
        """Wait at most `seconds` for `predicate`; return whether it holds."""

        async def satisfied() -> None:
            async with self._condition:
                await self._condition.wait_for(predicate)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(satisfied(), seconds)
        return predicate()


async def json_object(request: web.Request) -> dict[str, Any]:
    """Return the request's JSON object; 400 for anything else (control endpoints only)."""
    try:
        body = await request.json()
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"the body is not JSON: {error}\n") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body must be a JSON object\n")
    return body


def query_number(request: web.Request, name: str, default: float) -> float:
    """Return the query parameter `name` as a number; 400 if it is none."""
    value = request.query.get(name)
    if value is None:
        return default
    try:
        return float(value)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"{name}={value} is not a number\n") from error


def run(description: str, make_app: Callable[[], web.Application]) -> None:
    """Parse --host, --port, --cert and --key, serve until SIGTERM, and print one line once listening.

    The line is `listening on <scheme>://<host>:<port>`; with `--port 0` it names the port that was free.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cert", help="PEM certificate chain; TLS is spoken when given")
    parser.add_argument("--key", help="PEM private key of --cert")
    arguments = parser.parse_args()
    context: ssl.SSLContext | None = None
    if arguments.cert:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.cert, arguments.key)

    async def serve() -> None:
        # The long poll of a client must not delay the end.
        runner = web.AppRunner(make_app(), access_log=None, handle_signals=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, arguments.host, arguments.port, ssl_context=context)
        await site.start()
        host, port = runner.addresses[0][:2]
        print(f"listening on {'https' if context else 'http'}://{host}:{port}", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    with contextlib.suppress(KeyboardInterrupt, web.GracefulExit):
        asyncio.run(serve())
