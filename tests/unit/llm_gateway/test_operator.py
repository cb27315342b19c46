"""The operator's side: events for the hook command, metrics, and the admin socket that only root may ask."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from clawdeploy.money import NANO
from tests.ports import free_port
from tests.unit.llm_gateway.harness import (
    BOT,
    BOT_KEY,
    CHAT,
    NEIGHBOUR,
    SERVER_KEY,
    Bots,
    Start,
    Upstream,
    chat,
    eventually,
    post,
)

LARGE = "x" * 60_000  # its bound is a little more than six cents


class Hook:
    """An operator's command that keeps what it is told, one JSON object a line."""

    def __init__(self, directory: Path) -> None:
        self.told_file = directory / "told"
        self.command = ("/bin/sh", "-c", f"cat >> {self.told_file}")

    async def told(self, count: int) -> list[dict[str, Any]]:
        """What it was told, once that is so much."""

        async def enough() -> bool:
            return self.told_file.exists() and len(self._lines()) >= count

        await eventually(enough)
        return [json.loads(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        return self.told_file.read_text().splitlines()


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


async def call(bots: Bots, question: str = "hi") -> int:
    body = chat(messages=[{"role": "user", "content": question}])
    async with bots.session() as bot, bot.post(CHAT, json=body) as response:
        await response.read()
        return response.status


# Events


async def test_low_and_used_up_balances_are_told_once_for_each_top_up(
    start: Start, upstream: Upstream, hook: Hook
) -> None:
    bots = await start("0.51", event_command=hook.command)
    upstream.answers(200, {"choices": [], "usage": {"cost": 0.002}})
    for _ in range(8):
        assert await call(bots) == 200
    await bots.settled(8)
    (low,) = await hook.told(1)
    assert {name: low[name] for name in ("event", "bot")} == {"event": "low_balance", "bot": BOT}
    assert low["message"] == "$0.498 left"
    assert isinstance(low["at"], int)

    upstream.answers(200, {"choices": [], "usage": {"cost": 0.06}})
    while await call(bots, LARGE) == 200:
        pass
    assert await call(bots, LARGE) == 402
    events = [told["event"] for told in await hook.told(2)]
    assert events.count("low_balance") == 1
    assert events.count("balance_used_up") == 1

    await bots.top_up("0.40", "payment")
    upstream.answers(200, {"choices": [], "usage": {"cost": 0.002}})
    assert await call(bots) == 200

    async def told_again() -> bool:
        return [told["event"] for told in await hook.told(2)].count("low_balance") == 2

    await eventually(told_again)


@pytest.mark.parametrize(
    ("status", "source"),
    [
        (401, None),
        (402, "openrouter_credits"),
        (402, "openrouter_key_limit"),
        (402, "openrouter_in_flight_budget"),
        (403, None),
    ],
)
async def test_trouble_with_the_servers_account_reaches_the_operator_once(
    start: Start, upstream: Upstream, hook: Hook, status: int, source: str | None
) -> None:
    bots = await start(event_command=hook.command)
    metadata = {"limit_source": source} if source else {}
    upstream.answers(
        status, {"error": {"code": status, "message": f"no: {SERVER_KEY}", "metadata": metadata}}
    )
    assert [await call(bots) for _ in range(3)] == [503, 503, 503]
    (told,) = await hook.told(1)
    assert told["event"] == "account_refused"
    assert "bot" not in told
    assert f"status={status}" in told["message"]
    assert source is None or source in told["message"]
    assert SERVER_KEY not in str(told)
    assert [call["how"] for call in await bots.settled(3)] == ["released"] * 3


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("/bin/sh", "-c", "exit 7"), "failed with exit status 7"),
        (("/bin/sh", "-c", "exec <&-; exit 1"), "failed with exit status 1"),
        (("/no/such/command",), "cannot be started"),
        (("/etc/passwd",), "cannot be started"),
    ],
)
async def test_a_hook_that_fails_stops_neither_calls_nor_later_events(
    start: Start, upstream: Upstream, caplog: pytest.LogCaptureFixture, command: tuple[str, ...], said: str
) -> None:
    bots = await start("0.0001", event_command=command)

    async def complained(times: int) -> bool:
        return caplog.text.count(said) >= times

    for number in (1, 2):
        assert await call(bots) == 402
        await eventually(partial(complained, number))
        await bots.top_up("0.000001", f"payment-{number}")


