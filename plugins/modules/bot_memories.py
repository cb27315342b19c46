"""Module: let new bots take over what bots of another agent knew."""

DOCUMENTATION = """
module: bot_memories
author: clawDeploy contributors (@clawdeploy)
short_description: Let new bots take over what other bots knew
version_added: 0.1.0
description:
  - Checks what bots are to take over, of bots of this host or of archives on the controller, before anything
    is changed.
  - With a container it also imports it, once, by the agent's own command in a container of its own without a
    network.
  - A bot that has run already is refused. Sources are only read.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  bots:
    description: The bots.
    type: list
    elements: dict
    required: true
    suboptions:
      telegram_id:
        description: Number of its Telegram bot.
        type: int
        required: true
      agent:
        description: Its agent.
        type: str
        required: true
      source:
        description:
          - Id or name of a bot of this host.
          - Or the absolute path of an archive or a directory on the controller.
        type: str
        required: true
      archive:
        description: What of it the agent may want, a tar in base64. The action puts it in.
        type: str
      imports:
        description: What the agent takes over, by the agents it takes it over from, as its profile says.
        type: dict
        required: true
      container:
        description:
          - What its container will be, as M(clawdeploy.fleet.bot_live) takes it.
          - Nothing is imported without.
        type: dict
"""

EXAMPLES = """
- name: Check what a bot is to take over
  clawdeploy.fleet.bot_memories:
    bots:
      - telegram_id: 123456789
        agent: "{{ agent }}"
        source: abcdefghij01
        imports: "{{ profile.imports }}"
"""

RETURN = """
bots:
  description:
    - For each bot its C(telegram_id), and C(facts) once it has taken over something.
    - These say of whom (C(label), C(agent)), when (C(since), Unix seconds), how many C(notes), and which
      C(files) they were in.
  type: list
  elements: dict
  returned: success
code:
  description: Machine-readable name of the refusal.
  type: str
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked

BOT = {
    "telegram_id": {"type": "int", "required": True},
    "agent": {"type": "str", "required": True},
    "source": {"type": "str", "required": True},
    # What a bot was told is nobody's business.
    "archive": {"type": "str", "no_log": True},
    "imports": {"type": "dict", "required": True},
    "container": {"type": "dict"},
}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={"bots": {"type": "list", "elements": "dict", "required": True, "options": BOT}},
        supports_check_mode=True,
    )
    bots = [
        {name: value for name, value in bot.items() if value is not None} for bot in module.params["bots"]
    ]
    module.exit_json(**call(module, "memories", "apply", *checked(module), request={"bots": bots}))


if __name__ == "__main__":
    main()
