"""Builds the example of a native tool, as its own documentation says, and speaks with it."""

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.playbooks import ROOT

TOOL = ROOT / "build" / "zig-tool" / "table-stats"


def build_tool() -> Path:
    """Build the tool with `make zig-tool`; returns its path."""
    done = subprocess.run(
        ["make", "--silent", "zig-tool"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"make zig-tool failed:\n{done.stdout}{done.stderr}")
    return TOOL


def request(method: str, **parameters: Any) -> dict[str, Any]:
    """A message of MCP; its id is 1."""
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}


def lines(messages: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def answers(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]
