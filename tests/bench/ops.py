"""How fast the kill switch is, on the VPS of the lab with thirty bots deployed for it.

Figures (milliseconds, medians of nine suspensions of a bot that is at work; with _max the slowest of them):
  kill_edge_ms     start of the function → the edge refuses new requests
  kill_llm_ms      start of the function → the LLM gateway refuses the bot's key
  kill_frozen_ms   start of the function → all of the bot's processes are frozen
  kill_killed_ms   start of the function → they are gone
  suspend_cli_ms   `clawctl suspend`, from its start to its exit
  resume_s         `clawctl resume`, until the bot answers through TLS (seconds)
"""

import json
import statistics
from typing import Any

from rich.console import Console

from tests import lab
from tests.bench.figures import progress, report
from tests.playbooks import OPERATOR, ROOT, run_playbook, write_env
from tests.stage import prepare
from tests.standin.build import build_image

BOTS = 30
ROUNDS = 9
STEPS = {"edge": "kill_edge_ms", "llm": "kill_llm_ms", "freeze": "kill_frozen_ms", "kill": "kill_killed_ms"}

# Timed where it runs: ssh or docker exec would be most of it.
TIMED = """
import json, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(["clawctl", *sys.argv[1:], "--json"], capture_output=True, text=True)
ms = (time.perf_counter() - began) * 1000
print(json.dumps({"ms": ms, "answer": json.loads(done.stdout)}))
"""


def deploy() -> list[dict[str, Any]]:
    """Deploy the bots; returns their cards."""
    image, result = build_image(lab.CA_BUNDLE), OPERATOR / "bench-ops.json"
    entries = [{"token": f"{8_100_000_000 + n}:AA{n:033d}", "owner": "4242"} for n in range(BOTS)]
    variables = {"bot_image": image.tag, "bot_image_archive": str(image.archive), "result_file": str(result)}
    run_playbook(ROOT / "deploy_bot.yml", lab.INVENTORY, {"bots": entries, **variables}).check()
    cards: list[dict[str, Any]] = json.loads(result.read_text())["bots"]
    result.unlink()
    return cards


def timed(vps: lab.Vps, *arguments: str) -> dict[str, Any]:
    """Run clawctl on the VPS; returns its answer and the milliseconds it took."""
    found: dict[str, Any] = json.loads(vps.exec("python3", "-c", TIMED, *arguments))
    return found


def measure(vps: lab.Vps, bot: str) -> dict[str, float]:
    """Suspend a bot whose CPU is at its limit, and resume it."""
    vps.exec("docker", "exec", "--detach", f"clawdeploy-{bot}", "/bin/sh", "-c", "while :; do :; done")
    suspended = timed(vps, "suspend", bot, "--reason", "bench")
    done = {step["step"]: step["done_ms"] for step in suspended["answer"]["steps"]}
    resumed = timed(vps, "resume", bot)
    return {
        **{name: done[step] for step, name in STEPS.items()},
        "suspend_cli_ms": suspended["ms"],
        "resume_s": resumed["ms"] / 1000,
    }


def main() -> None:
    """Deploy, measure and report."""
    vps = lab.up()
    write_env()
    prepare(Console(stderr=True), vps)
    progress(f"deploy {BOTS} bots")
    cards = deploy()
    rounds = []
    for number in range(ROUNDS):
        rounds.append(measure(vps, cards[number]["id"]))
        progress(f"suspension {number + 1} of {ROUNDS}: {rounds[-1]}")
    figures = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    figures |= {f"{name}_max": max(one[name] for one in rounds) for name in rounds[0]}
    report("ops", {name: round(value, 1) for name, value in figures.items()})


if __name__ == "__main__":
    main()
