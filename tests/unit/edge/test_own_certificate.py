"""TLS mode files, in path mode: all bots on one host with the operator's own certificate."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.unit.edge.harness import Caddy, Loop, caddy_binaries, start_caddy

HOST = "claw.example.test"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def issue(authority: trustme.CA, directory: Path) -> None:
    certificate = authority.issue_cert(HOST)
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(directory / "fullchain.pem", append=True)


@pytest.fixture(scope="module")
def caddy(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory, loop: Loop) -> Iterator[Caddy]:
    directory = tmp_path_factory.mktemp("files")
    issue(authority, directory)
    settings = {"edge_base_domain": "", "edge_public_base_url": f"https://{HOST}", "edge_tls_mode": "files"}
    caddy = start_caddy(
        directory, loop, caddy_binaries()[0], "127.0.74.2", **settings, __edge_tls_directory=str(directory)
    )
    yield caddy
    caddy.stop()
    caddy.edge.stop()


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_bots_are_paths_of_the_one_host(caddy: Caddy, trust: ssl.SSLContext) -> None:
    answer = caddy.ask(HOST, "/alice/webhook?token=cg_alice", context=trust)
    assert answer.json["target"] == "/webhook"
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["strict-transport-security"]


def test_another_host_is_not_found(caddy: Caddy, trust: ssl.SSLContext) -> None:
    assert caddy.ask(HOST, "/alice/health", context=trust, host="other.test").status == 404


def test_a_client_that_sends_no_server_name_gets_this_certificate(
    caddy: Caddy, trust: ssl.SSLContext
) -> None:
    trust.check_hostname = False
    assert caddy.ask(None, "/alice/health", context=trust, host=HOST).status == 200
