"""Action: refuse settings that nobody declared, on the controller."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from ansible.utils.vars import load_extra_vars
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._action import ControllerAction
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._names import unknown_names

# Known to every playbook; Ansible's own variables all begin with ansible_.
COMMON = ("clawdeploy_secure_logging",)
ROLES = Path(__file__).parents[2] / "roles"


def role_options(role: str, roles: Path = ROLES) -> set[str]:
    """Names of all options in a role's argument specs."""
    specs = yaml.safe_load((roles / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    return {name for spec in specs["argument_specs"].values() for name in spec.get("options") or ()}


def find_problems(
    passed: Iterable[str],
    variables: Mapping[str, Any],
    *,
    options: Iterable[str],
    roles: Mapping[str, set[str]],
    mutually_exclusive: Iterable[Iterable[str]] = (),
    required_one_of: Iterable[Iterable[str]] = (),
) -> list[str]:
    """Sentences about settings that cannot be meant as they were given.

    ``passed`` are the names of the extra variables; ``variables`` is all that the host sees; ``options`` are
    the playbook's own settings, ``roles`` the options of each of its roles.
    """
    known = {*COMMON, *options, *(name for names in roles.values() for name in names)}
    suspicious = {name for name in passed if not name.startswith("ansible_")}
    # An inventory belongs to several playbooks: only names that look like our roles' are judged there.
    suspicious |= {name for name in variables if name.startswith(tuple(f"{role}_" for role in roles))}
    problems = unknown_names(suspicious, known)

    def given(names: Iterable[str]) -> list[str]:
        return [name for name in names if variables.get(name) not in (None, "", [])]

    for group in mutually_exclusive:
        if len(both := given(group)) > 1:
            problems.append(f"{' and '.join(both)} cannot be given together; leave one out")
    for group in required_one_of:
        if not given(group):
            problems.append(f"nothing to do: give {' or '.join(group)}")
    return problems


class ActionModule(ControllerAction):
    """Entry point for Ansible; documented in plugins/modules/check_settings.py."""

    _NAMES: ClassVar = {"type": "list", "elements": "str", "default": []}
    _GROUPS: ClassVar = {"type": "list", "elements": "list", "default": []}
    ARGUMENTS: ClassVar = {
        "options": _NAMES,
        "roles": _NAMES,
        "mutually_exclusive": _GROUPS,
        "required_one_of": _GROUPS,
        "single_host": {"type": "bool", "default": False},
    }

    def act(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        problems = find_problems(
            load_extra_vars(self._loader),
            task_vars,
            options=arguments["options"],
            roles={role: role_options(role) for role in arguments["roles"]},
            mutually_exclusive=arguments["mutually_exclusive"],
            required_one_of=arguments["required_one_of"],
        )
        hosts = list(task_vars.get("ansible_play_hosts_all", []))
        if arguments["single_host"] and len(hosts) > 1:
            problems.append(
                f"{len(hosts)} hosts match ({', '.join(hosts)}); choose one with --limit {hosts[0]}"
            )
        if problems:
            return {"failed": True, "msg": "\n".join(problems)}
        return {"changed": False, "msg": "All settings are known"}