# Metrics


async def scrape(port: int) -> dict[tuple[str, ...], float]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as response,
    ):
        assert response.status == 200
        text = await response.text()
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


async def test_metrics_count_calls_money_and_refusals_for_each_bot(start: Start, upstream: Upstream) -> None:
    port = free_port()
    bots = await start(metrics_port=port)
    bots.add("sk-claw-other", bot=NEIGHBOUR, subnet="127.0.0.3/32", suspended=True)
    assert [await call(bots) for _ in range(2)] == [200, 200]
    await post(bots, messages=[])
    await post(bots, address="127.0.0.3", key="sk-claw-other")
    await post(bots, key="sk-claw-nobody")
    upstream.answers(500, {"error": {"code": 500, "message": "no"}})
    assert await call(bots) == 500
    await bots.settled(3)
    figures = await scrape(port)
    prefix = "clawdeploy_llm"
    expected = {
        (f"{prefix}_calls_total", BOT): 3,
        (f"{prefix}_cost_dollars_total", BOT): pytest.approx(2 * 0.0000123),
        (f"{prefix}_refusals_total", BOT, "request"): 1,
        (f"{prefix}_refusals_total", NEIGHBOUR, "suspended"): 1,
        (f"{prefix}_refusals_total", "-", "request"): 1,
        (f"{prefix}_settlements_total", "usage"): 2,
        (f"{prefix}_settlements_total", "released"): 1,
        (f"{prefix}_upstream_answers_total", "200"): 2,
        (f"{prefix}_upstream_answers_total", "500"): 1,
        (f"{prefix}_holds",): 0,
        (f"{prefix}_seconds_count",): 6,
    }
    assert {name: figures.get(name) for name in expected} == expected


async def test_metrics_name_only_bots_that_have_a_key(start: Start) -> None:
    port = free_port()
    bots = await start(metrics_port=port)
    for number in range(30):
        await post(bots, key=f"sk-claw-guess-{number}")
        async with bots.session(key=f"sk-{number}") as bot, bot.get(f"/path-{number}") as response:
            assert response.status == 404
    assert await call(bots) == 200
    await bots.settled()
    named = {name[1] for name in await scrape(port) if name[0].endswith(("calls_total", "refusals_total"))}
    assert named == {BOT, "-"}
    bots.entries.clear()
    bots.add("sk-claw-other", bot=NEIGHBOUR, subnet="127.0.0.3/32")
    async with bots.session("127.0.0.3", "sk-claw-other") as bot, bot.post(CHAT, json=chat()) as response:
        assert response.status == 200
    await bots.settled(1, NEIGHBOUR)
    named = {name[1] for name in await scrape(port) if name[0].endswith(("calls_total", "refusals_total"))}
    assert BOT not in named


async def test_metrics_and_the_admin_socket_are_for_this_machine_alone(start: Start) -> None:
    port = free_port()
    bots = await start(metrics_port=port)
    with socket.create_server(("127.0.0.2", port)):  # would fail if metrics listened on all addresses
        pass
    assert bots.admin_socket.stat().st_mode & 0o777 == 0o600


# The admin socket

