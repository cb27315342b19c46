"""Module: what Telegram says about bot tokens."""

DOCUMENTATION = """
module: telegram_bot_info
author: clawDeploy contributors (@clawdeploy)
short_description: Ask Telegram about bot tokens
version_added: 0.1.0
description:
  - Calls C(getMe) and C(getWebhookInfo) for all tokens at the same time.
  - Never calls C(getUpdates), which would take messages away from whoever polls the token.
  - A token that cannot be used is reported, not a failure. No text in the result holds a token.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
  - clawdeploy.fleet.attributes.read_only
options:
  tokens:
    description: Tokens of Telegram bots.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds to wait for each answer.
    type: int
    default: 10
"""

EXAMPLES = """
- name: Ask Telegram about a token
  clawdeploy.fleet.telegram_bot_info:
    tokens: ["{{ token }}"]
  no_log: true
"""

RETURN = """
bots:
  description:
    - For each token, in the same order, C(state), C(username), C(telegram_id) and C(detail), for people.
    - The state is V(ok), V(malformed), V(refused) by Telegram, V(unreachable) or V(webhook) when another
      service receives the bot's messages.
  type: list
  elements: dict
  returned: success
"""

import json
import re
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import ConnectionError as UrlConnectionError
from ansible.module_utils.urls import open_url

API = "https://api.telegram.org"
# The token becomes part of a URL, so nothing else may pass.
TOKEN = re.compile(r"[0-9]{1,16}:[A-Za-z0-9_-]{1,64}")


class TelegramError(Exception):
    """A token cannot be used now: state and a sentence without the token."""

    def __init__(self, state: str, detail: str) -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail


def ask(token: str, method: str, timeout: int) -> dict[str, Any]:
    """Result object of one method of the Bot API (https://core.telegram.org/bots/api#making-requests).

    Raises TelegramError; Telegram answers 401 to a token that was revoked and 404 to one it never gave out.
    """
    try:
        with open_url(f"{API}/bot{token}/{method}", timeout=timeout) as answer:
            body = json.load(answer)
    except HTTPError as error:
        if error.code in (401, 404):
            raise TelegramError(
                "refused",
                f"Telegram does not know this token (HTTP {error.code}): get the current one from @BotFather",
            ) from None
        raise TelegramError("unreachable", f"Telegram answered HTTP {error.code}; try again later") from None
    except ssl.SSLError:
        raise TelegramError("unreachable", "the certificate of api.telegram.org cannot be verified") from None
    except (URLError, UrlConnectionError, OSError) as error:
        reason = getattr(error, "reason", error)
        kind = "name cannot be resolved" if isinstance(reason, socket.gaierror) else type(reason).__name__
        raise TelegramError(
            "unreachable", f"api.telegram.org cannot be reached from this host: {kind}"
        ) from None
    except ValueError:
        raise TelegramError("unreachable", "the answer of api.telegram.org is not JSON") from None
    result = body.get("result") if isinstance(body, dict) else None
    if not isinstance(result, dict):
        raise TelegramError("unreachable", "the answer of api.telegram.org is not as documented")
    return result


def inspect(token: str, timeout: int) -> dict[str, Any]:
    """State of one token; never raises."""
    bot: dict[str, Any] = {"state": "ok", "telegram_id": None, "username": None, "detail": ""}
    try:
        if not TOKEN.fullmatch(token):
            raise TelegramError("malformed", "this is not a Telegram bot token")
        me = ask(token, "getMe", timeout)
        bot.update(telegram_id=me["id"], username=me["username"])
        hook = ask(token, "getWebhookInfo", timeout).get("url")
        if hook:
            where = urlsplit(hook).hostname  # never the path: services put the token there
            raise TelegramError(
                "webhook",
                f"another service receives this bot's messages (webhook at {where}): remove it there "
                "(deleteWebhook) or create another bot",
            )
    except TelegramError as error:
        bot.update(state=error.state, detail=error.detail)
    return bot


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "tokens": {"type": "list", "elements": "str", "required": True, "no_log": True},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    tokens, timeout = module.params["tokens"], module.params["timeout"]
    with ThreadPoolExecutor(max_workers=16) as pool:
        bots = list(pool.map(lambda token: inspect(token, timeout), tokens))
    module.exit_json(changed=False, bots=bots)


if __name__ == "__main__":
    main()
