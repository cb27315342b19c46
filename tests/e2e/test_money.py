"""Prepaid balances as the bot's users and the operator see them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests import lab
from tests.customer import TelegramUser, internet
from tests.e2e.conftest import Bot, Deploy, clawctl, footprint, result_of, telegram_token
from tests.e2e.test_refusals import words
from tests.playbooks import ENV_FILE, ROOT, Run, run_playbook, write_env

TOKEN = telegram_token(7_510_000_001)
FREE = telegram_token(7_510_000_002)
MOST_MESSAGES = 50


def top_up(*options: str, **payment: str) -> Run:
    return run_playbook(ROOT / "playbooks" / "top_up_bot.yml", lab.INVENTORY, payment, *options)


def account(vps: lab.Vps, bot: str) -> dict[str, Any]:
    (found,) = clawctl(vps, "balance", bot)["accounts"]
    return dict(found)


@pytest.fixture(scope="module")
def poor(deploy: Deploy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The card of a bot that can pay for a few messages only."""
    result = tmp_path_factory.mktemp("money") / "bot.json"
    options = {"owner": "4242", "balance": "0.002", "rotate_gateway_token": True}
    deploy(token=TOKEN, result_file=str(result), **options).check()
    return result_of(result)


@pytest.fixture
async def simulator() -> AsyncIterator[aiohttp.ClientSession]:
    """OpenRouter's side of the calls."""
    async with internet(lab.OPENROUTER_ADDRESS) as session:
        yield session


async def requests(simulator: aiohttp.ClientSession, text: str) -> int:
    """How many calls with that message reached OpenRouter."""
    query = {"contains": text}
    async with simulator.get("https://openrouter.ai/_sim/requests", params=query) as response:
        return len((await response.json())["requests"])


async def test_a_bot_without_money_says_so_and_goes_on_after_a_top_up_without_a_restart(
    vps: lab.Vps, poor: dict[str, Any], web: aiohttp.ClientSession, simulator: aiohttp.ClientSession
) -> None:
    started = ("docker", "inspect", "--format", "{{.State.StartedAt}}", f"clawdeploy-{poor['id']}")
    before = vps.exec(*started)
    async with TelegramUser(poor["telegram_id"]) as owner:
        answers: list[str] = []
        while len(answers) < MOST_MESSAGES and "used up" not in "".join(answers):
            await owner.write("spend it")
            answers.append(await owner.read())
        assert len(answers) > 1
        assert answers[-1] == (
            "This bot's prepaid balance is used up. To top it up, write to help@example.test."
        )

        # Over HTTPS, where the talk and with it the price of a call is shorter, it comes to say the same.
        # Nothing of that goes to OpenRouter.
        headers = {"Authorization": f"Bearer {poor['gateway_token']}"}
        for number in range(MOST_MESSAGES):
            message = {"message": f"not for free, {number}."}
            async with web.post(f"{poor['url']}webhook", json=message, headers=headers) as response:
                assert response.status == 200
                answer = (await response.json())["response"]
            if "used up" in answer:
                break
        assert "used up" in answer
        assert await requests(simulator, message["message"]) == 0

        spent = account(vps, poor["id"])
        assert 0 <= spent["balance"] < 2_000_000
        assert spent["balance"] + spent["spent"] == 2_000_000
        assert spent["held"] == 0

        assert top_up(bot=poor["id"], amount="0.01", ref=f"{poor['id']}-1").check().changed == 1
        await owner.write("thank you")
        assert "thank you" in await owner.read()
    assert vps.exec(*started) == before


def test_a_payment_counts_once_and_a_rehearsal_not_at_all(vps: lab.Vps, poor: dict[str, Any]) -> None:
    payment = {"bot": poor["id"], "amount": "1.50", "ref": f"{poor['id']}-2"}
    before = account(vps, poor["id"])["balance"]
    rehearsal = top_up("--check", "--diff", **payment).check()
    assert rehearsal.changed == 1
    assert "+balance of" in rehearsal.output
    assert account(vps, poor["id"])["balance"] == before
    first = top_up(**payment).check()
    assert first.changed == 1
    second = top_up(**payment).check()
    assert second.changed == 0
    assert "was paid in before" in second.output
    assert account(vps, poor["id"])["balance"] == before + 1_500_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"bot": "nobody", "amount": "1", "ref": "x"}, "has no bot 'nobody'", id="unknown bot"),
        pytest.param({"amount": "one dollar"}, "'one dollar' is not an amount", id="no amount"),
        pytest.param({"amount": "-1"}, "'-1' is not an amount", id="negative amount"),
        pytest.param({"amount": "0"}, "above 0", id="nothing"),
        pytest.param({"amount": "9.99"}, "already stands for another", id="ref of another payment"),
        pytest.param({"reff": "y"}, "ref", id="misspelt setting"),
        pytest.param({"ref": ""}, "give ref", id="no ref"),
    ],
)
def test_a_payment_that_makes_no_sense_changes_nothing(
    vps: lab.Vps, poor: dict[str, Any], change: dict[str, str], message: str
) -> None:
    payment = {"bot": poor["id"], "amount": "0.01", "ref": f"{poor['id']}-used"} | change
    top_up(bot=poor["id"], amount="0.01", ref=f"{poor['id']}-used").check()
    before = clawctl(vps, "balance")
    run = top_up(**payment)
    assert run.returncode != 0
    assert message in words(run.output)
    assert clawctl(vps, "balance") == before


