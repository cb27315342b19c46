"""Action: fetch and pack skills, on the controller."""

import base64
from collections.abc import Mapping
from typing import Any, ClassVar

from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._action import ControllerAction
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._skills import fetch, read_skill


class ActionModule(ControllerAction):
    """Entry point for Ansible; documented in plugins/modules/skill_archives.py."""

    ARGUMENTS: ClassVar = {"skills": {"type": "list", "elements": "raw", "required": True}}

    def act(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> dict[str, Any]:
        found, problems = list[dict[str, str]](), list[str]()
        for given in arguments["skills"]:
            try:
                skill = read_skill(given)
                archive = fetch(skill["source"])
            except (ValueError, OSError) as error:
                problems.append(f"skills: {error}")
                continue
            found.append(
                skill if archive is None else skill | {"archive": base64.b64encode(archive).decode()}
            )
        if problems:
            return {"failed": True, "msg": "\n".join(problems)}
        return {"changed": False, "skills": found}
