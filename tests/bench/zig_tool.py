"""What the example of a native tool costs.

Figures:
  start_ms, start_p95_ms   start of the program → its answer to `initialize` (of 200 starts)
  tool_kb                  size of the program
  rows_per_s               rows of a CSV file with a column of texts and two of numbers, all statistics
"""

import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.figures import progress, report
from tests.zig_tool import build_tool, lines, request

STARTS = 200
ROWS = 300_000


def start_seconds(tool: Path) -> float:
    """From the start of the program until it has introduced itself."""
    began = time.perf_counter()
    with subprocess.Popen([tool], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(lines([request("initialize")]))
        process.stdin.flush()
        assert b"protocolVersion" in process.stdout.readline()
        seconds = time.perf_counter() - began
        process.stdin.close()
    return seconds


def rows_per_second(tool: Path) -> float:
    """How fast a file is read, from the start of the program to its end."""
    chance = random.Random(7)
    with tempfile.TemporaryDirectory() as room:
        with (Path(room) / "table.csv").open("w") as table:
            table.write("city,price,weight\n")
            table.writelines(
                f"city-{n % 90},{chance.random():.4f},{chance.randint(1, 999)}\n" for n in range(ROWS)
            )
        call = request("tools/call", name="table_stats", arguments={"path": "table.csv"})
        began = time.perf_counter()
        done = subprocess.run([tool, room], input=lines([call]), capture_output=True, check=True)
        seconds = time.perf_counter() - began
    answer = json.loads(done.stdout)["result"]
    assert not answer["isError"], answer
    return ROWS / seconds


def main() -> None:
    """Build, measure and report."""
    progress("build the tool")
    tool = build_tool()
    progress(f"start it {STARTS} times")
    starts = [start_seconds(tool) * 1000 for _ in range(STARTS)]
    progress(f"read {ROWS} rows")
    figures: dict[str, float | int | bool] = {
        "start_ms": round(statistics.median(starts), 2),
        "start_p95_ms": round(statistics.quantiles(starts, n=20)[-1], 2),
        "tool_kb": round(tool.stat().st_size / 1000),
        "rows_per_s": round(rows_per_second(tool)),
    }
    report("zig_tool", figures)


if __name__ == "__main__":
    main()
