"""The modules of Fly.io against a simulator of its API."""

import json
from types import ModuleType
from typing import Any
from urllib.request import Request, urlopen

import pytest
from ansible_collections.clawdeploy.fleet.plugins.modules import (
    fly_app,
    fly_certificate,
    fly_machine,
    fly_secrets,
    fly_volume,
)

from .conftest import IMAGE, TOKEN, Fly, RunModule

APP = "claw-support"
SECRET = "sk-claw-very-secret-indeed"


def config(**changes: Any) -> dict[str, Any]:
    return {
        "image": IMAGE,
        "guest": {"cpus": 1, "memory_mb": 256},
        "restart": {"policy": "always"},
        "checks": {
            "alive": {"type": "http", "port": 3000, "path": "/health", "interval": "15s", "timeout": "5s"}
        },
        **changes,
    }


def service(autostop: str) -> dict[str, Any]:
    ports = [{"port": 443, "handlers": ["tls", "http"]}]
    return {"internal_port": 3000, "autostop": autostop, "autostart": True, "ports": ports}


@pytest.fixture
def app(run_module: RunModule) -> str:
    assert run_module(fly_app, name=APP)["changed"]
    return APP


@pytest.fixture
def machine(run_module: RunModule, app: str) -> dict[str, Any]:
    return run_module(fly_machine, app=app, name="bot", region="fra", config=config())


FOUR_STEPS: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "app": (fly_app, {"name": APP, "network": APP, "public": True}),
    "volume": (fly_volume, {"app": APP, "name": "data", "region": "fra"}),
    "secrets": (fly_secrets, {"app": APP, "values": {"KEY": SECRET}}),
    "certificate": (fly_certificate, {"app": APP, "hostname": "bot.example.test"}),
    "machine": (fly_machine, {"app": APP, "name": "bot", "region": "fra", "config": config()}),
}


@pytest.mark.parametrize("what", FOUR_STEPS)
def test_check_mode_tells_what_a_run_does_and_a_second_run_does_nothing(
    run_module: RunModule, fly: Fly, what: str
) -> None:
    module, arguments = FOUR_STEPS[what]
    if what != "app":
        run_module(fly_app, name=APP)
    before = fly.changes
    told = run_module(module, check_mode=True, **arguments)
    assert told["changed"], told
    assert fly.changes == before
    done = run_module(module, **arguments)
    assert (done["changed"], done["diff"]) == (True, told["diff"])
    before = fly.changes
    for check_mode in (True, False):
        assert not run_module(module, check_mode=check_mode, **arguments)["changed"]
    assert fly.changes == before


@pytest.mark.parametrize("what", ["app", "volume", "certificate", "machine"])
def test_what_is_absent_is_gone_and_stays_so(run_module: RunModule, fly: Fly, what: str) -> None:
    module, arguments = FOUR_STEPS[what]
    run_module(fly_app, name=APP)
    run_module(module, **arguments)
    named = {name: value for name, value in arguments.items() if name in ("app", "name", "hostname")}
    for check_mode, changed in ((True, True), (False, True), (False, False), (True, False)):
        result = run_module(module, check_mode=check_mode, state="absent", **named)
        assert result["changed"] is changed, result
    if what == "app":
        assert fly.apps == {}
    else:
        assert [fly.apps[APP][one] for one in ("volumes", "machines", "certificates")] == [[], [], []]


@pytest.mark.parametrize("what", FOUR_STEPS)
@pytest.mark.parametrize("failure", [{"status": 500}, {"status": 502, "done": True}, {"status": 429}])
def test_a_lost_answer_is_repeated_and_nothing_is_made_twice(
    run_module: RunModule, fly: Fly, pauses: list[float], what: str, failure: dict[str, Any]
) -> None:
    module, arguments = FOUR_STEPS[what]
    if what != "app":
        run_module(fly_app, name=APP)
    fly.order("POST", "", times=2, **failure)
    assert run_module(module, **arguments)["changed"]
    made = fly.apps[APP]
    assert len(fly.apps) == 1
    assert [len(made["volumes"]), len(made["machines"])] == [what == "volume", what == "machine"]
    assert not run_module(module, **arguments)["changed"]


def test_a_rate_limit_is_waited_out_for_as_long_as_it_asks(
    run_module: RunModule, fly: Fly, pauses: list[float]
) -> None:
    fly.order("GET", "", status=429, retry_after=7)
    assert run_module(fly_app, name=APP)["changed"]
    assert 7.0 in pauses


