"""Telling the operator: the ways, what is told once, and that nobody ever waits for it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from tenacity import wait

from clawdeploy import notify
from clawdeploy.notify import Notice, Notifier, NotifyConfig, ways
from tests.simulators import telegram

TOKEN = f"7000000001:AA{'x' * 33}"
NOTICE = Notice("suspended", 1_800_000_000, "one suspended: abuse", "bot000000001")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "wait_exponential", lambda *_, **__: wait.wait_none())


@pytest.fixture
def api() -> Iterator[tuple[str, Callable[[str, str, dict[str, Any]], Any]]]:
    """Address of a simulated Telegram, and a way to ask and steer it."""
    runner = asyncio.Runner()
    server = TestServer(telegram.make_app())
    loop = runner.get_loop()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(loop.run_forever)

        def wait_for(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result(10)

        async def ask(method: str, path: str, body: dict[str, Any]) -> Any:
            async with (
                ClientSession() as session,
                session.request(
                    method, server.make_url(path), json=body if method == "POST" else None
                ) as answer,
            ):
                return await answer.json()

        wait_for(server.start_server())
        yield str(server.make_url("")).rstrip("/"), lambda *order: wait_for(ask(*order))
        wait_for(server.close())
        loop.call_soon_threadsafe(loop.stop)
    runner.close()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


def program(tmp_path: Path, script: str) -> tuple[str, ...]:
    """A command of the operator's; what it gets on standard input is in ``got``."""
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return (str(path),)


def test_a_telegram_chat_is_told(api: tuple[str, Any], token_file: Path) -> None:
    address, ask = api
    ask("POST", "/_sim/send", {"bot_id": 7000000001, "user": {"id": 42}, "text": "/start"})
    config = NotifyConfig(telegram_token_file=token_file, telegram_chat=42)
    ways(config, address)["telegram"](NOTICE)
    (message,) = ask("GET", "/_sim/messages?bot_id=7000000001&chat_id=42", {})["messages"]
    assert message["text"] == "one suspended: abuse"


def test_a_chat_that_never_wrote_is_an_error_in_the_log_without_the_token(
    api: tuple[str, Any], token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, _ = api
    outcomes: list[tuple[str, bool]] = []
    config = NotifyConfig(telegram_token_file=token_file, telegram_chat=43)
    notifier = Notifier(ways(config, address), 60, lambda *outcome: outcomes.append(outcome))
    assert notifier.tell("suspended", "one suspended")
    notifier.close(10)
    assert outcomes == [("telegram", False)]
    assert "chat not found" in caplog.text
    assert "one suspended" in caplog.text
    assert TOKEN not in caplog.text


def test_a_mail_goes_through_sendmail(tmp_path: Path) -> None:
    got = tmp_path / "got"
    (sendmail,) = program(tmp_path, f'echo "$@" > {got}.arguments; cat > {got}')
    ways(NotifyConfig(email="ops@example.test", sendmail=sendmail))["email"](NOTICE)
    mail = message_from_string(got.read_text())
    assert (mail["To"], mail["Subject"]) == ("ops@example.test", "clawDeploy: suspended (bot000000001)")
    assert mail.get_payload() == "one suspended: abuse\n"
    assert Path(f"{got}.arguments").read_text() == "-t -i\n"


def test_a_command_gets_json_in_the_form_of_the_gateway_s_events(tmp_path: Path) -> None:
    got = tmp_path / "got"
    ways(NotifyConfig(command=program(tmp_path, f"cat > {got}")))["command"](NOTICE)
    assert json.loads(got.read_text()) == {
        "event": "suspended",
        "at": 1_800_000_000,
        "message": "one suspended: abuse",
        "bot": "bot000000001",
    }


@pytest.mark.parametrize(
    ("script", "said"), [("echo no route >&2; exit 3", "failed (3: no route)"), ("", "cannot be started")]
)
def test_a_command_that_fails_is_in_the_log(
    tmp_path: Path, script: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    command = program(tmp_path, script) if script else (str(tmp_path / "nothing"),)
    notifier = Notifier(ways(NotifyConfig(command=command)), 60)
    notifier.tell("oom", "one ran out of memory")
    notifier.close(10)
    assert said in caplog.text


def test_a_way_that_fails_for_a_moment_is_tried_again() -> None:
    told: list[Notice] = []

    def send(notice: Notice) -> None:
        told.append(notice)
        if len(told) < 3:
            raise OSError("no network yet")

    outcomes: list[tuple[str, bool]] = []
    notifier = Notifier({"test": send}, 60, lambda *outcome: outcomes.append(outcome))
    notifier.tell("suspended", "one suspended")
    notifier.close(10)
    assert len(told) == 3
    assert outcomes == [("test", True)]


def test_the_same_is_told_once() -> None:
    told: list[Notice] = []
    notifier = Notifier({"test": told.append}, 60)
    assert notifier.tell("watchdog_warn", "first", "a", "cpu")
    assert not notifier.tell("watchdog_warn", "again", "a", "cpu")
    assert notifier.tell("watchdog_warn", "other rule", "a", "oom")
    assert notifier.tell("watchdog_warn", "other bot", "b", "cpu")
    notifier.close(10)
    assert [notice.message for notice in told] == ["first", "other rule", "other bot"]


def test_a_stuck_way_holds_up_neither_the_caller_nor_the_others(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Notice] = []
    stuck, outcomes = threading.Event(), list[tuple[str, bool]]()

    def wait_long(_: Notice) -> None:
        stuck.wait(20)

    notifier = Notifier(
        {"stuck": wait_long, "well": told.append}, 0, lambda *outcome: outcomes.append(outcome)
    )
    began = time.monotonic()
    for number in range(150):
        notifier.tell("oom", f"number {number}")
        while len(told) <= number and time.monotonic() - began < 10:
            time.sleep(0.0005)
    assert len(told) == 150
    assert time.monotonic() - began < 10
    assert "notices wait for stuck" in caplog.text
    assert outcomes.count(("stuck", False)) == 49
    stuck.set()
    notifier.close(10)


def test_what_is_said_is_one_line() -> None:
    told: list[Notice] = []
    notifier = Notifier({"test": told.append}, 60)
    notifier.tell("suspended", "one suspended: a\r\nBcc: everybody@example.test")
    notifier.close(10)
    assert told[0].message == "one suspended: a Bcc: everybody@example.test"
