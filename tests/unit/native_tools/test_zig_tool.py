"""The example of a native tool: built as documented, speaking MCP, alone and in a hardened container."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.playbooks import ROOT
from tests.unit.package.conftest import busybox_image
from tests.zig_tool import answers, build_tool, lines, request

SALES = "city,price\nUlm,3\nBonn,1\nUlm,2\n"


@pytest.fixture(scope="module")
def tool() -> Path:
    return build_tool()


def test_its_own_tests_pass() -> None:
    command = [sys.executable, "tools/zig.py", "test", "examples/zig-tool/src/main.zig"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "All 12 tests passed" in done.stderr


def test_its_sources_have_zigs_own_format() -> None:
    command = [sys.executable, "tools/zig.py", "fmt", "--check", "examples/zig-tool/src"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def ask(tool: Path, place: Path, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    done = subprocess.run([tool, place], input=lines(messages), capture_output=True, check=True, timeout=30)
    return answers(done.stdout)


def test_it_counts_what_a_table_holds(tool: Path, tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text(SALES)
    hello, listed, report = ask(
        *(tool, tmp_path, request("initialize", protocolVersion="2024-11-05")),
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        *(request("tools/list"), request("tools/call", name="table_stats", arguments={"path": "sales.csv"})),
    )
    assert hello["result"]["protocolVersion"] == "2024-11-05"
    assert [one["name"] for one in listed["result"]["tools"]] == ["table_stats"]
    city, price = json.loads(report["result"]["content"][0]["text"])["columns"]
    assert city["top"] == [["Ulm", 2], ["Bonn", 1]]
    assert {name: price[name] for name in ("min", "max", "mean", "p50")} == {
        "min": 1,
        "max": 3,
        "mean": 2,
        "p50": 2,
    }


def test_it_reads_nothing_outside_of_its_directory(tool: Path, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.csv").write_text("secret\n")
    (tmp_path / "inside/link.csv").symlink_to(tmp_path / "secret.csv")
    for path in ("../secret.csv", str(tmp_path / "secret.csv"), "link.csv"):
        (answer,) = ask(
            tool, tmp_path / "inside", request("tools/call", name="table_stats", arguments={"path": path})
        )
        assert answer["result"]["isError"]
        assert "rows" not in answer["result"]["content"][0]["text"]


@pytest.fixture
def image() -> Iterator[str]:
    client = docker.from_env()
    busybox_image(client, "zig-tool")
    yield "clawdeploy-test:zig-tool"
    client.images.remove("clawdeploy-test:zig-tool", force=True)
    client.close()


def test_it_works_where_a_bot_runs(tool: Path, tmp_path: Path, image: str) -> None:
    """Not root, nothing writable, no capability: what a bot's container leaves a program."""
    (tmp_path / "sales.csv").write_text(SALES)
    tmp_path.chmod(0o755)
    command = [
        *("docker", "run", "--rm", "--interactive", "--read-only", "--cap-drop", "ALL", "--network", "none"),
        *(
            "--security-opt",
            "no-new-privileges",
            "--user",
            "200000:200000",
            "--memory",
            "16m",
            "--pids-limit",
            "8",
        ),
        *("--volume", f"{tool.parent}:/opt/tools:ro", "--volume", f"{tmp_path}:/mnt:ro"),
        *(image, "/opt/tools/table-stats", "/mnt"),
    ]
    call = request("tools/call", name="table_stats", arguments={"path": "sales.csv"})
    done = subprocess.run(command, input=lines([call]), capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    (report,) = answers(done.stdout)
    assert '"rows":3' in report["result"]["content"][0]["text"]
