"""The gateway's settings: one JSON file written by the role ``llm_gateway``."""

import ipaddress
from pathlib import Path
from typing import Any

import msgspec

Network = ipaddress.IPv4Network


class ConfigError(Exception):
    """The settings cannot be used; the message names the file, the setting and the fix."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the process needs to know; sizes in bytes, times in seconds, money in dollars.

    ``lookup_delays``: when, after a call whose cost is unknown, OpenRouter is asked about it; then the bound
    is charged. ``price``: the operator's own for ``model``, USD per million tokens (``prompt``,
    ``completion``) and per call (``request``). ``event_command``: arguments of the operator's hook; none if
    empty.
    """

    address: str
    port: int
    base_url: str
    api_key_file: Path
    model: str
    keys_file: Path
    remote_keys_file: Path
    bot_pool: Network
    max_body_bytes: int
    calls_per_bot: int
    calls_per_minute: int
    max_tokens: int
    connect_timeout: float
    read_timeout: float
    drain_timeout: float
    call_timeout: float
    stop_timeout: float
    attempts: int
    lookup_delays: tuple[float, ...]
    ledger_file: Path
    prices_file: Path
    price: dict[str, str] | None
    price_refresh: float
    low_balance: str
    top_up_hint: str
    event_command: tuple[str, ...]
    admin_socket: Path
    metrics_port: int

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Read the JSON object in ``path``, whose members are exactly this class's fields.

        Raises ConfigError when the file cannot be read or is not such an object.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls, dec_hook=decode_type)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{path}: {error}; run prepare_host again") from error


def decode_type(wanted: type, value: Any) -> Any:
    """msgspec's ``dec_hook``: paths and networks are strings in JSON. Raises ValueError otherwise."""
    if wanted is Network and isinstance(value, str):
        return Network(value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(wanted)


def read_api_key(path: Path) -> str:
    """The server's OpenRouter key: the text of ``path`` without surrounding white space.

    Raises ConfigError when it cannot be read or is not one word; the message never holds the key.
    """
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"OpenRouter key: {path} cannot be read ({type(error).__name__})") from None
    if not key or any(character.isspace() for character in key):
        raise ConfigError(f"OpenRouter key: {path} must hold one line with the key; run prepare_host again")
    return key