def test_an_outage_ends_with_its_name_and_status(
    run_module: RunModule, fly: Fly, pauses: list[float]
) -> None:
    fly.order("GET", "", status=503, times=99)
    result = run_module(fly_app, name=APP)
    assert (result["failed"], result["status"]) == (True, 503)
    assert "Fly.io answered 503 to GET /apps/claw-support" in result["msg"]
    assert len(fly.calls) == 7


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        (fly_app, {"name": "taken"}, "422 to POST /apps: Validation failed: Name has already been taken"),
        (fly_app, {"name": APP, "org": "nobody"}, "organisation personal, not nobody"),
        (fly_app, {"name": "No/App"}, "'No/App' cannot be the name of a Fly.io app"),
        (
            fly_volume,
            {"app": APP, "name": "d", "region": "xxx"},
            "422 to POST /apps/claw-support/volumes: region xxx",
        ),
        (
            fly_machine,
            {"app": APP, "name": "bot", "region": "fra", "config": config(guest={"memory_mb": 100})},
            "invalid memory size 100",
        ),
        (fly_machine, {"app": APP, "name": "bot"}, "no machine bot: deploy it again"),
    ],
)
def test_a_refusal_says_what_is_wrong(
    run_module: RunModule, fly: Fly, app: str, module: ModuleType, arguments: dict[str, Any], sentence: str
) -> None:
    fly.control("take", name="taken")
    result = run_module(module, **arguments)
    assert result["failed"]
    assert sentence in result["msg"]


def test_a_wrong_token_is_named_and_not_shown(run_module: RunModule) -> None:
    result = run_module(fly_app, name=APP, api_token="wrong-token-of-mine")
    assert "FLY_API_TOKEN is not valid" in result["msg"]
    assert "wrong-token-of-mine" not in json.dumps(result)


