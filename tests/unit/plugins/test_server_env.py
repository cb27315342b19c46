"""The .env file: read from the working directory, as data, with every mistake named by its line."""

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleLookupError
from ansible.plugins.loader import lookup_loader


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def look_up(*names: str, **options: Any) -> list[Any]:
    found: list[Any] = lookup_loader.get("clawdeploy.fleet.server_env").run(list(names), {}, **options)
    return found


def test_values_come_as_they_are_written(directory: Path) -> None:
    (directory / ".env").write_text("# mine\nOPENROUTER_API_KEY='sk-$HOME-{{ x }}'\nexport BASE_DOMAIN=a.b\n")
    assert look_up("OPENROUTER_API_KEY", "BASE_DOMAIN") == ["sk-$HOME-{{ x }}", "a.b"]


def test_environment_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASE_DOMAIN", "from.environment")
    assert look_up("BASE_DOMAIN", default="") == [""]


def test_empty_value_is_no_value(directory: Path) -> None:
    (directory / ".env").write_text("BASE_DOMAIN=\n")
    assert look_up("BASE_DOMAIN", default="d") == ["d"]


def test_changed_file_is_read_again(directory: Path) -> None:
    (directory / ".env").write_text("BASE_DOMAIN=a\n")
    assert look_up("BASE_DOMAIN") == ["a"]
    (directory / ".env").write_text("BASE_DOMAIN=b\n")
    assert look_up("BASE_DOMAIN") == ["b"]


def test_missing_value_says_where_to_write_it(directory: Path) -> None:
    with pytest.raises(AnsibleLookupError, match=rf"OPENROUTER_API_KEY=… into {directory}/\.env"):
        look_up("OPENROUTER_API_KEY")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("BASE_DOMIAN=x\n", "line 1: unknown setting BASE_DOMIAN; did you mean BASE_DOMAIN?"),
        ("\nbase_domain=x\n", "unknown setting base_domain; did you mean BASE_DOMAIN?"),
        ("PATH_TO=x\n", "known names: OPENROUTER_API_KEY"),
        ("BASE_DOMAIN=x\nBASE_DOMAIN=y\n", "line 2: BASE_DOMAIN is set twice"),
        ("BASE_DOMAIN\n", "line 1: expected NAME=value"),
        ("BASE_DOMAIN='x\n", "line 1: expected NAME=value"),
    ],
)
def test_mistake_is_named_by_its_line(directory: Path, text: str, message: str) -> None:
    (directory / ".env").write_text(text)
    with pytest.raises(AnsibleLookupError) as caught:
        look_up("OPENROUTER_MODEL", default="")
    assert message in str(caught.value)


def test_unknown_name_in_a_role_is_refused() -> None:
    with pytest.raises(AnsibleLookupError, match="does not know 'SMTP_HOST'"):
        look_up("SMTP_HOST", default="")
