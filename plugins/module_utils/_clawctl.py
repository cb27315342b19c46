"""Calling clawctl on the host. The modules hold no logic of their own: one verb, one path."""

import json
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

UNPREPARED = "clawctl is not installed on this host: run the prepare_host playbook first"


def call(module: AnsibleModule, *verb: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run ``clawctl VERB --json`` and return its answer.

    ``request`` goes to standard input as JSON, where no process list shows it. A refusal ends the module with
    clawctl's own sentence and its code; an answer without an ``error`` is returned whatever the exit status,
    for ``wait`` reports unhealthy bots that way.
    """
    program = module.get_bin_path("clawctl", opt_dirs=["/usr/local/bin"])
    if program is None:
        module.fail_json(msg=UNPREPARED, code="host_unprepared")
    status, output, errors = module.run_command(
        [program, *verb, "--json"], data=None if request is None else json.dumps(request)
    )
    try:
        answer = json.loads(output)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        last = errors.strip().splitlines()[-1:] or ["no output"]
        module.fail_json(msg=f"clawctl {verb[0]} failed (exit {status}): {last[0]}", code="clawctl_failed")
    elif "error" in answer:
        module.fail_json(msg=answer["error"]["message"], code=answer["error"]["code"])
    return dict(answer)


def checked(module: AnsibleModule) -> tuple[str, ...]:
    """The flag that makes a verb only say what it would do."""
    return ("--check",) if module.check_mode else ()


def references(module: AnsibleModule, bots: list[str]) -> tuple[str, ...]:
    """Ids or names of bots as arguments; ends the module if one could be taken for an option of clawctl."""
    wrong = [bot for bot in bots if not bot or bot.startswith("-")]
    if wrong:
        module.fail_json(msg=f"no bot can have the name {wrong[0]!r}", code="unknown_bot")
    return tuple(bots)
