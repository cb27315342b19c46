"""What all actions of this collection share: they run on the controller alone and change no host."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from ansible.plugins.action import ActionBase


class ControllerAction(ActionBase):
    """An action with checked arguments; documented in the module of the same name."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    ARGUMENTS: ClassVar[dict[str, Any]]

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(argument_spec=self.ARGUMENTS)
        return self.act(arguments, task_vars or {})

    @abstractmethod
    def act(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        """The task's result; ``arguments`` are as ARGUMENTS says, ``task_vars`` all that the host sees."""
