"""Module: rows of the registry of bots."""

DOCUMENTATION = """
module: bot_registry
author: clawDeploy contributors (@clawdeploy)
short_description: Declare and remove bots in the host's registry
version_added: 0.1.0
description:
  - Takes all bots of a run at once. Either all of them can be declared or nothing is changed.
  - A bot is known by the number of its Telegram bot, so declaring the same token again updates the same bot.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  state:
    description:
      - V(declared) creates or updates O(bots) and leases them to O(run_id); no other run touches them then.
      - V(released) ends all leases of O(run_id).
      - V(absent) removes the bots O(ids) and O(kept_ids) with their containers and secrets, and the disks of
        the former.
    type: str
    choices: [declared, released, absent]
    default: declared
  run_id:
    description: Name of this run, hexadecimal. Needed by every state but V(absent).
    type: str
  bots:
    description: What the bots should be.
    type: list
    elements: dict
    suboptions:
      telegram_id:
        description: Number of the Telegram bot.
        type: int
        required: true
      telegram_username:
        description: Username of the Telegram bot.
        type: str
        required: true
      telegram_token:
        description: Token of the Telegram bot.
        type: str
        required: true
      name:
        description: First label of the bot's host name. The bot's id if not given, and kept if it has one.
        type: str
      agent:
        description: Name of the agent.
        type: str
        required: true
      plan:
        description: Name of the plan.
        type: str
        required: true
      owner:
        description: Telegram user id or username of the owner. Kept if the bot has one.
        type: str
      open_to_all:
        description: Whether everybody may talk to the bot on Telegram.
        type: bool
        default: false
      rotate_gateway_token:
        description: Replace the gateway token.
        type: bool
        default: false
      bot_env:
        description: What the user sets of the container's environment, as a whole. Kept if not given.
        type: dict
      bot_config:
        description: What the user sets of the agent's configuration, as a whole; as text. Kept if not given.
        type: json
      tools:
        description: Programs of the user that speak MCP, as a whole; as text. Kept if not given.
        type: json
      migrate_from:
        description: Id or name of the bot whose memory it takes over. What is kept of that one is left to it.
        type: str
      interface:
        description: Whether people open the bot in a browser (V(ui)) or only programs talk to it (V(api)).
        type: str
        choices: [api, ui]
        required: true
      llm_refusal:
        description:
          - How the agent is told that a call cannot be paid. V(message) answers in the model's name, for
            agents that hide errors from their users; V(error) is an HTTP error.
        type: str
        choices: [message, error]
        default: error
      image:
        description: Image of the agent, as the user names it.
        type: str
        required: true
      edge:
        description: What the edge lets through.
        type: dict
        required: true
        suboptions:
          body_limit:
            description: Largest request body that the agent can read, in bytes.
            type: int
            required: true
          routes:
            description: The agent's paths.
            type: list
            elements: dict
            required: true
            suboptions:
              path:
                description: Path as sent by the client. A prefix ends in a slash.
                type: str
                required: true
              match:
                description: How the path is compared.
                type: str
                choices: [exact, prefix]
                default: exact
              port:
                description: Port in the container.
                type: int
                required: true
              auth:
                description: Who checks the gateway token.
                type: str
                choices: [public, token, agent]
                required: true
          health_path:
            description:
              - Path that answers 200 when the bot lives.
              - The first public path ending in C(/health) if not given.
            type: str
          login:
            description: How the agent makes a one-time link into its web interface, if it has one.
            type: dict
            suboptions:
              command:
                description: Command to run in its container. It prints a JSON object.
                type: list
                elements: str
                required: true
              field:
                description: Key of the link in that object.
                type: str
                required: true
  ids:
    description: Ids of the bots to remove with all their data, for O(state=absent).
    type: list
    elements: str
  kept_ids:
    description: Ids of the bots to remove whose data is kept for a later deploy, for O(state=absent).
    type: list
    elements: str
    default: []
"""

EXAMPLES = """
- name: End the leases of a failed run
  clawdeploy.fleet.bot_registry:
    state: released
    run_id: 0123456789abcdef
"""

