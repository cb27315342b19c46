"""The stand-in keeps NullClaw's contract, its oddities included."""

import asyncio
import hashlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientTimeout, WSMsgType, WSServerHandshakeError

from tests.ports import free_port
from tests.standin.build import build_binary

from .conftest import BOT, GATEWAY_TOKEN, OWNER, Agent, Client, Config, Start

MEMORY_LIMIT = 10_000_000  # bytes: what density is judged by
NO_MODEL = (
    "No default model configured. Set agents.defaults.model.primary in ~/.nullclaw/config.json or run "
    "nullclaw onboard."
)
PROVIDERS_FAILED = (
    "All configured providers failed for this request. Check model/provider compatibility and credentials."
)
TRY_AGAIN = "An error occurred. Try again or /new for a fresh session."


async def command(home: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the stand-in to its end; return (exit status, output, errors)."""
    process = await asyncio.create_subprocess_exec(
        build_binary(),
        *arguments,
        env={"PATH": os.environ["PATH"], "HOME": str(home)} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def owner_says(client: Client, text: str, user: dict[str, Any] = OWNER) -> dict[str, int]:
    """Let somebody write to the bot on Telegram; return the ids."""
    order = {"bot_id": BOT, "user": user, "text": text}
    sent: dict[str, int] = await (await client.post("/_sim/send", json=order)).json()
    return sent


async def answers_to(client: Client, sent: dict[str, int], count: int = 1) -> list[str]:
    """The texts of what the bot sent after a message, waiting for `count` of them."""
    query = {"bot_id": BOT, "after": sent["message_id"], "count": count, "wait": 10}
    messages = (await (await client.get("/_sim/messages", params=query)).json())["messages"]
    return [message["text"] for message in messages]


async def llm_requests(client: Client, count: int = 0) -> list[dict[str, Any]]:
    """The bodies of the chat requests so far, waiting for `count` of them."""
    query = {"count": count, "wait": 10}
    recorded = (await (await client.get("/_sim/requests", params=query)).json())["requests"]
    return [entry["body"] for entry in recorded]


async def post(agent: Agent, path: str, body: Any, token: str = GATEWAY_TOKEN) -> tuple[int, Any]:
    """POST JSON to the agent; return (status, JSON)."""
    headers = {"Authorization": f"Bearer {token}"}
    async with agent.session.post(agent.url + path, json=body, headers=headers) as reply:
        return reply.status, await reply.json(content_type=None)


# ---- configuration ----


async def test_version_is_told(tmp_path: Path) -> None:
    assert await command(tmp_path, "--version") == (0, "nullclaw 2026.5.29-standin\n", "")


async def test_missing_config_ends_the_start(tmp_path: Path) -> None:
    assert await command(tmp_path, "gateway") == (1, "", f"{NO_MODEL}\n")


async def test_broken_config_is_warned_of_first(tmp_path: Path) -> None:
    (tmp_path / ".nullclaw").mkdir()
    (tmp_path / ".nullclaw/config.json").write_text('{"models": ')
    status, _, errors = await command(tmp_path, "gateway")
    assert status == 1
    assert errors.splitlines() == [
        "Warning: failed to parse config.json: UnexpectedEndOfInput",
        NO_MODEL,
    ]


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"default_provider": "x"}, "top-level default_provider is not supported"),
        ({"secrets": {"encrypt": False}}, "secrets.encrypt=false"),
        (
            {
                "models": {"providers": {"gw": {"base_url": "http://llm-gateway:8080/api/v1"}}},
                "agents": {"defaults": {"model": {"primary": "gw/x/y"}}},
            },
            "must use https://",
        ),
    ],
)
async def test_rejected_setting_ends_the_start(tmp_path: Path, config: Config, error: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, _, errors = await command(tmp_path, "gateway", NULLCLAW_HOME=str(tmp_path))
    assert status == 1
    assert error in errors


async def test_config_of_nullclaw_home_wins_over_home(tmp_path: Path) -> None:
    (tmp_path / ".nullclaw").mkdir()
    (tmp_path / ".nullclaw/config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"default_provider": "seen"}')
    _, _, errors = await command(tmp_path, "gateway", NULLCLAW_HOME=str(tmp_path))
    assert "default_provider" in errors


# ---- HTTP ----


async def test_health_and_card_are_public_and_the_rest_is_404(start: Start) -> None:
    agent = await start()
    for path, status in {"/health": 200, "/ready": 200, "/": 404, "/ws": 404, "/metrics": 404}.items():
        async with agent.session.get(agent.url + path) as reply:
            assert (path, reply.status) == (path, status)
    async with agent.session.get(f"{agent.url}/.well-known/agent-card.json") as reply:
        assert (await reply.json())["url"] == "https://bot.example.test/a2a"


@pytest.mark.parametrize("stored", [GATEWAY_TOKEN, hashlib.sha256(GATEWAY_TOKEN.encode()).hexdigest()])
async def test_webhook_answers_the_holder_of_a_paired_token(start: Start, stored: str) -> None:
    agent = await start({"gateway": {"paired_tokens": [stored]}})
    answer = await post(agent, "/webhook", {"message": "hello"})
    assert answer == (200, {"status": "ok", "response": "ECHO: hello", "thread_events": []})
    assert (await post(agent, "/webhook", {"message": "hello"}, "ci_wrong"))[0] == 401
    assert (await post(agent, "/webhook", {}))[0] == 400


async def test_plain_token_of_64_hex_digits_is_taken_for_a_hash(start: Start) -> None:
    token = "0123456789abcdef" * 4
    agent = await start({"gateway": {"paired_tokens": [token]}})
    assert (await post(agent, "/webhook", {"message": "hello"}, token))[0] == 401


async def test_webhook_only_acknowledges_unless_told_to_be_synchronous(
    start: Start, openrouter_api: Client
) -> None:
    web = {"accounts": {"default": {"port": free_port(), "auth_token": GATEWAY_TOKEN}}}
    agent = await start({"gateway": {"webhook_sync_for_workers": False}, "channels": {"web": web}})
    assert await post(agent, "/webhook", {"message": "hello"}) == (200, {"status": "received"})
    assert len(await llm_requests(openrouter_api, 1)) == 1


async def test_public_bind_without_paired_tokens_lets_nobody_in(start: Start) -> None:
    agent = await start({"gateway": {"paired_tokens": [], "require_pairing": False}})
    assert (await post(agent, "/webhook", {"message": "hello"}))[0] == 401


async def test_pairing_is_over_once_a_token_is_stored(start: Start) -> None:
    agent = await start()
    assert (await post(agent, "/pair", {}))[0] == 409


async def test_body_longer_than_one_read_is_cut_silently(start: Start) -> None:
    agent = await start()
    status, answer = await post(agent, "/webhook", {"message": "x" * 5000})
    assert status == 200
    assert 3500 < answer["response"].count("x") < 4096


async def test_webhook_takes_sixty_requests_a_minute(start: Start) -> None:
    agent = await start()
    statuses = [(await post(agent, "/webhook", {}))[0] for _ in range(61)]
    assert statuses == [400] * 60 + [429]


async def test_idle_connection_blocks_everybody(start: Start) -> None:
    agent = await start()
    with socket.create_connection(("127.0.0.1", agent.port)), pytest.raises(TimeoutError):
        await agent.session.get(f"{agent.url}/health", timeout=ClientTimeout(total=0.3))
    async with agent.session.get(f"{agent.url}/health") as reply:
        assert await reply.json() == {"status": "ok"}


def a2a(method: str) -> dict[str, Any]:
    """A JSON-RPC call that says hello."""
    message = {"messageId": "m1", "role": "user", "parts": [{"kind": "text", "text": "hello"}]}
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": {"message": message}}


async def test_a2a_send_answers_with_a_finished_task(start: Start) -> None:
    agent = await start()
    status, answer = await post(agent, "/a2a", a2a("message/send"))
    assert (status, answer["id"], answer["result"]["status"]["state"]) == (200, 7, "completed")
    assert answer["result"]["artifacts"][0]["parts"] == [{"kind": "text", "text": "ECHO: hello"}]
    assert (await post(agent, "/a2a", a2a("message/send"), "ci_wrong"))[0] == 401
    assert (await post(agent, "/a2a", a2a("no/such")))[1]["error"]["code"] == -32601


async def test_a2a_stream_ends_with_a_final_event(start: Start) -> None:
    agent = await start()
    headers = {"Authorization": f"Bearer {GATEWAY_TOKEN}"}
    async with agent.session.post(f"{agent.url}/a2a", json=a2a("message/stream"), headers=headers) as reply:
        assert reply.content_type == "text/event-stream"
        blocks = (await reply.text()).strip().split("\n\n")
    first, last = (json.loads(block.removeprefix("data: "))["result"] for block in blocks)
    assert first["artifact"]["parts"][0]["text"] == "ECHO: hello"
    assert last["final"] is True


# ---- the LLM ----


async def test_llm_request_has_model_limit_and_seeded_files(start: Start, openrouter_api: Client) -> None:
    agent = await start({"max_tokens": 777})
    (agent.home / "workspace/SOUL.md").write_text("You are a pirate.")
    await agent.say("hello")
    [body] = await llm_requests(openrouter_api)
    assert (body["model"], body["max_tokens"], body["stream"]) == ("anthropic/claude-sonnet-4", 777, False)
    assert "You are a pirate." in body["messages"][0]["content"]
    assert body["messages"][-1] == {"role": "user", "content": "hello"}


# ---- skills ----


def teach(agent: Agent, name: str, text: str, **manifest: Any) -> None:
    """Put a skill where the agent looks for it."""
    folder = agent.home / "workspace/skills" / name
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(f"---\nname: {name}\ndescription: about {name}\n---\n{text}\n")
    if manifest:
        (folder / "skill.json").write_text(json.dumps({"name": name} | manifest))


async def prompt_after(agent: Agent, openrouter_api: Client, message: str) -> str:
    await agent.say(message)
    return str((await llm_requests(openrouter_api))[-1]["messages"][0]["content"])


async def test_only_a_manifest_can_bring_a_whole_skill_into_the_prompt(
    start: Start, openrouter_api: Client
) -> None:
    agent = await start()
    teach(agent, "whole", "Refund within 30 days.", always=True)
    teach(agent, "listed", "Ship by sea.", description="how we ship")
    teach(agent, "bare", "Never rush.")
    prompt = await prompt_after(agent, openrouter_api, "hello")
    assert "Refund within 30 days." in prompt
    assert "Ship by sea." not in prompt
    folder = agent.home / "workspace/skills"
    assert f'<skill name="listed" description="how we ship" path="{folder}/listed/SKILL.md"/>' in prompt
    assert f'<skill name="bare" description="" path="{folder}/bare/SKILL.md"/>' in prompt


async def test_a_session_sees_a_new_skill_once_a_tracked_file_has_changed(
    start: Start, openrouter_api: Client
) -> None:
    agent = await start()
    (agent.home / "workspace/TOOLS.md").write_text("tools")
    await agent.say("hello")
    teach(agent, "late", "Refund within 30 days.", always=True)
    assert "30 days" not in await prompt_after(agent, openrouter_api, "again")
    (agent.home / "workspace/TOOLS.md").touch()
    assert "30 days" in await prompt_after(agent, openrouter_api, "and again")
    assert await agent.say("!sh ls skills") == "late\n[exit 0]"


async def test_a_new_session_sees_a_new_skill(start: Start, openrouter_api: Client) -> None:
    agent = await start()
    await agent.say("hello")
    teach(agent, "late", "Refund within 30 days.", always=True)
    await agent.say("/new")
    assert "30 days" in await prompt_after(agent, openrouter_api, "again")


# ---- MCP ----

SERVER = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["method"] == "initialize":
        result = {"protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}}}
    elif asked["method"] == "tools/list":
        result = {"tools": [{"name": "env", "description": "d", "inputSchema": {"type": "object"}}]}
    elif asked["method"] == "tools/call":
        if asked["params"]["arguments"].get("end"):
            break
        result = {"content": [{"type": "text", "text": " ".join(sorted(os.environ))}]}
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


async def test_tools_of_a_server_are_offered_and_called(start: Start, openrouter_api: Client) -> None:
    server = {"command": sys.executable, "args": ["-c", SERVER], "env": {"TOOL_KEY": "k"}}
    agent = await start({"mcp_servers": {"side": server}}, SECRET="not for tools")
    await openrouter_api.post("/_sim/call", json={"name": "mcp_side_env", "arguments": {}})
    assert (await agent.say("hello")).split() == ["TOOL:", "LC_CTYPE", "PATH", "TOOL_KEY"]
    first, second = await llm_requests(openrouter_api)
    assert "mcp_side_env" in [tool["function"]["name"] for tool in first["tools"]]
    assert [message["role"] for message in second["messages"][-3:]] == ["user", "assistant", "tool"]


async def test_a_server_that_ends_is_not_started_again(start: Start, openrouter_api: Client) -> None:
    server = {"command": sys.executable, "args": ["-c", SERVER]}
    agent = await start({"mcp_servers": {"side": server, "lost": {"command": "/nowhere"}}})
    for arguments in ({"end": True}, {}):
        await openrouter_api.post("/_sim/call", json={"name": "mcp_side_env", "arguments": arguments})
        assert await agent.say("hello") == "TOOL: Error: error.BrokenPipe"


@pytest.mark.parametrize(
    ("kind", "retries", "requests", "told"),
    [
        ("credits", 2, 6, PROVIDERS_FAILED),
        ("server_error", 2, 6, PROVIDERS_FAILED),
        ("rate_limit", 2, 6, TRY_AGAIN),
        ("credits", 0, 2, TRY_AGAIN),
    ],
)
async def test_failing_llm_is_asked_again_and_the_reason_is_not_told(
    start: Start, openrouter_api: Client, kind: str, retries: int, requests: int, told: str
) -> None:
    agent = await start({"reliability": {"provider_retries": retries}})
    await openrouter_api.post("/_sim/fail", json={"kind": kind, "times": requests})
    assert await post(agent, "/webhook", {"message": "hello"}) == (500, {"error": told})
    assert len(await llm_requests(openrouter_api)) == requests
    assert await agent.say("again") == "ECHO: again"
    assert "hello" not in [entry["content"] for entry in (await llm_requests(openrouter_api))[-1]["messages"]]


async def test_hanging_llm_is_given_up_after_the_configured_time(
    start: Start, openrouter_api: Client
) -> None:
    agent = await start({"agent": {"message_timeout_secs": 1}, "reliability": {"provider_retries": 0}})
    await openrouter_api.post("/_sim/latency", json={"first": 60})
    assert await post(agent, "/webhook", {"message": "hello"}) == (500, {"error": TRY_AGAIN})
    assert len(await llm_requests(openrouter_api)) == 2


async def test_history_survives_a_restart_and_new_forgets_it(start: Start, openrouter_api: Client) -> None:
    agent = await start()
    await agent.say("first")
    await agent.stop()
    agent = await start()
    await agent.say("second")
    messages = [entry["content"] for entry in (await llm_requests(openrouter_api))[-1]["messages"][1:]]
    assert messages == ["first", "ECHO: first", "second"]
    await agent.say("/new")
    await agent.say("third")
    assert len((await llm_requests(openrouter_api))[-1]["messages"]) == 2


async def test_user_can_switch_the_model(start: Start, openrouter_api: Client) -> None:
    agent = await start()
    assert (await agent.say("/model openai/gpt-5-pro")).startswith("Switched to model: openai/gpt-5-pro")
    await agent.say("hello")
    assert (await llm_requests(openrouter_api))[-1]["model"] == "openai/gpt-5-pro"
    primary = json.loads((agent.home / "config.json").read_text())["agents"]["defaults"]["model"]["primary"]
    assert primary == "clawgw/openai/gpt-5-pro"


async def test_shell_command_runs_beside_the_agent(start: Start) -> None:
    agent = await start()
    assert await agent.say("!sh pwd; false") == f"{agent.home}/workspace\n[exit 1]"


async def test_one_shot_message_is_answered_on_standard_output(start: Start) -> None:
    agent = await start()
    status, output, _ = await command(agent.home, "agent", "-m", "one shot", NULLCLAW_HOME=str(agent.home))
    assert (status, output) == (0, "ECHO: one shot\n")


# ---- Telegram ----


async def test_owner_is_answered_and_a_stranger_is_not(
    start: Start, telegram_config: Config, telegram_api: Client
) -> None:
    agent = await start(telegram_config)
    await owner_says(telegram_api, "let me in", {"id": 9999, "username": "mallory"})
    line = await agent.log_until("unauthorized")
    assert "ignoring message from unauthorized user: username=mallory, user_id=9999" in line
    sent = await owner_says(telegram_api, "1 < 2")
    assert await answers_to(telegram_api, sent) == ["ECHO: 1 < 2"]
    calls = (await (await telegram_api.get("/_sim/calls")).json())["calls"]
    assert {"deleteWebhook", "setMyCommands", "getUpdates", "getMe", "sendMessage"} <= calls.keys()
    assert calls["sendMessage"] == 1


async def test_long_answer_is_split(start: Start, telegram_config: Config, telegram_api: Client) -> None:
    await start(telegram_config)
    sent = await owner_says(telegram_api, "ä" * 4090)
    assert [len(text) for text in await answers_to(telegram_api, sent, 2)] == [4087, 9]


async def test_update_is_not_answered_again_after_a_restart(
    start: Start, telegram_config: Config, telegram_api: Client
) -> None:
    agent = await start(telegram_config)
    sent = await owner_says(telegram_api, "one")
    await answers_to(telegram_api, sent)
    await agent.stop()
    agent = await start(telegram_config)
    await owner_says(telegram_api, "two")
    assert await answers_to(telegram_api, sent, 2) == ["ECHO: one", "ECHO: two"]


async def test_forged_update_is_believed(start: Start, telegram_config: Config, telegram_api: Client) -> None:
    agent = await start(telegram_config)
    sent = await owner_says(telegram_api, "hello")
    await answers_to(telegram_api, sent)
    chat = {"id": OWNER["id"], "type": "private"}
    message = {"message_id": 1, "from": OWNER, "chat": chat, "text": "forged"}
    assert await post(agent, "/telegram", {"update_id": 1, "message": message}, "none") == (
        200,
        {"status": "ok"},
    )
    assert await answers_to(telegram_api, sent, 2) == ["ECHO: hello", "ECHO: forged"]


# ---- the web channel ----


def web_config(mode: str) -> tuple[int, Config]:
    """The port and the configuration of a web channel."""
    port = free_port()
    account = {
        "transport": "local",
        "listen": "0.0.0.0",
        "port": port,
        "path": "/ws",
        "auth_token": GATEWAY_TOKEN,
        "message_auth_mode": mode,
    }
    return port, {"channels": {"web": {"accounts": {"default": account}}}}


def event(kind: str, **payload: str) -> dict[str, Any]:
    """A message to the web channel."""
    return {"v": 1, "type": kind, "session_id": "s1", "payload": payload}


async def test_web_channel_in_token_mode_needs_no_pairing(start: Start) -> None:
    port, config = web_config("token")
    agent = await start(config)
    await agent.say("the channel is open once this is answered")
    async with agent.session.ws_connect(
        f"http://127.0.0.1:{port}/ws?token={GATEWAY_TOKEN}&session_id=s1"
    ) as ws:
        await ws.send_json(event("user_message", content="hello"))
        final = await ws.receive_json(timeout=10)
        assert (final["type"], final["session_id"]) == ("assistant_final", "s1")
        assert final["payload"]["content"] == "ECHO: hello"
        await ws.send_json(event("user_message", content="y" * 2000))
        assert (await ws.receive_json(timeout=10))["payload"]["content"] == "ECHO: " + "y" * 2000


async def test_web_channel_pairs_first_in_its_older_mode(start: Start) -> None:
    port, config = web_config("pairing")
    agent = await start(config)
    await agent.say("the channel is open once this is answered")
    headers = {"Authorization": f"Bearer {GATEWAY_TOKEN}"}
    async with agent.session.ws_connect(f"http://127.0.0.1:{port}/ws", headers=headers) as ws:
        await ws.send_json(event("user_message", content="hello"))
        assert (await ws.receive_json(timeout=10))["type"] == "error"
        await ws.send_json(event("pairing_request", pairing_code="123456"))
        paired = await ws.receive_json(timeout=10)
        assert paired["type"] == "pairing_result"
        token = paired["payload"]["access_token"]
        await ws.send_json(event("user_message", content="hello", access_token=token))
        assert (await ws.receive_json(timeout=10))["payload"]["content"] == "ECHO: hello"
        await ws.close()
        assert (await ws.receive()).type is WSMsgType.CLOSED


async def test_web_channel_refuses_a_wrong_token_with_400(start: Start) -> None:
    port, config = web_config("token")
    agent = await start(config)
    await agent.say("the channel is open once this is answered")
    with pytest.raises(WSServerHandshakeError) as refused:
        await agent.session.ws_connect(f"http://127.0.0.1:{port}/ws?token=ci_wrong")
    assert refused.value.status == 400


# ---- what a host sees ----


async def test_memory_stays_under_ten_megabytes(
    start: Start, telegram_config: Config, telegram_api: Client
) -> None:
    agent = await start(telegram_config)
    for number in range(20):
        sent = await owner_says(telegram_api, f"message {number}")
        assert await answers_to(telegram_api, sent) == [f"ECHO: message {number}"]
        await agent.say(f"message {number}")
    assert agent.memory() < MEMORY_LIMIT


async def test_sick_variant_is_alive_but_never_ready(start: Start) -> None:
    agent = await start(variant="sick")
    async with agent.session.get(f"{agent.url}/health") as reply:
        assert reply.status == 200
    async with agent.session.get(f"{agent.url}/ready") as reply:
        assert reply.status == 503


async def test_crash_variant_ends_after_its_start_with_a_line_in_the_log(start: Start) -> None:
    agent = await start(variant="crash")
    assert "crash" in await agent.log_until("error")
    assert await asyncio.wait_for(agent.process.wait(), 5) == 1
    with pytest.raises(ClientError):
        await agent.session.get(f"{agent.url}/health")


async def test_late_variant_serves_for_some_seconds_and_ends_then(start: Start) -> None:
    agent = await start(variant="late")
    async with agent.session.get(f"{agent.url}/ready") as reply:
        assert reply.status == 200
    assert "late" in await agent.log_until("error")
    assert await asyncio.wait_for(agent.process.wait(), 5) == 1


async def test_picky_variant_ends_only_where_something_breaks_it(start: Start) -> None:
    agent = await start(variant="picky")
    async with agent.session.get(f"{agent.url}/ready") as reply:
        assert reply.status == 200
    broken = await start(variant="picky", STANDIN_BREAKS="1")
    assert "picky" in await broken.log_until("error")
    assert await asyncio.wait_for(broken.process.wait(), 5) == 1
