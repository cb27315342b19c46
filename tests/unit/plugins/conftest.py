"""Ways to run plugins as Ansible does: modules with arguments, variables through the template engine."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).resolve().parents[3] / "roles" / "bot"

CLAWCTL = """#!/usr/bin/env python3
# Says what it was told to, and notes how it was called.
import json, pathlib, sys
here = pathlib.Path(__file__).parent
calls = here / "calls"
answers = json.loads((here / "answers").read_text())
data = "" if sys.stdin.isatty() else sys.stdin.read()
with calls.open("a") as log:
    log.write(json.dumps([sys.argv[1:], json.loads(data) if data.strip() else None]) + "\\n")
answer = answers[sys.argv[1]]
print(answer if isinstance(answer, str) else json.dumps(answer))
print("Traceback\\nlast words", file=sys.stderr)
sys.exit(1 if isinstance(answer, str) or "error" in answer else 0)
"""

Calls = Callable[[], list[Any]]
RunModule = Callable[..., dict[str, Any]]
Evaluate = Callable[..., Any]


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> RunModule:
    """Run a module's main() and return the JSON it prints, failures included."""

    def run(module: ModuleType, check_mode: bool = False, **arguments: Any) -> dict[str, Any]:
        capsys.readouterr()
        with patch_module_args({**arguments, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.fixture
def role_variables() -> dict[str, Any]:
    """What the role knows by itself: its variables and the agents' profiles, as its first task loads them."""
    loader = DataLoader()
    profiles: dict[str, Any] = {}
    for path in sorted((ROLE / "vars").glob("*.yml")):
        if path.name != "main.yml":
            profiles |= loader.load_from_file(str(path), trusted_as_template=True)
    return {
        **loader.load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True),
        **loader.load_from_file(str(ROLE / "defaults/main.yml"), trusted_as_template=True),
        "__bot_profiles": profiles,
        "role_path": str(ROLE),
    }


@pytest.fixture
def evaluate(role_variables: dict[str, Any]) -> Evaluate:
    """Value of one of the role's variables; keywords are further variables."""

    def value(name: str, **variables: Any) -> Any:
        scope = {**role_variables, **variables}
        return Templar(loader=DataLoader(), variables=scope).template(scope[name])

    return value


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a clawctl into PATH; it gives the answers that the test writes into this dictionary, by verb."""

    class Answers(dict[str, Any]):
        def __setitem__(self, verb: str, answer: Any) -> None:
            super().__setitem__(verb, answer)
            (tmp_path / "answers").write_text(json.dumps(self))

    program = tmp_path / "clawctl"
    program.write_text(CLAWCTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Answers()


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
