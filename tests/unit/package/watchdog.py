"""Settings of the watchdog for tests: the role's own rules, with windows that a test need not wait for."""

import functools
from pathlib import Path
from typing import Any

import msgspec
import yaml

from clawdeploy.watchdog.config import Config

ROLE = Path(__file__).parents[3] / "roles" / "watchdog"


@functools.cache
def default_rules() -> dict[str, dict[str, Any]]:
    """The rules that a host gets."""
    variables = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
    rules: dict[str, dict[str, Any]] = variables["__watchdog_default_rules"]
    return rules


def settings(directory: Path = Path("/nonexistent"), **changes: Any) -> dict[str, Any]:
    """The settings as they stand in the file."""
    return {
        "interval": 1.0,
        "window": 1.0,
        "grace": 0.0,
        "dry_run": False,
        "throttle": 0.5,
        "rules": default_rules(),
        "plan_rules": {},
        "disk_low": 0,
        "metrics_port": 0,
        "state_file": str(directory / "watchdog.json"),
        "status_file": str(directory / "status.json"),
        "notify": {},
    } | changes


def make_config(directory: Path = Path("/nonexistent"), **changes: Any) -> Config:
    return msgspec.convert(settings(directory, **changes), Config, dec_hook=lambda kind, value: kind(value))


def swift(**rules: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All rules off but these, which act on every second hit unless they say otherwise."""
    off = {name: rule | {"ladder": []} for name, rule in default_rules().items()}
    quick = {"hits": 2, "of": 3, "calm": 3}
    return off | {name: default_rules()[name] | quick | rule for name, rule in rules.items()}
