"""Module: the kill switch of bots, and the way back."""

DOCUMENTATION = """
module: bot_suspension
author: clawDeploy contributors (@clawdeploy)
short_description: Suspend bots at once, or resume them
version_added: 0.1.0
description:
  - A suspended bot is closed from the outside in. The edge answers its visitors with 503, the LLM gateway
    refuses its key, its processes are frozen and then killed. Its data stays as it is.
  - It stays so through reboots and deploys until it is resumed.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  state:
    description:
      - V(suspended) stops the bots.
      - V(resumed) starts those of them that are suspended, and waits until their customers reach them.
    type: str
    choices: [suspended, resumed]
    required: true
  bots:
    description: Ids or names of bots.
    type: list
    elements: str
    default: []
  all_bots:
    description: All bots of the host, instead of O(bots).
    type: bool
    default: false
  reason:
    description: Why, for O(state=suspended). What was said before is kept if not given.
    type: str
  timeout:
    description: Seconds to wait for all bots together, for O(state=resumed).
    type: int
    default: 60
"""

EXAMPLES = """
- name: Stop a bot
  clawdeploy.fleet.bot_suspension:
    state: suspended
    bots: [support-bot]
    reason: abuse report 4711
"""

RETURN = """
bots:
  description:
    - For O(state=suspended), each bot with its C(id), C(label), C(reason) and C(since).
    - For O(state=resumed), each bot that was brought back with its C(id), C(label), whether it is C(healthy)
      and the C(seconds) it took, or the C(reason) and its last log lines.
  type: list
  elements: dict
  returned: success
steps:
  description: The steps of a suspension with their C(ms), and C(done_ms) since the beginning.
  type: list
  elements: dict
  returned: when O(state=suspended)
code:
  description: Machine-readable name of the refusal.
  type: str
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked, references


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["suspended", "resumed"], "required": True},
            "bots": {"type": "list", "elements": "str", "default": []},
            "all_bots": {"type": "bool", "default": False},
            "reason": {"type": "str"},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    given = module.params
    if bool(given["bots"]) == given["all_bots"]:
        module.fail_json(msg="give either bots or all_bots")
    which = ("--all",) if given["all_bots"] else references(module, given["bots"])
    if given["state"] == "suspended":
        why = () if given["reason"] is None else (f"--reason={given['reason']}",)
        module.exit_json(**call(module, "suspend", *which, *why, *checked(module)))
    answer = call(module, "resume", *which, f"--timeout={given['timeout']}", *checked(module))
    sick = [f"{bot['label']}: {bot['reason']}" for bot in answer["bots"] if not bot["healthy"]]
    if sick:
        module.fail_json(msg="\n".join(sick), code="unhealthy", **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
