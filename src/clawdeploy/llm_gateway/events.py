"""What the operator wants to be told: a line in the log, and a call of the operator's own command."""

import asyncio
import logging
import time

import msgspec

log = logging.getLogger(__name__)

_WAITING = 100
_COMMAND_SECONDS = 30
_QUIET_SECONDS = 600


class Events:
    """Tells the operator, one event after the other, without ever holding up a call.

    The command gets one JSON object on standard input: ``event``, ``at`` (Unix seconds), ``message`` and,
    where it is about one, ``bot``.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        """``command``: program and arguments; empty: the log is all."""
        self._command = command
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(_WAITING)
        self._last: dict[str, float] = {}

    def tell(self, event: str, message: str, bot: str = "") -> None:
        """Tell about ``event``; what is wrong with the whole host is told every ten minutes only."""
        now = time.monotonic()
        if not bot:
            if now - self._last.get(event, -_QUIET_SECONDS) < _QUIET_SECONDS:
                return
            self._last[event] = now
        log.warning("event=%s bot=%s %s", event, bot or "-", message)
        if not self._command:
            return
        facts = {"event": event, "at": int(time.time()), "message": message} | ({"bot": bot} if bot else {})
        try:
            self._queue.put_nowait(msgspec.json.encode(facts) + b"\n")
        except asyncio.QueueFull:
            log.error("%d events wait for %s: this one goes to the log only", _WAITING, self._command[0])

    async def run(self) -> None:
        """Call the command for each event, for ever."""
        while True:
            await self._call(await self._queue.get())

    async def _call(self, facts: bytes) -> None:
        try:
            process = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.PIPE)
        except OSError as error:
            log.error("the event command %s cannot be started: %s", self._command[0], error.strerror)
            return
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                await process.communicate(facts)
        except TimeoutError:
            process.kill()
            await process.wait()
            log.error("the event command was ended after %d s", _COMMAND_SECONDS)
            return
        if process.returncode:
            log.error("the event command failed with exit status %d", process.returncode)
