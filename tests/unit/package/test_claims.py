"""Owner claims: what a guess does, and the listener against a Telegram of its own."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from clawdeploy import claim_service, claims
from clawdeploy.claim_service import GREETING, HINT, WRONG, ClaimService
from clawdeploy.claims import Claim, ClaimFile, FileState, judge
from clawdeploy.cli import Machine
from clawdeploy.errors import ClawError
from clawdeploy.host import Paths
from clawdeploy.models import DeclareRequest
from clawdeploy.registry import Registry
from clawdeploy.storage import HomeFile

from .conftest import NOW, RUN, wanted

CONFIG = '{"allow_from": []}'
CLAIMED = '{"allow_from": ["__CLAWDEPLOY_OWNER__"]}'


# --- guesses ----------------------------------------------------------------------------------------


def a_claim() -> tuple[Claim, str]:
    return claims.issue("abcdefghij01", NOW)


def test_the_right_code_is_right_and_any_other_is_counted() -> None:
    claim, code = a_claim()
    assert judge(claim, "7", code, NOW)[1] == "right"
    counted, verdict = judge(claim, "7", code + "x", NOW)
    assert verdict == "wrong"
    assert (counted.wrong, counted.wrong_by_user) == (1, {"7": 1})


def test_a_code_expires_after_a_day() -> None:
    claim, code = a_claim()
    assert judge(claim, "7", code, NOW + 24 * 3600 - 1)[1] == "right"
    assert judge(claim, "7", code, NOW + 24 * 3600)[1] == "silent"


def test_a_code_is_good_once() -> None:
    claim, code = a_claim()
    assert judge(msgspec.structs.replace(claim, claimed_by="1"), "2", code, NOW)[1] == "silent"


def test_a_user_has_five_guesses_and_others_still_have_theirs() -> None:
    claim, code = a_claim()
    for _ in range(5):
        claim, verdict = judge(claim, "7", "guess", NOW)
        assert verdict == "wrong"
    assert judge(claim, "7", code, NOW)[1] == "silent"
    assert judge(claim, "8", code, NOW)[1] == "right"


@given(st.lists(st.integers(1, 30).map(str), max_size=200))
def test_nobody_ever_gets_more_guesses_than_allowed(guessers: list[str]) -> None:
    claim, code = a_claim()
    for user in guessers:
        claim, _ = judge(claim, user, "guess", NOW)
    assert claim.wrong <= claims.WRONG_PER_BOT
    assert sum(claim.wrong_by_user.values()) == claim.wrong
    assert all(count <= claims.WRONG_PER_USER for count in claim.wrong_by_user.values())
    if claim.wrong == claims.WRONG_PER_BOT:
        assert judge(claim, "new", code, NOW)[1] == "silent"


def test_the_owner_is_escaped_into_the_file() -> None:
    file = ClaimFile("config/config.json", CLAIMED)
    assert json.loads(file.for_owner('4"2\\'))["allow_from"] == ['4"2\\']


def test_the_config_hash_follows_path_mode_and_content_only() -> None:
    one = {"a": FileState("0400", "1"), "b": FileState("0400", "2")}
    assert claims.config_hash(one) == claims.config_hash(dict(reversed(one.items())))
    hashes = {
        claims.config_hash(files)
        for files in (
            one,
            {"a": one["a"]},
            one | {"a": FileState("0600", "1")},
            one | {"a": FileState("0400", "3")},
        )
    }
    assert len(hashes) == 4


# --- a Telegram of our own --------------------------------------------------------------------------


class FakeTelegram:
    """Keeps updates until they are confirmed, as the Bot API does; ``failures`` are answered first."""

    def __init__(self) -> None:
        self.waiting: list[dict[str, Any]] = []
        self.sent: list[tuple[int, str]] = []
        self.failures: list[tuple[int, dict[str, Any]]] = []
        self.polls = 0
        self.url = ""
        self._news = asyncio.Event()
        self._last_id = 100

    def say(self, text: str, user: int = 4711, chat_type: str = "private", age: int = 0) -> None:
        self._last_id += 1
        sender = {"id": user, "is_bot": False}
        message = {
            "chat": {"id": user, "type": chat_type},
            "date": int(time.time()) - age,
            "from": sender,
            "text": text,
        }
        self.waiting.append({"update_id": self._last_id, "message": message})
        self._news.set()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        if request.match_info["method"] == "sendMessage":
            self.sent.append((body["chat_id"], body["text"]))
            return web.json_response({"ok": True, "result": {}})
        self.polls += 1
        if self.failures:
            status, answer = self.failures.pop(0)
            return web.json_response({"ok": False, "error_code": status, **answer}, status=status)
        if "offset" in body:
            self.waiting = [update for update in self.waiting if update["update_id"] >= body["offset"]]
        if not self.waiting and body["timeout"]:
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), body["timeout"])
        return web.json_response({"ok": True, "result": self.waiting})

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 # conditions are about files too
                await asyncio.sleep(0.01)


@pytest.fixture
async def telegram() -> AsyncIterator[FakeTelegram]:
    fake = FakeTelegram()
    application = web.Application()
    application.router.add_post("/bot{token}/{method}", fake.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()


class Disk:
    """Stands where mounted homes would be."""

    def __init__(self) -> None:
        self.written: dict[str, HomeFile] = {}

    def write_file(self, bot_id: str, file: HomeFile) -> None:
        self.written[bot_id] = file


class World:
    """One host whose only bot waits for its owner."""

    def __init__(self, machine: Machine, telegram: FakeTelegram) -> None:
        self.machine, self.telegram, self.disk = machine, telegram, Disk()
        self.restarted: list[str] = []
        self.restart_errors: list[ClawError] = []
        with machine.registry() as registry:
            request = {"run_id": RUN, "bots": [wanted(1, owner=None)]}
            bot = registry.declare(msgspec.convert(request, DeclareRequest), claim_service._now())["bots"][0]
        self.bot_id, self.code = bot["id"], bot["claim"]["code"]
        self.prepare()

    def prepare(self) -> None:
        claim = claims.load_claim(self.paths, self.bot_id)
        assert claim is not None
        ready = msgspec.structs.replace(
            claim,
            file=ClaimFile("config/config.json", CLAIMED),
            files={"config/config.json": FileState("0400", "old")},
        )
        claims.save_claim(self.paths, ready)

    @property
    def paths(self) -> Paths:
        return self.machine.paths

    @property
    def claim(self) -> Claim | None:
        return claims.load_claim(self.paths, self.bot_id)

    @property
    def owner(self) -> str | None:
        with self.machine.registry() as registry:
            return registry.find(self.bot_id).owner

    def restart(self, bot_id: str) -> None:
        if self.restart_errors:
            raise self.restart_errors.pop()
        self.restarted.append(bot_id)

    def service(self) -> ClaimService:
        @contextmanager
        def registry() -> Iterator[Registry]:
            with self.machine.registry() as opened:
                yield opened

        return ClaimService(self.paths, registry, self.disk, self.restart, self.telegram.url)  # type: ignore[arg-type]

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.service().serve())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until_served(self) -> None:
        await asyncio.wait_for(self.service().serve(), 10)


@pytest.fixture
def world(machine: Machine, telegram: FakeTelegram, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(claim_service, "RESCAN_SECONDS", 0.05)
    return World(machine, telegram)


async def test_who_opens_the_link_becomes_the_owner(world: World, telegram: FakeTelegram) -> None:
    telegram.say(f"/start {world.code}", user=4711)
    telegram.say("and now?", user=4711)
    await world.until_served()
    assert world.owner == "4711"
    written = world.disk.written[world.bot_id]
    assert (written.path, written.mode) == ("config/config.json", "0400")
    assert json.loads(written.content) == {"allow_from": ["4711"]}
    assert world.restarted == [world.bot_id]
    assert telegram.sent == [(4711, GREETING)]
    assert world.claim is None
    # The agent must see what came after the code, and never the code.
    assert [update["message"]["text"] for update in telegram.waiting] == ["and now?"]


async def test_the_new_config_hash_is_the_one_the_next_deploy_computes(
    world: World, telegram: FakeTelegram
) -> None:
    telegram.say(f"/start {world.code}", user=4711)
    await world.until_served()
    from clawdeploy.storage import file_state

    file = HomeFile("config/config.json", '{"allow_from": ["4711"]}', "0400")
    with world.machine.registry() as registry:
        assert registry.find(world.bot_id).config_hash == claims.config_hash({file.path: file_state(file)})


async def test_wrong_codes_strangers_and_groups_get_nothing(world: World, telegram: FakeTelegram) -> None:
    telegram.say("/start wrong", user=1)
    telegram.say("hello", user=2)
    telegram.say("hello again", user=2)
    telegram.say(f"/start {world.code}", user=3, chat_type="group")
    async with world.serving():
        await telegram.until(lambda: telegram.polls >= 2)
        assert telegram.sent == [(1, WRONG), (2, HINT)]
        assert world.owner is None
        assert world.claim is not None
        assert world.claim.wrong == 1


async def test_a_guesser_is_silenced_and_stays_so_after_a_restart(
    world: World, telegram: FakeTelegram
) -> None:
    for _ in range(8):
        telegram.say("/start guess", user=1)
    async with world.serving():
        await telegram.until(lambda: telegram.polls >= 2)
    assert telegram.sent == [(1, WRONG)] * 5
    telegram.say(f"/start {world.code}", user=1)
    async with world.serving():
        await telegram.until(lambda: telegram.polls >= 4)
    assert world.owner is None


async def test_after_fifty_guesses_the_bot_listens_to_nobody_until_a_new_code(
    world: World, telegram: FakeTelegram
) -> None:
    for user in range(60):
        telegram.say("/start guess", user=user, age=40)
    await world.until_served()
    assert world.claim is not None
    assert world.claim.wrong == 50
    assert len(telegram.sent) <= 50
    polls = telegram.polls
    await world.until_served()
    assert telegram.polls == polls
    with world.machine.registry() as registry:
        _, code = claims.renew(world.paths, registry.find(world.bot_id), claim_service._now())
    telegram.say(f"/start {code}", user=4711)
    await world.until_served()
    assert world.owner == "4711"


async def test_guesses_made_before_a_code_was_issued_do_not_count(
    world: World, telegram: FakeTelegram
) -> None:
    for user in range(60):
        telegram.say("/start guess", user=user, age=3600)
    telegram.say(f"/start {world.code}", user=4711)
    await world.until_served()
    assert world.owner == "4711"
    assert telegram.sent == [(4711, GREETING)]


async def test_a_crash_after_the_code_is_made_good(world: World, telegram: FakeTelegram) -> None:
    telegram.say(f"/start {world.code}", user=4711)
    claim = world.claim
    assert claim is not None
    claims.save_claim(world.paths, msgspec.structs.replace(claim, claimed_by="4711", update_id=101))
    await world.until_served()
    assert (world.owner, world.restarted, world.claim) == ("4711", [world.bot_id], None)
    assert telegram.waiting == []


async def test_a_restart_that_fails_is_tried_again(
    world: World, telegram: FakeTelegram, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = no_waiting(monkeypatch)
    world.restart_errors.append(ClawError("engine_down", "Docker is down."))
    telegram.say(f"/start {world.code}", user=4711)
    await world.until_served()
    assert world.restarted == [world.bot_id]
    assert pauses == [2]


async def test_a_new_claim_is_picked_up_and_one_that_is_gone_is_left(
    world: World, telegram: FakeTelegram, machine: Machine
) -> None:
    async with world.serving() as task:
        await telegram.until(lambda: telegram.polls == 1)
        with machine.registry() as registry:
            request = {"run_id": RUN, "bots": [wanted(2, owner=None)]}
            other = registry.declare(msgspec.convert(request, DeclareRequest), claim_service._now())["bots"][
                0
            ]["id"]
        claim = claims.load_claim(world.paths, other)
        assert claim is not None
        claims.save_claim(world.paths, msgspec.structs.replace(claim, file=ClaimFile("c", "x")))
        await telegram.until(lambda: telegram.polls == 2)
        claims.remove_claim(world.paths, other)
        claims.remove_claim(world.paths, world.bot_id)
        await asyncio.wait_for(task, 5)


async def test_a_claim_without_its_file_is_not_served(world: World, telegram: FakeTelegram) -> None:
    claim = world.claim
    assert claim is not None
    claims.save_claim(world.paths, msgspec.structs.replace(claim, file=None))
    await world.until_served()
    assert telegram.polls == 0


def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record how long the listener would pause, and do not."""
    pauses: list[float] = []
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds >= 1:
            pauses.append(seconds)
        await pause(0 if seconds >= 1 else seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return pauses


@pytest.mark.parametrize(
    ("status", "answer", "pause", "logged"),
    [
        (
            409,
            {"description": "Conflict: terminated by other getUpdates request"},
            2,
            "polled somewhere else",
        ),
        (
            409,
            {"description": "Conflict: can't use getUpdates method while webhook is active"},
            2,
            "deleteWebhook",
        ),
        (401, {"description": "Unauthorized"}, 2, "revoked"),
        (429, {"description": "Too Many Requests", "parameters": {"retry_after": 17}}, 17, "wait 17 s"),
        (502, {"description": "Bad Gateway"}, 2, "right now"),
    ],
)
async def test_trouble_with_telegram_is_logged_and_waited_out(
    world: World,
    telegram: FakeTelegram,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int,
    answer: dict[str, Any],
    pause: float,
    logged: str,
) -> None:
    pauses = no_waiting(monkeypatch)
    telegram.failures.append((status, answer))
    telegram.say(f"/start {world.code}", user=4711)
    with caplog.at_level(logging.INFO):
        await world.until_served()
    assert world.owner == "4711"
    assert pauses == [pause]
    assert logged in caplog.text
    assert "t" * 35 not in caplog.text


async def test_no_connection_is_logged_without_the_token(
    world: World, telegram: FakeTelegram, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses = no_waiting(monkeypatch)
    telegram.url = "http://127.0.0.1:1"
    async with world.serving():
        await telegram.until(lambda: len(pauses) >= 7)
    assert pauses[:7] == [2, 4, 8, 16, 32, 60, 60]
    assert "no connection" in caplog.text
    assert "t" * 35 not in caplog.text


def test_a_new_code_voids_the_old_one_and_a_bot_with_owner_gets_none(world: World) -> None:
    with world.machine.registry() as registry:
        bot = registry.find(world.bot_id)
        claim, code = claims.renew(world.paths, bot, NOW)
        assert judge(claim, "1", world.code, NOW)[1] == "wrong"
        assert judge(claim, "1", code, NOW)[1] == "right"
        with pytest.raises(ClawError, match="belongs to"):
            claims.renew(world.paths, msgspec.structs.replace(bot, owner="1"), NOW)
        claims.remove_claim(world.paths, bot.id)
        with pytest.raises(ClawError) as error:
            claims.renew(world.paths, bot, NOW)
    assert error.value.code == "claim_missing"
