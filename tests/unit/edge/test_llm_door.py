"""The one door to the LLM gateway for bots that run elsewhere, with real HAProxy and Caddy."""

import hashlib
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.edge.harness import (
    API,
    BASE,
    Answer,
    Caddy,
    Edge,
    Loop,
    _UnixConnection,
    await_condition,
    caddy_binaries,
    connects,
    edge_settings,
    exchange,
    start_caddy,
)

KEY, OTHER = "sk-claw-of-a-bot-at-fly", "sk-claw-of-another-bot"
CHAT, MODELS = "/api/v1/chat/completions", "/api/v1/models"
GATEWAY = "127.0.86.9"
HOST = f"llm.{BASE}"
SETTINGS = {
    "edge_llm_gateway": f"{GATEWAY}:8788",
    "edge_remote_rate_limit_rps": 0.5,
    "edge_remote_rate_limit_burst": 5,
    "edge_remote_concurrency": 2,
}


def add_keys(edge: Edge) -> None:
    for number, key in enumerate((KEY, OTHER)):
        edge.maps["llm_keys"][hashlib.sha256(key.encode()).hexdigest()] = f"remotebot00{number}"


@pytest.fixture
def door(tmp_path: Path, loop: Loop) -> Iterator[Edge]:
    edge = Edge(tmp_path, edge_settings(tmp_path, **SETTINGS))
    tmp_path.chmod(0o755)
    edge.add_bot("alice", "127.0.86.2", routes=API)
    add_keys(edge)
    edge.start()
    await_condition(lambda: connects(str(tmp_path / "llm.sock")), "opening of the door")
    yield edge
    edge.stop()


@pytest.fixture(scope="module", autouse=True)
def gateway(loop: Loop) -> None:
    """Tells what it was sent."""
    loop.serve_bot(GATEWAY, 8788)


def ask(
    edge: Edge,
    target: str,
    key: str | None = KEY,
    method: str = "POST",
    source: str = "203.0.113.5",
    body: bytes = b"{}",
    **headers: str,
) -> Answer:
    """One request at the door as Caddy hands it over."""
    sent = [("Host", HOST), ("X-Forwarded-For", source), *headers.items()]
    sent += [("Authorization", f"Bearer {key}")] if key else []
    connection = _UnixConnection(str(edge.directory / "llm.sock"))
    return exchange(connection, method, target, sent, body if method == "POST" else b"")


def test_a_bot_elsewhere_reaches_its_model_with_its_own_key(door: Edge) -> None:
    answer = ask(door, CHAT, body=b'{"messages": []}', Cookie="a=b", **{"X-Clawdeploy": "forged"})
    assert answer.status == 200
    assert (answer.json["target"], answer.json["body"]) == (CHAT, '{"messages": []}')
    assert answer.json["headers"]["authorization"] == f"Bearer {KEY}"
    assert {"cookie", "x-forwarded-for", "x-clawdeploy"} & answer.json["headers"].keys() == set()
    assert ask(door, MODELS, method="GET").status == 200


@pytest.mark.parametrize("key", [None, "sk-claw-guessed", "cg_alice", "ci_alice"])
def test_no_other_key_or_token_opens_it(door: Edge, key: str | None) -> None:
    answer = ask(door, CHAT, key)
    assert (answer.status, answer.error) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", CHAT),
        ("POST", MODELS),
        ("GET", "/healthz"),
        ("GET", "/metrics"),
        ("GET", "/v1/accounts"),
        ("POST", f"{CHAT}/"),
        ("POST", f"/x/..{CHAT}"),
        ("POST", CHAT.replace("/api", "//api")),
        ("POST", CHAT.replace("chat", "%63hat")),
    ],
)
def test_nothing_but_the_models_two_addresses_is_there(door: Edge, method: str, target: str) -> None:
    answer = ask(door, target, method=method)
    assert (answer.status, answer.error) == (404, "unknown_path")


def test_each_bot_has_a_rate_of_its_own(door: Edge) -> None:
    assert [ask(door, CHAT).status for _ in range(6)] == [200] * 5 + [429]
    refused = ask(door, CHAT, source="203.0.113.6")
    assert (refused.error, 1 <= int(refused.headers["retry-after"]) <= 2) == ("too_many_requests", True)
    assert ask(door, CHAT, OTHER).status == 200


def test_guesses_are_limited_by_their_source_and_take_nothing_from_bots(door: Edge) -> None:
    statuses = [ask(door, CHAT, "sk-claw-guess", source="203.0.113.66").status for _ in range(70)]
    assert set(statuses) == {401, 429}
    assert statuses[:60] == [401] * 60
    assert ask(door, CHAT, source="203.0.113.66").status == 200


def test_a_bot_holds_only_so_many_calls_open(door: Edge) -> None:
    with ExitStack() as open_calls:
        for _ in range(2):
            call = open_calls.enter_context(socket.socket(socket.AF_UNIX))
            call.connect(str(door.directory / "llm.sock"))
            head = f"POST {CHAT} HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-For: 203.0.113.5\r\n"
            head += f"Authorization: Bearer {KEY}\r\nContent-Length: 10\r\n\r\n"
            call.sendall(head.encode())
        await_condition(
            lambda: "conn_cur=2" in door.command("show table remote_bots"), "arrival of both calls"
        )
        assert ask(door, CHAT).error == "too_many_connections"
        assert ask(door, CHAT, OTHER).status == 200


def test_the_log_names_the_bot_and_no_key(door: Edge) -> None:
    ask(door, f"{CHAT}?key={KEY}")
    assert '{"llm":"remotebot000","method":"POST"' in door.log
    assert KEY not in door.log


def test_it_is_closed_unless_asked_for(tmp_path: Path) -> None:
    edge = Edge(tmp_path, edge_settings(tmp_path))
    tmp_path.chmod(0o755)
    edge.start()
    try:
        assert not (tmp_path / "llm.sock").exists()
        assert edge.ask("llm", CHAT, method="POST", token=KEY).error == "unknown_bot"
    finally:
        edge.stop()


@pytest.mark.parametrize("binary", caddy_binaries(), ids=lambda binary: Path(binary).name)
def test_caddy_leads_that_one_name_to_it_and_all_others_to_bots(
    binary: str, tmp_path: Path, loop: Loop
) -> None:
    tmp_path.chmod(0o755)
    number = caddy_binaries().index(binary)
    caddy: Caddy = start_caddy(tmp_path, loop, binary, f"127.0.87.{2 + number}", **SETTINGS)
    try:
        context = ssl.create_default_context(cafile=str(tmp_path / "caddy/pki/authorities/local/root.crt"))
        for name, error in ((HOST, "unauthorized"), (HOST.upper(), "unauthorized")):
            answer = caddy.ask(HOST, MODELS, context=context, host=name)
            assert (answer.status, answer.error) == (401, error)
        answer = caddy.ask(f"alice.{BASE}", MODELS, context=context)
        assert (answer.status, answer.error) == (404, "unknown_path")
        assert caddy.ask(f"alice.{BASE}", "/health", context=context).status == 200
    finally:
        caddy.stop()
        caddy.edge.stop()
