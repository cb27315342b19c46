"""Check a NullClaw image against what clawDeploy relies on: `make verify-image IMAGE=name:tag`.

The image (one that this machine's Docker has, or can pull) is deployed with the product's own playbooks on a
VPS in a container, and each row is something a user or the host sees. Prints a table, ends with 1 if a row
fails; the same as JSON in build/verify-image.json.
"""

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from tests import lab
from tests.customer import TelegramUser, internet
from tests.lab.engine import docker, inspect
from tests.playbooks import OPERATOR, ROOT, write_env
from tests.stage import play, prepare

TELEGRAM_ID = 7_500_000_001
TOKEN = f"{TELEGRAM_ID}:AA{TELEGRAM_ID:033d}"
RESULT = OPERATOR / "verify-image.json"
FIGURES = ROOT / "build" / "verify-image.json"
# Upstream's image trusts Alpine's CAs; its curl takes one more from here.
CA_IN_BOT = "/nullclaw-data/lab-ca.pem"


@dataclass(frozen=True)
class Row:
    """One thing clawDeploy relies on, what was seen, and whether that is good."""

    what: str
    seen: str
    good: bool


class Subject:
    """The bot that runs the image, with what the checks need to reach it."""

    def __init__(self, vps: lab.Vps, card: dict[str, Any]) -> None:
        self.vps = vps
        self.id = card["id"]
        self.url = card["url"]
        self.token = card["gateway_token"]
        self.container = f"clawdeploy-{self.id}"

    def inspect(self, template: str) -> str:
        """A part of the container as Docker describes it."""
        return self.vps.exec("docker", "inspect", "--format", template, self.container)

    def direct(self, path: str, body: str = "", token: str = "") -> str:
        """POST to the agent itself, past the edge; return status and body."""
        address = self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
        header = f"-H 'Authorization: Bearer {token}'" if token else ""
        return self.vps.ssh(
            f"curl -sS -m 30 -w ' %{{http_code}}' {header} -H 'Content-Type: application/json' "
            f"-d {shlex.quote(body)} http://{address}:3000{path}"
        ).stdout

    async def ask(self, message: str) -> str:
        """Ask through the edge, as a customer does; return status and answer."""
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            internet(self.vps.host.address) as web,
            web.post(f"{self.url}webhook", json={"message": message}, headers=headers) as response,
        ):
            return f"{response.status} {await response.text()}"


async def simulator(path: str, body: dict[str, Any] | None = None) -> Any:
    """Speak with the simulated OpenRouter's control side."""
    async with internet(lab.OPENROUTER_ADDRESS) as web:
        url = f"https://openrouter.ai/_sim/{path}"
        async with web.get(url) if body is None else web.post(url, json=body) as response:
            response.raise_for_status()
            return await response.json()


async def answers_synchronously(bot: Subject) -> Row:
    seen = await bot.ask("first hello")
    return Row(
        "POST /webhook with the gateway token answers with the model's text", seen, "first hello" in seen
    )


async def speaks_a2a(bot: Subject) -> Row:
    message = {"messageId": "m1", "role": "user", "parts": [{"kind": "text", "text": "hello a2a"}]}
    call = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
    async with internet(bot.vps.host.address) as web:
        headers = {"Authorization": f"Bearer {bot.token}"}
        async with web.post(f"{bot.url}a2a", json=call, headers=headers) as response:
            seen = f"{response.status} {await response.text()}"
    return Row("POST /a2a message/send answers", seen, "hello a2a" in seen)


async def speaks_websocket(bot: Subject) -> Row:
    try:
        async with (
            internet(bot.vps.host.address) as web,
            web.ws_connect(f"{bot.url}ws?token={bot.token}&session_id=verify") as socket,
        ):
            message = {
                "v": 1,
                "type": "user_message",
                "session_id": "verify",
                "payload": {"content": "hello ws"},
            }
            await socket.send_json(message)
            seen = await socket.receive_str(timeout=30)
    except (aiohttp.ClientError, TimeoutError, TypeError) as error:
        seen = repr(error)
    return Row("the web channel answers over a WebSocket without pairing", seen, "hello ws" in seen)


async def uses_our_gateway(bot: Subject) -> Row:
    await bot.ask("where do you call")
    requests = (await simulator("requests"))["requests"]
    models = {request["body"]["model"] for request in requests}
    return Row(
        "its model calls arrive with the operator's model", ", ".join(sorted(models)), len(models) == 1
    )


async def refuses_strangers(bot: Subject) -> Row:
    seen = bot.direct("/webhook", '{"message": "hi"}', token="not-the-token")
    return Row("the agent itself refuses a wrong token (401)", seen, seen.endswith(" 401"))


async def open_telegram_webhook(bot: Subject) -> Row:
    forged = {"update_id": 1, "message": {"from": {"id": 1}, "chat": {"id": 1}, "text": "forged"}}
    inside = bot.direct("/telegram", json.dumps(forged))
    async with internet(bot.vps.host.address) as web, web.post(f"{bot.url}telegram", json=forged) as response:
        outside = response.status
    return Row(
        "a forged POST /telegram does not pass the edge (404), whatever the agent says",
        f"edge {outside}, agent {inside}",
        outside == 404,
    )


