"""clawctl as playbooks and operators call it."""

import json
from typing import Any

from click.testing import CliRunner, Result

from clawdeploy.cli import Machine, main

from .conftest import RUN, container_spec


def run(machine: Machine, *arguments: str, request: Any = None, code: int = 0) -> Result:
    result = CliRunner().invoke(
        main, arguments, obj=machine, input=json.dumps(request) if request is not None else None
    )
    assert result.exit_code == code, result.output
    return result


def ask(machine: Machine, *arguments: str, request: Any = None, code: int = 0) -> Any:
    return json.loads(run(machine, *arguments, "--json", request=request, code=code).stdout)


def declared(machine: Machine, *bots: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(machine, "declare", request={"run_id": RUN, "bots": list(bots)})["bots"]
    return found


def live_request(bot_id: str, **changes: Any) -> dict[str, Any]:
    running = {"id": bot_id, "config_hash": "c" * 64, "image_digest": "sha256:1", "balance": "1.00"}
    return {"run_id": RUN, "bots": [{**running, "container": container_spec(**changes)}]}
