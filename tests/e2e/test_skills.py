"""Bots that are taught something while they talk, and programs that they get from their operator."""

import json
import shlex
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import lab
from tests.customer import internet
from tests.e2e.conftest import Bot, Deploy, clawctl, footprint, in_bot, result_of, telegram_token
from tests.e2e.test_refusals import words
from tests.playbooks import ROOT, Run, run_playbook
from tests.standin.build import build_image
from tests.zig_tool import build_tool

PUPIL = telegram_token(7_550_000_001)
WORKER = telegram_token(7_550_000_002)
NOBODY = telegram_token(7_550_000_003)
SECONDS = 2.0  # that teaching a bot may take


def manifest(name: str, version: str, text: str) -> str:
    return f"---\nname: {name}\ndescription: About {name}\nversion: {version}\n---\n{text}\n"


def deployed(deploy: Deploy, place: Path, token: str, **options: Any) -> Bot:
    result = place / "bot.json"
    deploy(token=token, owner="4242", rotate_gateway_token=True, result_file=str(result), **options).check()
    return Bot(token, result_of(result))


def teach(*options: str, **variables: Any) -> Run:
    return run_playbook(ROOT / "playbooks/teach_bot.yml", lab.INVENTORY, variables, *options)


@pytest.fixture(scope="module")
def pupil(deploy: Deploy, tmp_path_factory: pytest.TempPathFactory) -> Bot:
    return deployed(deploy, tmp_path_factory.mktemp("pupil"), PUPIL, bot_name="pupil")


@pytest.fixture
async def simulator() -> AsyncIterator[aiohttp.ClientSession]:
    """OpenRouter's side of the calls."""
    async with internet(lab.OPENROUTER_ADDRESS) as session:
        yield session
        await session.post("https://openrouter.ai/_sim/latency", json={})


async def prompt_of(simulator: aiohttp.ClientSession, text: str) -> str:
    """The system prompt that went with the message ``text``."""
    query = {"contains": text, "count": "1", "wait": "10"}
    async with simulator.get("https://openrouter.ai/_sim/requests", params=query) as response:
        last = (await response.json())["requests"][-1]
    return str(last["body"]["messages"][0]["content"])


def write_skill(vps: lab.Vps, name: str, version: str, text: str) -> str:
    """A skill on the VPS, for clawctl to take; returns its path."""
    folder = f"/tmp/skills-of-the-test/{name}-{version}"
    content = shlex.quote(manifest(name, version, text))
    vps.exec("sh", "-c", f"mkdir -p {folder} && printf %s {content} > {folder}/SKILL.md")
    return folder


def started(vps: lab.Vps, bot: Bot) -> str:
    return vps.exec("docker", "inspect", "--format", "{{.State.StartedAt}} {{.RestartCount}}", bot.container)


async def test_a_running_bot_learns_goes_back_and_forgets_while_its_talks_go_on(
    vps: lab.Vps, web: aiohttp.ClientSession, simulator: aiohttp.ClientSession, pupil: Bot
) -> None:
    before = started(vps, pupil)
    first = write_skill(vps, "refunds", "1.0", "Refund within THIRTY days.")
    second = write_skill(vps, "refunds", "1.1", "Refund within SIXTY days.")
    async with web.ws_connect(f"{pupil.url}ws?session_id=lesson", headers=pupil.authorization) as socket:

        async def prompt_after(text: str) -> str:
            content = {"content": text}
            await socket.send_json(
                {"v": 1, "type": "user_message", "session_id": "lesson", "payload": content}
            )
            assert text in (await socket.receive_json(timeout=20))["payload"]["content"]
            return await prompt_of(simulator, text)

        assert "THIRTY" not in await prompt_after("before the lesson")
        began = time.monotonic()
        assert clawctl(vps, "skills", "add", "pupil", first)["changed"]
        assert time.monotonic() - began < SECONDS
        assert "THIRTY" in await prompt_after("after the lesson")
        clawctl(vps, "skills", "add", "pupil", second)
        assert "SIXTY" in await prompt_after("after another lesson")
        clawctl(vps, "skills", "rollback", "pupil", "refunds")
        assert "THIRTY" in await prompt_after("after going back")
        clawctl(vps, "skills", "remove", "pupil", "refunds")
        assert "Refund" not in await prompt_after("after forgetting")
    assert started(vps, pupil) == before
    told = [event["kind"] for event in clawctl(vps, "events", "pupil")["events"]]
    assert told[-4:] == ["skill_added", "skill_added", "skill_rolled_back", "skill_removed"]


