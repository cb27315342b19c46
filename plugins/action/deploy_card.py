"""Action: show what was deployed, and write it down if asked, on the controller."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ansible.utils.display import Display
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._action import ControllerAction
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._card import render
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._files import write_private


class ActionModule(ControllerAction):
    """Entry point for Ansible; documented in plugins/modules/deploy_card.py."""

    ARGUMENTS: ClassVar = {
        "bots": {"type": "list", "elements": "dict", "required": True, "no_log": True},
        "support": {"type": "str", "default": ""},
        "result_file": {"type": "path", "default": ""},
    }

    def act(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        bots, support = arguments["bots"], arguments["support"]
        # Not in the result and not in Ansible's log file: the card holds secrets.
        Display().display("\n" + render(bots, support) + "\n", screen_only=True)
        if arguments["result_file"] and not self._task.check_mode:
            path = Path(arguments["result_file"]).expanduser().absolute()
            text = json.dumps({"support": support, "bots": bots}, indent=2, ensure_ascii=False) + "\n"
            try:
                write_private(path, text)
            except OSError as error:
                # Tokens cannot be shown again, but they are on the screen by now.
                return {"failed": True, "msg": f"result_file: {path} cannot be written: {error.strerror}"}
        return {"changed": False}
