"""What `make verify-image` asks of any NullClaw image, asked of the stand-in that all other tests rest on."""

from pathlib import Path

from tests import lab
from tests.e2e.conftest import Bot, Deploy, result_of
from tests.verify_image import TOKEN, Subject, verify


async def test_the_stand_in_keeps_nullclaws_contract(
    vps: lab.Vps, deploy: Deploy, bot: Bot, tmp_path: Path
) -> None:
    result = tmp_path / "bot.json"
    deploy(token=TOKEN, owner="4242", rotate_gateway_token=True, result_file=str(result)).check()
    rows = await verify(Subject(vps, result_of(result)))
    assert [row for row in rows if not row.good] == []
