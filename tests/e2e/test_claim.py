"""One input is enough and safe: the owner claims the bot through the card's link."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import lab
from tests.customer import TelegramUser
from tests.e2e.conftest import Deploy, clawctl, result_of, telegram_token

TOKEN = telegram_token(7_200_000_001)
BOT_ID = 7_200_000_001


@pytest.fixture(scope="module")
def unclaimed(deploy: Deploy, vps: lab.Vps, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A bot deployed from nothing but its token."""
    result = tmp_path_factory.mktemp("claim") / "bot.json"
    deploy(token=TOKEN, result_file=str(result)).check()
    return result_of(result)


async def test_only_the_right_code_claims_the_bot_and_only_once(
    vps: lab.Vps, deploy: Deploy, unclaimed: dict[str, Any], web: aiohttp.ClientSession, tmp_path: Path
) -> None:
    code = unclaimed["claim"]["link"].partition("start=")[2]
    authorization = {"Authorization": f"Bearer {unclaimed['gateway_token']}"}
    async with (
        TelegramUser(BOT_ID, 6666, "mallory") as mallory,
        TelegramUser(BOT_ID, 4343, "alice") as alice,
    ):
        # Meanwhile the bot answers over HTTPS.
        async with web.post(
            f"{unclaimed['url']}webhook", json={"message": "unclaimed"}, headers=authorization
        ) as response:
            assert "unclaimed" in (await response.json())["response"]

        await mallory.write("/start guessed-code")
        assert "not right" in await mallory.read()
        await alice.write(f"/start {code}")
        assert "yours now" in await alice.read()

        await alice.write("it is me")
        assert "it is me" in await alice.read(wait=45)
        await mallory.write(f"/start {code}")
        await alice.write("still me")
        assert "still me" in await alice.read()
        with pytest.raises(TimeoutError):
            await mallory.read(wait=0)

    assert clawctl(vps, "show", unclaimed["id"])["owner"] == "4343"

    # The claim is what the next deploy finds: nothing to change, and no code again.
    again = deploy(token=TOKEN, result_file=str(tmp_path / "again.json")).check()
    assert again.changed == 0
    assert result_of(tmp_path / "again.json")["claim"]["link"] is None


def test_the_listener_ends_when_nobody_is_left_to_claim(vps: lab.Vps, unclaimed: dict[str, Any]) -> None:
    state = vps.ssh(
        "timeout 30 sh -c 'while systemctl is-active --quiet clawdeploy-claims; do :; done'; "
        "systemctl show --property=ActiveState,Result clawdeploy-claims"
    ).stdout
    assert "ActiveState=inactive" in state
    assert "Result=success" in state
