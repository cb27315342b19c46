"""What a deploy to Fly.io asks for, against the simulator of its API (everything on one machine).

Figures:
  deploy_calls, deploy_s       requests to the Machines API and wall time of a first deploy (median of 3)
  again_calls, again_s         the same of a second run, which changes nothing
  changed_calls, changed_s     of a run that changes the size of the machine
  destroy_calls, destroy_s     of destroying it
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.figures import progress, report
from tests.unit.fly.stage import BOT, Outcome, Stage, fresh, staged

ROUNDS = 3


def measure(stage: Stage) -> dict[str, float]:
    """One bot's life; calls and seconds of each step."""
    found: dict[str, float] = {}
    steps: dict[str, Callable[[], Outcome]] = {
        "deploy": stage.deploy,
        "again": stage.deploy,
        "changed": lambda: stage.deploy(memory_mb=512),
        "destroy": lambda: stage.play("destroy_fly", bot=f"bot-{BOT}"),
    }
    for name, step in steps.items():
        before, began = len(stage.calls), time.monotonic()
        done = step()
        found[f"{name}_s"] = time.monotonic() - began
        if done.code:
            raise SystemExit(done.output)
        found[f"{name}_calls"] = len(stage.calls) - before
    return found


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory(prefix="clawdeploy-fly-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        with staged(directory) as stage:
            rounds = []
            for number in range(ROUNDS):
                progress(f"round {number + 1} of {ROUNDS}")
                rounds.append(measure(fresh(stage)))
    report("fly", {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]})


if __name__ == "__main__":
    main()
