"""Action: show the card of a bot at Fly.io on the controller's terminal, and write it for programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ansible.utils.display import Display
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._action import ControllerAction
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._files import write_private
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._fly import render


class ActionModule(ControllerAction):
    """Entry point for Ansible; documented in plugins/modules/fly_card.py."""

    ARGUMENTS: ClassVar = {
        "bot": {"type": "dict", "required": True, "no_log": True},
        "support": {"type": "str", "default": ""},
        "result_file": {"type": "path", "default": ""},
    }

    def act(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        bot = arguments["bot"]
        # Not in the result and not in Ansible's log file: the card holds a secret.
        Display().display("\n" + render(bot, arguments["support"]) + "\n", screen_only=True)
        if arguments["result_file"] and not self._task.check_mode:
            path = Path(arguments["result_file"]).expanduser().absolute()
            shown = {name: value for name, value in bot.items() if name not in ("token", "bot_config")}
            try:
                write_private(path, json.dumps(shown, indent=2, ensure_ascii=False) + "\n")
            except OSError as error:
                return {"failed": True, "msg": f"result_file: {path} cannot be written: {error.strerror}"}
        return {"changed": False}
