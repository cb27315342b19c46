"""What the edge costs and what it holds off, on the VPS of the lab with bots deployed for it.

Figures:
  rps_edge, rps_direct        requests/s, Caddy → HAProxy → bot and Caddy → bot (16 connections)
  p50_edge_ms, p50_direct_ms  median latency of the same, one connection
  limit_error_pct             30 s of a 40 rps flood by a token holder: answers against burst + rate x 30
  holder_errors               failed requests of a token holder (2/s) while a stranger floods the same bot
  neighbour_errors            failed requests of a token holder of another bot meanwhile
  websocket_survived          deploys of other bots after which a WebSocket opened before still answered

Floods go only to the lab's own VPS, for 30 seconds.
"""

import asyncio
import json
import re
import ssl
import statistics
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from rich.console import Console

from tests import lab
from tests.bench.figures import progress, report
from tests.customer import OneAddress
from tests.playbooks import OPERATOR, ROOT, run_playbook, write_env
from tests.stage import prepare
from tests.standin.build import build_image

ROUNDS = 3
DEPLOYS = 20
FLOOD_SECONDS = 30
FLOOD_RATE = 40
DIRECTORY = "/run/clawdeploy-bench"

# Two more sites beside the real one: the same Caddy, and HAProxy with the deployed configuration.
CADDYFILE = """
{{
	admin off
	auto_https disable_redirects
	skip_install_trust
	storage file_system {directory}/caddy
	servers {{
		protocols h1 h2
	}}
}}
https://{name}:8443 {{
	tls internal
	reverse_proxy unix/{directory}/edge.sock
}}
https://{name}:8444 {{
	tls internal
	reverse_proxy {upstream} {{
		transport http {{
			keepalive off
		}}
	}}
}}
"""

START = """
set -eu
export DEBIAN_FRONTEND=noninteractive
command -v wrk >/dev/null || apt-get install -qq --no-install-recommends wrk >/dev/null
mkdir -p {directory}
printf '%s\\n' "$HAPROXY" >{directory}/haproxy.cfg
printf '%s\\n' "$CADDYFILE" >{directory}/Caddyfile
systemd-run --quiet --collect --unit=clawdeploy-bench-haproxy haproxy -db -f {directory}/haproxy.cfg
systemd-run --quiet --collect --unit=clawdeploy-bench-caddy \\
  caddy run --adapter caddyfile --config {directory}/Caddyfile
for port in 8443 8444; do
  if ! timeout 20 sh -c "until curl -kfs https://{name}:$port/health >/dev/null; do :; done"; then
    journalctl --unit='clawdeploy-bench-*' --output=cat --lines=5 --no-pager >&2
    exit 1
  fi
done
"""

STOP = f"""
systemctl stop clawdeploy-bench-caddy clawdeploy-bench-haproxy 2>/dev/null
rm -rf {DIRECTORY}
"""


def deploy(numbers: list[int], *, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Deploy bots (or deploy them again) with new gateway tokens; returns their cards."""
    result = OPERATOR / "bench-edge.json"
    entries = [
        {"token": f"{8_000_000_000 + number}:AA{number:033d}", "owner": "4242", "rotate_gateway_token": True}
        for number in numbers
    ]
    run_playbook(
        ROOT / "deploy_bot.yml", lab.INVENTORY, {"bots": entries, "result_file": str(result), **options}
    ).check()
    cards: list[dict[str, Any]] = json.loads(result.read_text())["bots"]
    result.unlink()
    return cards


def unlimited(configuration: str) -> str:
    """The deployed haproxy.cfg at a place of its own and without limits, which are not what is measured."""
    changes = {
        r"/run/haproxy/": f"{DIRECTORY}/",
        r"bind 127\.0\.0\.1:\d+": "bind 127.0.0.1:18479",
        r"set-var\(txn\.interval\) int\(\d+\)": "set-var(txn.interval) int(0)",
        r"set-var\(txn\.slots\) int\(\d+\)": "set-var(txn.slots) int(100000)",
        r"sc1_conn_cur gt \d+": "sc1_conn_cur gt 100000",
    }
    for pattern, text in changes.items():
        configuration, count = re.subn(pattern, text, configuration)
        if not count:
            raise ValueError(
                f"the deployed haproxy.cfg has nothing like {pattern}: adapt tests/bench/edge.py"
            )
    return configuration


def milliseconds(text: str) -> float:
    """wrk's "312.00us", "1.25ms" or "1.02s" in milliseconds."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def wrk(vps: lab.Vps, url: str, connections: int) -> tuple[float, float]:
    """(requests per second, median latency in ms) of 3 seconds of wrk on the VPS itself."""
    output = vps.exec("wrk", "-t1", f"-c{connections}", "-d3s", "--latency", url)
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"wrk of {url} saw errors:\n{output}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    median = re.search(r"50%\s+(\S+)", output)
    if not rate or not median:
        raise RuntimeError(f"wrk said nothing usable:\n{output}")
    return float(rate[1]), milliseconds(median[1])


def compare(vps: lab.Vps, card: dict[str, Any]) -> dict[str, float]:
    """Throughput and latency with HAProxy and without it, alternating."""
    name = str(urlsplit(card["url"]).hostname)
    addresses = dict(line.split() for line in vps.exec("cat", "/etc/haproxy/maps/addresses.map").splitlines())
    caddyfile = CADDYFILE.format(directory=DIRECTORY, name=name, upstream=f"{addresses[card['id']]}:3000")
    variables = {
        "HAPROXY": unlimited(vps.exec("cat", "/etc/haproxy/haproxy.cfg")),
        "CADDYFILE": caddyfile,
    }
    script = START.format(directory=DIRECTORY, name=name)
    assignments = [f"{key}={value}" for key, value in variables.items()]
    samples: dict[str, list[float]] = {
        key: [] for key in ("rps_edge", "rps_direct", "p50_edge_ms", "p50_direct_ms")
    }
    try:
        vps.exec("env", *assignments, "sh", "-c", script)
        for number in range(ROUNDS):
            progress(f"requests through HAProxy and past it, round {number + 1} of {ROUNDS}")
            for way, port in (("edge", 8443), ("direct", 8444)):
                url = f"https://{name}:{port}/health"
                samples[f"p50_{way}_ms"].append(wrk(vps, url, 1)[1])
                samples[f"rps_{way}"].append(wrk(vps, url, 16)[0])
    finally:
        vps.exec("sh", "-c", STOP)
    return {key: statistics.median(values) for key, values in samples.items()}


def session(vps: lab.Vps) -> aiohttp.ClientSession:
    """Connections to the VPS that stay open, as a program's would; the lab's CAs are trusted."""
    context = ssl.create_default_context(cafile=str(lab.CA_BUNDLE))
    connector = aiohttp.TCPConnector(resolver=OneAddress(vps.host.address), ssl=context)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30))


