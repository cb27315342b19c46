"""How a benchmark reports: progress on stderr, one flat JSON object last on stdout and in build/bench/."""

import json
import sys
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "build" / "bench"
START = time.monotonic()


def progress(text: str) -> None:
    """Say what is being measured now, with the seconds since the benchmark began."""
    print(f"[{time.monotonic() - START:6.1f} s] {text}", file=sys.stderr, flush=True)


def report(name: str, figures: dict[str, float | int | bool]) -> None:
    """Write `figures` to build/bench/<name>.json and print them as the last line of stdout."""
    BENCH.mkdir(parents=True, exist_ok=True)
    line = json.dumps(figures)
    (BENCH / f"{name}.json").write_text(line + "\n")
    print(line, flush=True)
