"""The ledger's door for the operator's tools: HTTP with JSON on a unix socket, for root alone.

Money is in nano-dollars. A refusal is ``{"error": {"code", "message"}}``.
"""

import asyncio
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web

from clawdeploy.errors import ClawError
from clawdeploy.ledger import Account, Call
from clawdeploy.llm_gateway.copies import Copies
from clawdeploy.llm_gateway.ledger import Ledger, LedgerUnavailableError
from clawdeploy.llm_gateway.prices import Prices
from clawdeploy.models import BotId
from clawdeploy.money import SpendLimit
from clawdeploy.store import LedgerStore

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Wanted = TypeVar("Wanted")

_Nano = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
_STATUS = {"no_account": 404, "no_price": 404, "ref_used": 409, "ledger_in_use": 409}
_MOST_CALLS = 10_000
_LARGEST = 2**53  # as far as floats count in ones
_encoder = msgspec.json.Encoder()


class _Opening(msgspec.Struct, forbid_unknown_fields=True):
    bot: BotId
    opening: _Nano | None = None
    spend_limit: str | None = None


class _OpenRequest(msgspec.Struct, forbid_unknown_fields=True):
    accounts: list[_Opening]
    check: bool = False


class _TopUp(msgspec.Struct, forbid_unknown_fields=True):
    amount: Annotated[int, msgspec.Meta(gt=0, le=10**15)]
    ref: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    check: bool = False


class Admin:
    """The routes."""

    def __init__(
        self,
        ledger: Ledger,
        prices: Prices,
        model: str,
        verify: Callable[[], dict[str, Any]],
        copies: Copies,
    ) -> None:
        """``model``: the one model; ``verify``: checks the books, in a thread of its own."""
        self._ledger = ledger
        self._prices = prices
        self._model = model
        self._verify = verify
        self._copies = copies

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_only_root, _refusals_shaped])
        app.router.add_get("/v1/accounts", self._accounts)
        app.router.add_post("/v1/accounts", self._open)
        app.router.add_get("/v1/accounts/{bot}", self._account)
        app.router.add_get("/v1/accounts/{bot}/calls", self._calls)
        app.router.add_post("/v1/accounts/{bot}/top-ups", self._top_up)
        app.router.add_get("/v1/price", self._price)
        app.router.add_get("/v1/verify", self._check_books)
        app.router.add_get("/v1/copy", self._copies.give)
        app.router.add_put("/v1/copy", self._adopt)
        return app

    async def _accounts(self, _request: web.Request) -> web.Response:
        accounts = await self._ledger.run(lambda store: store.accounts())
        return _json({"accounts": [_shown(account) for account in accounts]})

    async def _account(self, request: web.Request) -> web.Response:
        bot = request.match_info["bot"]
        return _json(_shown(await self._ledger.run(lambda store: store.existing(bot))))

    async def _open(self, request: web.Request) -> web.Response:
        wanted = _decode(await request.read(), _OpenRequest)
        plans = [
            (one, SpendLimit.parse(one.spend_limit) if one.spend_limit else None) for one in wanted.accounts
        ]
        now = time.time()
        results = await self._ledger.run(
            lambda store: [_open_account(store, one, limit, wanted.check, now) for one, limit in plans]
        )
        return _json({"changed": any(one["changed"] for one in results), "accounts": results})

    async def _top_up(self, request: web.Request) -> web.Response:
        bot, wanted = request.match_info["bot"], _decode(await request.read(), _TopUp)
        now = time.time()

        def enter(store: LedgerStore) -> dict[str, Any]:
            before = store.existing(bot)
            changed = not store.top_up_known(bot, wanted.amount, wanted.ref)
            after = before
            if changed and wanted.check:
                after = msgspec.structs.replace(before, balance=before.balance + wanted.amount)
            elif changed:
                store.top_up(bot, wanted.amount, wanted.ref, now)
                after = store.existing(bot)
            return {"changed": changed, "before": _shown(before), "after": _shown(after)}

        return _json(await self._ledger.run(enter))

    async def _calls(self, request: web.Request) -> web.Response:
        bot = request.match_info["bot"]
        since, until = _number(request, "since", 0), _number(request, "until", _LARGEST)
        after, limit = _number(request, "after", 0), _number(request, "limit", _MOST_CALLS)

        def read(store: LedgerStore) -> list[Call]:
            store.existing(bot)
            return store.calls(bot, since, until, int(after), min(int(limit), _MOST_CALLS))

        return _json({"calls": await self._ledger.run(read)})

    async def _price(self, request: web.Request) -> web.Response:
        model = request.query.get("model", self._model)
        if (price := self._prices.describe(model)) is None:
            raise ClawError(
                "no_price",
                f"no price is known for {model!r}: bots cannot use it until one is (llm_gateway_price).",
            )
        return _json(price)

    async def _adopt(self, request: web.Request) -> web.Response:
        await self._copies.take(request, keep_balances=request.query.get("balances") == "keep")
        return await self._accounts(request)

    async def _check_books(self, _request: web.Request) -> web.Response:
        await self._ledger.run(lambda store: None)  # what was asked for before this is in the books
        return _json(await asyncio.to_thread(self._verify))


