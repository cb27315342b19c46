"""The big agent: the real OpenClaw, deployed, used and looked at as its customer does."""

import base64
import json
import shlex
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import lab
from tests.browser import NetworkChangedError, browser
from tests.customer import TelegramUser, internet
from tests.e2e.conftest import Bot, Deploy, clawctl, footprint, in_bot, result_of, telegram_token
from tests.e2e.test_refusals import words
from tests.e2e.test_skills import SECONDS, manifest, started, write_skill
from tests.openclaw_image import build_openclaw
from tests.playbooks import ENV_FILE, ROOT, run_playbook
from tests.standin.build import Image
from tests.zig_tool import build_tool

TELEGRAM_ID = 7_540_000_001
TOKEN = telegram_token(TELEGRAM_ID)
OTHER = telegram_token(7_540_000_002)
OWNER = 4242
WORKSPACE = "/home/node/.openclaw/workspace"
SCREENSHOT = ROOT / "build" / "openclaw-control-ui.png"
# Its first answer after a start takes longest.
FIRST_ANSWER = 60
# The model's answer to everything: an echo would be echoed again, for this agent remembers and quotes.
ANSWER = "Certainly, my friend."
# The page is made of custom elements, whose inside querySelector does not see.
FOCUS = """(() => {
  const find = (root) => {
    for (const element of root.querySelectorAll('*')) {
      if (element.tagName === 'TEXTAREA') return element;
      const inside = element.shadowRoot && find(element.shadowRoot);
      if (inside) return inside;
    }
  };
  const field = find(document);
  if (field) field.focus();
  return Boolean(field);
})()"""


@pytest.fixture(autouse=True)
async def model() -> AsyncIterator[None]:
    """Makes the model say ANSWER."""
    async with internet(lab.OPENROUTER_ADDRESS) as session:
        await session.post("https://openrouter.ai/_sim/say", json={"text": ANSWER})
        yield
        await session.post("https://openrouter.ai/_sim/say", json={"text": None})
        await session.post("https://openrouter.ai/_sim/call", json={})


async def order(what: str, **details: Any) -> None:
    """Tell OpenRouter's simulator what the model does next."""
    async with internet(lab.OPENROUTER_ADDRESS) as session:
        await session.post(f"https://openrouter.ai/_sim/{what}", json=details)


@pytest.fixture(scope="module")
def openclaw_image() -> Image:
    return build_openclaw(lab.CA_BUNDLE)


@pytest.fixture(scope="module")
def deploy_openclaw(deploy: Deploy, openclaw_image: Image) -> Deploy:
    """Runs deploy_bot for the bot of these tests."""
    settings = {
        "token": TOKEN,
        "agent": "openclaw",
        "bot_name": "claw",
        "bot_image": openclaw_image.tag,
        "bot_image_archive": openclaw_image.archive,
        "balance": "0.02",
    }

    def run(*options: str, **changes: Any) -> Any:
        return deploy(*options, **(settings | changes))

    return run


@pytest.fixture(scope="module")
def claw(vps: lab.Vps, deploy_openclaw: Deploy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bot]:
    """A bot deployed from its token and the agent's name; nobody owns it yet."""
    result = tmp_path_factory.mktemp("openclaw") / "bot.json"
    vps.ssh("clawctl destroy --yes claw")  # what an earlier run left has an owner
    deploy_openclaw(result_file=str(result)).check()
    yield Bot(TOKEN, result_of(result))
    vps.exec("clawctl", "destroy", "--yes", "claw")


async def prompts() -> list[dict[str, Any]]:
    """What reached OpenRouter: the bodies of all calls."""
    async with (
        internet(lab.OPENROUTER_ADDRESS) as session,
        session.get("https://openrouter.ai/_sim/requests") as response,
    ):
        return [request["body"] for request in (await response.json())["requests"]]


async def prompt_with(text: str) -> dict[str, Any]:
    """The newest call whose talk has this text in it."""
    found = [body for body in await prompts() if text in json.dumps(body["messages"][1:])]
    assert found, f"no call to the model says {text!r}"
    return found[-1]