def test_the_token_comes_from_the_environment(
    run_module: RunModule, fly: Fly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLY_API_TOKEN", "FlyV1 fm2_abc")
    assert run_module(fly_app, name=APP, api_token=...)["changed"]


# --- volumes and secrets ----------------------------------------------------------------------------


def test_a_volume_grows_and_neither_shrinks_nor_moves(run_module: RunModule, fly: Fly, app: str) -> None:
    def volume(**changes: Any) -> dict[str, Any]:
        return run_module(
            fly_volume, **{"app": app, "name": "data", "region": "fra", "size_gb": 2, **changes}
        )

    first = volume()
    assert volume(size_gb=3)["id"] == first["id"]
    assert fly.apps[app]["volumes"][0]["size_gb"] == 3
    assert fly.apps[app]["volumes"][0]["encrypted"]
    assert "cannot shrink to 1" in volume(size_gb=1)["msg"]
    assert "is in fra and cannot move to ams" in volume(size_gb=3, region="ams")["msg"]


def test_two_volumes_of_one_name_are_for_a_person_to_sort_out(
    run_module: RunModule, fly: Fly, app: str
) -> None:
    for _ in range(2):
        request = Request(
            f"{fly.url}/v1/apps/{app}/volumes",
            data=b'{"name": "data", "region": "fra", "size_gb": 1}',
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        urlopen(request).close()
    result = run_module(fly_volume, app=app, name="data", region="fra")
    assert "has 2 volumes data" in result["msg"]


def test_secrets_are_set_as_a_whole_and_never_shown(run_module: RunModule, fly: Fly, app: str) -> None:
    first = run_module(fly_secrets, app=app, values={"KEY": SECRET, "OLD": "gone"})
    assert (first["version"], first["changed"]) == (1, True)
    second = run_module(fly_secrets, app=app, values={"KEY": SECRET + "2"})
    assert first["fingerprint"] != second["fingerprint"]
    mark = f"CLAWDEPLOY_SET_{second['fingerprint']}"
    assert fly.apps[app]["secrets"] == {"KEY": SECRET + "2", mark: "1"}
    assert SECRET not in json.dumps([first, second])
    assert "KEY" in second["diff"]["after"]


# --- machines ---------------------------------------------------------------------------------------


def test_a_machine_is_awaited_until_its_checks_pass(
    run_module: RunModule, fly: Fly, machine: dict[str, Any]
) -> None:
    assert (machine["changed"], machine["machine_state"]) == (True, "started")
    waits = [path for method, path, _ in fly.calls if "/wait?" in path]
    assert len(waits) == 1
    assert "state=started" in waits[0]


def test_a_machine_that_is_ill_says_which_check_fails(run_module: RunModule, fly: Fly, app: str) -> None:
    fly.control("health", app=app, status="critical", output="connection refused")
    result = run_module(fly_machine, app=app, name="bot", region="fra", config=config(), timeout=2)
    assert "did not become healthy in 2 s: alive: critical connection refused" in result["msg"]


@pytest.mark.parametrize(
    "changes",
    [
        {"image": "registry.example.test/agent:v2"},
        {"env": {"A": "b"}},
        {"guest": {"cpus": 1, "memory_mb": 512}},
    ],
)
def test_a_machine_is_changed_under_a_lease(
    run_module: RunModule, fly: Fly, app: str, machine: dict[str, Any], changes: dict[str, Any]
) -> None:
    result = run_module(fly_machine, app=app, name="bot", region="fra", config=config(**changes))
    assert (result["changed"], result["id"]) == (True, machine["id"])
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    assert fly.changes[-3:] == [f"POST {path}/lease?ttl=120", f"POST {path}", f"DELETE {path}/lease"]
    (found,) = fly.apps[app]["machines"]
    assert (found["leased"], found["instance"]) == (False, 2)


def test_what_is_not_wanted_any_more_is_taken_away(run_module: RunModule, fly: Fly, app: str) -> None:
    public = config(services=[service("off")], env={"A": "b"})
    run_module(fly_machine, app=app, name="bot", region="fra", config=public)
    assert run_module(fly_machine, app=app, name="bot", region="fra", config=config())["changed"]
    (found,) = fly.apps[app]["machines"]
    assert "services" not in found["config"]
    assert "env" not in found["config"]


def test_a_lease_of_somebody_else_is_not_broken(
    run_module: RunModule, fly: Fly, app: str, machine: dict[str, Any]
) -> None:
    request = Request(
        f"{fly.url}/v1/apps/{app}/machines/{machine['id']}/lease?ttl=60",
        data=b"",
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    urlopen(request).close()
    result = run_module(fly_machine, app=app, name="bot", region="fra", config=config(env={"A": "b"}))
    assert (result["status"], "is being changed by somebody else" in result["msg"]) == (409, True)
    assert fly.apps[app]["machines"][0]["instance"] == 1


def test_a_machine_does_not_move(run_module: RunModule, app: str, machine: dict[str, Any]) -> None:
    result = run_module(fly_machine, app=app, name="bot", region="ams", config=config())
    assert "runs in fra and cannot move to ams" in result["msg"]


@pytest.mark.parametrize("state", ["stopped", "suspended"])
def test_a_resting_machine_is_closed_to_visitors_and_wakes_up_whole(
    run_module: RunModule, fly: Fly, app: str, state: str
) -> None:
    run_module(fly_app, name=app, public=True)
    public = config(services=[service("suspend")])
    run_module(fly_machine, app=app, name="bot", region="fra", config=public)
    for check_mode, changed in ((True, True), (False, True), (False, False)):
        result = run_module(fly_machine, check_mode=check_mode, app=app, name="bot", state=state)
        assert result["changed"] is changed
    assert result["machine_state"] == state
    assert fly.control("visit", app=app) == {"answered": False}
    for changed in (True, False):
        result = run_module(fly_machine, app=app, name="bot")
        assert (result["changed"], result["machine_state"]) == (changed, "started"), result
    assert fly.control("visit", app=app) == {"answered": True}


@pytest.mark.parametrize("autostop", ["stop", "suspend"])
def test_a_machine_that_sleeps_by_itself_is_left_asleep(
    run_module: RunModule, fly: Fly, app: str, autostop: str
) -> None:
    public = config(services=[service(autostop)])
    run_module(fly_machine, app=app, name="bot", region="fra", config=public)
    fly.control("sleep", app=app)
    before = fly.changes
    result = run_module(fly_machine, app=app, name="bot", region="fra", config=public)
    assert (result["changed"], result["machine_state"]) == (
        False,
        "stopped" if autostop == "stop" else "suspended",
    )
    assert fly.changes == before


def test_a_machine_that_fell_over_is_started_again(
    run_module: RunModule, fly: Fly, app: str, machine: dict[str, Any]
) -> None:
    request = Request(
        f"{fly.url}/v1/apps/{app}/machines/{machine['id']}/stop",
        data=b"",
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    urlopen(request).close()
    result = run_module(fly_machine, app=app, name="bot", region="fra", config=config())
    assert (result["changed"], result["machine_state"]) == (True, "started")


def test_secrets_are_there_before_the_machine_that_needs_them(
    run_module: RunModule, fly: Fly, app: str
) -> None:
    version = run_module(fly_secrets, app=app, values={"CONFIG": "eyJ9"})["version"]
    files = [{"guest_path": "/etc/agent.json", "secret_name": "CONFIG", "mode": 0o444}]
    result = run_module(
        fly_machine,
        app=app,
        name="bot",
        region="fra",
        min_secrets_version=version,
        config=config(files=files),
    )
    assert result["changed"], result
    (found,) = fly.apps[app]["machines"]
    assert found["secrets"]["CONFIG"] == "eyJ9"
    assert "eyJ9" not in json.dumps(found["config"])
