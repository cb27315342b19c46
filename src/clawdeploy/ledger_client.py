"""The ledger as clawctl asks for it: HTTP over the LLM gateway's unix socket, which answers root alone."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import msgspec

from clawdeploy.errors import ClawError
from clawdeploy.money import format_dollars

if TYPE_CHECKING:
    import aiohttp

Answer = TypeVar("Answer")

_SECONDS = 60
_PAGE = 5000
_CHUNK = 1 << 18


class Account(msgspec.Struct, frozen=True):
    """One bot's money, in nano-dollars; ``available`` is None where nothing limits it."""

    bot: str
    spend_limit: str
    balance: int
    held: int
    available: int | None
    spent: int
    period_spent: int
    calls: int

    def as_json(self) -> dict[str, Any]:
        """All of it, and the balance as people write it."""
        return msgspec.structs.asdict(self) | {
            "balance_dollars": format_dollars(self.balance).replace("$", "")
        }


class Call(msgspec.Struct, frozen=True):
    """One call of a bot; ``at`` is Unix seconds, ``charged`` and ``held`` are nano-dollars."""

    id: int
    at: float
    model: str
    state: Literal["open", "unknown", "settled"]
    how: str | None
    charged: int
    held: int
    prompt_tokens: int | None
    completion_tokens: int | None
    generation: str | None


class Price(msgspec.Struct, frozen=True):
    """What a model costs at most: USD per million tokens, and per call."""

    model: str
    source: Literal["operator", "table"]
    fetched: float | None
    prompt: str
    completion: str
    request: str


class Opening(msgspec.Struct, frozen=True):
    """An account to be: ``opening`` is its first entry (nano), ``spend_limit`` None leaves it as it is."""

    bot: str
    opening: int | None = None
    spend_limit: str | None = None


class Opened(msgspec.Struct, frozen=True):
    bot: str
    changed: bool
    before: Account | None
    after: Account


class _OpenedAll(msgspec.Struct, frozen=True):
    changed: bool
    accounts: list[Opened]


class ToppedUp(msgspec.Struct, frozen=True):
    changed: bool
    before: Account
    after: Account


class Books(msgspec.Struct, frozen=True):
    """The result of a check of all books, and how much there was to check."""

    ok: bool
    problems: list[str]
    accounts: int
    entries: int
    calls: int


class _Accounts(msgspec.Struct, frozen=True):
    accounts: list[Account]


class _Calls(msgspec.Struct, frozen=True):
    calls: list[Call]


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str


class _Refusal(msgspec.Struct, frozen=True):
    error: _Error


class LedgerClient:
    """Every method raises ClawError: the ledger's own refusals, and "gateway_down" when nobody answers."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def accounts(self) -> list[Account]:
        """Every account there ever was, by bot."""
        return self._ask("GET", "/accounts", _Accounts).accounts

    def account(self, bot: str) -> Account:
        """ClawError("no_account") if there is none."""
        return self._ask("GET", f"/accounts/{bot}", Account)

    def open(self, openings: Sequence[Opening], check: bool) -> list[Opened]:
        """Open those accounts that are missing and set spend limits: all or none."""
        request = {"accounts": openings, "check": check}
        return self._ask("POST", "/accounts", _OpenedAll, request).accounts

    def top_up(self, bot: str, amount: int, ref: str, check: bool) -> ToppedUp:
        """Pay ``amount`` nano-dollars in, once for each ``ref``; ClawError("ref_used")."""
        request = {"amount": amount, "ref": ref, "check": check}
        return self._ask("POST", f"/accounts/{bot}/top-ups", ToppedUp, request)

    def calls(self, bot: str, since: float, until: float) -> list[Call]:
        """The bot's calls that began in [since, until), oldest first."""
        calls: list[Call] = []
        while True:
            after = calls[-1].id if calls else 0
            query = f"since={since}&until={until}&after={after}&limit={_PAGE}"
            page = self._ask("GET", f"/accounts/{bot}/calls?{query}", _Calls).calls
            calls += page
            if len(page) < _PAGE:
                return calls

    def price(self, model: str | None) -> Price:
        """The price of a model, or of the one that the host's bots use; ClawError("no_price")."""
        from urllib.parse import urlencode

        return self._ask("GET", f"/price?{urlencode({'model': model})}" if model else "/price", Price)

    def verify(self) -> Books:
        """Check all books."""
        return self._ask("GET", "/verify", Books)

    def copy(self, target: Path) -> None:
        """Write a consistent copy of all books to ``target``, which must not exist yet (0600)."""
        asyncio.run(self._download("/copy", target))

    def adopt(self, copy: Path, keep_balances: bool) -> list[Account]:
        """Fill the empty books of this host from a copy; without ``keep_balances`` all balances become 0.

        ClawError("ledger_in_use") if they are not empty, "books_damaged" if the copy is not in order.
        """
        query = "keep" if keep_balances else "write_off"
        with copy.open("rb") as body:
            return self._judged(_Accounts, "PUT", f"/copy?balances={query}", body).accounts

    def _ask(self, method: str, path: str, kind: type[Answer], request: Any = None) -> Answer:
        body = None if request is None else msgspec.json.encode(request)
        return self._judged(kind, method, path, body)

    def _judged(self, kind: type[Answer], method: str, path: str, body: bytes | BinaryIO | None) -> Answer:
        status, raw = asyncio.run(self._exchange(method, path, body))
        try:
            if status != 200:
                error = msgspec.json.decode(raw, type=_Refusal).error
                raise ClawError(error.code, error.message)
            return msgspec.json.decode(raw, type=kind)
        except msgspec.DecodeError as error:
            raise ClawError(
                "gateway_strange",
                f"the LLM gateway gave an answer of another release ({error}): run prepare_host again.",
            ) from None

    async def _exchange(self, method: str, path: str, body: bytes | BinaryIO | None) -> tuple[int, bytes]:
        async with self._answer(method, path, body) as response:
            return response.status, await response.read()

    async def _download(self, path: str, target: Path) -> None:
        async with self._answer("GET", path, None) as response:
            if response.status != 200:
                error = msgspec.json.decode(await response.read(), type=_Refusal).error
                raise ClawError(error.code, error.message)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                async for chunk in response.content.iter_chunked(_CHUNK):
                    file.write(chunk)

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: bytes | BinaryIO | None
    ) -> "AsyncIterator[aiohttp.ClientResponse]":
        import aiohttp  # takes longer to import than most verbs to run

        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(str(self._socket)),
                    timeout=aiohttp.ClientTimeout(total=None, sock_read=_SECONDS),
                ) as session,
                session.request(method, f"http://ledger/v1{path}", data=body) as response,
            ):
                yield response
        except (aiohttp.ClientError, TimeoutError):
            raise ClawError(
                "gateway_down",
                "the LLM gateway, who keeps the balances, does not answer: "
                "`systemctl status clawdeploy-llm-gateway`.",
            ) from None