async def ask(
    web: aiohttp.ClientSession, bot: Bot, text: str, user: str = "", **headers: str
) -> tuple[int, dict[str, Any]]:
    """One question over its HTTP API; those of one user are one talk."""
    question = {"model": "openclaw/default", "messages": [{"role": "user", "content": text}]}
    question |= {"user": user} if user else {}
    async with web.post(f"{bot.url}v1/chat/completions", json=question, headers=headers) as response:
        return response.status, await response.json()


async def use(web: aiohttp.ClientSession, bot: Bot, tool: str, **arguments: Any) -> str:
    """What a tool of the bot's says when the model calls it."""
    await order("call", name=tool, arguments=arguments)
    _, answer = await ask(web, bot, f"use {tool}", "pupil", **bot.authorization)
    said = str(answer["choices"][0]["message"]["content"])
    assert said.startswith("TOOL: "), f"the model is not offered {tool}: {said}"
    return said.removeprefix("TOOL: ")


async def told(web: aiohttp.ClientSession, bot: Bot, what: str, there: bool) -> str:
    """The system prompt of a talk's next message, or of one of the next, with or without `what` in it."""
    for number in range(10):
        text = f"message {number}: is {what} {there}?"
        await ask(web, bot, text, "pupil", **bot.authorization)
        prompt = str((await prompt_with(text))["messages"][0]["content"])
        if (what in prompt) is there:
            return prompt
    raise AssertionError(f"{what} is {'not ' if there else ''}in the prompt: {prompt}")


async def test_it_answers_over_https_with_the_gateway_token_before_anybody_owns_it(
    claw: Bot, web: aiohttp.ClientSession
) -> None:
    status, answer = await ask(web, claw, "hello from the web", **claw.authorization)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert answer["usage"]["total_tokens"] > 1000
    async with web.get(f"{claw.url}v1/models", headers=claw.authorization) as response:
        assert "openclaw/default" in await response.text()


async def test_strangers_reach_nothing_but_its_health(claw: Bot, web: aiohttp.ClientSession) -> None:
    async with web.get(f"{claw.url}healthz") as response:
        assert await response.json() == {"ok": True, "status": "live"}
    status, _ = await ask(web, claw, "let me in")
    assert status == 401
    status, _ = await ask(web, claw, "let me in", Authorization="Bearer cg_guessed")
    assert status == 401
    for path in ("tools/invoke", "hooks/wake", "v1/responses", "startupz", "metrics", "api/channels"):
        async with web.post(f"{claw.url}{path}", json={}, headers=claw.authorization) as response:
            assert response.status == 404, path


def hello(bot: Bot) -> dict[str, Any]:
    """What a program says first over its WebSocket."""
    return {
        "minProtocol": 4,
        "maxProtocol": 4,
        "client": {"id": "cli", "version": "1.0.0", "platform": "linux", "mode": "cli"},
        "role": "operator",
        "scopes": ["operator.read"],
        "auth": {"token": bot.card["gateway_token"]},
    }


async def request(socket: aiohttp.ClientWebSocketResponse, method: str, **params: Any) -> dict[str, Any]:
    """Ask something over its WebSocket, where events arrive in between."""
    await socket.send_json({"type": "req", "id": method, "method": method, "params": params})
    while (answer := await socket.receive_json(timeout=20)).get("id") != method:
        pass
    assert answer["ok"], answer
    return dict(answer["payload"])


@pytest.mark.parametrize("good", [True, False])
async def test_its_websocket_checks_the_gateway_token_itself(
    claw: Bot, web: aiohttp.ClientSession, good: bool
) -> None:
    params = hello(claw) if good else hello(claw) | {"auth": {"token": "cg_guessed"}}
    async with web.ws_connect(f"{claw.url}") as socket:
        assert (await socket.receive_json())["event"] == "connect.challenge"
        await socket.send_json({"type": "req", "id": "1", "method": "connect", "params": params})
        answer = await socket.receive_json()
    if good:
        assert answer["payload"]["type"] == "hello-ok", answer
    else:
        assert answer["error"]["details"]["code"] == "AUTH_TOKEN_MISMATCH", answer


