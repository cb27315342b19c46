"""The deploy card: what a person needs to know about the bots just deployed. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

# Shown where a secret is not known any more.
KEPT = "unchanged (shown only once; a new one: -e rotate_gateway_token=true)"


def _limits(limits: Mapping[str, Any]) -> str:
    memory = int(limits["memory_limit"]) // 2**20
    disk = int(limits["disk_size"]) // 2**20
    return (
        f"{limits['cpus']:g} CPU, {memory} MiB memory, {disk} MiB disk, "
        f"{limits['rate_limit_rps']} requests/s (burst {limits['rate_limit_burst']})"
    )


def _access(bot: Mapping[str, Any]) -> str:
    if bot["open_to_all"]:
        return "everybody"
    return f"only {bot['owner']}" if bot["owner"] else "nobody until it is claimed"


def _account(bot: Mapping[str, Any]) -> str:
    account = bot["account"]
    if account["spend_limit"] == "prepaid":
        return f"${account['balance_dollars']} for its model; more: ansible-playbook playbooks/top_up_bot.yml"
    if account["spend_limit"] == "unlimited":
        return "none needed: you pay for whatever its model costs"
    return f"none needed: you pay for its model, up to ${account['spend_limit']}"


def _claim(bot: Mapping[str, Any]) -> str:
    """How to become the owner; empty if the bot has one or needs none."""
    claim = bot["claim"]
    if bot["open_to_all"] or bot["owner"]:
        return ""
    if claim.get("link"):
        return f"{claim['link']} (works once, until {claim['expires']})"
    again = f"clawctl claims new {bot['id']}"
    return f"its link was shown before (valid until {claim['expires']}); a new one, on the host: {again}"


def _memories(bot: Mapping[str, Any]) -> str:
    """What it was given to know; empty if nothing."""
    known = bot.get("memories")
    if not known:
        return ""
    return f"{known['notes']} notes of {known['label']} ({known['agent']}), from {len(known['files'])} files"


def _steps(bot: Mapping[str, Any], support: str) -> list[str]:
    claim = bot["claim"]
    steps = []
    if not bot["open_to_all"] and not bot["owner"] and claim.get("link"):
        steps.append(f"Open {claim['link']} in Telegram and press Start: whoever does it first owns the bot.")
    else:
        steps.append(f"Write to https://t.me/{bot['telegram_username']} in Telegram.")
    if bot["gateway_token"]:
        steps.append("Keep the gateway token in a safe place; it is not shown again.")
    if support:
        steps.append(f"Questions: {support}")
    return steps


def _card(bot: Mapping[str, Any], support: str) -> list[str]:
    rows = [
        ("Bot", f"{bot['label']} (@{bot['telegram_username']}, id {bot['id']})"),
        ("URL", bot["url"]),
        ("Gateway token", bot["gateway_token"] or KEPT),
        ("Agent", f"{bot['agent']}, plan {bot['plan']}"),
        ("Limits", _limits(bot["limits"])),
        ("Balance", _account(bot)),
        ("Telegram", _access(bot)),
        ("Claim", _claim(bot)),
        ("Memory", _memories(bot)),
        ("Support", support),
    ]
    lines = [f"{name + ':':<15}{value}" for name, value in rows if value]
    lines += ["", "Talk to it:", *(f"  {line}" for line in bot["talk"].strip().splitlines())]
    lines += ["", "Next steps:", *(f"  {n}. {step}" for n, step in enumerate(_steps(bot, support), 1))]
    return lines


def _list(bots: Sequence[Mapping[str, Any]], support: str) -> list[str]:
    lines = [f"{len(bots)} bots"]
    for bot in bots:
        lines += ["", f"{bot['label']} (@{bot['telegram_username']})  {bot['url']}"]
        lines.append(f"  token: {bot['gateway_token'] or KEPT}")
        if known := _memories(bot):
            lines.append(f"  memory: {known}")
        if claim := _claim(bot):
            lines.append(f"  claim: {claim}")
    return [*lines, *(["", f"Questions: {support}"] if support else [])]


def render(bots: Sequence[Mapping[str, Any]], support: str) -> str:
    """Text for a terminal: one full card, or a compact list of several bots.

    Each bot has the keys of clawctl's ``declare`` answer that people may see, and ``talk``, the lines that
    show how to talk to its agent. ``support`` is an address or empty. A gateway token appears only if new.
    """
    lines = _card(bots[0], support) if len(bots) == 1 else _list(bots, support)
    rule = "─" * min(100, max(map(len, lines)))
    return "\n".join([rule, *lines, rule])
