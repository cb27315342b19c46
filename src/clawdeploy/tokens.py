"""Random identities and secrets, and the one way they are hashed."""

import secrets
import string
from collections.abc import Container

_ID_ALPHABET = string.ascii_lowercase + string.digits
ID_PATTERN = r"^[a-z0-9]{12}$"


def new_bot_id(taken: Container[str]) -> str:
    """A random bot id, 12 characters of [a-z0-9] (62 bits), that is not in ``taken``."""
    while True:
        bot_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))
        if bot_id not in taken:
            return bot_id


# The prefixes keep a token from ever looking like bare hex, which NullClaw would take for a hash.
def new_gateway_token() -> str:
    """What a customer uses to talk to the bot over HTTPS."""
    return f"cg_{secrets.token_urlsafe(32)}"


def new_llm_key() -> str:
    """What a bot uses at our LLM gateway."""
    return f"sk-claw-{secrets.token_urlsafe(32)}"


def new_internal_token() -> str:
    """What the edge shows the agent once it has checked the gateway token."""
    return f"ci_{secrets.token_urlsafe(32)}"


def new_claim_code() -> str:
    """The one-time code of an owner claim (22 characters; Telegram allows 64 of [A-Za-z0-9_-])."""
    return secrets.token_urlsafe(16)


def sha256_hex(secret: str) -> str:
    """Hash of a random secret as the edge computes it (``sha2(256),hex,lower``); 128+ bits need no salt."""
    from passlib.hash import hex_sha256  # two megabytes, which those that hash nothing need not have

    return str(hex_sha256.hash(secret))
