"""``clawctl claims serve``: waits on Telegram for owners of bots that have none, and ends when all have one.

One task per bot. What a right code sets off is written down first and done in steps that can be repeated,
so that a crash at any point is made good by the next start.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import aiohttp
import msgspec

from clawdeploy import claims, storage
from clawdeploy.claims import Claim, Verdict
from clawdeploy.errors import ClawError
from clawdeploy.host import Paths, locked
from clawdeploy.registry import Registry
from clawdeploy.secret_files import load_secrets
from clawdeploy.storage import HomeFile, Homes
from clawdeploy.telegram import API, Message, Telegram, TelegramError

RESCAN_SECONDS = 1.0
POLL_SECONDS = 25
_LONGEST_BACKOFF = 60
_CLOCK_SECONDS = 60  # how far Telegram's clock and ours may be apart
_HINTS_KEPT = 1000

HINT = "This bot has no owner yet. If it is yours, open the link on its deploy card."
WRONG = "This code is not right. Open the newest link on the deploy card."
GREETING = "This bot is yours now. It is starting; write to it in a moment."

log = logging.getLogger(__name__)

OpenRegistry = Callable[[], AbstractContextManager[Registry]]


class ClaimService:
    """The listener. open_registry opens one for the calling thread; restart restarts a bot's container."""

    def __init__(
        self,
        paths: Paths,
        open_registry: OpenRegistry,
        homes: Homes,
        restart: Callable[[str], None],
        api: str = API,
    ) -> None:
        self._paths, self._open_registry, self._homes, self._restart = paths, open_registry, homes, restart
        self._api = api

    async def serve(self) -> None:
        """Serve every pending claim; returns when none is left. New ones are seen within two seconds."""
        tasks: dict[str, asyncio.Task[None]] = {}
        async with aiohttp.ClientSession() as session:
            try:
                while pending := claims.pending_claims(self._paths, _now()):
                    for bot_id in tasks.keys() - pending.keys():
                        tasks.pop(bot_id).cancel()
                    for bot_id in pending.keys() - tasks.keys():
                        tasks[bot_id] = asyncio.create_task(self._attend(session, bot_id))
                    # Nobody tells us that a file appeared or went, so look again after a while.
                    await asyncio.wait(tasks.values(), timeout=RESCAN_SECONDS)
                    for bot_id in [bot_id for bot_id, task in tasks.items() if task.done()]:
                        tasks.pop(bot_id).result()
            finally:
                for task in tasks.values():
                    task.cancel()
                await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _attend(self, session: aiohttp.ClientSession, bot_id: str) -> None:
        """Serve one bot until it has an owner, whatever goes wrong on the way."""
        failures = 0
        listener = _Listener(self, session, bot_id)
        while True:
            try:
                await listener.step()
                failures = 0
                if listener.done:
                    return
            except TelegramError as error:
                failures += 1
                delay = error.retry_after or min(2**failures, _LONGEST_BACKOFF)
                log.warning("bot %s: %s; next try in %d s", bot_id, error.advice(), delay)
                await asyncio.sleep(delay)
            except ClawError as error:
                failures += 1
                delay = min(2**failures, _LONGEST_BACKOFF)
                log.error("bot %s: %s Next try in %d s.", bot_id, error.message, delay)
                await asyncio.sleep(delay)

    # What follows changes files and runs in threads, one at a time by the host's lock.

    def guess(self, bot_id: str, message: Message, code: str, update_id: int) -> Verdict:
        """Count a guess; a right one makes its sender the owner, in the claim and in the registry."""
        user = str(message.sender.id) if message.sender else ""
        with locked(self._paths):
            claim = claims.load_claim(self._paths, bot_id)
            if claim is None or claim.file is None:
                return "silent"
            if message.date < claim.issued - _CLOCK_SECONDS:
                return "silent"  # nobody could have had this code: a guess that waited at Telegram
            claim, verdict = claims.judge(claim, user, code, _now())
            if verdict == "right":
                claim = msgspec.structs.replace(claim, claimed_by=user)
            if verdict != "silent":
                claims.save_claim(self._paths, msgspec.structs.replace(claim, update_id=update_id))
            return verdict

    def give(self, bot_id: str) -> str | None:
        """Let the claimed bot run with its owner; returns the owner, or None if the claim is gone."""
        with locked(self._paths), self._open_registry() as registry:
            claim = claims.load_claim(self._paths, bot_id)
            if claim is None or claim.claimed_by is None or claim.file is None:
                return None
            content = claim.file.for_owner(claim.claimed_by)
            files = storage.claimed_files(claim.files, claim.file.path, content)
            registry.set_owner(bot_id, claim.claimed_by, claims.config_hash(files))
            file = HomeFile(path=claim.file.path, content=content, mode=files[claim.file.path].mode)
            self._homes.write_file(bot_id, file)
            if not registry.find(bot_id).suspended:  # else it reads its new file when it is resumed
                self._restart(bot_id)
            return claim.claimed_by

    def close(self, bot_id: str) -> None:
        """The claim is done with."""
        with locked(self._paths):
            claims.remove_claim(self._paths, bot_id)

    def look(self, bot_id: str) -> tuple[Claim | None, str | None]:
        """The bot's claim and Telegram token as they are now."""
        secrets = load_secrets(self._paths, bot_id)
        return claims.load_claim(self._paths, bot_id), secrets.telegram_token if secrets else None

    def telegram(self, session: aiohttp.ClientSession, token: str) -> Telegram:
        return Telegram(session, token, self._api)


