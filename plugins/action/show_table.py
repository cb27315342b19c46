"""Action: show rows as a table, on the controller's terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ansible.utils.display import Display
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._action import ControllerAction
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._files import write_private


def render(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text of a table; columns are as wide as their widest cell."""
    lines = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    told = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = "  ".join("─" * width for width in widths)
    return "\n".join([title, "", told[0].rstrip(), rule, *(line.rstrip() for line in told[1:])])


class ActionModule(ControllerAction):
    """Entry point for Ansible; documented in plugins/modules/show_table.py."""

    ARGUMENTS: ClassVar = {
        "title": {"type": "str", "required": True},
        "columns": {"type": "list", "elements": "str", "required": True},
        "rows": {"type": "list", "elements": "list", "required": True},
        "result": {"type": "dict", "default": {}},
        "result_file": {"type": "path", "default": ""},
    }

    def act(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        table = render(arguments["title"], arguments["columns"], arguments["rows"])
        Display().display("\n" + table + "\n")
        if arguments["result_file"] and not self._task.check_mode:
            path = Path(arguments["result_file"]).expanduser().absolute()
            try:
                write_private(path, json.dumps(arguments["result"], indent=2, ensure_ascii=False) + "\n")
            except OSError as error:
                return {"failed": True, "msg": f"result_file: {path} cannot be written: {error.strerror}"}
        return {"changed": False}
