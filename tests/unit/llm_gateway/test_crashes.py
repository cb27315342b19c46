"""The gateway is killed at random moments under load: nothing is lost, nothing is charged twice."""

import asyncio
import contextlib
import json
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from clawdeploy.money import NANO, SpendLimit
from clawdeploy.store import LedgerStore, migrate_ledger
from tests.ports import free_port
from tests.unit.llm_gateway.harness import (
    CHAT,
    SERVER_KEY,
    SIMULATED,
    Bots,
    Simulator,
    chat,
    disagreements,
    eventually,
)

SOURCES = str(Path(__file__).parents[3] / "src")
KILLS = 200
GATEWAYS = 4  # at once, each with a ledger of its own: starting is most of the time
CLIENTS = 3
OPENING = 1000 * NANO
PAYMENT = 1_000_000


class Host:
    """One gateway that is killed and started again, its bot, and its operator."""

    def __init__(self, directory: Path, settings: dict[str, Any], number: int, luck: random.Random) -> None:
        self.bot = f"bot{number}aaaaaaaa"
        self.directory = directory
        self.luck = luck
        self.served: set[str] = set()
        self.paid = 0
        self.address = f"127.0.0.{10 + number}"
        directory.mkdir()
        names = (
            "api_key_file",
            "keys_file",
            "remote_keys_file",
            "ledger_file",
            "prices_file",
            "admin_socket",
        )
        self.settings = settings | {name: directory / Path(settings[name]).name for name in names}
        self.settings |= {"port": free_port(), "metrics_port": free_port()}
        (directory / "config.json").write_text(json.dumps(self.settings, default=str))
        self.settings["api_key_file"].write_text(SERVER_KEY)
        self.bots = Bots(
            self.settings["keys_file"],
            f"http://127.0.0.1:{self.settings['port']}",
            self.settings["admin_socket"],
        )
        self.bots.add("sk-claw-crash", bot=self.bot, subnet=f"{self.address}/32")
        migrate_ledger(self.settings["ledger_file"])
        store = LedgerStore(self.settings["ledger_file"])
        with store.transaction():
            store.open_account(self.bot, SpendLimit(), OPENING, time.time())
        store.close()

    @asynccontextmanager
    async def process(self, *, ready: bool = True) -> AsyncIterator[None]:
        """The gateway, until it is killed at the end; entered once it says that it is ready."""
        notify = self.directory / "notify"
        notify.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
            (self.directory / "log").open("ab") as log,
        ):
            channel.bind(str(notify))
            channel.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "clawdeploy.llm_gateway", "serve"),
                f"--config={self.directory / 'config.json'}",
                env={"PATH": os.environ["PATH"], "PYTHONPATH": SOURCES, "NOTIFY_SOCKET": str(notify)},
                stderr=log,
            )
            try:
                if ready:
                    told = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(channel, 64), 30)
                    assert told == b"READY=1"
                yield
            finally:
                process.kill()
                assert await process.wait() == -9

    async def crash(self, times: int) -> None:
        for _ in range(times):
            # Some die while they start, with what the last one left in their hands.
            ready = self.luck.random() < 0.9
            async with self.process(ready=ready):
                await asyncio.sleep(self.luck.uniform(0, 0.15 if ready else 0.4))

    async def call(self) -> None:
        """A client that calls for ever, whatever happens to its calls."""
        async with self.bots.session(self.address, "sk-claw-crash") as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    body = chat(stream=self.luck.random() < 0.7, max_tokens=64)
                    async with session.post(CHAT, json=body) as response:
                        text = await response.text()
                        if response.status == 200 and '"cost"' in text:
                            self.served.add(response.headers["X-Generation-Id"])
                await asyncio.sleep(0.01)  # a client's own pause

    async def pay(self) -> None:
        """An operator who tops up, again and again under the same ref until it is acknowledged."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                status, _ = await self.bots.ask(
                    f"/accounts/{self.bot}/top-ups", {"amount": PAYMENT, "ref": f"pay-{self.paid}"}
                )
                self.paid += status == 200
            await asyncio.sleep(0.02)

    async def run(self, times: int) -> None:
        work = [asyncio.create_task(self.call()) for _ in range(CLIENTS)]
        work.append(asyncio.create_task(self.pay()))
        try:
            await self.crash(times)
        finally:
            for task in work:
                task.cancel()
            for outcome in await asyncio.gather(*work, return_exceptions=True):
                assert isinstance(outcome, asyncio.CancelledError), outcome

    async def all_settled(self) -> bool:
        return all(call["state"] == "settled" for call in await self.bots.calls(self.bot))


@pytest.mark.slow
async def test_two_hundred_kills_under_load_lose_nothing_and_charge_nothing_twice(
    settings: dict[str, Any], simulator: Simulator, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    settings |= {
        "base_url": simulator.url,
        "model": SIMULATED,
        "price": None,
        "calls_per_bot": 50,
        "calls_per_minute": 1_000_000,
        "lookup_delays": (0.05, 0.2, 1.0, 3.0),
    }
    luck = random.Random(seed)
    hosts = [
        Host(tmp_path / f"host{number}", settings, number, random.Random(luck.random()))
        for number in range(GATEWAYS)
    ]
    await simulator.order("latency", first=0.01, chunk=0.005)
    for kind in ("no_usage", "cut", "cut_before", "mid_stream", "server_error"):
        await simulator.order("fail", kind=kind, times=20)
    await simulator.order("fail", kind="gave_up", status=524, times=20)
    started = time.monotonic()
    await asyncio.gather(*(host.run(KILLS // GATEWAYS) for host in hosts))
    took = time.monotonic() - started
    charges = await simulator.charges()
    how: Counter[str] = Counter()
    for host in hosts:
        async with host.process():
            await eventually(host.all_settled)
            calls = await host.bots.calls(host.bot)
            how.update(call["how"] for call in calls)
            ours = [charge for charge in charges if charge["user"] == host.bot]
            assert disagreements(ours, calls) == []
            generations = Counter(call["generation"] for call in calls if call["generation"])
            assert set(generations.values()) <= {1}
            known = {call["generation"] for call in calls if call["how"] in ("usage", "generation")}
            nameless = sum(call["how"] == "bound" for call in calls)
            assert len(host.served - known) <= nameless
            account = await host.bots.account(host.bot)
            # A payment whose acknowledgement was lost may be in the books already; never twice.
            paid = account["balance"] + account["spent"] - OPENING
            assert paid in (host.paid * PAYMENT, (host.paid + 1) * PAYMENT)
            assert account["spent"] == sum(call["charged"] for call in calls)
            assert account["held"] == 0
            await host.bots.verify()
        assert "Traceback" not in (host.directory / "log").read_text()
    served = sum(len(host.served) for host in hosts)
    print(f"{KILLS} kills in {took:.0f} s, {len(charges)} calls charged, {served} served, {dict(how)}")
    assert how["usage"] > KILLS / 10
    assert how["generation"] > 0
