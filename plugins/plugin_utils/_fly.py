"""A bot at Fly.io: what a user may ask for, what follows from it, and its card. Pure functions."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._entries import (
    READERS,
    SettingError,
    read_text,
)
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._names import unknown_names

# How its people reach it. Not both: nothing at Fly.io keeps strangers away from an agent's other paths.
REACH = ("telegram", "http")
MOST_SUSPENDABLE = 2048  # MB; larger machines can be stopped only
PER_CPU = {"shared-cpu": ("shared", 256, 2048), "performance": ("performance", 2048, 8192)}
CPUS = {"shared-cpu": (1, 2, 4, 6, 8), "performance": (1, 2, 4, 6, 8, 10, 12, 14, 16)}
_SIZE = re.compile(r"(shared-cpu|performance)-([0-9]{1,2})x")
_REGION = re.compile(r"[a-z]{3}")
_HOSTNAME = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]")

AUTOSTOP_OFF = (
    "it asks Telegram for messages, which Fly.io's proxy does not see: asleep, it would sleep for ever"
)
AUTOSTOP_ON = "it is reached by HTTP alone, and a request wakes it up"


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        text = read_text(value)
        if not text.isdecimal() or not least <= int(text) <= most:
            raise SettingError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return read


def _matching(pattern: re.Pattern[str], example: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        text = read_text(value)
        if not pattern.fullmatch(text):
            raise SettingError(f"{text!r} cannot be; write for example {example}")
        return text

    return read


def _reach(value: Any) -> str:
    text = read_text(value)
    if text not in REACH:
        raise SettingError(f"{text!r} is neither telegram nor http")
    return text


SHARED = (
    "token",
    "bot_name",
    "owner",
    "agent",
    "bot_image",
    "bot_config",
    "open_to_all",
    "balance",
    "spend_limit",
)
FLY_READERS: dict[str, Callable[[Any], Any]] = {
    **{name: READERS[name] for name in SHARED},
    "region": _matching(_REGION, "fra (fly.io/docs/reference/regions)"),
    "size": _matching(_SIZE, "shared-cpu-1x"),
    "memory_mb": _whole(256, 131072),
    "volume_gb": _whole(1, 500),
    "reach": _reach,
    "hostname": _matching(_HOSTNAME, "support.example.com"),
}
OPTIONS = tuple(FLY_READERS)
# Settings that stay as they were unless the user names them. `bot_config` is kept with the secrets.
KEPT = ("owner", "open_to_all", "bot_image", "region", "size", "memory_mb", "volume_gb", "reach", "hostname")
DEFAULTS = {
    "region": "fra",
    "size": "shared-cpu-1x",
    "volume_gb": 1,
    "reach": "telegram",
    "open_to_all": False,
}


def plan(
    entry: Mapping[str, Any],
    remotes: Sequence[Mapping[str, Any]],
    agents: Mapping[str, Mapping[str, Any]],
    default_agent: str,
) -> tuple[dict[str, Any], list[str]]:
    """What the bot is to be, and the problems of all settings, one sentence each.

    ``remotes`` are the bots that run elsewhere already, as ``clawctl remote list`` has them; ``agents`` those
    that can run at Fly.io, by name, with ``image``, ``memory_mb`` and ``owner_names``; ``default_agent`` that
    of a new bot which names none.
    """
    asked, problems = _read(entry)
    if problems:
        return {}, problems
    telegram_id = int(asked["token"].partition(":")[0])
    before = next((one for one in remotes if one["telegram_id"] == telegram_id), None)
    old: Mapping[str, Any] = before["settings"] if before else {}
    if asked["owner"] and asked["open_to_all"] is None:
        asked["open_to_all"] = False
    if asked["open_to_all"] and not asked["owner"]:
        old = {name: value for name, value in old.items() if name != "owner"}
    found = {name: old.get(name) if asked[name] is None else asked[name] for name in KEPT}
    found = {name: DEFAULTS.get(name) if value is None else value for name, value in found.items()}
    name = asked["bot_name"] or (before["name"] if before else f"bot-{telegram_id}")
    agent = asked["agent"] or (before["agent"] if before else default_agent)
    if agent not in agents:
        return {}, [f"agent: {agent!r} cannot run at Fly.io; agents that can: {', '.join(sorted(agents))}"]
    profile = agents[agent]
    problems += _review(found, agent, profile)
    kind, cpus, memory, more = _guest(found, profile["memory_mb"])
    problems += more
    app = old.get("app") or f"claw-{name}"
    if len(app) > 63:
        problems.append(f"bot_name: {name!r} is too long; at Fly.io it can have 58 characters")
    http = found["reach"] == "http"
    autostop = ("suspend" if memory <= MOST_SUSPENDABLE else "stop") if http else "off"
    return {
        **found,
        "token": asked["token"],
        "telegram_id": telegram_id,
        "name": name,
        "agent": agent,
        "app": app,
        "bot_image": found["bot_image"] or profile["image"],
        "bot_config": asked["bot_config"],
        "balance": asked["balance"],
        "spend_limit": asked["spend_limit"],
        "guest": {"cpu_kind": kind, "cpus": cpus, "memory_mb": memory},
        "memory_mb": memory,
        "autostop": autostop,
        "autostop_reason": AUTOSTOP_ON if http else AUTOSTOP_OFF,
        "url": f"https://{found['hostname'] or f'{app}.fly.dev'}/",
        "known": before is not None,
        "active": before is not None and before["state"] == "active",
    }, problems


def settings(bot: Mapping[str, Any]) -> dict[str, Any]:
    """What the host remembers of a plan for the next one."""
    return {"app": bot["app"], **{name: bot[name] for name in KEPT}}


def _read(entry: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    problems = unknown_names(entry, OPTIONS)
    asked: dict[str, Any] = dict.fromkeys(OPTIONS)
    for name in OPTIONS:
        value = entry.get(name)
        if name != "token" and (value is None or value == ""):
            continue
        try:
            asked[name] = FLY_READERS[name]("" if value is None else value)
        except SettingError as error:
            problems.append(f"{name}: {error}")
    if asked["owner"] and asked["open_to_all"]:
        problems.append(f"open_to_all: contradicts owner {asked['owner']!r}; give one of the two")
    return asked, problems


def _review(found: Mapping[str, Any], agent: str, profile: Mapping[str, Any]) -> list[str]:
    problems = []
    owner = found["owner"]
    if found["reach"] == "telegram" and not owner and not found["open_to_all"]:
        problems.append(
            "owner: nobody could talk to the bot, for claim links are made on a VPS only; give "
            "owner=<Telegram user id>, or open_to_all=true"
        )
    if owner and owner.startswith("@") and not profile["owner_names"]:
        problems.append(f"owner: {agent} knows people by their number, not as {owner}; give the user id")
    if found["hostname"] and found["reach"] != "http":
        problems.append("hostname: only a bot with reach=http has one")
    return problems


def _guest(found: Mapping[str, Any], least: int) -> tuple[str, int, int, list[str]]:
    """Kind and number of CPUs, memory in MB, and problems."""
    name, number = found["size"].removesuffix("x").rsplit("-", 1)
    kind, low, high = PER_CPU[name]
    cpus = int(number)
    if cpus not in CPUS[name]:
        sizes = ", ".join(f"{name}-{n}x" for n in CPUS[name])
        return kind, cpus, 0, [f"size: {found['size']!r} does not exist; there are {sizes}"]
    memory = found["memory_mb"] or max(low * cpus, least)
    problems = []
    if memory % 256 or not low * cpus <= memory <= high * cpus:
        problems.append(
            f"memory_mb: {memory} does not go with {found['size']}; it takes multiples of 256 from "
            f"{low * cpus} to {high * cpus}"
        )
    elif memory < least:
        problems.append(f"memory_mb: {memory} is too little for this agent; it needs {least}")
    return kind, cpus, memory, problems


def render(bot: Mapping[str, Any], support: str) -> str:
    """The card of a bot at Fly.io, for a terminal.

    ``bot`` is a plan with ``id``, ``telegram_username``, ``account``, ``talk`` and ``gateway_token`` (empty
    where there is nothing to use it for, None where it was shown before).
    """
    guest, account = bot["guest"], bot["account"]
    access = "everybody" if bot["open_to_all"] else f"only {bot['owner']}"
    sleeps = "off" if bot["autostop"] == "off" else f"on ({bot['autostop']})"
    paid = f"${account['balance_dollars']}" if account["spend_limit"] == "prepaid" else account["spend_limit"]
    http = bot["reach"] == "http"
    rows = [
        ("Bot", f"{bot['name']} (@{bot['telegram_username']}, id {bot['id']})"),
        ("Runs at", f"Fly.io, app {bot['app']}, region {bot['region']}"),
        ("Size", f"{bot['size']}, {guest['memory_mb']} MB memory, {bot['volume_gb']} GB disk"),
        ("Autostop", f"{sleeps}: {bot['autostop_reason']}"),
        ("URL", bot["url"] if http else "none: nothing is open to the internet"),
        ("Gateway token", (bot["gateway_token"] or "unchanged (shown only once)") if http else ""),
        ("Agent", f"{bot['agent']}, {bot['bot_image']}"),
        ("Telegram", "not connected" if http else access),
        ("Balance", f"{paid} for its model; more: clawctl top-up {bot['name']} 5.00 --ref NAME, on the VPS"),
        ("Support", support),
    ]
    lines = [f"{name + ':':<15}{value}" for name, value in rows if value]
    if http:
        lines += ["", "Talk to it:", *(f"  {line}" for line in bot["talk"].strip().splitlines())]
    else:
        lines += ["", f"Talk to it: https://t.me/{bot['telegram_username']}"]
    rule = "─" * min(100, max(map(len, lines)))
    return "\n".join([rule, *lines, rule])
