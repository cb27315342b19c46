"""Tells the operator: a Telegram chat, an e-mail, or a command of the operator's own.

Whoever wants the operator to be told calls ``tell``, which never waits. A notice that could not be delivered
is tried again a few times, then it is in the log, and counted.
"""

import asyncio
import logging
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from tenacity import Retrying, stop_after_attempt, wait_exponential

from clawdeploy.errors import ClawError

log = logging.getLogger(__name__)

_WAITING = 100
_ATTEMPTS = 3
_COMMAND_SECONDS = 30
_ONE_LINE = re.compile(r"[\x00-\x1f\x7f]+")


class NotifyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the operator is told, any of the three or none.

    telegram_token_file: the token (a file that only root reads) of the bot that writes to telegram_chat;
    command: program and arguments that get one JSON object on standard input; kinds: the events that are
    told; repeat: seconds in which the same one is told once.
    """

    telegram_token_file: Path | None = None
    telegram_chat: int | None = None
    email: str = ""
    sendmail: str = "/usr/sbin/sendmail"
    command: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    repeat: Annotated[float, Meta(ge=0)] = 3600.0


class Notice(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the command gets, in the form of the LLM gateway's events; ``at`` is Unix seconds."""

    event: str
    at: int
    message: str
    bot: str = ""


Send = Callable[[Notice], None]
Outcome = Callable[[str, bool], None]


class Notifier:
    """Delivers notices in the background, each way of its own, so that a slow one holds up no other."""

    def __init__(
        self, ways: Mapping[str, Send], repeat: float, outcome: Outcome = lambda way, delivered: None
    ) -> None:
        """``outcome`` is called with the name of the way and whether the notice was delivered."""
        self._ways = [_Way(name, send, outcome) for name, send in ways.items()]
        self._repeat = repeat
        self._told: dict[tuple[str, str, str], float] = {}

    def tell(self, event: str, message: str, bot: str = "", about: str = "") -> bool:
        """Tell about ``event``, unless it was told for the same bot and the same ``about`` a while ago.

        Returns whether it is going to be told. ``message`` is one line without secrets.
        """
        now, key = time.monotonic(), (event, bot, about)
        self._told = {one: at for one, at in self._told.items() if now - at < self._repeat}
        if key in self._told:
            return False
        self._told[key] = now
        notice = Notice(event, int(time.time()), _ONE_LINE.sub(" ", message), bot)
        for way in self._ways:
            way.put(notice)
        return True

    def close(self, seconds: float) -> None:
        """Wait at most so long for what is still to be delivered."""
        deadline = time.monotonic() + seconds
        for way in self._ways:
            way.end(deadline - time.monotonic())


class _Way(threading.Thread):
    def __init__(self, name: str, send: Send, outcome: Outcome) -> None:
        super().__init__(name=f"notify-{name}", daemon=True)
        self._way, self._send, self._outcome = name, send, outcome
        self._queue: queue.Queue[Notice | None] = queue.Queue(_WAITING)
        self.start()

    def put(self, notice: Notice) -> None:
        try:
            self._queue.put_nowait(notice)
        except queue.Full:
            log.error("%d notices wait for %s: this one goes to the log only", _WAITING, self._way)
            self._outcome(self._way, False)

    def end(self, seconds: float) -> None:
        deadline = time.monotonic() + max(seconds, 0)
        with suppress(queue.Full):
            self._queue.put(None, timeout=max(seconds, 0))
        self.join(max(deadline - time.monotonic(), 0))

    def run(self) -> None:
        while (notice := self._queue.get()) is not None:
            try:
                for attempt in Retrying(
                    stop=stop_after_attempt(_ATTEMPTS), wait=wait_exponential(1, max=20), reraise=True
                ):
                    with attempt:
                        self._send(notice)
            except Exception as error:  # whatever it was, the next notice may get through
                log.error("the notice %r could not be sent by %s: %s", notice.message, self._way, error)
                self._outcome(self._way, False)
            else:
                self._outcome(self._way, True)


def ways(config: NotifyConfig, api: str | None = None) -> dict[str, Send]:
    """The ways that are set up, by name; ``api``: where Telegram's is, for tests."""
    found: dict[str, Send] = {}
    if config.telegram_token_file is not None and config.telegram_chat is not None:
        found["telegram"] = _telegram(config.telegram_token_file, config.telegram_chat, api)
    if config.email:
        found["email"] = _email(config.sendmail, config.email)
    if config.command:
        found["command"] = _command(config.command)
    return found


def _telegram(token_file: Path, chat: int, api: str | None) -> Send:
    def send(notice: Notice) -> None:
        import aiohttp

        from clawdeploy.telegram import API, Telegram

        token = token_file.read_text().strip()

        async def call() -> None:
            async with aiohttp.ClientSession() as session:
                await Telegram(session, token, api or API).send(chat, notice.message)

        asyncio.run(call())

    return send


def _email(sendmail: str, to: str) -> Send:
    def send(notice: Notice) -> None:
        mail = EmailMessage()
        mail["To"] = to
        mail["Subject"] = f"clawDeploy: {notice.event}" + (f" ({notice.bot})" if notice.bot else "")
        mail.set_content(notice.message + "\n")
        _run((sendmail, "-t", "-i"), mail.as_bytes())

    return send


def _command(command: tuple[str, ...]) -> Send:
    return lambda notice: _run(command, msgspec.json.encode(notice) + b"\n")


def _run(command: tuple[str, ...], text: bytes) -> None:
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=_COMMAND_SECONDS, check=False)
    except OSError as error:
        raise ClawError("notice_failed", f"{command[0]} cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise ClawError("notice_failed", f"{command[0]} was ended after {_COMMAND_SECONDS} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["nothing said"]
        raise ClawError("notice_failed", f"{command[0]} failed ({done.returncode}: {said[0]})")
