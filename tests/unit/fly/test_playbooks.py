"""The playbooks for Fly.io as an operator runs them: simulated Fly.io and Telegram, a real VPS side."""

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fly.stage import API_TOKEN, BOT, LLM_HOST, TELEGRAM_TOKEN, Stage, fresh, staged

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's"),
    pytest.mark.slow,
]

NAME = f"bot-{BOT}"
APP = f"claw-{NAME}"


@pytest.fixture(scope="module")
def whole_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("fly")
    for parent in (directory, *directory.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    with staged(directory) as stage:
        yield stage


@pytest.fixture
def stage(whole_stage: Stage) -> Stage:
    return fresh(whole_stage)


@pytest.fixture
def running(whole_stage: Stage) -> Stage:
    """With the bot that deploy() makes: still there for the next test unless one takes it away."""
    if not (whole_stage.ordinary and APP in whole_stage.apps):
        assert fresh(whole_stage).deploy().code == 0
        whole_stage.ordinary = True
    return whole_stage


def order(stage: Stage, method: str, path: str, **more: Any) -> None:
    stage.control("order", **{"method": method, "path": path, "status": 422, **more})


def agent_config(stage: Stage) -> Any:
    return json.loads(base64.b64decode(stage.apps[APP]["secrets"]["AGENT_CONFIG"]))


def test_a_token_becomes_a_bot_and_a_second_run_changes_nothing(stage: Stage) -> None:
    told = stage.deploy("--check", "--diff")
    assert told.code == 0, told.output
    assert (stage.apps, stage.remotes()) == ({}, [])
    done = stage.deploy("-vvv", "--diff")
    assert done.code == 0, done.output
    (app,) = stage.apps.values()
    (machine,), (volume,) = app["machines"], app["volumes"]
    assert (app["network"], app["addresses"]) == (APP, {})
    assert (machine["state"], machine["leased"]) == ("started", False)
    assert volume["attached_machine_id"] == machine["id"]
    assert "services" not in machine["config"]
    assert "Autostop: off: it asks Telegram for messages" in done
    assert f"Runs at: Fly.io, app {APP}, region fra" in done

    config = agent_config(stage)
    provider = config["models"]["providers"]["clawdeploy"]
    assert provider["base_url"] == f"https://{LLM_HOST}/api/v1"
    assert config["channels"]["telegram"]["accounts"]["main"]["bot_token"] == TELEGRAM_TOKEN
    (bot,) = stage.remotes()
    assert (bot["state"], bot["settings"]["app"]) == ("active", APP)
    assert stage.clawctl("balance", NAME)["accounts"][0]["balance_dollars"] == "2.00"

    # What is secret is in Fly.io's secrets, and nowhere that anybody can read.
    secrets = (API_TOKEN, TELEGRAM_TOKEN, provider["api_key"], "sk-or-v1-of-the-operator")
    everything = done.output + told.output + json.dumps(machine["config"]) + json.dumps(bot)
    assert [one for one in secrets if one in everything] == []
    assert "sk-or-v1-of-the-operator" not in json.dumps(stage.calls)

    before = len(stage.calls)
    again = stage.deploy(owner=None)
    assert (again.code, again.changed) == (0, 0), again.output
    assert [call for call in stage.calls[before:] if call[0] != "GET"] == []


def test_the_start_script_prepares_the_volume_and_becomes_the_agent(running: Stage, tmp_path: Path) -> None:
    config = running.apps[APP]["machines"][0]["config"]
    assert config["init"]["exec"] == ["/bin/sh", "/etc/clawdeploy/start.sh"]
    etc, data = tmp_path / "etc", tmp_path / "data"
    etc.mkdir()
    data.mkdir()

    def moved(text: str) -> str:
        return text.replace("/etc/clawdeploy", str(etc)).replace("/nullclaw-data", str(data))

    for file in config["files"]:
        content = base64.b64decode(file.get("raw_value") or running.apps[APP]["secrets"][file["secret_name"]])
        Path(moved(file["guest_path"])).write_text(moved(content.decode()))
    agent = tmp_path / "nullclaw"
    agent.write_text('#!/bin/sh\necho "$@"; env\n')
    agent.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "AGENT_CONFIG": "secret"}
    for _ in range(2):
        ran = subprocess.run(
            ["/bin/sh", etc / "start.sh"], env=env, capture_output=True, text=True, check=True
        )
        assert ran.stdout.splitlines()[0] == "gateway --port 3000 --host 0.0.0.0"
        assert "AGENT_CONFIG" not in ran.stdout
        (data / "workspace/SOUL.md").write_text("what the bot made of itself")
    assert (data / ".nullclaw/config.json").resolve() == etc / "config.json"
    assert (data / "workspace/AGENTS.md").read_text() == (etc / "AGENTS.md").read_text()
    assert (data / "workspace/SOUL.md").read_text() == "what the bot made of itself"
    shutil.rmtree(etc)


