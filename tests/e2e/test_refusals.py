"""Bad input: nothing is changed, and one clear line says what to do."""

import re
from typing import Any

import pytest

from tests import lab
from tests.e2e.conftest import Bot, Deploy, footprint, telegram_token
from tests.standin.build import build_image

FREE = telegram_token(7_300_000_001)


def words(output: str) -> str:
    """Output without line breaks and indentation, so that a sentence can be found however it was wrapped."""
    return re.sub(r"\s+", " ", output)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        pytest.param(
            {"token": "12345"},
            "token: is not a Telegram bot token (5 characters, no colon)",
            id="malformed token",
        ),
        pytest.param({"token": "7300000001:ZZ" + "0" * 33}, "Telegram", id="token that Telegram refuses"),
        pytest.param(
            {"token": FREE, "bot_name": "Not_A_Label"}, "'Not_A_Label' is not a DNS label", id="no DNS label"
        ),
        pytest.param({"token": FREE, "bot_name": "www"}, "reserved", id="reserved name"),
        pytest.param({"token": FREE, "plan": "nullclaw-smal"}, "nullclaw-small", id="unknown plan"),
        pytest.param({"token": FREE, "agent": "nulclaw"}, "nullclaw", id="unknown agent"),
        pytest.param({"token": FREE, "bot_nam": "x"}, "bot_name", id="misspelt setting"),
        pytest.param({"token": FREE, "owner": "no spaces allowed"}, "owner", id="malformed owner"),
        pytest.param({}, "token", id="no token"),
        pytest.param({"token": FREE, "bots": [{"token": FREE}]}, "bots", id="one bot and a list of bots"),
        pytest.param({"bots": [{"token": FREE}, {"token": FREE}]}, "token", id="the same token twice"),
        pytest.param(
            {"token": FREE, "migrate_from": "nobody"},
            "migrate_from nobody: this host has no other bot of that id or name",
            id="memory of no bot",
        ),
        pytest.param(
            {"token": FREE, "migrate_from": "/etc/hostname"},
            "migrate_from: /etc/hostname is no directory and no archive",
            id="memory in no archive",
        ),
        pytest.param(
            {"token": FREE, "agent": "openclaw", "migrate_from": "nobody"},
            "agent openclaw has no way to take over what another bot knew",
            id="memory for an agent that takes over none",
        ),
    ],
)
def test_bad_settings_are_refused_and_nothing_changes(
    vps: lab.Vps, deploy: Deploy, bot: Bot, variables: dict[str, Any], message: str
) -> None:
    before = footprint(vps)
    run = deploy(**variables)
    assert run.returncode != 0
    assert message in words(run.output)
    assert "0" * 33 not in run.output, "a refused token is never repeated"
    assert footprint(vps) == before


def test_the_memory_of_a_bot_of_the_same_agent_is_refused(vps: lab.Vps, deploy: Deploy, bot: Bot) -> None:
    before = footprint(vps)
    run = deploy(token=FREE, migrate_from=bot.id)
    assert run.returncode != 0
    assert "runs nullclaw, and nullclaw takes over only what bots of these agents know: openclaw" in words(
        run.output
    )
    assert footprint(vps) == before


def test_a_name_that_is_taken_is_refused(vps: lab.Vps, deploy: Deploy, bots: list[Bot]) -> None:
    before = footprint(vps)
    run = deploy(token=FREE, bot_name="molecule")
    assert run.returncode != 0
    assert "molecule" in words(run.output)
    assert "taken" in words(run.output)
    assert footprint(vps) == before


def test_a_token_that_already_runs_another_bot_is_refused(vps: lab.Vps, deploy: Deploy, bot: Bot) -> None:
    before = footprint(vps)
    run = deploy(token="7000000001:AAmoleculeMoleculeMoleculeMoleculeM", bot_name="second")
    assert run.returncode != 0
    assert "molecule" in words(run.output)
    assert footprint(vps) == before


@pytest.mark.parametrize(
    ("fact", "value", "word"),
    [
        pytest.param("memory_budget", 1, "memory", id="reserved memory"),
        pytest.param("disk_floor", 2**60, "disk", id="disk space"),
        pytest.param("acme_weekly_limit", 0, "dns01", id="new certificates this week"),
    ],
)
def test_a_full_host_takes_no_more_bots_and_says_what_it_is_out_of(
    vps: lab.Vps, deploy: Deploy, bot: Bot, host_setting: Any, fact: str, value: int, word: str
) -> None:
    host_setting(fact, value)
    before = footprint(vps)
    run = deploy(token=FREE)
    assert run.returncode != 0
    assert word in words(run.output)
    assert footprint(vps) == before


def test_an_image_that_cannot_be_pulled_names_the_archive_option(
    vps: lab.Vps, deploy: Deploy, bot: Bot
) -> None:
    before = footprint(vps)
    run = deploy(token=FREE, bot_image="registry.example.test/nullclaw:1.0", bot_image_archive="")
    assert run.returncode != 0
    assert "bot_image_archive" in words(run.output)
    assert footprint(vps) == before


@pytest.mark.parametrize("variant", ["crash", "sick"])
def test_a_bot_that_never_becomes_healthy_is_removed_and_its_log_is_shown(
    vps: lab.Vps, deploy: Deploy, bot: Bot, variant: str
) -> None:
    broken = build_image(lab.CA_BUNDLE, variant)
    before = footprint(vps)
    run = deploy(
        token=FREE,
        owner="4242",
        bot_image=broken.tag,
        bot_image_archive=broken.archive,
        bot_health_timeout=10,
    )
    assert run.returncode != 0
    assert "did not become healthy" in words(run.output)
    assert "Its last log lines" in words(run.output)
    assert footprint(vps) == before
