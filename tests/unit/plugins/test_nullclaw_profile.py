"""NullClaw's profile keeps clear of every trap that its hosting contract lists."""

import hashlib
import json
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from clawdeploy.containers import LiveBot
from tests.unit.plugins.conftest import ROLE, Evaluate
from tests.unit.plugins.profiles import BOT, home_of, run_of


@pytest.fixture
def profile(role_variables: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = role_variables["__bot_profiles"]["__bot_nullclaw"]
    return found


def home(evaluate: Evaluate, **changes: Any) -> dict[str, Any]:
    return home_of(evaluate, BOT | changes)


def config(evaluate: Evaluate, **changes: Any) -> dict[str, Any]:
    text = next(f["content"] for f in home(evaluate, **changes)["files"] if f["path"] == "config/config.json")
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def to_run(evaluate: Evaluate, **changes: Any) -> dict[str, Any]:
    return run_of(evaluate, BOT | changes)


def spec(evaluate: Evaluate, **changes: Any) -> dict[str, Any]:
    container: dict[str, Any] = to_run(evaluate, **changes)["container"]
    return container


def test_the_specification_is_one_that_clawctl_takes(evaluate: Evaluate) -> None:
    found = msgspec.json.decode(json.dumps(to_run(evaluate)), type=LiveBot)
    assert found.container.memory == BOT["limits"]["memory_limit"]


def test_a_bot_begins_with_what_it_is_given_or_else_with_what_all_get(evaluate: Evaluate) -> None:
    assert to_run(evaluate)["balance"] == "1.00"
    given = to_run(evaluate, balance="0", spend_limit="2.00/day")
    assert (given["balance"], given["spend_limit"]) == ("0", "2.00/day")


def test_agent_that_hides_errors_is_refused_in_words(profile: dict[str, Any]) -> None:
    assert profile["llm_refusal"] == "message"


# --- configuration ---


def test_config_is_where_every_release_looks_for_it_and_cannot_be_rewritten(evaluate: Evaluate) -> None:
    container = spec(evaluate)
    mounts = {mount["target"]: mount for mount in container["mounts"]}
    assert mounts[container["env"]["NULLCLAW_HOME"] + "/config.json"]["read_only"] is True
    assert mounts["/nullclaw-data"]["read_only"] is False


def test_config_can_be_read_by_the_bot_only(evaluate: Evaluate) -> None:
    files = {file["path"]: file for file in home(evaluate)["files"]}
    assert files["config/config.json"]["mode"] == "0400"
    assert home(evaluate)["uid"] == 200000
    assert spec(evaluate)["user"] == "200000:200000"


def test_model_is_reached_through_a_provider_of_our_own_at_a_private_address(evaluate: Evaluate) -> None:
    found = config(evaluate)
    provider, _, model = found["agents"]["defaults"]["model"]["primary"].partition("/")
    assert provider != "openrouter"
    assert model == "openai/gpt-4o-mini"
    settings = found["models"]["providers"][provider]
    assert settings["api_key"] == BOT["llm_key"]
    assert ip_address(urlsplit(settings["base_url"]).hostname or "").is_private


def test_http_requests_are_answered_synchronously_and_by_a2a(evaluate: Evaluate) -> None:
    found = config(evaluate)
    assert found["gateway"]["webhook_sync_for_workers"] is True
    assert found["a2a"] == {"enabled": True, "url": "https://mybot.bots.example.com"}


def test_messages_are_not_held_back(evaluate: Evaluate) -> None:
    assert config(evaluate)["messages"]["inbound"]["debounce_ms"] == 0


def test_agent_knows_the_internal_token_by_its_hash(evaluate: Evaluate) -> None:
    gateway = config(evaluate)["gateway"]
    assert gateway["paired_tokens"] == [hashlib.sha256(BOT["internal_token"].encode()).hexdigest()]
    assert gateway["require_pairing"] is True
    assert gateway["allow_public_bind"] is True
    assert spec(evaluate)["env"]["NULLCLAW_ALLOW_PUBLIC_BIND"] == "1"


def test_websocket_takes_the_same_internal_token_without_pairing(evaluate: Evaluate) -> None:
    web = config(evaluate)["channels"]["web"]["accounts"]["default"]
    assert web["auth_token"] == BOT["internal_token"]
    assert 16 <= len(web["auth_token"]) <= 128
    assert web["message_auth_mode"] == "token"
    assert web["listen"] == "0.0.0.0"  # on loopback it would ask for no token


def test_calls_to_the_model_are_bounded(evaluate: Evaluate) -> None:
    found = config(evaluate)
    assert 10 <= found["agent"]["max_tool_iterations"] <= 20
    assert 0 < found["max_tokens"] < 8192
    assert found["agent"]["message_timeout_secs"] < 600
    assert found["reliability"]["provider_retries"] >= 1


def test_talks_survive_a_restart(evaluate: Evaluate) -> None:
    assert config(evaluate)["memory"]["backend"] == "sqlite"


def test_keys_that_newer_releases_reject_are_absent(evaluate: Evaluate) -> None:
    found = config(evaluate)
    assert "secrets" not in found
    assert "default_provider" not in found


def test_config_stays_below_64_kib(evaluate: Evaluate) -> None:
    assert len(json.dumps(config(evaluate), indent=4)) < 64 * 1024 / 4


def test_bot_config_is_merged_deeply_and_wins(evaluate: Evaluate) -> None:
    found = config(evaluate, bot_config={"agent": {"max_tool_iterations": 3}, "extra": True})
    assert found["agent"] == {"message_timeout_secs": 120, "max_tool_iterations": 3}
    assert found["extra"] is True


# --- who may talk to it ---


@pytest.mark.parametrize(
    ("owner", "open_to_all", "allowed"),
    [("4242", False, ["4242"]), ("@alice", False, ["alice"]), (None, True, ["*"])],
)
def test_telegram_listens_to_exactly_the_owner(
    evaluate: Evaluate, owner: str | None, open_to_all: bool, allowed: list[str]
) -> None:
    found = config(evaluate, owner=owner, open_to_all=open_to_all)
    account = found["channels"]["telegram"]["accounts"]["main"]
    assert account["allow_from"] == allowed
    assert account["bot_token"] == BOT["token"]
    assert account["group_policy"] == "allowlist"
    assert home(evaluate, owner=owner, open_to_all=open_to_all)["claim_file"] is None


def test_unclaimed_bot_has_no_telegram_channel_at_all(evaluate: Evaluate) -> None:
    found = config(evaluate, owner=None)
    assert "telegram" not in found["channels"]
    assert BOT["token"] not in json.dumps(found)
    assert found["channels"]["web"]  # the HTTPS way works meanwhile


def test_a_claim_makes_the_config_a_later_deploy_makes(evaluate: Evaluate) -> None:
    claim = home(evaluate, owner=None)["claim_file"]
    later = next(f for f in home(evaluate, owner="4242")["files"] if f["path"] == claim["path"])
    assert claim["content"].replace("__CLAWDEPLOY_OWNER__", "4242") == later["content"]


# --- what the edge lets through ---


def test_only_the_paths_for_customers_are_routed(profile: dict[str, Any]) -> None:
    routes = {route["path"]: (route["port"], route["auth"]) for route in profile["edge"]["routes"]}
    assert routes == {
        "/webhook": (3000, "token"),
        "/a2a": (3000, "token"),
        "/.well-known/agent-card.json": (3000, "public"),
        "/health": (3000, "public"),
        "/ws": (32123, "token"),
    }
    assert {route["match"] for route in profile["edge"]["routes"]} == {"exact"}


def test_bodies_the_agent_would_truncate_are_refused(profile: dict[str, Any]) -> None:
    assert profile["edge"]["body_limit"] < 4096


# --- container ---


def test_container_is_locked_down(evaluate: Evaluate) -> None:
    container = spec(evaluate)
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opts"] == ["no-new-privileges:true"]
    assert container["init"] is True  # the agent handles no signal
    assert container["tmpfs"]["/tmp"].startswith("rw,noexec,nosuid")
    assert container["restart_policy"] == "unless-stopped"
    assert container["pids_limit"] == 64
    assert container["ulimits"] == {"nofile": 1024, "core": 0}


def test_container_listens_on_ipv4_as_the_edge_reaches_it(evaluate: Evaluate) -> None:
    assert spec(evaluate)["command"] == ["gateway", "--port", "3000", "--host", "0.0.0.0"]


def test_bridge_name_fits_the_kernel(evaluate: Evaluate) -> None:
    assert len(spec(evaluate)["network"]["bridge"]) == 15


def test_busy_agent_is_not_taken_for_a_sick_one(evaluate: Evaluate) -> None:
    check = spec(evaluate)["healthcheck"]
    assert check["retries"] >= 3
    assert check["timeout"] >= 30
    assert check["interval"] == 30
    assert check["start_interval"] <= 1
    assert "/ready" in check["test"][1]  # /health always says 200


def test_no_secret_is_in_what_docker_inspect_shows(evaluate: Evaluate) -> None:
    shown = json.dumps(spec(evaluate))
    assert [name for name in ("token", "llm_key", "internal_token") if BOT[name] in shown] == []


def test_pinned_image_is_run_not_the_tag(evaluate: Evaluate) -> None:
    assert spec(evaluate)["image"] == "sha256:" + "a" * 64


def test_workspace_begins_with_short_files_of_all_seven_names(evaluate: Evaluate) -> None:
    seeds = {file["path"]: file["content"] for file in home(evaluate)["files"] if file.get("seed")}
    names = ("AGENTS", "SOUL", "TOOLS", "IDENTITY", "USER", "HEARTBEAT", "BOOTSTRAP")
    assert set(seeds) == {f"data/workspace/{name}.md" for name in names}
    assert all(seeds.values())
    assert sum(map(len, seeds.values())) < 3000


def test_no_task_and_no_plugin_names_an_agent() -> None:
    places = [*(ROLE / "tasks").rglob("*.yml"), ROLE / "vars/main.yml"]
    places += [*(ROLE.parents[1] / "plugins").glob("[alp]*/*.py"), *(ROLE.parents[1] / "src").rglob("*.py")]
    lines = [(path, line.strip().lower()) for path in places for line in path.read_text().splitlines()]
    said = [(path, line) for path, line in lines if not line.startswith("#")]
    assert [entry for entry in said if "nullclaw" in entry[1] or "openclaw" in entry[1]] == []


def test_skills_are_mounted_where_the_agent_looks_and_it_is_told_of_them(evaluate: Evaluate) -> None:
    container = to_run(evaluate)["container"]
    assert {
        "source": f"/var/lib/clawdeploy/bots/{BOT['id']}/skills",
        "target": "/nullclaw-data/workspace/skills",
        "read_only": True,
    } in container["mounts"]
    rules = container["skills"]
    assert {rules["source"], "data/workspace/skills"} <= {
        one["path"] for one in home(evaluate)["directories"]
    }
    assert rules["touch"] in {file["path"] for file in home(evaluate)["files"] if file.get("seed")}


def test_a_tool_is_a_server_of_the_agent_under_its_checksum(evaluate: Evaluate) -> None:
    tool = {"name": "stats", "sha256": "ab" * 32, "args": ["--fast"], "env": {"LIMIT": "9"}}
    command = "/opt/tools/stats-abababababab"
    found = config(evaluate, tools=[tool])["mcp_servers"]
    assert found == {"stats": {"command": command, "args": ["--fast"], "env": {"LIMIT": "9"}}}
    (program,) = evaluate(
        "__bot_programs",
        __bot_wanted=[{"agent": "nullclaw", "tools": [tool | {"path": "/home/me/stats"}]}],
        __bot_declared={"bots": [BOT | {"tools": [tool]}]},
    )
    assert program == {
        "source": "/home/me/stats",
        "target": f"/var/lib/clawdeploy/bots/{BOT['id']}/tools/stats-abababababab",
        "uid": 200000,
    }
    (mount,) = (one for one in to_run(evaluate)["container"]["mounts"] if one["target"] == "/opt/tools")
    assert (mount["source"].rpartition("/")[2], mount["read_only"]) == ("tools", True)


def test_a_bot_has_no_servers_unless_they_are_asked_for(evaluate: Evaluate) -> None:
    assert config(evaluate)["mcp_servers"] == {}


def test_only_bots_whose_skills_were_named_are_taught(evaluate: Evaluate) -> None:
    named = [{"source": "/home/me/faq"}, {"source": "shipping@2.0", "sha256": "a" * 64}]
    asked = [{"agent": "nullclaw", "skills": given, "tools": None} for given in (named, [], None)]
    registered = [BOT | {"id": f"abcdefghij0{number}"} for number in range(3)]
    known: dict[str, Any] = {
        "__bot_wanted": asked,
        "__bot_declared": {"bots": registered},
        "__bot_live": {"bots": []},
    }
    assert evaluate("__bot_skills_asked", **known) == named
    taught = evaluate("__bot_taught", **known)
    assert [evaluate("__bot_skills", bot=bot, **known) for bot in taught] == [
        {"id": "abcdefghij00", "skills": ["/home/me/faq", "shipping@2.0"]},
        {"id": "abcdefghij01", "skills": []},
    ]
    assert evaluate("__bot_programs", **known) == []
