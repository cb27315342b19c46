"""Action: what a bot at Fly.io is to be, on the controller."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._action import ControllerAction
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._entries import check_result_file
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._fly import plan, settings


class ActionModule(ControllerAction):
    """Entry point for Ansible; documented in plugins/modules/fly_plan.py."""

    ARGUMENTS: ClassVar = {
        "bot": {"type": "dict", "required": True, "no_log": True},
        "remotes": {"type": "list", "elements": "dict", "required": True},
        "agents": {"type": "dict", "required": True},
        "default_agent": {"type": "str", "required": True},
        "result_file": {"type": "path", "default": ""},
    }

    def act(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        found, problems = plan(
            arguments["bot"], arguments["remotes"], arguments["agents"], arguments["default_agent"]
        )
        problems += check_result_file(arguments["result_file"])
        if problems:
            return {"failed": True, "msg": "\n".join(problems)}
        return {"changed": False, "plan": found, "settings": settings(found)}
