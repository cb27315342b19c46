"""Module: bots' disks and the files on them."""

DOCUMENTATION = """
module: bot_home
author: clawDeploy contributors (@clawdeploy)
short_description: Disks, directories and files of bots
version_added: 0.1.0
description:
  - Gives each bot a disk of its own and puts directories and files on it, all owned by the bot's user.
  - Takes all bots of a run at once. Contents are never shown, in a diff neither.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  bots:
    description: The homes.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Id of the bot.
        type: str
        required: true
      uid:
        description: Numeric user and group of the bot.
        type: int
        required: true
      disk_size:
        description: Size of the disk in bytes.
        type: int
        required: true
      directories:
        description: Directories below the bot's own.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description: Relative path.
            type: str
            required: true
          mode:
            description: Permissions, octal.
            type: str
            default: "0700"
      files:
        description: Files below the bot's directory.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description: Relative path.
            type: str
            required: true
          content:
            description: Content of the file.
            type: str
            required: true
          mode:
            description: Permissions, octal.
            type: str
            default: "0600"
          seed:
            description: Write the file only if it is missing. Such files belong to the bot from then on.
            type: bool
            default: false
      claim_file:
        description: What one of the files becomes when somebody has claimed the bot.
        type: dict
        suboptions:
          path:
            description: Relative path.
            type: str
            required: true
          content:
            description: Content with the placeholder C(__CLAWDEPLOY_OWNER__).
            type: str
            required: true
"""

EXAMPLES = """
- name: Give a bot its home
  clawdeploy.fleet.bot_home:
    bots:
      - id: abcdefghij01
        uid: 200000
        disk_size: 1073741824
        files:
          - path: config/config.json
            content: "{}"
            mode: "0400"
"""

RETURN = """
bots:
  description: For each bot its id, the paths changed and the hash of its configuration.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked

FILE = {
    "path": {"type": "str", "required": True},
    "content": {"type": "str", "required": True, "no_log": True},
}
BOT = {
    "id": {"type": "str", "required": True},
    "uid": {"type": "int", "required": True},
    "disk_size": {"type": "int", "required": True},
    "directories": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"path": {"type": "str", "required": True}, "mode": {"type": "str", "default": "0700"}},
    },
    "files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            **FILE,
            "mode": {"type": "str", "default": "0600"},
            "seed": {"type": "bool", "default": False},
        },
    },
    "claim_file": {"type": "dict", "options": FILE},
}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={"bots": {"type": "list", "elements": "dict", "required": True, "options": BOT}},
        supports_check_mode=True,
    )
    request = {"bots": module.params["bots"]}
    answer = call(module, "home", "apply", *checked(module), request=request)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