def test_the_same_token_again_keeps_what_the_bot_has(
    vps: lab.Vps, deploy: Deploy, poor: dict[str, Any]
) -> None:
    before = account(vps, poor["id"])
    assert deploy(token=TOKEN, owner="4242", balance="100").check().changed == 0
    assert account(vps, poor["id"]) == before


def test_who_pays_can_be_changed_by_a_deploy(vps: lab.Vps, deploy: Deploy, poor: dict[str, Any]) -> None:
    for limit in ("2.00/day", "prepaid"):
        run = deploy("--diff", token=TOKEN, owner="4242", spend_limit=limit).check()
        assert run.changed == 1
        assert f", {limit}" in run.output
        assert account(vps, poor["id"])["spend_limit"] == limit


def test_the_list_shows_every_bot_and_what_it_has(vps: lab.Vps, poor: dict[str, Any], bot: Bot) -> None:
    run = run_playbook(ROOT / "playbooks" / "list_bots.yml", lab.INVENTORY).check()
    assert run.changed == 0
    (line,) = [line for line in run.output.splitlines() if poor["label"] in line]
    assert f"${account(vps, poor['id'])['balance_dollars']}" in line
    assert bot.card["label"] in run.output


@pytest.mark.parametrize("balance", ["five", "-1", "1.0000000001"])
def test_a_balance_that_is_no_amount_is_refused(vps: lab.Vps, deploy: Deploy, bot: Bot, balance: str) -> None:
    before = footprint(vps)
    run = deploy(token=FREE, balance=balance)
    assert run.returncode != 0
    assert f"balance: '{balance}' is not an amount" in words(run.output)
    assert footprint(vps) == before


def test_a_default_balance_that_is_no_amount_is_refused(vps: lab.Vps, deploy: Deploy, bot: Bot) -> None:
    before = footprint(vps)
    write_env(ENV_FILE | {"DEFAULT_BALANCE": "a dollar"})
    try:
        run = deploy(token=FREE)
    finally:
        write_env()
    assert run.returncode != 0
    assert 'DEFAULT_BALANCE (bot_default_balance) is "a dollar"' in words(run.output)
    assert footprint(vps) == before


def test_nothing_is_deployed_while_nobody_keeps_the_balances(vps: lab.Vps, deploy: Deploy, bot: Bot) -> None:
    vps.exec("systemctl", "stop", "clawdeploy-llm-gateway")
    try:
        run = deploy(token=FREE)
    finally:
        vps.exec("systemctl", "start", "clawdeploy-llm-gateway")
    assert run.returncode != 0
    assert "the LLM gateway, who keeps the balances, does not answer" in words(run.output)
    assert [entry for entry in clawctl(vps, "list")["bots"] if entry["telegram_id"] == 7_510_000_002] == []


async def test_our_books_say_what_openrouter_charged(
    vps: lab.Vps, poor: dict[str, Any], simulator: aiohttp.ClientSession
) -> None:
    books = clawctl(vps, "ledger", "verify")
    assert books["ok"], books["problems"]
    calls = clawctl(vps, "usage", poor["id"])["calls"]
    assert {call["how"] for call in calls} == {"usage"}
    for call in calls[:3]:
        query = {"id": call["generation"]}
        key = {"Authorization": f"Bearer {ENV_FILE['OPENROUTER_API_KEY']}"}
        async with simulator.get(
            "https://openrouter.ai/api/v1/generation", params=query, headers=key
        ) as response:
            charged = (await response.json())["data"]["total_cost"]
        assert call["charged"] == pytest.approx(charged * 1e9, abs=1)


def test_no_log_and_no_process_holds_a_prompt_or_the_key(vps: lab.Vps, poor: dict[str, Any]) -> None:
    journal = vps.exec("journalctl", "--unit=clawdeploy-llm-gateway", "--output=cat")
    assert f"bot={poor['id']} status=200" in journal
    for secret in ("spend it", "ECHO", ENV_FILE["OPENROUTER_API_KEY"]):
        assert secret not in journal
    assert ENV_FILE["OPENROUTER_API_KEY"] not in vps.exec("ps", "axwwe")


async def test_the_figures_are_for_the_host_alone(vps: lab.Vps, poor: dict[str, Any]) -> None:
    async with TelegramUser(poor["telegram_id"]) as owner:
        await owner.write("count me")
        await owner.read()
    figures = vps.exec("curl", "-fsS", "http://127.0.0.1:9465/metrics")
    assert f'clawdeploy_llm_calls_total{{bot="{poor["id"]}"}}' in figures
    listening = vps.exec("ss", "--listening", "--tcp", "--numeric", "--no-header", "sport", "=", "9465")
    assert listening.split()[3] == "127.0.0.1:9465"


def test_only_root_may_ask_the_ledger(vps: lab.Vps) -> None:
    socket = "/run/clawdeploy-llm/admin.sock"
    asked = vps.ssh(
        f"setpriv --reuid=nobody --clear-groups curl -sS --unix-socket {socket} http://x/v1/accounts"
    )
    assert asked.returncode != 0
    state = json.loads(vps.exec("curl", "-sS", "--unix-socket", socket, "http://x/v1/accounts"))
    assert state["accounts"]


def test_a_model_without_a_price_is_no_host_for_bots(vps: lab.Vps, bot: Bot) -> None:
    prepare = ROOT / "playbooks" / "prepare_host.yml"
    run = run_playbook(prepare, lab.INVENTORY, {"platform_openrouter_model": "vendor/unknown"})
    repaired = run_playbook(prepare, lab.INVENTORY)
    assert run.returncode != 0
    assert "vendor/unknown, for which no price is known" in words(run.output)
    repaired.check()