async def answers_its_owner(bot: Subject) -> Row:
    async with (
        TelegramUser(TELEGRAM_ID, 6666, "mallory") as stranger,
        TelegramUser(TELEGRAM_ID) as owner,
    ):
        await stranger.write("forbidden")
        await owner.write("hello telegram")
        seen = await owner.read(wait=60)
        try:
            seen += f"; stranger: {await stranger.read(wait=0)}"
        except TimeoutError:
            seen += "; stranger: nothing"
    return Row(
        "on Telegram it answers its owner and nobody else",
        seen,
        "hello telegram" in seen and "nothing" in seen,
    )


async def survives_failures(bot: Subject) -> Row:
    before = bot.inspect("{{.RestartCount}} {{.State.StartedAt}}")
    await simulator("fail", {"kind": "server_error", "status": 503, "times": 60})
    failed = [await bot.ask(f"failing {number}") for number in range(3)]
    await simulator("reset", {})
    await bot.ask("/new")
    seen = await bot.ask("still alive")
    after = bot.inspect("{{.RestartCount}} {{.State.StartedAt}}")
    return Row(
        "three failed turns and /new neither crash nor corrupt it",
        f"{failed[0][:60]} … {seen}",
        before == after and "still alive" in seen,
    )


async def ends_quickly(bot: Subject) -> Row:
    began = time.monotonic()
    bot.vps.exec("docker", "stop", "--time", "10", bot.container)
    seconds = time.monotonic() - began
    bot.vps.exec("docker", "start", bot.container)
    bot.vps.exec("clawctl", "wait", "--timeout", "60", bot.id)
    return Row("with an init it ends within 3 s of docker stop", f"{seconds:.1f} s", seconds < 3)


async def stays_small(bot: Subject) -> Row:
    for number in range(20):
        await bot.ask(f"message {number}")
    pid = bot.inspect("{{.State.Pid}}")
    children = bot.vps.exec("cat", f"/proc/{pid}/task/{pid}/children").split()
    statuses = bot.vps.exec("cat", *(f"/proc/{process}/status" for process in (pid, *children)))
    kilobytes = sum(int(line.split()[1]) for line in statuses.splitlines() if line.startswith("VmRSS:"))
    limit = int(bot.inspect("{{.HostConfig.Memory}}")) // 1024
    return Row(
        "after 20 messages it uses less than half its memory limit",
        f"{kilobytes / 1024:.1f} MB",
        kilobytes * 2 < limit,
    )


CHECKS: tuple[Callable[[Subject], Awaitable[Row]], ...] = (
    answers_synchronously,
    speaks_a2a,
    speaks_websocket,
    uses_our_gateway,
    refuses_strangers,
    open_telegram_webhook,
    answers_its_owner,
    survives_failures,
    ends_quickly,
    stays_small,
)


async def verify(bot: Subject) -> list[Row]:
    """Run every check, one after another; one that breaks is a row that fails."""
    rows = []
    await simulator("reset", {})
    for check in CHECKS:
        try:
            rows.append(await check(bot))
        except (aiohttp.ClientError, TimeoutError, lab.LabError) as error:
            rows.append(Row(check.__name__.replace("_", " "), repr(error), good=False))
    return rows


def archive(image: str) -> Path:
    """Save `image` for the VPS, pulling it if this machine does not have it."""
    if inspect("image", image) is None:
        docker("pull", "--quiet", image, timeout=600)
    path = OPERATOR / "image.tar"
    docker("save", "--output", str(path), image)
    return path


def deploy(console: Console, vps: lab.Vps, image: str, tarball: str) -> Subject:
    """Deploy a bot with the image and let it trust the simulated internet's CA; return it."""
    variables = {
        "token": TOKEN,
        "owner": "4242",
        "bot_name": "verify",
        "bot_image": image,
        "bot_image_archive": tarball,
        "bot_env": {"CURL_CA_BUNDLE": CA_IN_BOT},
        "rotate_gateway_token": True,
        "result_file": str(RESULT),
    }
    play(console, f"deploy {image}", "deploy_bot.yml", variables)
    bot = Subject(vps, json.loads(RESULT.read_text())["bots"][0])
    place = f"/var/lib/clawdeploy/bots/{bot.id}/data/lab-ca.pem"
    vps.exec(
        "sh", "-c", f"printf %s {shlex.quote(lab.CA_BUNDLE.read_text())} > {place} && chmod 0644 {place}"
    )
    return bot


def main() -> None:
    """The command line: one image."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.verify_image NAME:TAG")
    console = Console(highlight=False)
    vps = lab.up()
    write_env()
    prepare(console, vps)
    bot = deploy(console, vps, sys.argv[1], str(archive(sys.argv[1])))
    rows = asyncio.run(verify(bot))
    FIGURES.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    table = Table("", "clawDeploy relies on", "seen")
    for row in rows:
        table.add_row("[green]✓[/green]" if row.good else "[red]✗[/red]", row.what, row.seen.strip()[:100])
    console.print(table)
    sys.exit(not all(row.good for row in rows))


if __name__ == "__main__":
    try:
        main()
    except (lab.LabError, RuntimeError) as error:
        sys.exit(f"verify-image: {error}")