async def send(vps: lab.Vps, card: dict[str, Any], rate: float, *, holder: bool) -> list[int]:
    """Requests at a steady `rate` for FLOOD_SECONDS, as holder or stranger; the status of each (0: none)."""
    headers = {"Authorization": f"Bearer {card['gateway_token']}"} if holder else {}
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with session(vps) as web:

        async def one(number: int) -> int:
            await asyncio.sleep(start + number / rate - loop.time())
            try:
                async with web.get(f"{card['url']}health", headers=headers) as response:
                    await response.read()
                    return response.status
            except (aiohttp.ClientError, TimeoutError):
                return 0

        return await asyncio.gather(*(one(number) for number in range(round(rate * FLOOD_SECONDS))))


async def floods(vps: lab.Vps, cards: list[dict[str, Any]]) -> dict[str, float | int]:
    """A holder's flood on the first bot and a stranger's on the second, beside orderly holders."""
    flooded, visited, neighbour = cards
    plan = json.loads(vps.exec("clawctl", "show", flooded["id"], "--json"))["limits"]
    expected = plan["rate_limit_burst"] + plan["rate_limit_rps"] * FLOOD_SECONDS
    progress(f"{FLOOD_SECONDS} s of floods at {FLOOD_RATE} requests/s by a holder and by a stranger")
    flood, stranger, holder, beside = await asyncio.gather(
        send(vps, flooded, FLOOD_RATE, holder=True),
        send(vps, visited, FLOOD_RATE, holder=False),
        send(vps, visited, 2, holder=True),
        send(vps, neighbour, 2, holder=True),
    )
    answered = flood.count(200)
    progress(
        f"the flooding holder got {answered} answers of {expected:g}, the stranger {stranger.count(200)}"
    )
    return {
        "limit_error_pct": abs(answered - expected) / expected * 100,
        "holder_errors": len(holder) - holder.count(200),
        "neighbour_errors": len(beside) - beside.count(200),
    }


async def websocket(
    vps: lab.Vps, card: dict[str, Any], change: Callable[[int], Awaitable[None]]
) -> dict[str, int]:
    """Count the changes after which a WebSocket that was opened before the first one still answers a ping."""
    survived = 0
    headers = {"Authorization": f"Bearer {card['gateway_token']}"}
    async with (
        session(vps) as web,
        web.ws_connect(f"{card['url']}ws?session_id=bench", headers=headers, autoping=False) as connection,
    ):
        for number in range(DEPLOYS):
            progress(f"deploy another bot beside an open WebSocket, {number + 1} of {DEPLOYS}")
            await change(number)
            await connection.ping(str(number).encode())
            try:
                while (message := await connection.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
                    pass
            except TimeoutError:
                break
            if message.type is not aiohttp.WSMsgType.PONG or message.data != str(number).encode():
                break
            survived += 1
    return {"websocket_survived": survived}


async def measure() -> dict[str, Any]:
    """Deploy three bots and measure everything with them."""
    vps = lab.up()
    write_env()
    image = build_image(lab.CA_BUNDLE)
    prepare(Console(stderr=True), vps)
    options = {"bot_image": image.tag, "bot_image_archive": str(image.archive)}
    progress("deploy three bots")
    cards = deploy([301, 302, 303], options=options)
    figures: dict[str, Any] = {}
    figures |= compare(vps, cards[0])
    figures |= await floods(vps, cards)

    async def deploy_others(number: int) -> None:
        await asyncio.to_thread(deploy, [(301, 303)[number % 2]], options=options)

    # Not the bot that was flooded by its own holder: that one is still at its limit.
    figures |= await websocket(vps, cards[1], deploy_others)
    return figures


def main() -> None:
    """Measure and report."""
    figures = asyncio.run(measure())
    report("edge", {key: round(value, 3) for key, value in figures.items()})


if __name__ == "__main__":
    main()