def test_it_runs_locked_down_within_its_plan(vps: lab.Vps, claw: Bot) -> None:
    (seen,) = json.loads(vps.exec("docker", "inspect", claw.container))
    limits, plan = seen["HostConfig"], claw.card["limits"]
    uid = seen["Config"]["User"].partition(":")[0]
    assert int(uid) >= 200_000
    assert seen["Config"]["Hostname"] == f"bot-{claw.id}"
    assert limits["ReadonlyRootfs"]
    assert limits["CapDrop"] == ["ALL"]
    assert limits["SecurityOpt"] == ["no-new-privileges:true"]
    assert limits["Memory"] == limits["MemorySwap"] == plan["memory_limit"] == 2 << 30
    assert limits["PidsLimit"] == plan["pids_limit"]
    assert not limits["PortBindings"]
    assert in_bot(vps, claw, "touch /app/x")[0] != 0
    assert in_bot(vps, claw, "stat -c '%u %a' /run/claw-secrets/secrets.json")[1].split() == [uid, "400"]


def test_no_secret_is_in_its_environment_and_no_answer_in_its_log(vps: lab.Vps, claw: Bot) -> None:
    inspected = vps.exec("docker", "inspect", claw.container)
    environment = vps.exec("docker", "exec", claw.container, "env")
    for shown in (inspected, environment):
        assert claw.card["gateway_token"] not in shown
        assert TOKEN not in shown
        assert "sk-claw-" not in shown
        assert "OPENROUTER_API_KEY" not in shown
    assert ANSWER not in vps.ssh(f"docker logs {claw.container} 2>&1").stdout
    assert in_bot(vps, claw, f"grep -r '{ANSWER}' /tmp")[0] == 1


async def test_its_model_is_called_through_our_gateway_and_gets_no_shell(claw: Bot) -> None:
    body = await prompt_with("hello from the web")
    assert body["model"] == ENV_FILE["OPENROUTER_MODEL"]
    tools = {tool["function"]["name"] for tool in body.get("tools", [])}
    assert tools.isdisjoint({"exec", "process", "write", "edit", "apply_patch", "gateway", "cron"})
    assert "<available_skills>" not in body["messages"][0]["content"]
    # Every question sends all of this again.
    assert len(json.dumps(body)) < 25_000


async def test_the_owner_claims_it_through_the_link_and_strangers_get_no_answer(
    vps: lab.Vps, claw: Bot, deploy_openclaw: Deploy
) -> None:
    code = claw.card["claim"]["link"].partition("start=")[2]
    async with (
        TelegramUser(TELEGRAM_ID, 6666, "mallory") as mallory,
        TelegramUser(TELEGRAM_ID, OWNER, "owner") as owner,
    ):
        await owner.write(f"/start {code}")
        assert "yours now" in await owner.read()
        await owner.write("remember the word hippogriff")
        assert await owner.read(wait=FIRST_ANSWER) == ANSWER
        assert await prompt_with("hippogriff")
        await mallory.write("are you there, claw")
        await owner.write("and now something else")
        await owner.read()
        with pytest.raises(TimeoutError):
            await mallory.read(wait=0)
    assert [body for body in await prompts() if "are you there, claw" in json.dumps(body)] == []
    assert clawctl(vps, "show", claw.id)["owner"] == str(OWNER)
    assert deploy_openclaw().check().changed == 0


