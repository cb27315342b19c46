"""What the model costs: OpenRouter's own table, kept on disk, or what the operator says. Never a guess.

The table is ``GET {base_url}/models``: strings, USD per token, request or unit
(https://openrouter.ai/docs/overview/models). They are the top provider's prices; ``provider.max_price`` sent
with each call keeps OpenRouter from using a dearer one.
"""

import logging
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import aiohttp
import msgspec

from clawdeploy.files import write_atomic
from clawdeploy.ledger import FEMTO
from clawdeploy.money import ceil_units

log = logging.getLogger(__name__)

_MILLION = 1_000_000
_REQUEST_SECONDS = 60
# Dollars for one token, picture or request that nobody would believe; bounds made of them fit the ledger.
_MOST_DOLLARS = 100


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """The dearest that one call may become, in femto-dollars: per token of question and answer, and per call.

    ``cap_prompt``: the dearest price of a plain prompt token, for ``provider.max_price``, which does not know
    what writing to a provider's cache costs.
    """

    prompt: int
    completion: int
    request: int
    image: int
    cap_prompt: int

    def max_price(self) -> dict[str, float]:
        """``provider.max_price``: USD per million tokens, and per request."""
        cap = {
            "prompt": _dollars(self.cap_prompt * _MILLION),
            "completion": _dollars(self.completion * _MILLION),
        }
        return cap | {"request": _dollars(self.request)} if self.request else cap

    def describe(self) -> dict[str, str]:
        """For people: USD per million tokens and per request, as decimal strings."""
        return {
            "prompt": _decimal(self.prompt * _MILLION),
            "completion": _decimal(self.completion * _MILLION),
            "request": _decimal(self.request),
        }


def _dollars(femto: int) -> float:
    return float(Decimal(femto) / FEMTO)


def _decimal(femto: int) -> str:
    return f"{(Decimal(femto) / FEMTO).normalize():f}"


def _femto(dollars: Decimal) -> int:
    return ceil_units(dollars, FEMTO)


class _Override(msgspec.Struct):
    prompt: Decimal | None = None
    completion: Decimal | None = None
    request: Decimal | None = None
    input_cache_write: Decimal | None = None
    internal_reasoning: Decimal | None = None


class _Pricing(_Override):
    image: Decimal | None = None
    overrides: list[_Override] = []


class _Model(msgspec.Struct):
    id: str
    pricing: _Pricing | None = None


class _Table(msgspec.Struct):
    data: list[msgspec.Raw]


class _Kept(msgspec.Struct):
    """The file: when the table was fetched (Unix seconds), and every model's price."""

    fetched: float
    prices: dict[str, Price]


def read_table(raw: bytes) -> dict[str, Price]:
    """Prices by model, of an answer of ``/models``; models whose price makes no sense are left out.

    Raises msgspec.DecodeError when it is no such answer.
    """
    prices = {}
    for item in msgspec.json.decode(raw, type=_Table).data:
        try:
            model = msgspec.json.decode(item, type=_Model)
        except msgspec.ValidationError:
            continue  # one odd model must not hide the others
        if price := _dearest(model.pricing):
            prices[model.id] = price
    return prices


def _dearest(pricing: _Pricing | None) -> Price | None:
    """The dearest of everything the table says about a model; None if it does not say enough.

    A negative price is OpenRouter's way to say that it varies (its routers have -1).
    """
    if pricing is None or pricing.prompt is None or pricing.completion is None:
        return None
    steps = [pricing, *pricing.overrides]
    prompt = [step.prompt for step in steps]
    cache = [step.input_cache_write for step in steps]
    answer = [price for step in steps for price in (step.completion, step.internal_reasoning)]
    request = [step.request for step in steps]
    given = [price for price in (*prompt, *cache, *answer, *request, pricing.image) if price is not None]
    if not all(price.is_finite() and 0 <= price <= _MOST_DOLLARS for price in given):
        return None
    return Price(
        prompt=_most([*prompt, *cache]),
        completion=_most(answer),
        request=_most(request),
        image=_most([pricing.image]),
        cap_prompt=_most(prompt),
    )


def _most(prices: list[Decimal | None]) -> int:
    return max((_femto(price) for price in prices if price is not None), default=0)


def operators_price(price: Mapping[str, str] | None) -> Price | None:
    """The operator's own: USD per million tokens (``prompt``, ``completion``) and per call (``request``)."""
    if price is None:
        return None
    prompt = _femto(Decimal(price["prompt"]) / _MILLION)
    return Price(
        prompt=prompt,
        completion=_femto(Decimal(price["completion"]) / _MILLION),
        request=_femto(Decimal(price.get("request", "0"))),
        image=0,
        cap_prompt=prompt,
    )


class Prices:
    """Prices by model: the operator's, or the table's, which outlives restarts and OpenRouter's bad days."""

    def __init__(self, file: Path, model: str, own: Price | None) -> None:
        """``own``: the operator's price of ``model``, which wins over the table's."""
        self._file = file
        self._model = model
        self._own = own
        self._kept = _read_kept(file)

    def find(self, model: str) -> Price | None:
        """The price of a model, or None: then nobody may call it."""
        if model == self._model and self._own is not None:
            return self._own
        return self._kept.prices.get(model)

    def describe(self, model: str) -> dict[str, object] | None:
        """A model's price for people, and where it comes from."""
        price = self.find(model)
        if price is None:
            return None
        own = price is self._own
        return {
            "model": model,
            "source": "operator" if own else "table",
            "fetched": None if own else self._kept.fetched,
            **price.describe(),
        }

    async def refresh(self, session: aiohttp.ClientSession, url: str) -> None:
        """Fetch the table and keep it.

        Raises aiohttp.ClientError, TimeoutError, ValueError (not a table) and OSError (used, but not kept).
        """
        timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
        async with session.get(url, timeout=timeout, raise_for_status=True) as answer:
            prices = read_table(await answer.read())
        if not prices:
            raise ValueError("the table has no model with a price")
        self._kept = _Kept(time.time(), prices)
        write_atomic(self._file, msgspec.json.encode(self._kept).decode(), group=-1, owner=-1)


def _read_kept(file: Path) -> _Kept:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Kept)
    except FileNotFoundError:
        return _Kept(0, {})
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s cannot be used (%s); prices are fetched anew", file, error)
        return _Kept(0, {})
