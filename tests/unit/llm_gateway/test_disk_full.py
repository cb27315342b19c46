"""The ledger's disk is full: calls are refused, nothing is lost, and all goes on once there is room."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from clawdeploy.money import NANO
from tests.unit.llm_gateway.harness import BOT, CHAT, Bots, Start, Upstream, chat, eventually, post, status_of

SIZE = 400 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for a few hundred transactions; needs root."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(mount)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte of room; returns the file to remove."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                pass
    return ballast


async def exhaust(bots: Bots) -> int:
    """Call until a call is refused because it cannot be written down; how many went through."""
    for number in range(2000):
        async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
            if response.status == 503:
                return number
            assert response.status == 200
    raise AssertionError("the disk never got full")


async def test_a_full_disk_refuses_calls_loses_nothing_and_settles_what_ran_once_there_is_room(
    start: Start, upstream: Upstream, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bots = await start(ledger_file=small_disk / "ledger.db", calls_per_bot=4, calls_per_minute=100_000)
    started, release = asyncio.Event(), asyncio.Event()
    quick = upstream.answer

    async def slow(request: web.Request) -> web.StreamResponse:
        started.set()
        await release.wait()
        return await quick(request)

    upstream.answer = slow
    async with bots.session() as bot:
        running = asyncio.create_task(status_of(bot))
        await started.wait()
        upstream.answer = quick
        ballast = fill(small_disk)
        went_through = await exhaust(bots)
        forwarded = len(upstream.bodies)
        assert forwarded == went_through + 1

        # Refused, and nothing of it is left or reaches OpenRouter.
        status, message = await post(bots)
        assert (status, "operator has been told" in message) == (503, True)
        assert "event=ledger_unavailable" in caplog.text
        status, answer = await bots.ask(f"/accounts/{BOT}/top-ups", {"amount": NANO, "ref": "payment"})
        assert (status, answer["error"]["code"]) == (503, "ledger_unavailable")
        assert len(upstream.bodies) == forwarded

        # A call that was let through before gets its answer; that it is over cannot be written yet.
        release.set()
        assert await running == 200
    states = [call["state"] for call in await bots.calls()]
    assert states.count("open") >= 1
    held = (await bots.account())["held"]
    assert held == sum(call["held"] for call in await bots.calls() if call["state"] == "open")

    ballast.unlink()

    async def settled() -> bool:
        return all(call["state"] == "settled" for call in await bots.calls())

    await eventually(settled)
    calls = await bots.calls()
    assert len(calls) == forwarded
    assert {(call["how"], call["charged"]) for call in calls} == {("usage", 12_300)}
    await bots.top_up(1, "payment")
    account = await bots.account()
    assert account["balance"] == 101 * NANO - forwarded * 12_300
    assert account["held"] == 0
    async with bots.session() as bot, bot.post(CHAT, json=chat()) as response:
        assert response.status == 200
    await bots.verify()


async def test_a_gateway_that_ends_while_the_disk_is_full_settles_at_its_next_start(
    start: Start, upstream: Upstream, small_disk: Path
) -> None:
    settings: dict[str, Any] = {"ledger_file": small_disk / "ledger.db", "calls_per_minute": 100_000}
    bots = await start(**settings)
    ballast = fill(small_disk)
    went_through = await exhaust(bots)
    assert bots.stop is not None
    await bots.stop()
    ballast.unlink()
    bots = await start(**settings)
    calls = await bots.settled(went_through)
    assert len(calls) == went_through == len(upstream.bodies)
    for call in calls:
        assert call["charged"] == (12_300 if call["how"] == "usage" else call["held"])
    assert (await bots.account())["held"] == 0
    await bots.verify()
