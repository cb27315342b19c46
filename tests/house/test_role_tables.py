"""The generator of the role tables."""

from pathlib import Path

import pytest

from tools import role_tables

SPEC = """
argument_specs:
  main:
    short_description: Open the door
    description: [Opens it., Closes it.]
    options:
      door_key:
        type: str
        required: true
        description: Which key | lock.
      door_colour:
        type: str
        choices: [red, blue]
        description: Its colour, V(red) for O(door_key).
      door_guests:
        type: list
        elements: dict
        description: Who may enter.
        options:
          name: {type: str, required: true, description: Who.}
          until: {type: int, default: 5, description: How long.}
"""
DEFAULTS = """
door_colour: "{{ lookup('clawdeploy.fleet.server_env', 'COLOUR', default='red') }}"
door_guests: []
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one role named door."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "roles/door/meta").mkdir(parents=True)
    (tmp_path / "roles/door/defaults").mkdir()
    (tmp_path / "roles/door/meta/argument_specs.yml").write_text(SPEC)
    (tmp_path / "roles/door/defaults/main.yml").write_text(DEFAULTS)
    (tmp_path / "README.md").write_text(f"Hello\n{role_tables.BEGIN}\nold\n{role_tables.END}\nBye\n")
    return tmp_path


def test_table_shows_type_default_choices_and_sub_options(tree: Path) -> None:
    page = role_tables.roles_page(tree)
    assert "## door\n\nOpen the door\n\nOpens it. Closes it.\n" in page
    assert "| `door_key` | str | **required** | Which key \\| lock. |" in page
    assert "| `door_colour` | str | `<COLOUR in .env, else red>` | Its colour, `red` for `door_key`. " in page
    assert " One of: `red`, `blue`. |" in page
    assert "| `door_guests` | list of dict | `[]` | Who may enter. |" in page
    assert "| `door_guests[].name` | str | **required** | Who. |" in page
    assert "| `door_guests[].until` | int | `5` | How long. |" in page


def test_overview_replaces_only_what_stands_between_the_markers(tree: Path) -> None:
    text = role_tables.readme_with_overview((tree / "README.md").read_text(), tree)
    assert "| [door](docs/roles.md#door) | Open the door |" in text
    assert "old" not in text
    assert text.startswith("Hello\n")
    assert text.endswith("\nBye\n")


def test_readme_without_markers_is_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"README\.md lacks the markers"):
        role_tables.readme_with_overview("Hello", tree)


def test_a_changed_default_makes_the_tables_stale(tree: Path) -> None:
    for path, text in role_tables.wanted_files(tree).items():
        path.write_text(text)
    assert role_tables.stale_files(tree) == []
    (tree / "roles/door/defaults/main.yml").write_text("door_colour: blue\ndoor_guests: []\n")
    assert role_tables.stale_files(tree) == [tree / "docs/roles.md"]
