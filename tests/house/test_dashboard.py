"""The dashboard is one that Grafana takes, and asks for nothing that nobody measures."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clawdeploy.llm_gateway.metrics import Metrics as GatewayMetrics
from clawdeploy.watchdog.metrics import Metrics as WatchdogMetrics

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="module")
def dashboard(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((root / "docs/grafana-dashboard.json").read_text())
    return loaded


def expressions(dashboard: dict[str, Any]) -> list[str]:
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return asked + [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]


def measured() -> set[str]:
    """Names of all series that the watchdog and the LLM gateway have."""
    registries = (WatchdogMetrics().registry, GatewayMetrics()._registry)
    return {
        family.name + suffix
        for registry in registries
        for family in registry.collect()
        for suffix in SUFFIXES[family.type]
    }


def test_every_series_it_asks_for_exists(dashboard: dict[str, Any]) -> None:
    asked = {name for text in expressions(dashboard) for name in re.findall(r"\bclawdeploy_\w+", text)}
    assert len(asked) > 20
    assert asked - measured() == set()


def test_nothing_that_is_measured_is_hidden(dashboard: dict[str, Any]) -> None:
    asked = " ".join(expressions(dashboard))
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in measured()}
    # How calls were settled matters to the ledger, not to whoever looks at a screen.
    assert {name for name in bases if name not in asked} == {"clawdeploy_llm_settlements_total"}


def test_panels_have_places_of_their_own_and_a_source(dashboard: dict[str, Any]) -> None:
    taken = set[tuple[int, int]]()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_braces_and_brackets_are_balanced(dashboard: dict[str, Any]) -> None:
    for text in expressions(dashboard):
        for opened, closed in ("()", "{}", "[]"):
            assert text.count(opened) == text.count(closed), text


def test_the_page_about_the_watchdog_names_every_rule_with_its_defaults(root: Path) -> None:
    import yaml

    rules = yaml.safe_load((root / "roles/watchdog/vars/main.yml").read_text())["__watchdog_default_rules"]
    page = (root / "docs/watchdog.md").read_text()
    rows = {
        cells[0].strip("`"): cells[2:]
        for line in page.splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")]) and cells[0].strip("`") in rules
    }
    assert rows == {
        name: [
            f"{rule['limit']:g}",
            f"{rule['hits']} of {rule['of']}",
            str(rule["calm"]),
            ", ".join(rule["ladder"]),
        ]
        for name, rule in rules.items()
    }
