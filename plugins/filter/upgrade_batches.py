"""Filter that puts bots to upgrade into batches."""

DOCUMENTATION = """
name: upgrade_batches
author: clawDeploy contributors (@clawdeploy)
short_description: Order in which bots are upgraded
version_added: 0.1.0
description:
  - Puts the canary first and alone, unless it is not among the bots, then the others.
positional: canary, size
options:
  _input:
    description: Ids of the bots to upgrade.
    type: list
    elements: str
    required: true
  canary:
    description: Id of the bot that goes first.
    type: str
    required: true
  size:
    description: How many go at the same time.
    type: int
    required: true
"""

EXAMPLES = """
- name: Three batches
  ansible.builtin.debug:
    msg: "{{ ['a', 'b', 'c', 'd'] | clawdeploy.fleet.upgrade_batches('b', 2) }}"
"""

RETURN = """
_value:
  description: The batches, each a list of ids.
  type: list
  elements: list
"""

from collections.abc import Callable
from typing import Any

from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._upgrade import batches


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"upgrade_batches": batches}
