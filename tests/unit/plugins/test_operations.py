"""The modules on running bots call clawctl's verbs and report what these say."""

from typing import Any

import pytest
from ansible_collections.clawdeploy.fleet.plugins.modules import bot_destroy, bot_suspension, host_reconcile

from tests.unit.plugins.conftest import Calls, RunModule


def argv(calls: Calls) -> list[list[str]]:
    return [call[0] for call in calls()]


SUSPENDED = {
    "changed": True,
    "diff": {"before": "one: running\n", "after": "one: suspended (abuse)\n"},
    "bots": [{"id": "a", "label": "one", "reason": "abuse", "since": "2026-11-01T00:00:00+00:00"}],
    "steps": [{"step": "edge", "ms": 1.5, "done_ms": 2.5, "changed": True}],
}


def test_bots_are_suspended_with_the_reason(
    run_module: RunModule,
    answers: dict[str, Any],
    calls: Calls,
) -> None:
    answers["suspend"] = SUSPENDED
    result = run_module(bot_suspension, state="suspended", bots=["one"], reason="--all of it")
    assert {name: result[name] for name in SUSPENDED} == SUSPENDED
    run_module(bot_suspension, check_mode=True, state="suspended", all_bots=True)
    assert argv(calls) == [
        ["suspend", "one", "--reason=--all of it", "--json"],
        ["suspend", "--all", "--check", "--json"],
    ]


def test_a_resume_that_nobody_answers_is_a_failure(
    run_module: RunModule,
    answers: dict[str, Any],
    calls: Calls,
) -> None:
    well = {"id": "a", "label": "one", "healthy": True, "seconds": 1.0, "reason": "", "log_tail": []}
    answers["resume"] = {"changed": True, "diff": {}, "bots": [well]}
    assert run_module(bot_suspension, state="resumed", bots=["one"], timeout=5)["changed"] is True
    answers["resume"] = {"changed": True, "diff": {}, "bots": [well | {"healthy": False, "reason": "asleep"}]}
    result = run_module(bot_suspension, state="resumed", all_bots=True)
    assert (result["failed"], result["msg"], result["changed"]) == (True, "one: asleep", True)
    assert argv(calls) == [
        ["resume", "one", "--timeout=5", "--json"],
        ["resume", "--all", "--timeout=60", "--json"],
    ]


@pytest.mark.parametrize(
    "bots", [{}, {"bots": ["one"], "all_bots": True}, {"bots": ["--all"]}, {"bots": [""]}]
)
def test_it_must_be_clear_which_bots_are_meant(
    run_module: RunModule,
    answers: dict[str, Any],
    bots: dict[str, Any],
) -> None:
    answers["suspend"] = SUSPENDED
    assert run_module(bot_suspension, state="suspended", **bots)["failed"] is True


class TestDestroy:
    @pytest.fixture(autouse=True)
    def host(self, answers: dict[str, Any]) -> None:
        """A host with bots a (one) and b; the stand-in gives one answer for list, with --kept or without."""
        answers["list"] = {"bots": [{"id": "a", "name": "one"}, {"id": "b", "name": None}], "kept": []}
        answers["destroy"] = {"changed": True, "id": "a", "data": "gone", "statement": None}

    def test_bots_that_are_there_go(self, run_module: RunModule, calls: Calls) -> None:
        result = run_module(bot_destroy, bots=["one", "nobody"])
        assert (result["changed"], result["diff"]["before"]) == (True, "one\n")
        assert result["bots"][0]["data"] == "gone"
        assert argv(calls)[2:] == [["destroy", "a", "--purge", "--yes", "--json"]]

    def test_nothing_to_do_is_no_change(self, run_module: RunModule, calls: Calls) -> None:
        assert run_module(bot_destroy, bots=["nobody"])["changed"] is False
        assert all(call[0] == "list" for call in argv(calls))

    def test_check_mode_only_looks(self, run_module: RunModule, calls: Calls) -> None:
        assert run_module(bot_destroy, check_mode=True, bots=["b"])["changed"] is True
        assert argv(calls) == [["list", "--json"], ["list", "--kept", "--json"]]

    def test_kept_data_is_only_for_purging(
        self,
        run_module: RunModule,
        answers: dict[str, Any],
        calls: Calls,
    ) -> None:
        answers["list"] = {"bots": [], "kept": [{"id": "a", "name": "one"}]}
        assert run_module(bot_destroy, bots=["one"], keep_data=True)["changed"] is False
        assert run_module(bot_destroy, bots=["one"])["changed"] is True
        assert argv(calls)[-1] == ["destroy", "a", "--purge", "--yes", "--json"]


def test_repairs_are_reported(
    run_module: RunModule,
    answers: dict[str, Any],
    calls: Calls,
) -> None:
    answers["reconcile"] = {"changed": False, "diff": {"before": "", "after": ""}, "done": []}
    assert run_module(host_reconcile)["done"] == []
    run_module(host_reconcile, check_mode=True)
    assert argv(calls) == [["reconcile", "--json"], ["reconcile", "--check", "--json"]]
