"""Tokens are judged by what Telegram says, several at a time, and never shown or polled."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible_collections.clawdeploy.fleet.plugins.modules import telegram_bot_info

from tests.unit.plugins.conftest import RunModule

GOOD, HOOKED, REVOKED, STRANGE, BROKEN = (f"{n}23456789:" + "A" * 35 for n in range(1, 6))


class Telegram(BaseHTTPRequestHandler):
    """getMe and getWebhookInfo as documented, for the tokens above; any other method is a mistake."""

    asked: list[str]

    def do_GET(self) -> None:
        _, bot, method = self.path.split("/")
        token = bot.removeprefix("bot")
        self.asked.append(method)
        hook = "https://hook.example.com/secret-path" if token == HOOKED else ""
        results = {
            "getMe": {"id": int(token.split(":")[0]), "is_bot": True, "username": "my_bot"},
            "getWebhookInfo": {"url": hook, "has_custom_certificate": False},
        }
        if token == REVOKED:
            self.reply(401, {"ok": False, "error_code": 401, "description": "Unauthorized"})
        elif token == STRANGE:
            self.reply(200, ["?"])
        elif token == BROKEN:
            self.reply(502, {"ok": False})
        else:
            self.reply(200, {"ok": True, "result": results[method]})

    def reply(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve a Telegram on loopback; the methods it was asked for."""
    Telegram.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Telegram) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(telegram_bot_info, "API", f"http://127.0.0.1:{server.server_port}")
        yield Telegram.asked
        server.shutdown()
        thread.join()


def test_each_token_is_classified_in_order(run_module: RunModule, asked: list[str]) -> None:
    result = run_module(telegram_bot_info, tokens=[GOOD, HOOKED, REVOKED, STRANGE, BROKEN, "a/b"])
    states = [bot["state"] for bot in result["bots"]]
    assert states == ["ok", "webhook", "refused", "unreachable", "unreachable", "malformed"]
    assert (result["bots"][0]["telegram_id"], result["bots"][0]["username"]) == (123456789, "my_bot")
    assert result["changed"] is False
    assert set(asked) == {"getMe", "getWebhookInfo"}


def test_sentences_say_what_to_do_and_hold_no_secret(run_module: RunModule, asked: list[str]) -> None:
    result = run_module(telegram_bot_info, tokens=[HOOKED, REVOKED])
    hooked, refused = (bot["detail"] for bot in result["bots"])
    assert "webhook at hook.example.com" in hooked
    assert "secret-path" not in hooked
    assert "get the current one from @BotFather" in refused
    assert "A" * 35 not in json.dumps(result)


def test_telegram_that_cannot_be_reached_is_no_fault_of_the_token(
    run_module: RunModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setattr(telegram_bot_info, "API", f"http://127.0.0.1:{taken.getsockname()[1]}")
        (bot,) = run_module(telegram_bot_info, tokens=[GOOD])["bots"]
    assert bot["state"] == "unreachable"
    assert "ConnectionRefusedError" in bot["detail"]
    assert "A" * 35 not in bot["detail"]


def test_name_that_cannot_be_resolved_is_told(run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telegram_bot_info, "API", "http://api.telegram.invalid")
    (bot,) = run_module(telegram_bot_info, tokens=[GOOD])["bots"]
    assert (bot["state"], bot["username"]) == ("unreachable", None)
    assert "name cannot be resolved" in bot["detail"]
