"""OpenClaw's profile keeps clear of every trap that its hosting contract lists."""

import json
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import yaml

from clawdeploy.containers import LiveBot
from clawdeploy.models import Edge
from tests.unit.plugins.conftest import ROLE, Evaluate
from tests.unit.plugins.profiles import BOT as ANY_BOT
from tests.unit.plugins.profiles import HOST, home_of, run_of

MIB = 1 << 20
BOT: dict[str, Any] = ANY_BOT | {
    "agent": "openclaw",
    "image": "ghcr.io/openclaw/openclaw:2026.9.6",
    "internal_token": "cg_" + "t" * 43,
}
CONFIG = "config/openclaw.json"
SECRETS = "config/secrets.json"


@pytest.fixture
def profile(role_variables: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = role_variables["__bot_profiles"]["__bot_openclaw"]
    return found


@pytest.fixture
def plan(profile: dict[str, Any]) -> dict[str, Any]:
    defaults = yaml.safe_load((ROLE.parent / "platform/defaults/main.yml").read_text())
    found: dict[str, Any] = defaults["platform_plans"][profile["plan"]]
    return found


def home(evaluate: Evaluate, **changes: Any) -> dict[str, Any]:
    return home_of(evaluate, BOT | changes)


def content(evaluate: Evaluate, path: str, **changes: Any) -> dict[str, Any]:
    text = next(file["content"] for file in home(evaluate, **changes)["files"] if file["path"] == path)
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def config(evaluate: Evaluate, **changes: Any) -> dict[str, Any]:
    return content(evaluate, CONFIG, **changes)


def to_run(evaluate: Evaluate, **changes: Any) -> dict[str, Any]:
    return run_of(evaluate, BOT | changes)


def spec(evaluate: Evaluate, **changes: Any) -> dict[str, Any]:
    container: dict[str, Any] = to_run(evaluate, **changes)["container"]
    return container


def test_the_specification_and_the_routes_are_ones_that_clawctl_takes(
    evaluate: Evaluate, profile: dict[str, Any]
) -> None:
    msgspec.json.decode(json.dumps(to_run(evaluate)), type=LiveBot)
    edge = msgspec.json.decode(json.dumps(profile["edge"]), type=Edge)
    assert edge.agent_checks_tokens
    assert edge.health() == "/healthz"  # the one path that its proxy rules never refuse


# --- container ---


def test_its_plan_is_big_enough_to_start(profile: dict[str, Any], plan: dict[str, Any]) -> None:
    assert profile["plan"] == "openclaw-standard"
    assert plan["memory_limit"] == "2g"
    heap = int(profile["env"]["NODE_OPTIONS"].rpartition("=")[2])
    assert heap * MIB < 2 << 30


def test_its_host_name_outlives_the_container(evaluate: Evaluate) -> None:
    names = {
        spec(evaluate, **change)["hostname"] for change in ({}, {"bot_env": {"A": "b"}}, {"owner": None})
    }
    assert names == {f"bot-{BOT['id']}"}


def test_it_may_write_to_its_state_and_tmp_alone(evaluate: Evaluate) -> None:
    container = spec(evaluate)
    assert container["read_only"] is True
    assert list(container["tmpfs"]) == ["/tmp"]
    state = container["env"]["OPENCLAW_STATE_DIR"]
    assert {mount["target"]: mount["read_only"] for mount in container["mounts"]} == {
        state: False,
        container["env"]["OPENCLAW_CONFIG_PATH"]: True,
        "/run/claw-secrets/secrets.json": True,
        f"{state}/workspace/skills": True,
        "/opt/tools": True,
    }
    assert container["env"]["XDG_CACHE_HOME"].startswith(f"{state}/")
    assert container["env"]["OPENCLAW_CONFIG_READONLY"] == "1"


def test_no_secret_is_in_what_docker_inspect_shows(evaluate: Evaluate) -> None:
    container = spec(evaluate)
    shown = json.dumps(container)
    assert [name for name in ("token", "llm_key", "internal_token") if BOT[name] in shown] == []
    assert [name for name in container["env"] if "KEY" in name or "TOKEN" in name] == []


def test_its_answers_stay_out_of_the_log(evaluate: Evaluate) -> None:
    assert spec(evaluate)["command"][-1].endswith(">/dev/null")
    assert config(evaluate)["logging"]["level"] == "warn"


def test_health_is_read_from_the_body(evaluate: Evaluate) -> None:
    check = spec(evaluate)["healthcheck"]
    assert "/startupz" in check["test"][1]
    assert "grep" in check["test"][1]
    assert check["start_period"] >= 60


def test_work_in_flight_is_given_time_to_end(evaluate: Evaluate) -> None:
    assert spec(evaluate)["stop_timeout"] >= 30


# --- configuration ---


def test_secrets_are_in_a_file_that_only_the_bot_reads(evaluate: Evaluate) -> None:
    files = {file["path"]: file for file in home(evaluate)["files"]}
    assert files[SECRETS]["mode"] == files[CONFIG]["mode"] == "0400"
    assert content(evaluate, SECRETS) == {
        "gatewayToken": BOT["internal_token"],
        "llmKey": BOT["llm_key"],
        "telegramToken": BOT["token"],
    }
    assert [
        secret for secret in content(evaluate, SECRETS).values() if secret in files[CONFIG]["content"]
    ] == []


def test_every_reference_to_a_secret_finds_one(evaluate: Evaluate) -> None:
    found = config(evaluate)
    references = [
        found["gateway"]["auth"]["token"],
        found["models"]["providers"]["clawdeploy"]["apiKey"],
        found["channels"]["telegram"]["botToken"],
    ]
    provider = found["secrets"]["providers"]["claw"]
    assert provider["path"] in [mount["target"] for mount in spec(evaluate)["mounts"]]
    for reference in references:
        assert (reference["source"], reference["provider"]) == ("file", "claw")
        assert reference["id"].removeprefix("/") in content(evaluate, SECRETS)


def test_the_edge_and_nobody_else_is_a_trusted_proxy(evaluate: Evaluate) -> None:
    assert config(evaluate)["gateway"]["trustedProxies"] == [BOT["host_address"]]


def test_its_web_interface_takes_the_bots_own_origin_and_stays_below_one_path(
    evaluate: Evaluate, profile: dict[str, Any]
) -> None:
    interface = config(evaluate)["gateway"]["controlUi"]
    assert interface["allowedOrigins"] == ["https://mybot.bots.example.com"]
    routes = {route["path"]: (route["match"], route["auth"]) for route in profile["edge"]["routes"]}
    assert routes == {
        "/healthz": ("exact", "public"),
        "/v1/chat/completions": ("exact", "token"),
        "/v1/models": ("exact", "token"),
        "/": ("exact", "agent"),
        interface["basePath"]: ("exact", "agent"),
        f"{interface['basePath']}/": ("prefix", "agent"),
    }
    assert profile["interface"] == "ui"


def test_model_is_reached_through_a_provider_of_our_own_at_a_private_address(evaluate: Evaluate) -> None:
    found = config(evaluate)
    provider, _, model = found["agents"]["defaults"]["model"]["primary"].partition("/")
    assert list(found["models"]["providers"]) == [provider] != ["openrouter"]
    assert model == HOST["openrouter_model"]
    settings = found["models"]["providers"][provider]
    assert ip_address(urlsplit(settings["baseUrl"]).hostname or "").is_private
    assert [entry["id"] for entry in settings["models"]] == [model]
    # What the gateway meters by and clamps.
    assert settings["models"][0]["compat"]["supportsUsageInStreaming"] is True
    assert settings["models"][0]["compat"]["maxTokensField"] == "max_tokens"
    assert settings["models"][0]["maxTokens"] <= 4096


def test_it_is_refused_in_words_for_an_error_would_switch_its_model_off(profile: dict[str, Any]) -> None:
    assert profile["llm_refusal"] == "message"


def test_it_asks_its_model_nothing_while_nobody_talks_to_it(evaluate: Evaluate) -> None:
    found = config(evaluate)
    assert found["agents"]["defaults"]["heartbeat"]["every"] == "0m"
    assert found["plugins"]["entries"]["memory-core"]["config"]["dreaming"]["enabled"] is False
    assert found["skills"]["workshop"]["autonomous"]["mode"] == "off"


def test_it_has_no_shell(evaluate: Evaluate) -> None:
    found = config(evaluate)
    denied = {"group:runtime", "group:automation", "gateway", "write", "edit", "apply_patch"}
    assert denied <= set(found["tools"]["deny"])
    assert found["tools"]["exec"]["security"] == "deny"
    assert found["tools"]["elevated"]["enabled"] is False
    assert found["gateway"]["terminal"]["enabled"] is False


def test_it_reads_its_skills_and_no_file_outside_of_its_workspace(
    evaluate: Evaluate, profile: dict[str, Any]
) -> None:
    tools = config(evaluate)["tools"]
    assert "read" in tools["alsoAllow"]
    assert tools["fs"] == {"workspaceOnly": True}
    shelf = next(mount for mount in spec(evaluate)["mounts"] if mount["source"].endswith("/skills"))
    assert shelf["target"].startswith(f"{profile['env']['OPENCLAW_STATE_DIR']}/workspace/")
    assert spec(evaluate)["skills"] == {"source": "skills"}


def test_what_it_ships_for_people_at_its_command_line_is_not_among_its_skills(evaluate: Evaluate) -> None:
    assert spec(evaluate)["env"]["OPENCLAW_BUNDLED_SKILLS_DIR"].startswith("/nonexistent/")


def test_the_users_programs_are_servers_whose_tools_the_model_sees(evaluate: Evaluate) -> None:
    program = {"name": "table-stats", "sha256": "b" * 64, "args": ["/data"], "env": {"A": "b"}}
    found = config(evaluate, tools=[program])
    assert found["mcp"]["servers"] == {
        "table-stats": {
            "command": "/opt/tools/table-stats-bbbbbbbbbbbb",
            "args": ["/data"],
            "env": {"A": "b"},
            "connectionTimeoutMs": 10_000,
        }
    }
    assert found["tools"]["toolSearch"] is False


def test_without_programs_of_the_users_it_keeps_its_messages_short(evaluate: Evaluate) -> None:
    found = config(evaluate)
    assert found["mcp"]["servers"] == {}
    assert found["tools"]["toolSearch"] == {"mode": "tools"}


def test_programs_end_with_the_talks_that_they_belong_to(evaluate: Evaluate) -> None:
    assert 0 < config(evaluate)["mcp"]["sessionIdleTtlMs"] <= 60_000


def test_it_calls_nobody_but_its_model_and_telegram(evaluate: Evaluate) -> None:
    found = config(evaluate)
    assert found["update"]["checkOnStart"] is False
    assert found["telemetry"]["enabled"] is False
    assert found["models"]["catalogRefresh"]["enabled"] is False


def test_bot_config_is_merged_deeply_and_wins(evaluate: Evaluate) -> None:
    found = config(evaluate, bot_config={"agents": {"defaults": {"skills": ["faq"]}}})
    assert found["agents"]["defaults"]["skills"] == ["faq"]
    assert found["agents"]["defaults"]["heartbeat"]["every"] == "0m"


# --- who may talk to it ---


@pytest.mark.parametrize(
    ("owner", "open_to_all", "policy", "allowed", "commands"),
    [("4242", False, "allowlist", ["4242"], ["telegram:4242"]), (None, True, "open", ["*"], [])],
)
def test_telegram_listens_to_exactly_the_owner(
    evaluate: Evaluate,
    owner: str | None,
    open_to_all: bool,
    policy: str,
    allowed: list[str],
    commands: list[str],
) -> None:
    found = config(evaluate, owner=owner, open_to_all=open_to_all)
    telegram = found["channels"]["telegram"]
    assert (telegram["dmPolicy"], telegram["allowFrom"]) == (policy, allowed)
    assert telegram["groupPolicy"] == "disabled"
    assert found["commands"]["ownerAllowFrom"] == commands


def test_unclaimed_bot_has_no_telegram_channel_at_all(evaluate: Evaluate) -> None:
    assert "channels" not in config(evaluate, owner=None)


def test_a_claim_makes_the_config_a_later_deploy_makes(evaluate: Evaluate) -> None:
    claim = home(evaluate, owner=None)["claim_file"]
    later = next(f for f in home(evaluate, owner="4242")["files"] if f["path"] == claim["path"])
    assert claim["content"].replace("__CLAWDEPLOY_OWNER__", "4242") == later["content"]


@pytest.mark.parametrize(
    ("agent", "owner", "refused"),
    [
        ("openclaw", "@alice", True),
        ("openclaw", "4242", False),
        ("openclaw", None, False),
        ("nullclaw", "@alice", False),
    ],
)
def test_an_owner_is_refused_whom_the_agent_cannot_know(
    evaluate: Evaluate, agent: str, owner: str | None, refused: bool
) -> None:
    asked = {"agent": agent, "owner": owner, "telegram_id": 1}
    problem = evaluate("__bot_owner_problem", asked=asked, __bot_look={"bots": []})
    assert bool(problem) is refused
    assert (f"{agent} knows people on Telegram by their number" in problem) is refused
