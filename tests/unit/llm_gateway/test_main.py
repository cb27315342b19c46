"""The process: settings, credential, systemd's READY, and an orderly end."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.ports import free_port
from tests.unit.llm_gateway.conftest import open_accounts
from tests.unit.llm_gateway.harness import Bots, Upstream, status_of

SOURCES = str(Path(__file__).parents[3] / "src")
SECRET = "sk-or-v1-secret-0123456789"


async def run(
    directory: Path, settings: dict[str, Any], key: str | None = SECRET
) -> asyncio.subprocess.Process:
    (directory / "config.json").write_text(json.dumps(settings, default=str))
    if key is not None:
        (directory / "openrouter_api_key").write_text(key)
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "clawdeploy.llm_gateway",
        "serve",
        f"--config={directory / 'config.json'}",
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": SOURCES,
            "NOTIFY_SOCKET": str(directory / "notify"),
        },
        stderr=asyncio.subprocess.PIPE,
    )


async def test_it_tells_systemd_when_it_listens_and_finishes_running_calls_at_the_end(
    settings: dict[str, Any], upstream: Upstream, tmp_path: Path
) -> None:
    settings |= {"port": free_port()}
    open_accounts(settings["ledger_file"], "100")
    bots = Bots(settings["keys_file"], f"http://127.0.0.1:{settings['port']}", settings["admin_socket"])
    started, release = asyncio.Event(), asyncio.Event()
    quick = upstream.answer

    async def answer(request: Any) -> Any:
        started.set()
        await release.wait()
        return await quick(request)

    upstream.answer = answer
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.setblocking(False)
        process = await run(tmp_path, settings | {"stop_timeout": 5.0})
        loop = asyncio.get_running_loop()
        assert await asyncio.wait_for(loop.sock_recv(channel, 64), 10) == b"READY=1"
        async with bots.session() as bot:
            call = asyncio.create_task(status_of(bot))
            await asyncio.wait_for(started.wait(), 5)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(loop.sock_recv(channel, 64), 5) == b"STOPPING=1"
            release.set()
            assert await call == 200
            with pytest.raises(aiohttp.ClientConnectorError):
                async with bots.session() as late:
                    await late.get("/healthz")
    _, log = await process.communicate()
    assert process.returncode == 0
    assert SECRET not in log.decode()


@pytest.mark.parametrize(
    ("change", "key", "told"),
    [
        ({"model": None}, SECRET, "$.model"),
        ({"surprise": 1}, SECRET, "surprise"),
        ({"bot_pool": "10.0.0.1/8"}, SECRET, "$.bot_pool"),
        ({}, None, "openrouter_api_key cannot be read"),
        ({}, " \n", "one line with the key"),
        ({}, "two words", "one line with the key"),
        ({"address": "192.0.2.1"}, SECRET, "address"),
        ({"ledger_file": "/nonexistent/ledger.db"}, SECRET, "ledger.db is missing: run prepare_host"),
    ],
)
async def test_unusable_settings_end_it_with_one_line_that_names_them(
    settings: dict[str, Any], tmp_path: Path, change: dict[str, Any], key: str | None, told: str
) -> None:
    open_accounts(settings["ledger_file"], "100")
    process = await run(tmp_path, settings | change, key)
    _, log = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 1
    assert told in log.decode()
    assert "Traceback" not in log.decode()
    assert key is None or key.strip() == "" or key not in log.decode()