async def test_an_answer_that_is_on_its_way_arrives_although_the_bot_is_taught_meanwhile(
    vps: lab.Vps, web: aiohttp.ClientSession, simulator: aiohttp.ClientSession, pupil: Bot
) -> None:
    folder = write_skill(vps, "shipping", "1.0", "Ship by sea.")
    await simulator.post("https://openrouter.ai/_sim/latency", json={"first": 3})
    parts = [{"kind": "text", "text": "a slow question"}]
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "message/stream",
        "params": {"message": {"messageId": "m1", "role": "user", "parts": parts}},
    }
    async with web.post(f"{pupil.url}a2a", json=call, headers=pupil.authorization) as stream:
        clawctl(vps, "skills", "add", "pupil", folder)
        assert "a slow question" in await stream.text()
    clawctl(vps, "skills", "remove", "pupil", "shipping")


def test_a_bot_cannot_change_what_it_was_taught(vps: lab.Vps, pupil: Bot) -> None:
    clawctl(vps, "skills", "add", "pupil", write_skill(vps, "rules", "1.0", "Be kind."))
    place = "/nullclaw-data/workspace/skills"
    for command in (f"echo x >> {place}/rules/SKILL.md", f"mkdir {place}/more", f"rm -r {place}/rules"):
        code, output = in_bot(vps, pupil, command)
        assert code != 0, output
        assert "Read-only" in output or "denied" in output
    (skill,) = clawctl(vps, "skills", "list", "pupil")["skills"]
    assert skill["intact"]


def test_the_playbook_says_all_that_a_bot_knows_and_a_second_run_changes_nothing(
    vps: lab.Vps, pupil: Bot, tmp_path: Path
) -> None:
    clawctl(vps, "skills", "publish", write_skill(vps, "house-style", "2.0", "No exclamation marks."))
    (tmp_path / "SKILL.md").write_text(manifest("faq", "1.0", "Open from nine to five."))
    sources = [str(tmp_path), "house-style@2.0"]
    assert teach("--check", bot="pupil", skills=sources).check().changed == 1
    assert [one["name"] for one in clawctl(vps, "skills", "list", "pupil")["skills"]] == ["rules"]
    assert teach(bot="pupil", skills=sources).check().changed == 1
    listed = clawctl(vps, "skills", "list", "pupil")["skills"]
    assert [one["name"] for one in listed] == ["faq", "house-style"]
    assert teach(bot="pupil", skills=sources).check().changed == 0
    pinned = [{"source": str(tmp_path), "sha256": "0" * 64}]
    assert "it was changed" in words(teach(bot="pupil", skills=pinned).output)
    assert teach(bot="pupil", skills=[]).check().changed == 1
    assert clawctl(vps, "skills", "list", "pupil")["skills"] == []


def test_a_bad_skill_or_tool_is_refused_before_anything_is_changed(
    vps: lab.Vps, deploy: Deploy, tmp_path: Path
) -> None:
    before = footprint(vps)
    (tmp_path / "SKILL.md").write_text(manifest("bad", "1.0", "Read me."))
    (tmp_path / "link").symlink_to("/etc/shadow")
    for options, complaint in (
        ({"skills": [str(tmp_path)]}, "link is no plain file"),
        ({"skills": ["lost@1.0"]}, "the library has no skill"),
        ({"tools": ["/bin/ls"]}, "is no static program"),
    ):
        run = deploy(token=NOBODY, owner="4242", **options)
        assert (run.returncode != 0, run.changed) == (True, 0)
        assert complaint in words(run.output)
    assert footprint(vps) == before


