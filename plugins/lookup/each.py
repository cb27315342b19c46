"""Lookup that evaluates one variable once per element of a list."""

DOCUMENTATION = """
name: each
author: clawDeploy contributors (@clawdeploy)
short_description: Evaluate a variable once per element of a list
version_added: 0.1.0
description:
  - Returns the value of a variable for each element, with the element available under a name of its own.
  - A module that takes all bots at once gets its argument this way, from a description of one bot.
options:
  _terms:
    description:
      - The list, and the name of the variable that describes one element.
    type: list
    elements: raw
    required: true
  as:
    description:
      - Name under which the variable finds the element.
    type: str
    default: item
"""

EXAMPLES = """
- name: One request for all bots
  ansible.builtin.debug:
    msg: "{{ query('clawdeploy.fleet.each', ['a', 'b'], 'address', as='bot') }}"
  vars:
    address: "{{ bot }}.example.com"
"""

RETURN = """
_raw:
  description: The variable's value for each element, in the list's order.
  type: list
  elements: raw
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):
    """Entry point for Ansible."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        self.set_options(var_options=variables, direct=kwargs)
        elements, name = terms
        variables = variables or {}
        if name not in variables:
            raise AnsibleLookupError(f"each: there is no variable {name!r}")
        result: list[Any] = []
        for element in elements:
            scope = {**variables, self.get_option("as"): element}
            result.append(
                self._templar.copy_with_new_env(available_variables=scope).template(variables[name])
            )
        return result