async def look(vps: lab.Vps, claw: Bot) -> tuple[str, list[tuple[int, str]]]:
    """Open the web interface with a fresh link and chat there; return the link and what the page got."""
    link = str(clawctl(vps, "login", "claw")["link"])
    async with browser(vps.host.address) as page:
        await page.open(link)
        try:
            await page.wait_for("document.body.innerText.includes('Connected')", 60)
            await page.wait_for(FOCUS, 30)
            await page.type("hello from the browser")
            await page.wait_for(f"document.body.innerText.includes('{ANSWER}')", FIRST_ANSWER)
        finally:
            SCREENSHOT.write_bytes(await page.screenshot())
        assert await page.evaluate("location.href.includes('bootstrapToken')") is False
        return link, page.responses


async def test_its_web_interface_opens_with_a_link_from_the_operator(vps: lab.Vps, claw: Bot) -> None:
    for _ in range(5):
        with suppress(NetworkChangedError):
            link, responses = await look(vps, claw)
            break
    assert link.startswith(f"{claw.url}ui/#")
    # Pictures that nobody has chosen yet are missing; nothing was refused, by the edge or by the agent.
    assert [one for one in responses if one[0] >= 400 and one[0] != 404] == []
    assert await prompt_with("hello from the browser")


async def test_without_money_it_says_so_and_goes_on_after_a_top_up_without_a_restart(
    vps: lab.Vps, claw: Bot
) -> None:
    started = ("docker", "inspect", "--format", "{{.State.StartedAt}}", claw.container)
    before = vps.exec(*started)
    async with TelegramUser(TELEGRAM_ID, OWNER, "owner") as owner:
        answer = ANSWER
        while answer == ANSWER:
            await owner.write("spend it")
            answer = await owner.read(wait=30)
        assert answer == "This bot's prepaid balance is used up. To top it up, write to help@example.test."

        payment = {"bot": claw.id, "amount": "5.00", "ref": f"{claw.id}-1"}
        run_playbook(ROOT / "playbooks" / "top_up_bot.yml", lab.INVENTORY, payment).check()
        await owner.write("thank you, griffin")
        assert await owner.read(wait=30) == ANSWER
    assert await prompt_with("thank you, griffin")
    assert vps.exec(*started) == before


async def test_it_learns_a_skill_that_it_reads_goes_back_and_forgets_while_its_talks_go_on(
    vps: lab.Vps, claw: Bot, web: aiohttp.ClientSession
) -> None:
    before = started(vps, claw)
    first = write_skill(vps, "returns", "1.0", "Take it back within THIRTY days.")
    second = write_skill(vps, "returns", "1.1", "Take it back within SIXTY days.")
    place = f"{WORKSPACE}/skills/returns/SKILL.md"
    async with web.ws_connect(f"{claw.url}") as socket:
        assert (await request(socket, "connect", **hello(claw)))["type"] == "hello-ok"
        await told(web, claw, "<available_skills>", there=False)
        began = time.monotonic()
        assert clawctl(vps, "skills", "add", "claw", first)["changed"]
        assert time.monotonic() - began < SECONDS
        prompt = await told(web, claw, "<name>returns</name>", there=True)
        assert "<description>About returns</description>" in prompt
        assert prompt.count("<skill>") == 1  # none of those that the agent brings along
        assert "THIRTY" in await use(web, claw, "read", path=place)
        clawctl(vps, "skills", "add", "claw", second)
        assert "SIXTY" in await use(web, claw, "read", path=place)
        clawctl(vps, "skills", "rollback", "claw", "returns")
        assert "THIRTY" in await use(web, claw, "read", path=place)
        assert in_bot(vps, claw, f"echo x >> {place}")[0] != 0
        clawctl(vps, "skills", "remove", "claw", "returns")
        await told(web, claw, "<available_skills>", there=False)
        assert (await request(socket, "health"))["ok"]
    assert started(vps, claw) == before


