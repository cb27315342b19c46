"""Module: bring bots to where their customers reach them."""

DOCUMENTATION = """
module: bot_live
author: clawDeploy contributors (@clawdeploy)
short_description: Run bots' containers and wait until they answer through TLS
version_added: 0.1.0
description:
  - Opens the accounts of new bots.
  - Takes all bots of a run at once and looks at all their containers at once. Only where the specification's
    hash, kept with the container, or the configuration differs is anything done, several at a time, through
    Docker's own SDK.
  - Then brings the edge and the LLM gateway in line with the registry, waits for all bots at the same time
    until each one's container is well and its public URL answers, and records what the healthy ones run.
    That ends their lease.
  - A bot that does not answer in time is reported, not a failure. The caller decides what becomes of it.
extends_documentation_fragment:
  - clawdeploy.fleet.attributes
options:
  run_id:
    description: Name of the run that declared the bots.
    type: str
    required: true
  bots:
    description: The bots and what they run.
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
      image_digest:
        description: What pins its image.
        type: str
        required: true
      balance:
        description: Dollars that its account opens with, if it has none yet.
        type: str
        required: true
      spend_limit:
        description:
          - Who pays for its calls. V(prepaid) (its balance), V(unlimited), or dollars a day or a month, such
            as V(2.00/day).
          - As it is if not given; V(prepaid) for a new bot.
        type: str
      container:
        description:
          - What the container should be. All of C(image), C(hostname), C(command), C(env), C(user),
            C(network), C(mounts), C(tmpfs), C(healthcheck) (times in seconds), C(stop_timeout), C(cpus),
            C(skills), C(memory) (bytes, swap included), C(pids_limit), C(ulimits), C(cgroup_parent),
            C(cap_drop), C(security_opts), C(read_only), C(init) and C(restart_policy).
          - Nothing is left to a default.
        type: dict
        required: true
  timeout:
    description: Seconds to wait.
    type: int
    default: 60
"""

EXAMPLES = """
- name: Bring a bot to its customers
  clawdeploy.fleet.bot_live:
    run_id: 0123456789abcdef
    bots:
      - id: abcdefghij01
        config_hash: "{{ homes.bots[0].config_hash }}"
        image_digest: "{{ image }}"
        balance: "1.00"
        container: "{{ specification }}"
"""

RETURN = """
bots:
  description:
    - For each bot its id, whether it is healthy, the seconds it took, or the reason and its last log lines.
  type: list
  elements: dict
  returned: success
actions:
  description: Id of each bot and what became of its container, one of create, replace, restart, start, keep.
  type: dict
  returned: success
accounts:
  description: The bots' accounts. Amounts are nano-dollars, but C(balance_dollars) is as people write it.
  type: list
  elements: dict
  returned: success
maps:
  description: Names of the edge's maps that were changed.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clawdeploy.fleet.plugins.module_utils._clawctl import call, checked

BOT = {
    "id": {"type": "str", "required": True},
    "config_hash": {"type": "str", "required": True},
    "image_digest": {"type": "str", "required": True},
    "balance": {"type": "str", "required": True},
    "spend_limit": {"type": "str"},
    "container": {"type": "dict", "required": True},
}


def main() -> None:
    """Entry point for Ansible."""
    module = AnsibleModule(
        argument_spec={
            "run_id": {"type": "str", "required": True},
            "bots": {"type": "list", "elements": "dict", "required": True, "options": BOT},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    request = {"run_id": module.params["run_id"], "bots": module.params["bots"]}
    verb = ("live", "--timeout", str(module.params["timeout"]), *checked(module))
    module.exit_json(**call(module, *verb, request=request))


if __name__ == "__main__":
    main()
