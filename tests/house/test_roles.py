"""Every role says what it takes, and its documentation says the same."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.clawdeploy.fleet.plugins.lookup.server_env import NAMES

from tools import role_tables

ROLES = sorted(path.name for path in (role_tables.ROOT / "roles").iterdir() if path.is_dir())


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_role_has_an_argument_spec(root: Path, role: str) -> None:
    assert (root / "roles" / role / "meta/argument_specs.yml").is_file()


def test_spec_and_defaults_have_the_same_settings(role: str) -> None:
    options = role_tables.load_spec(role).get("options") or {}
    required = {name for name, option in options.items() if option.get("required")}
    assert set(role_tables.load_defaults(role)) == set(options) - required


def test_a_default_is_the_same_in_spec_and_defaults(role: str) -> None:
    options = role_tables.load_spec(role).get("options") or {}
    # What a template will be, the spec can only describe.
    defaults = {
        name: value for name, value in role_tables.load_defaults(role).items() if "{{" not in str(value)
    }
    in_spec = {name: option["default"] for name, option in options.items() if "default" in option}
    assert {name: in_spec.get(name, value) for name, value in defaults.items()} == defaults


def test_settings_carry_the_role_s_name_and_a_description(role: str) -> None:
    options = role_tables.load_spec(role).get("options") or {}
    assert [name for name in options if not name.startswith(f"{role}_")] == []
    assert [name for name, option in options.items() if not option.get("description")] == []


def test_role_tables_are_up_to_date() -> None:
    assert role_tables.stale_files() == [], "run: make docs"


def test_env_example_names_exactly_the_server_wide_settings_in_order(root: Path) -> None:
    lines = (root / ".env.example").read_text().splitlines()
    assert [line.partition("=")[0] for line in lines if line and not line.startswith("#")] == list(NAMES)


@pytest.mark.parametrize("name", ["example/{}/main.yml", "example/{}/vault.yml.example", "local/{}/main.yml"])
def test_inventories_set_only_settings_that_exist(root: Path, name: str) -> None:
    known = {name for role in ROLES for name in role_tables.load_spec(role).get("options") or {}}
    text = (root / "inventory" / name.format("group_vars/vps")).read_text()
    # Settings offered in comments count too.
    offered = set(re.findall(r"^(?:# )?([a-z]\w*):(?= |$)", text, flags=re.MULTILINE))
    assert offered - known == set()


def test_uninstall_knows_every_package_that_a_role_installs(root: Path) -> None:
    def variables(role: str) -> dict[str, Any]:
        path = root / "roles" / role / "vars/main.yml"
        return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}

    known = set(variables("uninstall")["__uninstall_packages"])
    installed = set()
    for role in ROLES:
        for name, value in variables(role).items():
            if name.endswith("_packages") and role != "uninstall":
                # A list, or the lists in a template.
                lists = re.findall(r"(?<!\w)\[('[^\[\]]*')\]", value) if isinstance(value, str) else []
                installed |= set(re.findall("'([^']+)'", " ".join(lists)) if lists else value)
    assert {"docker.io", "haproxy", "python3-venv"} <= installed
    assert installed - known == set()
