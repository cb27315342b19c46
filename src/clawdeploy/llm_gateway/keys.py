"""Which LLM key belongs to which bot: a file derived from the registry, re-read when it changes."""

import hashlib
import ipaddress
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from clawdeploy.llm_gateway.config import Network, decode_type

log = logging.getLogger(__name__)

# Where this host's HAProxy asks from, on behalf of bots that run elsewhere.
EDGE = ipaddress.IPv4Address("127.0.0.1")


class Bot(msgspec.Struct, frozen=True):
    """What the gateway knows of a bot: its id, the one subnet its key is good from, and its flag.

    ``subnet`` None: it runs elsewhere, and its key is good only from the edge, which is on this host.
    ``refusal``: how its agent is told that there is no money: as an error, or as a message for its user.
    """

    bot: str
    subnet: Network | None
    suspended: bool
    refusal: Literal["message", "error"] = "error"

    def good_from(self, peer: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        """Whether its key is taken from that address."""
        return peer == EDGE if self.subnet is None else peer in self.subnet


class _Keys(msgspec.Struct):
    """The file's content; a key of ``keys`` is the sha256 (hex) of an LLM key."""

    keys: dict[str, Bot]


class KeyFile:
    """The bots that may call, by LLM key.

    The file is replaced by rename, so one stat() per look-up tells whether it must be read again. While it is
    missing or broken nobody is allowed: an old copy could still hold a key that has been taken back.
    """

    def __init__(self, path: Path, pool: Network | None, changed: Callable[[], None]) -> None:
        """``pool``: a subnet outside of it makes the file broken (no slip opens a key to the internet). None:
        the file is that of bots that run elsewhere.
        ``changed``: called whenever they have been read.
        """
        self._path = path
        self._pool = pool
        self._changed = changed
        self._seen: tuple[int, int, int] | str | None = None
        self._bots: dict[str, Bot] = {}

    @property
    def ids(self) -> set[str]:
        """The bots as they were last read."""
        return {bot.bot for bot in self._bots.values()}

    def find(self, key: str) -> Bot | None:
        """The bot whose LLM key this is, or None."""
        self._refresh()
        return self._bots.get(hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest())

    def _refresh(self) -> None:
        state: tuple[int, int, int] | str
        try:
            state = _signature(os.stat(self._path))  # noqa: PTH116 # half the time of Path's, in every call
            if state == self._seen:
                return
            with self._path.open("rb") as file:
                state = _signature(os.fstat(file.fileno()))
                self._bots = self._parse(file.read())
            self._changed()
            log.info("%s read: %d bots", self._path, len(self._bots))
        except OSError as error:
            self._bots = {}
            state = error.strerror or type(error).__name__
            if state != self._seen:
                log.error("%s: %s; no bot is allowed until `clawctl sync` writes it", self._path, state)
        except ValueError as error:
            self._bots = {}
            log.error(
                "%s is broken (%s); no bot is allowed until `clawctl sync` writes it", self._path, error
            )
        self._seen = state

    def _parse(self, raw: bytes) -> dict[str, Bot]:
        bots = msgspec.json.decode(raw, type=_Keys, dec_hook=decode_type).keys
        for bot in bots.values():
            inside = bot.subnet is not None and self._pool is not None and bot.subnet.subnet_of(self._pool)
            if not inside and (bot.subnet, self._pool) != (None, None):
                raise ValueError(f"bot {bot.bot}: subnet {bot.subnet} is outside of the pool {self._pool}")
        return bots


def _signature(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
