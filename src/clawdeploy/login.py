"""One-time links into an agent's web interface, made by the agent and turned into public ones."""

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from clawdeploy.errors import ClawError
from clawdeploy.models import Bot, Login

if TYPE_CHECKING:
    from clawdeploy.engine import Engine

# Where the agent believes to be reached, as it is and as it looks inside a query or a fragment.
_LOCAL = re.compile(
    r"(http|ws)(://|%3A%2F%2F)(?:127\.0\.0\.1|localhost)(?:(?::|%3A)[0-9]{1,5})?", re.IGNORECASE
)


def public_link(link: str, origin: str) -> str:
    """The link with every local address in it replaced by the bot's ``origin`` (https), and ws by wss."""
    host = urlsplit(origin).netloc

    def public(found: re.Match[str]) -> str:
        plain = f"{found[1].lower()}s://{host}"
        return plain if found[2] == "://" else quote(plain, safe="")

    return _LOCAL.sub(public, link)


def make_link(bot: Bot, origin: str, engine: "Engine") -> str:
    """Let the bot's agent make a link and return it as its owner can open it.

    ClawError("no_login") if the agent has no web interface, "login_failed" if it made no link, and what
    ``Engine.run`` says.
    """
    login = bot.edge.login
    if login is None:
        raise ClawError("no_login", f"{bot.label} runs {bot.agent}, which has no web interface.")
    return public_link(_field(bot, login, engine.run(bot.id, login.command)), origin)


def _field(bot: Bot, login: Login, output: bytes) -> str:
    try:
        answer: Any = json.loads(output)
        link = answer[login.field]
    except (ValueError, KeyError, TypeError):
        link = None
    if not isinstance(link, str) or not link:
        # The output itself may hold a key to the bot.
        raise ClawError(
            "login_failed",
            f"the agent of {bot.label} made no link ({login.field} is missing in what it printed): wait "
            f"until `clawctl wait {bot.label}` finds it healthy, then try again.",
        )
    return link
