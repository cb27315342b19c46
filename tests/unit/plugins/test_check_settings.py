"""Settings nobody declared are refused; what belongs to others is left alone."""

from typing import Any

from ansible_collections.clawdeploy.fleet.plugins.action.check_settings import find_problems, role_options

OPTIONS = ["token", "bots", "bot_name"]
ROLES = {"bot": {"bot_entries", "bot_result_file"}}


def problems(passed: dict[str, Any], inventory: dict[str, Any] | None = None, **groups: Any) -> list[str]:
    return find_problems(passed, {**(inventory or {}), **passed}, options=OPTIONS, roles=ROLES, **groups)


def test_known_settings_pass() -> None:
    assert problems({"token": "x", "bot_result_file": "y", "clawdeploy_secure_logging": False}) == []


def test_misspelt_extra_variable_gets_a_suggestion() -> None:
    assert problems({"tokn": "x"}) == ["tokn: no such setting; did you mean token?"]


def test_extra_variable_like_no_other_gets_the_list() -> None:
    (problem,) = problems({"zzzzzz": 1})
    assert problem.startswith("zzzzzz: no such setting; settings there are: bot_entries, ")


def test_ansible_s_own_variables_pass() -> None:
    assert problems({"ansible_user": "root", "token": "x"}) == []


def test_inventory_is_judged_by_role_prefix_only() -> None:
    assert problems({}, {"bot_reslt_file": 1, "other_teams_variable": 1, "edge_tls_mode": 1}) == [
        "bot_reslt_file: no such setting; did you mean bot_result_file?"
    ]


def test_exclusive_settings_are_refused_together() -> None:
    groups: dict[str, Any] = {
        "mutually_exclusive": [["token", "bots"]],
        "required_one_of": [["token", "bots"]],
    }
    assert problems({"token": "x", "bots": [{}]}, **groups) == [
        "token and bots cannot be given together; leave one out"
    ]
    assert problems({"token": "x"}, **groups) == []


def test_nothing_given_says_what_to_give() -> None:
    assert problems({"token": ""}, required_one_of=[["token", "bots"]]) == [
        "nothing to do: give token or bots"
    ]


def test_settings_of_a_role_come_from_its_spec() -> None:
    assert {"bot_entries", "bot_result_file", "bot_health_timeout"} <= role_options("bot")
