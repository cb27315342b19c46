"""Module: containers of bots."""

DOCUMENTATION = """
module: bot_containers
author: clawDeploy contributors (@clawdeploy)
short_description: Let the containers of bots be what their specifications say
version_added: 0.1.0
description:
  - Takes all bots of a run at once and looks at all their containers at once. Only where the specification's
    hash, kept with the container, or the configuration differs is anything done.
  - Works through Docker's own SDK, several containers at a time.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  bots:
    description: The bots.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Id of the bot.
        type: str
        required: true
      config_hash:
        description: Hash of its configuration files. A container started with another one is restarted.
        type: str
        required: true
      container:
        description:
          - What the container should be. All of C(image), C(hostname), C(command), C(env), C(user),
            C(network), C(mounts), C(tmpfs), C(healthcheck) (times in seconds), C(stop_timeout), C(cpus),
            C(memory) (bytes, swap included), C(pids_limit), C(ulimits), C(cgroup_parent), C(cap_drop),
            C(security_opts), C(read_only), C(init) and C(restart_policy); nothing is left to a default.
        type: dict
        required: true
"""

EXAMPLES = """
- name: Run the bots' containers
  clawdeploy.fleet.bot_containers:
    bots:
      - id: abcdefghij01
        config_hash: "{{ homes.bots[0].config_hash }}"
        container: "{{ specification }}"
"""

RETURN = """
bots:
  description: For each bot its id and what was done, one of create, replace, restart, start and keep.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked

BOT = {
    "id": {"type": "str", "required": True},
    "config_hash": {"type": "str", "required": True},
    "container": {"type": "dict", "required": True},
}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={"bots": {"type": "list", "elements": "dict", "required": True, "options": BOT}},
        supports_check_mode=True,
    )
    module.exit_json(**call(module, "run", *checked(module), request={"bots": module.params["bots"]}))


if __name__ == "__main__":
    main()