def _open_account(
    store: LedgerStore, wanted: _Opening, limit: SpendLimit | None, check: bool, now: float
) -> dict[str, Any]:
    before = store.account(wanted.bot)
    new_limit = limit or (before.limit if before else SpendLimit())
    changed = before is None or before.limit != new_limit
    after = before
    if changed and check:
        balance = before.balance if before else wanted.opening or 0
        after = _pretended(wanted.bot, before, new_limit, balance, now)
    elif before is None:
        store.open_account(wanted.bot, new_limit, wanted.opening or 0, now)
        after = store.existing(wanted.bot)
    elif changed:
        store.set_limit(wanted.bot, new_limit, now)
        after = store.existing(wanted.bot)
    assert after is not None  # noqa: S101 # every branch above made one
    return {
        "bot": wanted.bot,
        "changed": changed,
        "before": None if before is None else _shown(before),
        "after": _shown(after),
    }


def _pretended(bot: str, before: Account | None, limit: SpendLimit, balance: int, now: float) -> Account:
    """What an account would be, for check mode."""
    blank = before or Account(bot, now, "prepaid", 0, balance, 0, 0, 0, 0, 0, 0, "nothing")
    return msgspec.structs.replace(blank, limit_kind=limit.kind, limit_nano=limit.nano)


def _shown(account: Account) -> dict[str, Any]:
    now = time.time()
    return {
        "bot": account.bot,
        "spend_limit": str(account.limit),
        "balance": account.balance,
        "held": account.held + account.period_held,
        "available": account.available(now),
        "spent": account.spent,
        "period_spent": account.period_spent,
        "calls": account.calls,
    }


def _decode(raw: bytes, kind: type[Wanted]) -> Wanted:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ClawError("bad_request", f"the request is not what this address takes: {error}") from None


def _number(request: web.Request, name: str, default: float) -> float:
    try:
        number = float(request.query.get(name, default))
    except ValueError:
        number = -1
    if not 0 <= number <= _LARGEST:  # NaN is neither
        raise ClawError("bad_request", f"{name} must be a number from 0 to {_LARGEST}")
    return number


def _json(content: Any, status: int = 200) -> web.Response:
    return web.Response(body=_encoder.encode(content), status=status, content_type="application/json")


@web.middleware
async def _only_root(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in whom the kernel says the peer is: root, or the service's own user (unix(7), SO_PEERCRED)."""
    assert request.transport is not None  # noqa: S101 # the request has just come in on it
    peer: socket.socket = request.transport.get_extra_info("socket")
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.geteuid()):
        return _json({"error": {"code": "forbidden", "message": "only root may ask the ledger"}}, 403)
    return await handler(request)


@web.middleware
async def _refusals_shaped(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ClawError as error:
        return _json({"error": error.as_json()}, _STATUS.get(error.code, 422))
    except LedgerUnavailableError as error:
        message = f"the ledger cannot be written ({error}): make room on the disk, then try again."
        return _json({"error": {"code": "ledger_unavailable", "message": message}}, 503)
    except web.HTTPException as error:
        return _json({"error": {"code": "not_found", "message": error.reason}}, error.status)