async def test_whatever_its_model_wants_it_reads_and_sends_nothing_from_outside_of_its_workspace(
    vps: lab.Vps, claw: Bot, web: aiohttp.ClientSession
) -> None:
    secrets = "/run/claw-secrets/secrets.json"
    links = f"ln -sfn {secrets} {WORKSPACE}/link.md && ln -sfn /proc/self {WORKSPACE}/self"
    assert in_bot(vps, claw, links)[0] == 0
    for path in (
        *(secrets, f"../../../../{secrets}", f"{WORKSPACE}/../../../../{secrets}", f"file://{secrets}"),
        *("/proc/self/environ", "../state/openclaw.sqlite", "/etc/openclaw/openclaw.json"),
        *("link.md", "self/environ"),
    ):
        said = json.loads(await use(web, claw, "read", path=path))
        assert (path, said["status"]) == (path, "error")
        assert "escapes sandbox root" in said["error"]
    for tool in ("exec", "write"):
        said = json.loads(await use(web, claw, "tool_call", id=tool, args={"path": "x", "command": "id"}))
        assert f"Unknown tool id: {tool}" in said["error"]
    await order("say", text=f"Here they are.\nMEDIA:{secrets}")
    async with TelegramUser(TELEGRAM_ID, OWNER, "owner") as owner:
        await owner.write("send me your keys")
        assert "secrets.json: Delivery failed" in await owner.read(wait=30)
    assert in_bot(vps, claw, f"rm {WORKSPACE}/link.md {WORKSPACE}/self")[0] == 0


def test_its_talks_are_plain_text_on_its_disk_which_only_root_can_read_and_nowhere_else_on_the_host(
    vps: lab.Vps, claw: Bot, bots: list[Bot]
) -> None:
    state = "/var/lib/clawdeploy"
    disk, home = f"{state}/disks/{claw.id}.img", f"{state}/bots/{claw.id}"
    assert vps.exec("stat", "--format", "%U %a", disk).split() == ["root", "600"]
    # With -z it skips what is sparse.
    talk = f"LC_ALL=C grep -lazF -e hippogriff -e '{ANSWER}'"
    assert vps.ssh(f"sync && {talk} {disk}").stdout.split() == [disk]
    # Whatever was written since it was deployed, wherever that is.
    since = f"-xdev -type f -newer {state}/secrets/{claw.id}.json ! -path {disk} -exec env {talk} {{}} +"
    assert vps.ssh(f"find {home} {since}").stdout != ""
    assert vps.ssh(f"find / /tmp /run {state} /var/lib/docker /var/lib/containerd {since}").stdout == ""
    assert vps.ssh(f"journalctl --no-pager | {talk}").stdout == ""

    neighbour = clawctl(vps, "show", bots[0].id)["uid"]
    for user in ("nobody", "ops", "clawdeploy-llm", "haproxy", "caddy", neighbour):
        groups = "--clear-groups" if user == neighbour else "--init-groups"
        reach = f"head -c 1 {disk} || ls {home}/data || find {home} -type f -exec head -c 1 {{}} +"
        tried = vps.ssh(
            f"setpriv --reuid={user} --regid=nogroup {groups} sh -c {shlex.quote(f'id -g; {reach}')}"
        )
        assert (tried.stdout, tried.returncode != 0) == ("65534\n", True), user


def starve(vps: lab.Vps, bot: Bot) -> None:
    """Let memory run out in a bot's container; the kernel is to end its agent, not what takes the memory."""
    for pid in vps.exec("docker", "top", bot.container, "-eo", "pid").split()[1:]:
        vps.ssh(f"echo 1000 > /proc/{pid}/oom_score_adj")
    # tail keeps the whole of a line that never ends.
    vps.exec("docker", "exec", "--detach", bot.container, "tail", "/dev/zero")


def test_of_either_agent_it_is_told_that_memory_ran_out(vps: lab.Vps, claw: Bot, bot: Bot) -> None:
    began = vps.exec("date", "+%s").strip()
    for one in (claw, bot):
        starve(vps, one)
    for one in (claw, bot):
        told = f"until clawctl events {one.id} | grep 'ran out of memory: the kernel ended'; do sleep 1; done"
        assert vps.ssh(f"timeout 30 sh -c {shlex.quote(told)}").returncode == 0
        deaths = f"docker events --since={began} --until=$(date +%s) --filter=container={one.container}"
        shown = "--filter=event=die --format='{{.Actor.Attributes.exitCode}}'"
        assert vps.ssh(f"{deaths} {shown}").stdout.split() == ["137"]


