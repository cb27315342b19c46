"""Lookup of the server-wide settings in the working directory's .env file."""

DOCUMENTATION = """
name: server_env
author: clawDeploy contributors (@clawdeploy)
short_description: Read server-wide settings from the file .env
version_added: 0.1.0
description:
  - Reads settings from the file V(.env) in the directory in which C(ansible-playbook) was started.
  - The file is data. No value in it is taken from the environment, expanded or rendered as a template.
  - A name that clawDeploy does not know is an error, so that a misspelt one is noticed.
options:
  _terms:
    description:
      - Names of the settings to read.
    type: list
    elements: str
    required: true
    choices:
      - OPENROUTER_API_KEY
      - OPENROUTER_MODEL
      - OPENROUTER_BASE_URL
      - BASE_DOMAIN
      - PUBLIC_BASE_URL
      - DEFAULT_RATE_LIMIT_RPS
      - DEFAULT_RATE_LIMIT_BURST
      - DEFAULT_CPU_LIMIT
      - DEFAULT_MEM_LIMIT
      - DEFAULT_BALANCE
      - SUPPORT_EMAIL
      - FLY_API_TOKEN
  default:
    description:
      - Value of a setting that is missing or empty, or when there is no V(.env) at all.
      - Without it such a setting is an error.
    type: raw
notes:
  - Needs C(python-dotenv) on the controller.
"""

EXAMPLES = """
- name: Role default that an inventory variable overrides
  ansible.builtin.debug:
    msg: "{{ lookup('clawdeploy.fleet.server_env', 'BASE_DOMAIN', default='') }}"
"""

RETURN = """
_raw:
  description: The values, as strings, in the order of the names.
  type: list
  elements: raw
"""

import difflib
import functools
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

try:
    from dotenv.parser import parse_stream
except ImportError:
    HAS_DOTENV = False
else:
    HAS_DOTENV = True

NAMES = (
    "OPENROUTER_API_KEY",
    "OPENROUTER_MODEL",
    "OPENROUTER_BASE_URL",
    "BASE_DOMAIN",
    "PUBLIC_BASE_URL",
    "DEFAULT_RATE_LIMIT_RPS",
    "DEFAULT_RATE_LIMIT_BURST",
    "DEFAULT_CPU_LIMIT",
    "DEFAULT_MEM_LIMIT",
    "DEFAULT_BALANCE",
    "SUPPORT_EMAIL",
    "FLY_API_TOKEN",
)


@functools.lru_cache(maxsize=4)
def read_env(path: Path, _modified: int) -> dict[str, str]:
    """Read a .env file: name -> value, empty values left out.

    ``_modified`` is the file's st_mtime_ns; it makes the cache notice a changed file.
    Raises AnsibleLookupError on a line that is no assignment and on an unknown or repeated name.
    """
    values: dict[str, str] = {}
    with path.open(encoding="utf-8") as stream:
        for binding in parse_stream(stream):
            if binding.key is None and not binding.error:
                continue  # a comment or an empty line
            line = binding.original.line
            if binding.error or binding.key is None or binding.value is None:
                raise AnsibleLookupError(f"{path}, line {line}: expected NAME=value")
            if binding.key not in NAMES:
                close = difflib.get_close_matches(binding.key.upper(), NAMES, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known names: {', '.join(NAMES)}"
                raise AnsibleLookupError(f"{path}, line {line}: unknown setting {binding.key}; {hint}")
            if binding.key in values:
                raise AnsibleLookupError(f"{path}, line {line}: {binding.key} is set twice; remove one line")
            values[binding.key] = binding.value.strip()
    return {name: value for name, value in values.items() if value}


class LookupModule(LookupBase):
    """Entry point for Ansible."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        self.set_options(var_options=variables, direct=kwargs)
        if not HAS_DOTENV:
            raise AnsibleLookupError("python-dotenv is missing on the controller: pip install python-dotenv")
        path = Path.cwd() / ".env"
        try:
            values = read_env(path, path.stat().st_mtime_ns)
        except FileNotFoundError:
            values = {}
        except (OSError, UnicodeDecodeError) as error:
            raise AnsibleLookupError(f"{path} cannot be read: {error}") from error
        default = self.get_option("default")
        result: list[Any] = []
        for name in terms:
            if name not in NAMES:
                raise AnsibleLookupError(
                    f"server_env does not know {name!r}; known names: {', '.join(NAMES)}"
                )
            value = values.get(name, default)
            if value is None:
                raise AnsibleLookupError(f"{name} is not set: write {name}=… into {path}")
            result.append(value)
        return result
