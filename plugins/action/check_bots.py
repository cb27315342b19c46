"""Action: check the bots a user asks for, on the controller."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._action import ControllerAction
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._entries import check_result_file, read_entries


class ActionModule(ControllerAction):
    """Entry point for Ansible; documented in plugins/modules/check_bots.py."""

    ARGUMENTS: ClassVar = {
        "bots": {"type": "list", "elements": "raw", "required": True, "no_log": True},
        "agents": {"type": "list", "elements": "str", "required": True},
        "result_file": {"type": "path", "default": ""},
        "plans": {"type": "list", "elements": "str", "default": []},
        "reserved_names": {"type": "list", "elements": "str", "default": []},
    }

    def act(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        _, problems = read_entries(
            arguments["bots"],
            agents=arguments["agents"],
            plans=arguments["plans"],
            reserved=arguments["reserved_names"],
        )
        problems += check_result_file(arguments["result_file"])
        if problems:
            return {"failed": True, "msg": "\n".join(problems)}
        return {"changed": False, "msg": "All settings can be used"}
