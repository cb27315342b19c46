"""Action: check the bots a user asks for, on the controller."""

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._entries import check_result_file, read_entries


class ActionModule(ActionBase):
    """Entry point for Ansible; documented in plugins/modules/check_bots.py."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "bots": {"type": "list", "elements": "raw", "required": True, "no_log": True},
                "agents": {"type": "list", "elements": "str", "required": True},
                "result_file": {"type": "path", "default": ""},
                "plans": {"type": "list", "elements": "str", "default": []},
                "reserved_names": {"type": "list", "elements": "str", "default": []},
            }
        )
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