RETURN = """
bots:
  description: The declared bots in the order of O(bots), with their secrets.
  type: list
  elements: dict
  returned: when O(state=declared)
code:
  description: Machine-readable name of the refusal.
  type: str
  returned: failure
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked

ROUTE = {
    "path": {"type": "str", "required": True},
    "match": {"type": "str", "choices": ["exact", "prefix"], "default": "exact"},
    "port": {"type": "int", "required": True},
    "auth": {"type": "str", "choices": ["public", "token", "agent"], "required": True},
}
EDGE = {
    "body_limit": {"type": "int", "required": True},
    "routes": {"type": "list", "elements": "dict", "required": True, "options": ROUTE},
    "health_path": {"type": "str"},
    "login": {
        "type": "dict",
        "options": {
            "command": {"type": "list", "elements": "str", "required": True},
            "field": {"type": "str", "required": True},
        },
    },
}
BOT = {
    "telegram_id": {"type": "int", "required": True},
    "telegram_username": {"type": "str", "required": True},
    "telegram_token": {"type": "str", "required": True, "no_log": True},
    "name": {"type": "str"},
    "agent": {"type": "str", "required": True},
    "plan": {"type": "str", "required": True},
    "owner": {"type": "str"},
    "open_to_all": {"type": "bool", "default": False},
    "rotate_gateway_token": {"type": "bool", "default": False, "no_log": False},
    "bot_env": {"type": "dict"},
    # As text: every part of a dictionary would be blotted out wherever else it appears.
    "bot_config": {"type": "json", "no_log": True},
    "tools": {"type": "json", "no_log": True},
    "migrate_from": {"type": "str"},
    "interface": {"type": "str", "choices": ["api", "ui"], "required": True},
    "llm_refusal": {"type": "str", "choices": ["message", "error"], "default": "error"},
    "image": {"type": "str", "required": True},
    "edge": {"type": "dict", "required": True, "options": EDGE},
}
STATES = ["declared", "released", "absent"]


def given(value: Any) -> Any:
    """``value`` without the keys that Ansible adds as None for what was not given."""
    if isinstance(value, dict):
        return {name: given(part) for name, part in value.items() if part is not None}
    return [given(part) for part in value] if isinstance(value, list) else value


def asked(bot: dict[str, Any]) -> dict[str, Any]:
    """One bot as clawctl takes it."""
    texts = {name: bot.pop(name) for name in ("bot_config", "tools")}
    return {**given(bot), **{name: json.loads(text) for name, text in texts.items() if text is not None}}


def remove(module: AnsibleModule, ids: list[str], kept_ids: list[str]) -> dict[str, Any]:
    """Remove those of the bots that are there."""
    there = [bot["id"] for bot in call(module, "list")["bots"] if bot["id"] in ids + kept_ids]
    if not module.check_mode:
        for bot in there:
            call(module, "destroy", bot, "--keep-data" if bot in kept_ids else "--purge", "--yes")
    diff = {"before": "".join(f"{bot}\n" for bot in there), "after": ""}
    return {"changed": bool(there), "diff": diff}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": STATES, "default": "declared"},
            "run_id": {"type": "str"},
            "bots": {"type": "list", "elements": "dict", "options": BOT},
            "ids": {"type": "list", "elements": "str"},
            "kept_ids": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[
            ("state", "declared", ["run_id", "bots"]),
            ("state", "released", ["run_id"]),
            ("state", "absent", ["ids"]),
        ],
        supports_check_mode=True,
    )
    state, request = module.params["state"], {"run_id": module.params["run_id"]}
    answer: dict[str, Any] = {}
    if state == "declared":
        answer = call(
            module,
            "declare",
            *checked(module),
            request={**request, "bots": [asked(bot) for bot in module.params["bots"]]},
        )
    elif state == "absent":
        answer = remove(module, module.params["ids"], module.params["kept_ids"])
    elif not module.check_mode:
        call(module, "release", request=request)  # bookkeeping of a run, no change of the host
    module.exit_json(**{"changed": False, **answer})


if __name__ == "__main__":
    main()
