"""What the tests of the profiles share: a bot as the role sees it, and what a profile makes of it."""

from typing import Any

from tests.unit.plugins.conftest import Evaluate

HOST = {
    "llm_gateway_url": "http://10.201.255.1:8788/api/v1",
    "openrouter_model": "openai/gpt-4o-mini",
    "cgroup_parent": "",
    "support_email": "help@example.com",
}
BOT: dict[str, Any] = {
    "id": "abcdefghij01",
    "label": "mybot",
    "url": "https://mybot.bots.example.com/",
    "telegram_username": "my_bot",
    "agent": "nullclaw",
    "uid": 200000,
    "subnet": "10.200.0.0/28",
    "host_address": "10.200.0.1",
    "address": "10.200.0.2",
    "limits": {
        "cpus": 0.5,
        "memory_limit": 67108864,
        "pids_limit": 64,
        "nofile_limit": 1024,
        "disk_size": 1073741824,
    },
    "owner": "4242",
    "open_to_all": False,
    "image": "ghcr.io/nullclaw/nullclaw:v2026.5.29",
    "image_digest": None,
    "token": "123456789:" + "A" * 35,
    "llm_key": "sk-claw-" + "k" * 43,
    "internal_token": "ci_" + "t" * 43,
    "balance": None,
    "spend_limit": None,
    "bot_env": {},
    "bot_config": {},
    "tools": [],
}


def home_of(evaluate: Evaluate, bot: dict[str, Any]) -> dict[str, Any]:
    """The files of the bot's home, as they are handed to clawctl."""
    value: dict[str, Any] = evaluate("__bot_home", bot=bot, __bot_look={"host": HOST})
    return value


def run_of(evaluate: Evaluate, bot: dict[str, Any]) -> dict[str, Any]:
    """What clawctl is told to run for the bot."""
    value: dict[str, Any] = evaluate(
        "__bot_to_run",
        bot=bot,
        __bot_look={"host": HOST},
        __bot_homes={"bots": [{"id": bot["id"], "config_hash": "c" * 64}]},
        __bot_pinned={bot["image"]: "sha256:" + "a" * 64},
        bot_default_balance="1.00",
    )
    return value
