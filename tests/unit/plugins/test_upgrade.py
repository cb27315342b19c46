"""What an upgrade decides on the controller, and what its modules hand to clawctl."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ansible_collections.clawdeploy.fleet.plugins.modules import (
    bot_recall,
    bot_registry,
    bot_rollback,
    bot_upgrade,
    image_prune,
)
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._upgrade import batches, plan

from clawdeploy.upgrades import UpgradeBot
from tests.unit.plugins.conftest import Calls, Evaluate, RunModule
from tests.unit.plugins.profiles import BOT, HOST
from tests.unit.plugins.test_modules import BOT as DECLARED

TESTED = "ghcr.io/nullclaw/nullclaw:v9"
IMAGES = {"nullclaw": TESTED, "openclaw": "ghcr.io/openclaw/openclaw:v9"}
SECRET = "s3cr3t-in-bot-config"


def bot(number: int, **changes: Any) -> dict[str, Any]:
    return {
        **{"id": f"abcdefghij{number:02d}", "label": f"bot{number}", "agent": "nullclaw"},
        **{"image": "ghcr.io/nullclaw/nullclaw:v1", "image_digest": "sha256:1", "reason": ""},
    } | changes


BOTS = [bot(1), bot(2), bot(3, reason="suspended: resume it")]


def planned(there: list[dict[str, Any]] = BOTS, /, **settings: Any) -> dict[str, Any]:
    found, problems = plan(settings, there, IMAGES)
    assert problems == []
    return found


def problem(there: list[dict[str, Any]] = BOTS, /, **settings: Any) -> str:
    _, problems = plan(settings, there, IMAGES)
    (sentence,) = problems
    return sentence


# --- which bots, to what ---


def test_all_bots_get_their_agent_s_tested_image() -> None:
    found = planned()
    assert [one["id"] for one in found["bots"]] == [one["id"] for one in BOTS]
    wanted = [(TESTED, None), (TESTED, None), (BOTS[2]["image"], "sha256:1")]
    assert [(one["image"], one["image_digest"]) for one in found["bots"]] == wanted, "the last one cannot go"


@pytest.mark.parametrize("image", ["registry.example.com/mine:v1", "ghcr.io:443/nullclaw/nullclaw:v1"])
def test_an_image_of_another_name_was_chosen_by_somebody_and_stays(image: str) -> None:
    (found,) = planned([bot(1, image=image)])["bots"]
    assert (found["image"], found["image_digest"]) == (image, "sha256:1")


def test_an_image_that_is_named_is_for_all() -> None:
    found = planned([bot(1, image="registry.example.com/mine:v1"), bot(2)], bot_image="mine:2")
    assert {one["image"] for one in found["bots"]} == {"mine:2"}


@pytest.mark.parametrize("names", ["bot2,abcdefghij01", ["abcdefghij01", "bot2"], " bot1 , bot2 "])
def test_bots_are_chosen_by_id_or_name(names: Any) -> None:
    assert [one["label"] for one in planned(bots=names)["bots"]] == ["bot1", "bot2"]


def test_bots_are_chosen_by_agent() -> None:
    bots = [bot(1), bot(2, agent="openclaw", image="ghcr.io/openclaw/openclaw:v1")]
    assert [one["label"] for one in planned(bots, agent="openclaw", bot_image="x:1")["bots"]] == ["bot2"]
    assert "different agents; choose with agent=nullclaw" in problem(bots, bot_image="x:1")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bots": ["bot4"]}, "bots: this host has no 'bot4'; did you mean bot"),
        ({"agent": "nulclaw"}, "agent: 'nulclaw' does not exist; did you mean nullclaw?"),
        ({"bot_image": "agent:latest"}, "bot_image: 'agent:latest' names no fixed version"),
        ({"bot_image_archive": "/none.tar"}, "bot_image_archive: no such file"),
        ({"canary": "bot7"}, "canary: 'bot7' is none of the bots to upgrade"),
        ({"canary": "bot3"}, "canary: 'bot3' cannot go first (suspended: resume it)"),
        ({"canary": "bot2", "bots": ["bot1"]}, "canary: 'bot2' is none of the bots to upgrade"),
        ({"canary_seconds": "a minute"}, "canary_seconds: 'a minute' is not a whole number"),
        ({"batch": 0}, "batch: is 0"),
        ({"on_failure": "panic"}, "on_failure: 'panic' is unknown; write stop or continue"),
        ({"result_file": "/none/x.json"}, "result_file: no directory /none"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: dict[str, Any], sentence: str) -> None:
    assert sentence in problem(**settings)


def test_all_problems_are_told_at_once() -> None:
    assert len(plan({"batch": "x", "canary": "y", "on_failure": "z"}, BOTS, IMAGES)[1]) == 3


def test_a_bot_of_an_agent_that_is_not_known_here_is_named() -> None:
    assert "bot1: this collection has no agent 'futureclaw'" in problem([bot(1, agent="futureclaw")])


def test_a_host_without_bots_has_nothing_to_do() -> None:
    assert (planned([])["bots"], planned([])["canary"]) == ([], "")


# --- in which order ---


def test_the_canary_is_the_one_named_or_the_oldest_that_can_go() -> None:
    assert planned(canary="bot2")["canary"] == BOTS[1]["id"]
    assert planned([BOTS[2], BOTS[1]])["canary"] == BOTS[1]["id"]


@pytest.mark.parametrize(
    ("pending", "size", "order"),
    [
        (["a", "b", "c"], 1, [["b"], ["a"], ["c"]]),
        (["a", "b", "c", "d", "e"], 2, [["b"], ["a", "c"], ["d", "e"]]),
        (["a", "c"], 5, [["a", "c"]]),
        (["b"], 3, [["b"]]),
        ([], 3, []),
    ],
    ids=["one by one", "batches", "a canary that is there already", "only the canary", "nothing"],
)
def test_the_canary_goes_first_and_alone(pending: list[str], size: int, order: list[list[str]]) -> None:
    assert batches(pending, "b", size) == order


# --- what the role says about one bot ---


def test_what_the_role_asks_for_is_what_clawctl_takes(evaluate: Evaluate) -> None:
    recalled = BOT | {"bot_env": {"TZ": "UTC"}, "bot_config": {"custom": SECRET}, "reason": ""}
    found = evaluate(
        "__bot_upgrade",
        bot=recalled | {"image": TESTED, "image_digest": None},
        __bot_look={"host": HOST},
        __bot_pinned={TESTED: "sha256:" + "9" * 64},
    )
    home = json.loads(found["home"])
    asked = msgspec.json.decode(json.dumps(found | {"home": home}), type=UpgradeBot)
    assert (asked.image, asked.image_digest) == (TESTED, "sha256:" + "9" * 64)
    assert asked.container.image == asked.image_digest
    assert asked.container.env["TZ"] == "UTC"
    assert SECRET in asked.home.files[0].content
    assert BOT["token"] in asked.home.files[0].content


# --- modules ---


def test_an_upgrade_goes_to_clawctl_by_standard_input_and_comes_back_without_secrets(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["upgrade"] = {"changed": True, "diff": {}, "bots": [{"id": "a", "result": "rolled_back"}]}
    home = {"id": "a", "uid": 200000, "files": [{"path": "c", "content": SECRET, "mode": "0400"}]}
    asked = {
        **{"id": "a", "image": "x:1", "image_digest": "sha256:1", "interface": "api"},
        **{"llm_refusal": "error", "edge": {"body_limit": 1, "routes": []}, "container": {"cpus": 0.5}},
    }
    result = run_module(
        bot_upgrade, run_id="0011aabb", bots=[asked | {"home": json.dumps(home)}], timeout=9, watch=60
    )
    assert result.get("failed", False) is False, "the caller decides"
    assert result["bots"][0]["result"] == "rolled_back"
    assert SECRET not in json.dumps(result)
    run_module(bot_upgrade, check_mode=True, run_id="0011aabb", bots=[asked | {"home": json.dumps(home)}])
    verb = ["upgrade", "--timeout", "9", "--watch", "60", "--json"]
    assert calls()[0] == [verb, {"run_id": "0011aabb", "bots": [asked | {"home": home}]}]
    assert calls()[1][0] == ["upgrade", "--timeout", "60", "--watch", "0", "--check", "--json"]


def test_what_the_user_set_is_declared_as_it_was_given(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    answers["declare"] = {"changed": False, "diff": {}, "bots": []}
    given = {"bot_env": {"TZ": "UTC"}, "bot_config": {"key": SECRET, "off": None}}
    text = {"bot_env": given["bot_env"], "bot_config": json.dumps(given["bot_config"])}
    result = run_module(bot_registry, run_id="0011aabb", bots=[DECLARED | text])
    assert {name: calls()[0][1]["bots"][0][name] for name in given} == given
    assert SECRET not in json.dumps(result)
    run_module(bot_registry, run_id="0011aabb", bots=[DECLARED])
    assert calls()[1][1]["bots"][0].keys().isdisjoint(given)


def test_a_way_back_that_ends_badly_is_a_failure(
    run_module: RunModule, answers: dict[str, Any], calls: Calls
) -> None:
    told = {"id": "a", "label": "one", "result": "rolled_back", "reason": ""}
    answers["rollback"] = {"changed": True, "diff": {}, "bots": [told]}
    assert run_module(bot_rollback, bots=["one"])["changed"]
    answers["rollback"] = {
        "changed": True,
        "diff": {},
        "bots": [told | {"result": "failed", "reason": "why"}],
    }
    assert run_module(bot_rollback, check_mode=True, bots=["one"])["msg"] == "one: why"
    assert [call[0] for call in calls()] == [
        ["rollback", "--yes", "--timeout", "60", "one", "--json"],
        ["rollback", "--yes", "--timeout", "60", "--check", "one", "--json"],
    ]


def test_bots_are_recalled_and_images_pruned(
    run_module: RunModule, answers: dict[str, Any], calls: Calls, tmp_path: Path
) -> None:
    answers["recall"] = {"bots": [{"id": "a"}]}
    answers["images"] = {"changed": True, "diff": {}, "images": [{"id": "sha256:1"}]}
    assert run_module(bot_recall)["bots"] == [{"id": "a"}]
    assert run_module(image_prune)["images"] == [{"id": "sha256:1"}]
    run_module(image_prune, check_mode=True)
    assert [call[0] for call in calls()] == [
        ["recall", "--json"],
        ["images", "prune", "--json"],
        ["images", "prune", "--check", "--json"],
    ]
