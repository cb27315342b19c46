"""The simulators as commands: how the lab starts and ends them."""

import asyncio
import signal
import ssl
import sys
from pathlib import Path

import pytest
import trustme
from aiohttp import ClientSession

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("name", "path"), [("openrouter", "/api/v1/models"), ("telegram", "/_sim/calls"), ("fly", "/_sim/calls")]
)
async def test_command_serves_tls_and_ends_on_sigterm(
    name: str, path: str, authority: trustme.CA, tmp_path: Path
) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tests.simulators.{name}", "--host", "127.0.0.1", "--port", "0"),
        *("--cert", str(chain), "--key", str(key)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    word, _, url = (await process.stdout.readline()).decode().strip().partition(" on ")
    assert word == "listening"
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with ClientSession() as session, session.get(url + path, ssl=context) as reply:
        assert reply.status == 200
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.communicate(), 5)
    assert (process.returncode, errors) == (0, b"")
