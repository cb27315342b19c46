"""Module: say which skills bots have."""

DOCUMENTATION = """
module: bot_skills
author: clawDeploy contributors (@clawdeploy)
short_description: Let bots have exactly these skills
version_added: 0.1.0
description:
  - All skills are checked before anything is changed. Without bots that is all that is done.
  - Running bots notice with their next message. Nothing is restarted.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  skills:
    description: The skills that the bots may have.
    type: list
    elements: dict
    required: true
    suboptions:
      source:
        description: Where it came from, or C(name@version) of the host's library.
        type: str
        required: true
      archive:
        description: Tar or zip archive, base64. Without it the skill is taken from the library.
        type: str
      sha256:
        description: The checksum that it must have.
        type: str
  bots:
    description: The bots. What they have and is not named here is taken away.
    type: list
    elements: dict
    default: []
    suboptions:
      id:
        description: Id or name of the bot.
        type: str
        required: true
      skills:
        description: Sources of its skills.
        type: list
        elements: str
        required: true
"""

EXAMPLES = """
- name: Teach a bot
  clawdeploy.fleet.bot_skills:
    skills: "{{ fetched.skills }}"
    bots:
      - id: abcdefghij01
        skills: [refund-policy@1.2]
"""

RETURN = """
skills:
  description: For each skill its source, name, version and checksum.
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

SKILL = {"source": {"type": "str", "required": True}, "archive": {"type": "str"}, "sha256": {"type": "str"}}
BOT = {
    "id": {"type": "str", "required": True},
    "skills": {"type": "list", "elements": "str", "required": True},
}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "skills": {"type": "list", "elements": "dict", "required": True, "options": SKILL},
            "bots": {"type": "list", "elements": "dict", "default": [], "options": BOT},
        },
        supports_check_mode=True,
    )
    request = {"skills": module.params["skills"], "bots": module.params["bots"]}
    module.exit_json(**call(module, "skills", "apply", *checked(module), request=request))


if __name__ == "__main__":
    main()