# --- tools ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A git repository with a skill; its source."""
    root = tmp_path_factory.mktemp("repository")
    (root / "tables").mkdir()
    (root / "tables/SKILL.md").write_text(manifest("tables", "1.0", "Use table_stats for tables."))
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.test"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"], ["tag", "v1"]):
        subprocess.run(["git", "-C", str(root), *who, *command], check=True)
    return f"git+file://{root}#v1:tables"


@pytest.fixture(scope="module")
def worker_options(repository: str) -> dict[str, Any]:
    tool = {"path": str(build_tool()), "args": ["/nullclaw-data/workspace"]}
    return {"bot_name": "worker", "skills": [repository], "tools": [tool]}


@pytest.fixture(scope="module")
def worker(deploy: Deploy, worker_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Bot:
    return deployed(deploy, tmp_path_factory.mktemp("worker"), WORKER, **worker_options)


async def mean_price(web: aiohttp.ClientSession, simulator: aiohttp.ClientSession, bot: Bot) -> float:
    """What the bot's tool says about the prices, when the model asks for it."""
    call = {"name": "mcp_table-stats_table_stats", "arguments": {"path": "sales.csv"}}
    await simulator.post("https://openrouter.ai/_sim/call", json=call)
    body = {"message": "what is the mean price?"}
    async with web.post(f"{bot.url}webhook", json=body, headers=bot.authorization) as response:
        answer = str((await response.json())["response"])
    report = json.loads(answer.removeprefix("TOOL: "))
    return float(report["columns"][0]["mean"])


async def test_a_deployed_tool_works_in_the_hardened_container(
    vps: lab.Vps, web: aiohttp.ClientSession, simulator: aiohttp.ClientSession, worker: Bot
) -> None:
    code, output = in_bot(vps, worker, "printf 'price\\n2\\n4\\n' > /nullclaw-data/workspace/sales.csv")
    assert code == 0, output
    assert await mean_price(web, simulator, worker) == 3
    assert "Use table_stats for tables." in await prompt_of(simulator, "what is the mean price?")
    code, output = in_bot(vps, worker, "touch /opt/tools/more")
    assert (code != 0, "Read-only" in output) == (True, True)
    tell = "grep -q ^/opt/tools/ $p/cmdline && grep -hE 'CapEff|NoNewPrivs' $p/status"
    found = in_bot(vps, worker, f"for p in /proc/[0-9]*; do {tell}; done")[1].split()
    assert found == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"]


def test_a_second_deploy_changes_nothing(deploy: Deploy, worker: Bot, worker_options: dict[str, Any]) -> None:
    assert deploy(token=WORKER, owner="4242", **worker_options).check().changed == 0
    assert deploy("--check", token=WORKER, owner="4242", **worker_options).check().changed == 0
    # What is not named stays as it is.
    assert deploy(token=WORKER, owner="4242").check().changed == 0


async def test_an_upgraded_bot_has_its_skills_and_tools(
    vps: lab.Vps, web: aiohttp.ClientSession, simulator: aiohttp.ClientSession, worker: Bot
) -> None:
    image = build_image(lab.CA_BUNDLE, release=2)
    variables = {
        "bots": "worker",
        "bot_image": image.tag,
        "bot_image_archive": image.archive,
        "canary_seconds": 1,
    }
    run_playbook(ROOT / "playbooks/upgrade_bots.yml", lab.INVENTORY, variables).check()
    assert await mean_price(web, simulator, worker) == 3
    (skill,) = clawctl(vps, "skills", "list", "worker")["skills"]
    assert (skill["name"], skill["intact"]) == ("tables", True)


def test_an_empty_list_takes_tools_away_and_the_bots_can_be_destroyed(
    vps: lab.Vps, deploy: Deploy, worker: Bot
) -> None:
    assert deploy(token=WORKER, owner="4242", tools=[], skills=[]).check().changed > 0
    config = vps.exec("cat", f"/var/lib/clawdeploy/bots/{worker.id}/config/config.json")
    assert json.loads(config)["mcp_servers"] == {}
    for name in ("worker", "pupil"):
        vps.exec("clawctl", "destroy", "--yes", name)
    assert "7550" not in vps.exec("clawctl", "list", "--json")
