"""What happened to bots, for the operator to read later: an append-only list that outlives the bots.

An event never holds a secret, a token or a word that somebody said to a bot.
"""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from clawdeploy.models import Bot, Remote
    from clawdeploy.store import RegistryStore

PAGE = 1000
_POLL_SECONDS = 0.5


class Event(msgspec.Struct, frozen=True):
    """``at`` is Unix seconds; ``bot`` (id) and ``label`` are None where the event is the whole host's."""

    id: int
    at: float
    bot: str | None
    label: str | None
    kind: str
    message: str
    details: dict[str, Any]


def record(
    store: "RegistryStore",
    kind: str,
    bot: "Bot | Remote | None",
    message: str,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Append an event; it is kept until 100,000 newer ones have come."""
    store.add_event(
        time.time(), bot.id if bot else None, bot.label if bot else None, kind, message, dict(details or {})
    )


def follow(store: "RegistryStore", reference: str | None, after: int) -> Iterator[Event]:
    """Events newer than number ``after`` as they come, without end; ``reference``: of one bot only."""
    while True:
        found = store.events(reference, after=after, limit=PAGE)
        yield from found
        after = found[-1].id if found else after
        if not found:
            time.sleep(_POLL_SECONDS)