async def test_it_comes_back_with_its_memory_and_more_abilities_after_a_kill_and_an_upgrade(
    vps: lab.Vps, claw: Bot, deploy_openclaw: Deploy, tmp_path: Path
) -> None:
    vps.exec("docker", "kill", "--signal", "KILL", claw.container)
    (tmp_path / "SKILL.md").write_text(manifest("tables", "1.0", "Use table_stats for tables."))
    tool = {"path": str(build_tool()), "args": [WORKSPACE]}
    run = deploy_openclaw(
        "--diff", bot_env={"TZ": "Europe/Berlin"}, tools=[tool], skills=[str(tmp_path)]
    ).check()
    assert f"container of {claw.id}: replace" in run.output
    async with TelegramUser(TELEGRAM_ID, OWNER, "owner") as owner:
        await owner.write("what was the word?")
        assert await owner.read(wait=FIRST_ANSWER) == ANSWER
    body = await prompt_with("what was the word?")
    assert "hippogriff" in json.dumps(body["messages"])
    assert "<name>tables</name>" in body["messages"][0]["content"]


async def test_its_native_tool_is_offered_to_the_model_and_works_in_the_hardened_container(
    vps: lab.Vps, claw: Bot, web: aiohttp.ClientSession
) -> None:
    assert in_bot(vps, claw, f"printf 'price\\n2\\n4\\n' > {WORKSPACE}/sales.csv")[0] == 0
    report = json.loads(await use(web, claw, "table-stats__table_stats", path="sales.csv"))
    assert report["columns"][0]["mean"] == 3
    assert in_bot(vps, claw, "touch /opt/tools/more")[0] != 0
    tell = "grep -q ^/opt/tools/ $p/cmdline && grep -hE 'CapEff|NoNewPrivs' $p/status"
    found = in_bot(vps, claw, f"for p in /proc/[0-9]*; do {tell}; done")[1].split()
    assert found[:4] == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"]


def test_a_host_without_memory_for_it_refuses_it(
    vps: lab.Vps, claw: Bot, deploy_openclaw: Deploy, host_setting: Any
) -> None:
    host_setting("memory_budget", 1_500_000_000)
    before = footprint(vps)
    run = deploy_openclaw(token=OTHER, bot_name="second")
    assert run.returncode != 0
    assert "of 1500 MB memory reserved and this batch would make it" in words(run.output)
    assert footprint(vps) == before


def test_a_setting_that_it_does_not_know_is_named(vps: lab.Vps, claw: Bot, deploy_openclaw: Deploy) -> None:
    before = footprint(vps)
    run = deploy_openclaw(token=OTHER, bot_name="second", bot_config={"gateway": {"nonsense": True}})
    assert run.returncode != 0
    assert "(78)" in words(run.output)
    assert "nonsense" in words(run.output).partition("did not become healthy")[2]
    assert footprint(vps) == before


def test_an_owner_that_it_cannot_know_is_refused(vps: lab.Vps, claw: Bot, deploy_openclaw: Deploy) -> None:
    before = footprint(vps)
    run = deploy_openclaw(token=OTHER, bot_name="second", owner="@alice")
    assert run.returncode != 0
    assert "knows people on Telegram by their number, not by a name such as @alice" in words(run.output)
    assert footprint(vps) == before


# --- moving on to the small agent ---

NOTES = {
    "MEMORY.md": "# Memory\n\n- **Favourite beast**: hippocampus\n- The shop is closed on Mondays.\n",
    "memory/2026-11-20.md": "Ann asked about tariffs for basilisks.\n",
    "USER.md": "# User\n\nCall her Ann, never Anna.\n",
}


