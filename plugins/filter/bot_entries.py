"""Filter that fills up the bots a user asks for."""

DOCUMENTATION = """
name: bot_entries
author: clawDeploy contributors (@clawdeploy)
short_description: Fill up the bots to deploy
version_added: 0.1.0
description:
  - Converts and fills up the options of each bot, so that what follows need not know which were given.
  - To be used after M(clawdeploy.fleet.check_bots), which reports all problems at once.
options:
  _input:
    description: The bots as the user wrote them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = """
- name: Numeric Telegram ids of the bots
  ansible.builtin.debug:
    msg: "{{ bots | clawdeploy.fleet.bot_entries | map(attribute='telegram_id') }}"
"""

RETURN = """
_value:
  description: The bots, each with every option and the number C(telegram_id).
  type: list
  elements: dict
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._entries import read_entries


def bot_entries(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bots with every option; raises AnsibleFilterError with all problems, none of which holds a secret."""
    bots, problems = read_entries(entries)
    if problems:
        raise AnsibleFilterError("\n".join(problems))
    return bots


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"bot_entries": bot_entries}
