"""Action: read archives on the controller, then let the module hand them to the host."""

import base64
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._memories import gather, is_path, patterns_of


class ActionModule(ActionBase):
    """Entry point for Ansible; documented in plugins/modules/bot_memories.py."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        bots, problems = list[dict[str, Any]](), list[str]()
        for given in self._task.args.get("bots") or []:
            bot = dict(given)
            if is_path(bot["source"]):
                try:
                    archive = gather(bot["source"], patterns_of(bot["imports"]))
                except (ValueError, OSError) as error:
                    problems.append(f"migrate_from: {error}")
                    continue
                bot["archive"] = base64.b64encode(archive).decode()
            bots.append(bot)
        if problems:
            return result | {"failed": True, "msg": "\n".join(problems)}
        arguments = dict(self._task.args) | {"bots": bots}
        return {**result, **self._execute_module(module_args=arguments, task_vars=task_vars)}