@pytest.fixture(scope="module")
def notes(vps: lab.Vps, claw: Bot) -> None:
    """What the bot has written down, as it does with its own tools where it is given them."""
    for path, text in NOTES.items():
        command = f"mkdir -p {WORKSPACE}/memory && printf %s {shlex.quote(text)} > {WORKSPACE}/{path}"
        assert in_bot(vps, claw, command)[0] == 0


async def knows(web: aiohttp.ClientSession, bot: Bot) -> str:
    """What the model is sent when the bot is asked about a thing that only the other one was told."""
    question = {"message": "which beast was it"}
    async with web.post(f"{bot.url}webhook", json=question, headers=bot.authorization) as response:
        assert (await response.json())["response"] == ANSWER
    return json.dumps((await prompt_with("which beast was it"))["messages"])


@pytest.mark.usefixtures("notes")
async def test_a_new_bot_knows_what_is_in_a_backup_that_it_made_itself(
    vps: lab.Vps, web: aiohttp.ClientSession, claw: Bot, deploy: Deploy, tmp_path: Path
) -> None:
    make = "node /app/openclaw.mjs backup create --output /tmp/backup >&2 && base64 -w 0 /tmp/backup/*.tar.gz"
    made = vps.ssh(f"docker exec {claw.container} sh -c 'mkdir -p /tmp/backup && {make}'")
    assert made.returncode == 0, made.stderr
    archive, result = tmp_path / "export.tar.gz", tmp_path / "bot.json"
    archive.write_bytes(base64.b64decode(made.stdout))
    run = deploy(token=OTHER, bot_name="heir", migrate_from=str(archive), result_file=str(result)).check()
    assert "3 notes of export.tar.gz (openclaw), from 3 files" in words(run.output)
    heir = Bot(OTHER, result_of(result))
    said = await knows(web, heir)
    assert "Favourite beast: hippocampus" in said
    assert "Call her Ann, never Anna." in said
    # Nothing but that came with it, and nothing is left of how it came.
    home = f"/var/lib/clawdeploy/bots/{heir.id}"
    assert vps.ssh(f"grep -rlF -e {TOKEN} -e openclaw.json {home}").stdout == ""
    assert vps.ssh(f"ls {home} | grep memories").stdout.split() == ["memories.json"]
    vps.exec("clawctl", "destroy", "--yes", "heir")


@pytest.mark.usefixtures("notes")
async def test_its_customer_moves_on_with_the_same_token(
    vps: lab.Vps, web: aiohttp.ClientSession, claw: Bot, deploy: Deploy, tmp_path: Path
) -> None:
    before, result = footprint(vps), tmp_path / "bot.json"
    wanted = {
        "token": TOKEN,
        "agent": "nullclaw",
        "bot_name": "claw",
        "migrate_from": claw.id,
        "owner": str(OWNER),
    }
    run = deploy(**wanted)
    assert run.returncode != 0
    assert "`clawctl destroy --keep-data claw`), then deploy again with migrate_from=" in words(run.output)
    assert footprint(vps) == before

    vps.exec("clawctl", "destroy", "--yes", "--keep-data", "claw")
    try:
        deploy(**wanted, result_file=str(result)).check()
        heir = Bot(TOKEN, result_of(result))
        assert heir.url == claw.url
        assert (heir.card["memories"]["notes"], heir.card["memories"]["label"]) == (3, "claw")
        assert "Favourite beast: hippocampus" in await knows(web, heir)
        async with TelegramUser(TELEGRAM_ID, OWNER, "owner") as owner:
            await owner.write("and when is the shop closed?")
            assert await owner.read() == ANSWER
        assert "closed on Mondays" in json.dumps((await prompt_with("when is the shop closed"))["messages"])
        assert deploy(**wanted).check().changed == 0
        told = [event["kind"] for event in clawctl(vps, "events", heir.id)["events"]]
        assert told[:2] == ["migrated", "deployed"]
        assert [one["id"] for one in clawctl(vps, "list", "--kept")["kept"]] == [claw.id]
    finally:
        vps.ssh(f"clawctl destroy --yes --purge {claw.id}")