def test_the_bots_key_opens_its_model_through_the_edge_and_closes_when_suspended(running: Stage) -> None:
    key = agent_config(running)["models"]["providers"]["clawdeploy"]["api_key"]

    def asked(key: str) -> str:
        url = f"https://{LLM_HOST}/api/v1/chat/completions"
        ask = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", "ca.pem", url]
        ask += [
            "-H",
            f"Authorization: Bearer {key}",
            "-d",
            '{"messages": [{"role": "user", "content": "hi"}]}',
        ]
        environment = {**running.environment(), "https_proxy": f"http://127.0.0.1:{running.internet.port}"}
        return subprocess.run(
            ask, cwd=running.directory, env=environment, capture_output=True, text=True
        ).stdout

    # OpenRouter is not there; that the gateway went to ask it is enough.
    assert (asked(key), asked("sk-claw-guessed")) == ("502", "401")
    stopped = running.play("suspend_fly", bot=NAME, reason="abuse report 4711")
    assert (stopped.code, stopped.changed) == (0, 2), stopped.output
    (machine,) = running.apps[APP]["machines"]
    assert (machine["state"], machine["cordoned"], asked(key)) == ("stopped", True, "403")
    assert running.play("suspend_fly", bot=NAME, reason="abuse report 4711").changed == 0
    assert "is suspended: resume it first" in running.deploy()
    assert running.play("resume_fly", bot=NAME).code == 0
    (machine,) = running.apps[APP]["machines"]
    assert (machine["state"], machine["cordoned"], asked(key)) == ("started", False, "502")
    assert running.play("resume_fly", bot=NAME).changed == 0
    assert "there are: " + NAME in running.play("resume_fly", bot="nobody")


def test_destroying_leaves_nothing_at_fly_and_no_key_here(running: Stage) -> None:
    told = running.play("destroy_fly", "--check", "--diff", bot=NAME)
    assert (told.code, told.changed, len(running.apps)) == (0, 2, 1), told.output
    done = running.play("destroy_fly", bot=NAME)
    assert (done.code, done.changed) == (0, 2), done.output
    assert (running.apps, running.remotes()) == ({}, [])
    keys = running.directory / "state/llm_gateway/remote_keys.json"
    assert json.loads(keys.read_text()) == {"keys": {}}
    assert running.play("destroy_fly", bot=NAME).changed == 0


def test_a_bot_reached_by_http_alone_sleeps_and_the_card_says_why(stage: Stage) -> None:
    result = stage.directory / "card.json"
    wanted = {"reach": "http", "hostname": "support.example.com", "result_file": str(result)}
    done = stage.deploy(**wanted)
    assert done.code == 0, done.output
    assert "Autostop: on (suspend): it is reached by HTTP alone, and a request wakes it up" in done
    app = stage.apps[APP]
    (service,) = app["machines"][0]["config"]["services"]
    assert (service["autostop"], service["autostart"], service["internal_port"]) == ("suspend", True, 3000)
    assert (set(app["addresses"]), app["certificates"]) == ({"shared_v4", "v6"}, ["support.example.com"])
    config = agent_config(stage)
    assert "telegram" not in config["channels"]
    card = json.loads(result.read_text())
    assert stat.S_IMODE(result.stat().st_mode) == 0o600
    token = hashlib.sha256(card["gateway_token"].encode()).hexdigest()
    assert config["gateway"]["paired_tokens"] == [token]
    assert card["llm_key"] == ""
    stage.control("sleep", app=APP)
    again = stage.deploy(**wanted)
    assert (again.code, again.changed) == (0, 0), again.output
    assert stage.control("visit", app=APP) == {"answered": True}
    # Back to Telegram: nothing stays open.
    assert stage.deploy(reach="telegram", hostname="").code != 0
    assert stage.play("destroy_fly", bot=NAME).code == 0
    assert stage.apps == {}


