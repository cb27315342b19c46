#!/usr/bin/env python3
"""Write the tables of role settings from the roles' argument specs and defaults.

`tools/role_tables.py` writes docs/roles.md and the overview in README.md; `--check` writes nothing and
exits with 1 if one of them is not up to date.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- roles: written by `make docs` -->"
END = "<!-- roles end -->"
# Ansible's markup for values, options and code (https://docs.ansible.com/ansible/latest/dev_guide/ansible_markup.html).
MARKUP = re.compile(r"\b[CEMOV]\(([^()]*)\)")
SERVER_ENV = re.compile(r"\{\{ lookup\('clawdeploy\.fleet\.server_env', '(\w+)', default='([^']*)'\) \}\}")
# The order in which prepare_host applies them; roles that are not named here follow by name.
ORDER = ("base", "docker", "firewall", "platform", "llm_gateway", "edge", "backup", "bot")

Spec = dict[str, Any]


def role_names(root: Path = ROOT) -> list[str]:
    """Names of all roles, in the order in which they are applied."""
    found = {path.parent.parent.name for path in root.glob("roles/*/meta/argument_specs.yml")}
    return [name for name in ORDER if name in found] + sorted(found.difference(ORDER))


def load_spec(role: str, root: Path = ROOT) -> Spec:
    """The `main` entry point of a role's argument spec."""
    text = (root / "roles" / role / "meta/argument_specs.yml").read_text()
    spec: Spec = yaml.safe_load(text)["argument_specs"]["main"]
    return spec


def load_defaults(role: str, root: Path = ROOT) -> Spec:
    """A role's default values as written: templates are not evaluated. Empty if the role has none."""
    path = root / "roles" / role / "defaults/main.yml"
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def one_line(text: Any) -> str:
    """A description (text or list of texts) as one table cell."""
    joined = " ".join(text) if isinstance(text, list) else str(text or "")
    return MARKUP.sub(r"`\1`", " ".join(joined.split())).replace("|", "\\|")


def without_lookups(value: Any) -> Any:
    """A default with its look-ups of .env replaced by their meaning, at any depth."""
    match value:
        case dict():
            return {name: without_lookups(member) for name, member in value.items()}
        case list():
            return [without_lookups(member) for member in value]
        case str() if found := SERVER_ENV.fullmatch(value):
            name, otherwise = found.groups()
            return f"<{name} in .env, else {otherwise}>" if otherwise else f"<{name} in .env>"
    return value


def as_code(value: Any) -> str:
    """A value as YAML users would type it, in a code span; line breaks of templates become spaces."""
    value = without_lookups(value)
    if isinstance(value, str):
        shown = " ".join(value.split()) or '""'
    else:
        shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
        shown = shown.removesuffix("\n").removesuffix("\n...")
    return f"`{shown}`".replace("|", "\\|")


def option_rows(options: Spec, defaults: Spec, prefix: str = "") -> Iterator[str]:
    """Table rows of options and, indented by their path, of their sub-options."""
    for name, option in options.items():
        kind = option.get("type", "str")
        if kind == "list" and "elements" in option:
            kind = f"list of {option['elements']}"
        if name in defaults:
            default = as_code(defaults[name])
        elif "default" in option:
            default = as_code(option["default"])
        else:
            default = "**required**" if option.get("required") else ""
        meaning = one_line(option.get("description"))
        if "choices" in option:
            meaning += " One of: " + ", ".join(as_code(choice) for choice in option["choices"]) + "."
        yield f"| `{prefix}{name}` | {kind} | {default} | {meaning} |"
        if "options" in option:
            element = "[]." if option.get("type") == "list" else "."
            yield from option_rows(option["options"], {}, prefix + name + element)


def role_section(role: str, root: Path = ROOT) -> str:
    """One role's heading, description and table."""
    spec = load_spec(role, root)
    lines = [f"## {role}", "", one_line(spec.get("short_description")), ""]
    if spec.get("description"):
        lines += [one_line(spec["description"]).replace("\\|", "|"), ""]
    rows = list(option_rows(spec.get("options") or {}, load_defaults(role, root)))
    if rows:
        lines += ["| Variable | Type | Default | Meaning |", "| --- | --- | --- | --- |", *rows, ""]
    else:
        lines += ["This role has no settings.", ""]
    return "\n".join(lines)


def roles_page(root: Path = ROOT) -> str:
    """The whole of docs/roles.md."""
    head = (
        "# Roles and their settings\n\n"
        "Written by `make docs` from each role's `meta/argument_specs.yml` and `defaults/main.yml`.\n"
        "Set these in the inventory (`group_vars/vps/`); what is set there wins over `.env`.\n\n"
    )
    return head + "\n".join(role_section(role, root) for role in role_names(root))


def readme_with_overview(readme: str, root: Path = ROOT) -> str:
    """The README's text with the overview of roles between its two markers renewed.

    Raises ValueError if a marker is missing.
    """
    before, found_begin, rest = readme.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found_begin and found_end):
        raise ValueError(f"README.md lacks the markers {BEGIN} and {END}")
    rows = [
        f"| [{role}](docs/roles.md#{role}) | {one_line(load_spec(role, root).get('short_description'))} |"
        for role in role_names(root)
    ]
    table = "\n".join(["| Role | What it does |", "| --- | --- |", *rows])
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def wanted_files(root: Path = ROOT) -> dict[Path, str]:
    """The generated files with the text each should have."""
    readme = root / "README.md"
    return {
        root / "docs/roles.md": roles_page(root),
        readme: readme_with_overview(readme.read_text(), root),
    }


def stale_files(root: Path = ROOT) -> list[Path]:
    """The generated files that are missing or not up to date."""
    return [
        path for path, text in wanted_files(root).items() if not path.exists() or path.read_text() != text
    ]


def main() -> int:
    """Command line: write the tables, or only check them; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the tables of role settings.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is stale")
    check: bool = parser.parse_args().check
    stale = stale_files()
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'is not up to date, run: make docs' if check else 'written'}")
        if not check:
            path.write_text(wanted_files()[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
