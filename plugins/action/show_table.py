"""Action: show rows as a table, on the controller's terminal."""

from collections.abc import Sequence
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display


def render(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text of a table; columns are as wide as their widest cell."""
    lines = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    told = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = "  ".join("─" * width for width in widths)
    return "\n".join([title, "", told[0].rstrip(), rule, *(line.rstrip() for line in told[1:])])


class ActionModule(ActionBase):
    """Entry point for Ansible; documented in plugins/modules/show_table.py."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "title": {"type": "str", "required": True},
                "columns": {"type": "list", "elements": "str", "required": True},
                "rows": {"type": "list", "elements": "list", "required": True},
            }
        )
        Display().display("\n" + render(**arguments) + "\n")
        return {"changed": False}
