"""The demo: a VPS in a container becomes a host, a bot is deployed on it, and somebody talks to the bot.

`python -m tests.demo up` shows all of it, `python -m tests.demo down` removes everything it made.
"""

import asyncio
import json
import re
import sys
import time
from typing import Any

from rich.console import Console

from tests import lab
from tests.customer import TelegramUser, internet
from tests.playbooks import OPERATOR, write_env
from tests.stage import play, prepare
from tests.standin.build import build_image

TOKEN = "7000000042:AAdemoDemoDemoDemoDemoDemoDemoDemo0"
RESULT = OPERATOR / "result.json"
# The gateway token is shown once; the demo is its customer and keeps it.
GATEWAY_TOKEN = OPERATOR / "gateway-token"

# So little that a few messages use it up: dollars, at the fixed model's price.
BALANCE = "0.002"
MOST_MESSAGES = 50

console = Console(highlight=False, soft_wrap=True)


async def talk(bot: dict[str, Any], gateway_token: str) -> None:
    """Claim the bot if it has no owner, write to it on Telegram and over HTTPS, and show both answers."""
    async with TelegramUser(bot["telegram_id"]) as user, internet(lab.vps().host.address) as web:
        if link := bot["claim"].get("link"):
            await user.write(f"/start {link.partition('start=')[2]}")
            console.print(f"[green]✓[/green] Telegram, claim link opened → [cyan]{await user.read()}[/cyan]")
        # The bot restarts once it has an owner; Telegram keeps the message until it polls.
        await user.write("Hello over Telegram")
        console.print(
            f"[green]✓[/green] Telegram, “Hello over Telegram” → [cyan]{await user.read(wait=45)}[/cyan]"
        )
        async with web.post(
            f"{bot['url']}webhook",
            json={"message": "Hello over HTTPS"},
            headers={"Authorization": f"Bearer {gateway_token}"},
        ) as response:
            response.raise_for_status()
            answer = (await response.json())["response"]
        console.print(f"[green]✓[/green] {bot['url']}webhook, “Hello over HTTPS” → [cyan]{answer}[/cyan]")


async def drain(bot: dict[str, Any]) -> None:
    """Write to the bot until its balance is used up, and show what it says then."""
    async with TelegramUser(bot["telegram_id"]) as user:
        for number in range(1, MOST_MESSAGES + 1):
            await user.write("Tell me more")
            answer = await user.read()
            if "used up" in answer:
                console.print(f"[green]✓[/green] message {number} → [cyan]{answer}[/cyan]")
                return
    raise RuntimeError(f"{MOST_MESSAGES} messages did not use the balance up")


async def resume(bot: dict[str, Any]) -> None:
    """Write to the bot once more, after the top-up."""
    async with TelegramUser(bot["telegram_id"]) as user:
        await user.write("Hello again")
        console.print(f"[green]✓[/green] Telegram, “Hello again” → [cyan]{await user.read()}[/cyan]")


def spend(bot: dict[str, Any]) -> None:
    """Drain the bot, top it up, and hear from it again: all with one and the same process."""
    started = ("docker", "inspect", "--format", "{{.State.StartedAt}}", f"clawdeploy-{bot['id']}")
    before = lab.vps().exec(*started)
    asyncio.run(drain(bot))
    payment = {"bot": "demo", "amount": BALANCE, "ref": f"demo-{time.time_ns()}"}
    play(console, f"top_up_bot: ${BALANCE}", "playbooks/top_up_bot.yml", payment)
    asyncio.run(resume(bot))
    if lab.vps().exec(*started) != before:
        raise RuntimeError("the bot was restarted, which a top-up must not need")


def up() -> None:
    """Bring up what is missing, deploy, talk, spend the balance, top it up, and end with the card."""
    vps = lab.up()
    image = build_image(lab.CA_BUNDLE)
    write_env()
    prepare(console, vps)
    deployed = play(
        console,
        "deploy_bot: one input, one bot",
        "deploy_bot.yml",
        {
            "token": TOKEN,
            "bot_name": "demo",
            "balance": BALANCE,
            "bot_image": image.tag,
            "bot_image_archive": image.archive,
            "result_file": str(RESULT),
            "rotate_gateway_token": not GATEWAY_TOKEN.exists(),
        },
    )
    bot = json.loads(RESULT.read_text())["bots"][0]
    if bot["gateway_token"]:
        GATEWAY_TOKEN.touch(mode=0o600)
        GATEWAY_TOKEN.write_text(bot["gateway_token"])
    asyncio.run(talk(bot, GATEWAY_TOKEN.read_text()))
    spend(bot)
    card = re.search(r"^─+$.*^─+$", deployed.output, re.MULTILINE | re.DOTALL)
    assert card is not None, deployed.output
    console.print("\n" + card[0], markup=False)


def main() -> None:
    """The command line: up or down."""
    match sys.argv[1:]:
        case ["up"]:
            up()
        case ["down"]:
            lab.down(caches=True)
        case _:
            sys.exit("usage: python -m tests.demo up|down")


if __name__ == "__main__":
    try:
        main()
    except (lab.LabError, RuntimeError) as error:
        sys.exit(f"demo: {error}")
