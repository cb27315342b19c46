"""Module: a bot that runs elsewhere, on the host through which it calls its model."""

DOCUMENTATION = """
module: remote_bot
author: clawDeploy contributors (@clawdeploy)
short_description: LLM key and account of a bot that runs elsewhere
version_added: 0.2.0
description:
  - What runs elsewhere is not touched.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  state:
    description:
      - V(declared) gives the bot of O(request) a key and an account.
      - V(settled) notes that it runs.
      - V(suspended) closes its model to it, V(resumed) opens it again.
      - V(absent) takes its key back and forgets it; its account stays in the books.
    type: str
    choices: [declared, settled, suspended, resumed, absent]
    default: declared
  name:
    description: Name or id of the bot, for every state but V(declared).
    type: str
  reason:
    description: Why it is suspended.
    type: str
    default: ""
  request:
    description: The bot as C(clawctl remote declare) takes it; as text.
    type: json
"""

EXAMPLES = """
- name: Close its model to a bot
  clawdeploy.fleet.remote_bot:
    state: suspended
    name: support-bot
    reason: abuse report 4711
"""

RETURN = """
bot:
  description: The bot with its secrets.
  type: dict
  returned: when O(state=declared)
statement:
  description: Its account as the books have it, or none.
  type: dict
  returned: when O(state=absent)
code:
  description: Machine-readable name of the refusal.
  type: str
  returned: failure
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked, references

VERBS = {"settled": "settle", "suspended": "suspend", "resumed": "resume", "absent": "forget"}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["declared", *VERBS], "default": "declared"},
            "name": {"type": "str"},
            "reason": {"type": "str", "default": ""},
            # As text: every part of a dictionary would be blotted out wherever else it appears.
            "request": {"type": "json", "no_log": True},
        },
        required_if=[("state", "declared", ["request"]), *(("state", state, ["name"]) for state in VERBS)],
        supports_check_mode=True,
    )
    state = module.params["state"]
    if state == "declared":
        request = json.loads(module.params["request"])
        module.exit_json(**call(module, "remote", "declare", *checked(module), request=request))
    reason = (f"--reason={module.params['reason']}",) if state == "suspended" else ()
    bot = references(module, [module.params["name"]])
    module.exit_json(**call(module, "remote", VERBS[state], *reason, *checked(module), *bot))


if __name__ == "__main__":
    main()
