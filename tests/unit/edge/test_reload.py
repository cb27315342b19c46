"""A changed plan reaches HAProxy by a reload that nobody notices."""

import asyncio
import signal
from pathlib import Path

import aiohttp

from tests.unit.edge.harness import API, BASE, PLANS, Edge, Loop, await_condition, edge_settings


async def test_a_reload_keeps_websockets_and_takes_up_the_new_plan(tmp_path: Path, loop: Loop) -> None:
    edge = Edge(tmp_path, edge_settings(tmp_path))
    loop.serve_bot("127.0.75.2", 3000)
    edge.add_bot("alice", "127.0.75.2", plan="small", routes=API)
    edge.start("-W")
    try:
        headers = {"X-Forwarded-For": "192.0.2.5"}
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(edge.socket)) as session,
            session.ws_connect(f"http://alice.{BASE}/ws?token=cg_alice", headers=headers) as websocket,
        ):
            edge.settings["edge_plans"] = PLANS | {"small": PLANS["small"] | {"concurrency": 1}}
            edge.configure()
            assert edge.process is not None
            edge.process.send_signal(signal.SIGUSR2)

            def one_at_a_time() -> bool:
                async def status(client: aiohttp.ClientSession) -> int:
                    url = f"http://alice.{BASE}/slow?token=cg_alice"
                    async with client.get(url, headers=headers) as response:
                        return response.status

                async def both() -> list[int]:
                    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(edge.socket)) as client:
                        return list(await asyncio.gather(status(client), status(client)))

                answers: list[int] = loop.run(both())
                assert set(answers) <= {200, 429}  # no request fails while the worker is replaced
                return sorted(answers) == [200, 429]

            await_condition(one_at_a_time, "the new plan")
            await websocket.send_str("still there?")
            assert await websocket.receive_str(timeout=5) == "127.0.75.2: still there?"
    finally:
        edge.stop()