def test_changed_settings_reach_the_machine_and_others_are_kept(stage: Stage) -> None:
    assert stage.deploy(region="ams", bot_config={"max_tokens": 99}).code == 0
    changed = stage.deploy(owner="4243", memory_mb=512, volume_gb=2)
    assert changed.code == 0, changed.output
    app, config = stage.apps[APP], agent_config(stage)
    assert config["channels"]["telegram"]["accounts"]["main"]["allow_from"] == ["4243"]
    assert config["max_tokens"] == 99
    (machine,) = app["machines"]
    assert (machine["region"], machine["config"]["guest"]["memory_mb"]) == ("ams", 512)
    assert machine["secrets"] == app["secrets"]
    assert app["volumes"][0]["size_gb"] == 2
    refused = stage.deploy(region="fra")
    assert "is in ams and cannot move to fra" in refused
    assert "is left as it is: run this again" in refused
    assert len(stage.apps[APP]["machines"]) == 1


STEPS = {
    "app": ("POST", r"/v1/apps$"),
    "addresses": ("POST", r"/ip_assignments$"),
    "volume": ("POST", r"/volumes$"),
    "secrets": ("POST", r"/secrets$"),
    "machine": ("POST", r"/machines$"),
    "start": ("GET", r"/wait$"),
    "certificate": ("POST", r"/certificates/acme$"),
}


def test_whichever_step_fails_nothing_is_left_and_the_next_run_does_it_all(stage: Stage) -> None:
    wanted = {"reach": "http", "hostname": "support.example.com"}
    for step, (method, path) in STEPS.items():
        order(stage, method, path)
        failed = stage.deploy(**wanted)
        assert failed.code != 0, step
        assert "as ordered" in failed, step
        assert "nothing of it is left" in failed, step
        assert (stage.apps, stage.remotes()) == ({}, []), step
    again = stage.deploy(**wanted)
    assert again.code == 0, again.output
    assert [len(stage.apps[APP][part]) for part in ("machines", "volumes", "certificates")] == [1, 1, 1]


def test_what_could_not_be_taken_back_is_found_again(stage: Stage) -> None:
    order(stage, *STEPS["start"])
    order(stage, "DELETE", r"/v1/apps/")
    failed = stage.deploy()
    assert failed.code != 0
    assert f"app {APP} could not be removed" in failed
    assert [bot["state"] for bot in stage.remotes()] == ["deploying"]
    again = stage.deploy()
    assert again.code == 0, again.output
    assert [len(stage.apps[APP][part]) for part in ("machines", "volumes")] == [1, 1]
    assert [bot["state"] for bot in stage.remotes()] == ["active"]


def test_a_bot_that_never_becomes_healthy_is_removed_with_its_reason(stage: Stage) -> None:
    # The app's checks can only be set once it is there: the machine's creation is held up until then.
    order(stage, "POST", r"/machines$", status=422)
    order(stage, "DELETE", r"/v1/apps/")
    stage.deploy()
    stage.control("health", app=APP, status="critical", output="connection refused")
    sick = stage.deploy("-e", "fly_bot_health_timeout=3")
    assert "did not become healthy in 3 s: alive: critical connection refused; nothing of it is left" in sick
    assert (stage.apps, stage.remotes()) == ({}, [])


def test_lost_answers_and_rate_limits_are_waited_out(stage: Stage) -> None:
    for path in (r"/v1/apps$", r"/volumes$", r"/machines$"):
        order(stage, "POST", path, status=502, done=True)
    order(stage, "GET", r"/secrets$", status=429, retry_after=1)
    done = stage.deploy()
    assert done.code == 0, done.output
    assert [len(stage.apps[APP][part]) for part in ("machines", "volumes")] == [1, 1]