ASK = """
import http.client, socket, sys
connection = http.client.HTTPConnection("ledger")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("GET", "/v1/accounts")
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_the_kernel_says_who_asks_and_only_root_is_answered(bots: Bots, tmp_path: Path) -> None:
    bots.admin_socket.chmod(0o666)  # as if somebody had opened the file's permissions
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)

    async def ask(user: int) -> str:
        process = await asyncio.to_thread(
            subprocess.run,
            (sys.executable, "-c", ASK, str(bots.admin_socket)),
            user=user, group=user, extra_groups=(), capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return str(process.stdout)

    assert (await ask(0)).startswith("200 ")
    refused = await ask(65_534)
    assert refused.startswith("403 ")
    assert BOT not in refused


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/accounts/botzzzzzzzzz", None, 404, "no_account"),
        ("GET", "/v1/accounts/botzzzzzzzzz/calls", None, 404, "no_account"),
        ("GET", "/v1/nowhere", None, 404, "not_found"),
        ("DELETE", "/v1/accounts", None, 405, "not_found"),
        ("GET", f"/v1/accounts/{BOT}/calls?limit=x", None, 422, "bad_request"),
        ("GET", f"/v1/accounts/{BOT}/calls?limit=nan", None, 422, "bad_request"),
        ("GET", f"/v1/accounts/{BOT}/calls?limit=inf", None, 422, "bad_request"),
        ("GET", f"/v1/accounts/{BOT}/calls?limit=-1", None, 422, "bad_request"),
        ("GET", f"/v1/accounts/{BOT}/calls?after=1e30", None, 422, "bad_request"),
        ("GET", f"/v1/accounts/{BOT}/calls?since=nan", None, 422, "bad_request"),
        ("GET", f"/v1/accounts/{BOT}/calls?since=-inf", None, 422, "bad_request"),
        ("GET", "/v1/price?model=no/such", None, 404, "no_price"),
        ("POST", "/v1/accounts", b"", 422, "bad_request"),
        ("POST", "/v1/accounts", b"\xff", 422, "bad_request"),
        ("POST", "/v1/accounts", b"[" * 100_000, 422, "bad_request"),
        ("POST", "/v1/accounts", b'{"accounts": [{"bot": "../etc"}]}', 422, "bad_request"),
        (
            "POST",
            "/v1/accounts",
            b'{"accounts": [{"bot": "botzzzzzzzzz", "opening": -1}]}',
            422,
            "bad_request",
        ),
        ("POST", "/v1/accounts", b'{"accounts": [{"bot": "botzzzzzzzzz", "x": 1}]}', 422, "bad_request"),
        (
            "POST",
            "/v1/accounts",
            b'{"accounts": [{"bot": "botzzzzzzzzz"}, {"bot": "botyyyyyyyyy", "spend_limit": "9/year"}]}',
            422,
            "spend_limit_invalid",
        ),
        ("POST", f"/v1/accounts/{BOT}/top-ups", b'{"amount": 0, "ref": "a"}', 422, "bad_request"),
        ("POST", f"/v1/accounts/{BOT}/top-ups", b'{"amount": 1.5, "ref": "a"}', 422, "bad_request"),
        ("POST", f"/v1/accounts/{BOT}/top-ups", b'{"amount": 1e16, "ref": "a"}', 422, "bad_request"),
        ("POST", f"/v1/accounts/{BOT}/top-ups", b'{"amount": 1, "ref": ""}', 422, "bad_request"),
        ("POST", f"/v1/accounts/{BOT}/top-ups", b'{"amount": 1}', 422, "bad_request"),
        ("POST", "/v1/accounts/botzzzzzzzzz/top-ups", b'{"amount": 1, "ref": "a"}', 404, "no_account"),
        ("POST", f"/v1/accounts/{NEIGHBOUR}/top-ups", b'{"amount": 1, "ref": "used"}', 409, "ref_used"),
        ("POST", f"/v1/accounts/{BOT}/top-ups", b'{"amount": 2, "ref": "used"}', 409, "ref_used"),
    ],
)
async def test_a_bad_request_is_refused_by_name_and_changes_nothing(
    bots: Bots, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    await bots.ask(f"/accounts/{BOT}/top-ups", {"amount": 1, "ref": "used"})
    before = await bots.ask("/accounts")
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(bots.admin_socket))) as session,
        session.request(method, f"http://ledger{path}", data=body) as response,
    ):
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (status, code), error
    assert await bots.ask("/accounts") == before


async def test_a_check_changes_nothing(bots: Bots) -> None:
    before = await bots.ask("/accounts")
    status, answer = await bots.ask(f"/accounts/{BOT}/top-ups", {"amount": 5, "ref": "a", "check": True})
    assert (status, answer["changed"]) == (200, True)
    assert answer["after"]["balance"] == answer["before"]["balance"] + 5
    wanted = [{"bot": "botzzzzzzzzz", "opening": NANO}, {"bot": BOT, "spend_limit": "2/day"}]
    status, answer = await bots.ask("/accounts", {"accounts": wanted, "check": True})
    assert (status, answer["changed"]) == (200, True)
    assert [one["after"]["spend_limit"] for one in answer["accounts"]] == ["prepaid", "2.00/day"]
    assert await bots.ask("/accounts") == before
    assert BOT_KEY not in str(before)
