"""Action: which bots are upgraded to what, on the controller."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._action import ControllerAction
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._upgrade import plan


class ActionModule(ControllerAction):
    """Entry point for Ansible; documented in plugins/modules/upgrade_plan.py."""

    ARGUMENTS: ClassVar = {
        "settings": {"type": "dict", "required": True},
        "bots": {"type": "list", "elements": "dict", "required": True, "no_log": True},
        "images": {"type": "dict", "required": True},
    }

    def act(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        found, problems = plan(arguments["settings"], arguments["bots"], arguments["images"])
        if problems:
            return {"failed": True, "msg": "\n".join(problems)}
        return {"changed": False, "plan": found}
