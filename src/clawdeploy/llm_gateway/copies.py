"""Copies of the ledger, given out and taken over by the one process that writes it.

If root opened the database instead, SQLite might leave files beside it that the gateway's user cannot open.
"""

import asyncio
import os
import secrets
import time
from contextlib import closing
from pathlib import Path

from aiohttp import web

from clawdeploy.llm_gateway.ledger import Ledger
from clawdeploy.store import LedgerStore, check_ledger_copy

_CHUNK = 1 << 18
_PREFIX = "copy-"


class Copies:
    """Handlers of the admin socket. Copies lie beside the ledger, where nobody else can read them."""

    def __init__(self, ledger: Ledger, ledger_file: Path) -> None:
        self._ledger, self._ledger_file = ledger, ledger_file
        for left in ledger_file.parent.glob(f"{_PREFIX}*"):  # by a process that was killed
            left.unlink()

    async def give(self, request: web.Request) -> web.StreamResponse:
        """Answer with the database as it is at one moment; calls go on meanwhile."""
        await self._ledger.run(lambda store: None)  # what was asked for before this is in the copy
        path = self._new_path()
        try:
            await asyncio.to_thread(self._copy_to, path)
            file = path.open("rb")
        finally:
            path.unlink(missing_ok=True)
        with file:
            response = web.StreamResponse()
            response.content_length = os.fstat(file.fileno()).st_size
            await response.prepare(request)
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                await response.write(chunk)
            await response.write_eof()
        return response

    async def take(self, request: web.Request, keep_balances: bool) -> None:
        """Fill the empty ledger from the database in the body, if that one is in order.

        ClawError("books_damaged"), ClawError("ledger_in_use").
        """
        path = self._new_path()
        try:
            with path.open("xb") as file:
                async for chunk in request.content.iter_chunked(_CHUNK):
                    file.write(chunk)
            await asyncio.to_thread(check_ledger_copy, path)
            now = time.time()
            await self._ledger.run(lambda store: store.adopt(path, keep_balances, now))
        finally:
            for left in path.parent.glob(f"{path.name}*"):
                left.unlink()

    def _new_path(self) -> Path:
        return self._ledger_file.with_name(f"{_PREFIX}{secrets.token_hex(8)}.db")

    def _copy_to(self, path: Path) -> None:
        with closing(LedgerStore(self._ledger_file)) as store:
            store.copy_to(path)