def test_nothing_is_paid_for_while_the_model_cannot_be_reached(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(stage.internet.ports, LLM_HOST)
    failed = stage.deploy()
    assert f"https://{LLM_HOST}/api/v1 does not answer to the bot's key" in failed
    assert [call for call in stage.calls if call[0] == "POST"] == []
    assert stage.remotes() == []


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"token": "nonsense", "region": "Frankfurt"}, "token: is not a Telegram bot token"),
        ({"regoin": "fra"}, "regoin: no such setting; did you mean region?"),
        ({"fly_bot_api_token": ""}, "FLY_API_TOKEN is empty"),
        ({"fly_bot_api_token": "wrong"}, "FLY_API_TOKEN is not valid"),
    ],
)
def test_bad_input_is_told_before_anything_is_made(
    stage: Stage, variables: dict[str, Any], sentence: str
) -> None:
    failed = stage.deploy(**variables)
    assert failed.code != 0
    assert sentence in failed, failed.output
    assert [call for call in stage.calls if call[0] != "GET"] == []
    assert stage.remotes() == []


def test_an_app_of_that_name_that_is_not_ours_is_left_alone(stage: Stage) -> None:
    assert stage.deploy().code == 0
    stage.clawctl("remote", "forget", NAME)
    before = stage.apps
    assert f"has an app {APP} already" in stage.deploy()
    assert stage.apps == before


# --- for flyctl -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "service"),
    [
        ({}, None),
        (
            {"reach": "http"},
            {
                "internal_port": 3000,
                "force_https": True,
                "auto_stop_machines": "suspend",
                "auto_start_machines": True,
                "min_machines_running": 0,
                "concurrency": {"type": "requests", "soft_limit": 8, "hard_limit": 10},
            },
        ),
    ],
)
def test_render_only_writes_files_and_asks_nobody(
    stage: Stage, variables: dict[str, Any], service: Any
) -> None:
    done = stage.deploy(render_only=True, region="ams", **variables)
    assert done.code == 0, done.output
    assert (stage.calls, stage.remotes()) == ([], [])
    directory = stage.directory / "build/fly" / NAME
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == dict.fromkeys(
        ("fly.toml", "README.md", "config.json", "request.json"), 0o600
    )
    toml = tomllib.loads((directory / "fly.toml").read_text())
    assert (toml["app"], toml["primary_region"]) == (APP, "ams")
    assert toml.get("http_service") == service
    assert toml["vm"] == [{"size": "shared-cpu-1x", "memory": "256mb"}]
    assert toml["mounts"] == [{"source": "data", "destination": "/nullclaw-data", "initial_size": "1gb"}]
    assert toml["checks"]["alive"]["path"] == "/health"
    assert toml["experimental"]["exec"] == ["/bin/sh", "/etc/clawdeploy/start.sh"]
    assert toml["files"][0] == {"guest_path": "/etc/clawdeploy/config.json", "secret_name": "AGENT_CONFIG"}
    public = (directory / "fly.toml").read_text() + (directory / "README.md").read_text()
    assert TELEGRAM_TOKEN not in public
    assert stage.deploy(render_only=True, region="ams", **variables).changed == 0


def test_the_steps_for_flyctl_make_the_same_configuration(stage: Stage) -> None:
    assert stage.deploy(render_only=True, reach="http").code == 0
    directory = stage.directory / "build/fly" / NAME
    with (directory / "request.json").open() as request:
        declared = subprocess.run(
            [stage.directory / "clawctl", "remote", "declare", "--json"],
            stdin=request,
            capture_output=True,
            check=True,
        )
    (directory / "declared.json").write_bytes(declared.stdout)
    (step,) = [
        line.strip() for line in (directory / "README.md").read_text().splitlines() if "python3 -c" in line
    ]
    subprocess.run(["sh", "-c", step], cwd=directory, check=True)
    ready = json.loads((directory / "ready.json").read_text())
    assert stage.deploy(reach="http").code == 0
    assert ready == agent_config(stage)