class _Listener:
    """One bot's conversation with strangers. Each step either listens once or hands the bot over."""

    def __init__(self, service: ClaimService, session: aiohttp.ClientSession, bot_id: str) -> None:
        self._service, self._session, self._bot_id = service, session, bot_id
        self._offset: int | None = None
        self._hinted: set[int] = set()
        self.done = False

    async def step(self) -> None:
        claim, token = self._service.look(self._bot_id)
        if claim is None or token is None:
            self.done = True
            return
        telegram = self._service.telegram(self._session, token)
        if claim.claimed_by is not None:
            await self._hand_over(telegram, claim)
            return
        if self._offset is None and claim.update_id is not None:
            self._offset = claim.update_id + 1  # what was counted before a restart is not counted again
        for update in await telegram.updates(self._offset, POLL_SECONDS):
            self._offset = update.update_id + 1
            if update.message is not None and await self._answer(telegram, update.message, update.update_id):
                return  # claimed: the next step hands over

    async def _answer(self, telegram: Telegram, message: Message, update_id: int) -> bool:
        """React to one message; returns whether it carried the right code."""
        if message.chat.type != "private" or message.sender is None or message.sender.is_bot:
            return False
        command, _, code = (message.text or "").strip().partition(" ")
        if command != "/start" or not code:
            await self._hint(telegram, message.sender.id, message.chat.id)
            return False
        verdict = await asyncio.to_thread(self._service.guess, self._bot_id, message, code.strip(), update_id)
        if verdict == "wrong":
            log.warning("bot %s: wrong claim code from Telegram user %d", self._bot_id, message.sender.id)
            await _try_to_send(telegram, message.chat.id, WRONG)
        return verdict == "right"

    async def _hint(self, telegram: Telegram, user: int, chat: int) -> None:
        if user in self._hinted or len(self._hinted) >= _HINTS_KEPT:
            return  # once per stranger, so that nobody can make us send without end
        self._hinted.add(user)
        await _try_to_send(telegram, chat, HINT)

    async def _hand_over(self, telegram: Telegram, claim: Claim) -> None:
        if claim.update_id is not None:
            # The agent polls next and must not be sent the code.
            await telegram.updates(claim.update_id + 1, 0)
        owner = await asyncio.to_thread(self._service.give, self._bot_id)
        if owner is not None:
            log.info("bot %s: claimed by Telegram user %s", self._bot_id, owner)
            await _try_to_send(telegram, int(owner), GREETING)
            await asyncio.to_thread(self._service.close, self._bot_id)
        self.done = True


async def _try_to_send(telegram: Telegram, chat: int, text: str) -> None:
    """An answer that cannot be delivered (blocked, flood limit) is no reason to stop listening."""
    try:
        await telegram.send(chat, text)
    except TelegramError as error:
        log.warning("a message could not be sent: %s", error.advice())


def _now() -> int:
    return int(time.time())
