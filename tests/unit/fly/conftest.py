"""A Fly.io on loopback, and modules that find it there."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import Request, urlopen

import pytest
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "fo1_" + "k" * 40
IMAGE = "registry.example.test/agent:v1"

RunModule = Callable[..., dict[str, Any]]


@dataclass
class Fly:
    """The simulator, and what it was asked."""

    url: str

    def control(self, what: str, **order: Any) -> Any:
        """A control endpoint: POST with an order, GET without."""
        data = json.dumps(order).encode() if order or what in ("reset",) else None
        with urlopen(Request(f"{self.url}/_sim/{what}", data=data)) as answer:
            return json.load(answer)

    def order(self, method: str, path: str, **more: Any) -> None:
        self.control("order", method=method, path=path, **more)

    @property
    def apps(self) -> dict[str, Any]:
        found: dict[str, Any] = self.control("state")["apps"]
        return found

    @property
    def calls(self) -> list[tuple[str, str, Any]]:
        return [(method, path, body) for method, path, body in self.control("calls")["calls"]]

    @property
    def changes(self) -> list[str]:
        """What was asked that is not just a look, without versions and ids."""
        return [f"{method} {path}" for method, path, _ in self.calls if method != "GET"]


@pytest.fixture(scope="session")
def server() -> Iterator[Fly]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.simulators.fly", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield Fly(process.stdout.readline().strip().rpartition(" ")[2])
    process.terminate()
    process.communicate(timeout=10)


@pytest.fixture
def fly(server: Fly) -> Fly:
    server.control("reset")
    return server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client was to wait for Fly.io; it does not."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str], fly: Fly) -> RunModule:
    """Run a module's main() against the simulator and return the JSON it prints, failures included.

    The argument ... is not given.
    """

    def run(module: ModuleType, check_mode: bool = False, **arguments: Any) -> dict[str, Any]:
        capsys.readouterr()
        shared = {"api_url": fly.url, "api_token": TOKEN, "_ansible_check_mode": check_mode}
        given = {name: value for name, value in {**shared, **arguments}.items() if value is not ...}
        with patch_module_args(given), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run
