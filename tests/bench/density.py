"""How many bots a VPS with 1 GB of memory and one CPU holds: a VPS in a container with that, bots below it.

Bots are deployed ten at a time until one of them is not healthy or does not answer within a second, or until
admission refuses. The last of each ten is deployed alone, for its deploy time.

Figures:
  healthy_bots          bots that were all healthy and each answered a message (model call included) in 1 s
  refused               why it ended: "memory_budget" (admission said no), "slow" or "unhealthy"
  memory_mb, cpus       what the VPS has
  pss_bot_mb, pss_shim_mb   memory of one bot's processes and of its containerd-shim (proportional set size)
  pss_platform_mb       the same of everything else on the VPS, together
  kernel_mb             memory that the kernel holds for all of it
  used_mb               what cannot be given back: all of the VPS's, without the file cache that is not in use
  per_bot_mb            what one more bot adds to used_mb (slope from the first step to the last)
  oom_kills             processes killed for lack of memory
  idle_cpu_pct          CPU time that all of it takes while nobody asks anything, in % of one CPU
  bots_N_used_mb, bots_N_slowest_ms, bots_N_deploy_s, …   the same after each step

Needs two or three minutes for each twenty bots. Writes docs/density.svg.
"""

import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests import lab
from tests.bench.curve import draw
from tests.bench.figures import progress, report
from tests.customer import internet
from tests.lab.engine import inspect
from tests.playbooks import OPERATOR, ROOT, run_playbook, write_env
from tests.standin.build import build_image

MEMORY = 1 << 30
CPUS = 1.0
STEP = 10
MB = 1 << 20
PICTURE = ROOT / "docs" / "density.svg"

# Runs on the VPS: PSS in kB by kind, and how many containers are healthy.
LOOK = r"""
import json, pathlib, re, subprocess
ids = subprocess.run(["docker", "ps", "-q", "--no-trunc"], capture_output=True, text=True).stdout.split()
healthy = subprocess.run(
    ["docker", "ps", "-q", "--filter", "health=healthy"], capture_output=True, text=True
).stdout.split()
found = {"bot": 0, "shim": 0, "platform": 0}
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        groups = (process / "cgroup").read_text()
        pss = int(re.search(r"^Pss: +(\d+)", (process / "smaps_rollup").read_text(), re.M)[1])
        name = (process / "comm").read_text()
    except (OSError, TypeError):
        continue  # it has ended, or is the kernel's
    if any(i in groups for i in ids):
        found["bot"] += pss
    elif name.startswith("containerd-shim"):
        found["shim"] += pss
    elif name.split()[0] not in ("python3", "sshd-session"):
        found["platform"] += pss
print(json.dumps({**found, "healthy": len(healthy), "bots": len(ids)}))
"""


@dataclass(frozen=True)
class Cgroup:
    """The VPS's control group on this machine (version 1 or 2), which holds everything inside it."""

    directories: dict[str, Path]

    @classmethod
    def of(cls, vps: lab.Vps) -> "Cgroup":
        """Find it; RuntimeError if the limits are not the VPS's, or its bots are somewhere else."""
        container = inspect("container", vps.host.container)
        if container is None:
            raise RuntimeError(f"{vps.host.container} is not there")
        lines = Path(f"/proc/{container['State']['Pid']}/cgroup").read_text().splitlines()
        found = {}
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if container["Id"] not in path:
                continue  # an empty hierarchy beside those of version 1
            place = Path(path[: path.index(container["Id"])] + container["Id"])
            for controller in controllers.split(",") if controllers else [""]:
                root = Path("/sys/fs/cgroup") / controller if controllers else Path("/sys/fs/cgroup")
                found[controller] = root / place.relative_to("/")
        if "memory" not in found:
            found = dict.fromkeys(("memory", "cpu", "cpuacct"), found[""])
        return cls(found)

    @property
    def unified(self) -> bool:
        return (self.directories["memory"] / "memory.max").exists()

    def read(self, controller: str, old: str, new: str) -> str:
        return (self.directories[controller] / (new if self.unified else old)).read_text()

    def check(self, bots: list[str]) -> None:
        """RuntimeError unless the limits bind, and the containers are below them."""
        limit = int(self.read("memory", "memory.limit_in_bytes", "memory.max"))
        if self.unified:
            quota, period = map(int, self.read("cpu", "", "cpu.max").split())
        else:
            quota, period = (
                int((self.directories["cpu"] / f"cpu.cfs_{name}_us").read_text())
                for name in ("quota", "period")
            )
        if (limit, quota / period) != (MEMORY, CPUS):
            raise RuntimeError(
                f"the VPS has {limit} bytes and {quota / period} CPUs, not {MEMORY} and {CPUS}"
            )
        for controller in ("memory", "cpu"):
            below = {path.name for path in self.directories[controller].rglob("*") if path.is_dir()}
            if strays := [bot for bot in bots if not any(bot in name for name in below)]:
                raise RuntimeError(f"these containers are not below the VPS's {controller} cgroup: {strays}")

    def used(self) -> int:
        """Bytes that cannot be given back: all of it, less the file cache that is not in use."""
        usage = int(self.read("memory", "memory.usage_in_bytes", "memory.current"))
        return usage - self.stat("total_inactive_file", "inactive_file")

    def stat(self, old: str, new: str) -> int:
        lines = self.read("memory", "memory.stat", "memory.stat").splitlines()
        return int(dict(line.split() for line in lines)[new if self.unified else old])

    def kernel(self) -> int:
        if self.unified:
            return self.stat("", "kernel")
        return int((self.directories["memory"] / "memory.kmem.usage_in_bytes").read_text())

    def oom_kills(self) -> int:
        """Kills so far, in this group or below."""
        name = "memory.events" if self.unified else "memory.oom_control"
        top = self.directories["memory"]
        files = [top / name] if self.unified else top.rglob(name)
        return sum(
            int(dict(line.split() for line in file.read_text().splitlines())["oom_kill"]) for file in files
        )

    def cpu_seconds(self) -> float:
        if self.unified:
            lines = self.read("cpu", "", "cpu.stat").splitlines()
            return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6
        return int((self.directories["cpuacct"] / "cpuacct.usage").read_text()) / 1e9


def megabytes(text: str) -> int:
    """The role's "400m" in megabytes."""
    return int(text.removesuffix("m"))


def deploy(numbers: list[int], options: dict[str, Any]) -> tuple[list[dict[str, Any]], float, str]:
    """Deploy bots in one run; their cards, how long it took in seconds, and the output if it failed."""
    result = OPERATOR / "bench-density.json"
    entries = [{"token": f"{8_100_000_000 + n}:AA{n:033d}", "owner": "4242"} for n in numbers]
    run = run_playbook(
        ROOT / "deploy_bot.yml", lab.INVENTORY, {"bots": entries, "result_file": str(result), **options}
    )
    if run.returncode:
        return [], run.seconds, run.output
    cards: list[dict[str, Any]] = json.loads(result.read_text())["bots"]
    result.unlink()
    return cards, run.seconds, ""


async def ask(web: aiohttp.ClientSession, card: dict[str, Any]) -> float:
    """Seconds until the bot has answered a message with what the model said; infinity if it did not."""
    headers = {"Authorization": f"Bearer {card['gateway_token']}"}
    began = time.monotonic()
    try:
        async with web.post(f"{card['url']}webhook", json={"message": "hello"}, headers=headers) as response:
            if "hello" not in (await response.text()):
                return float("inf")
    except (aiohttp.ClientError, TimeoutError):
        return float("inf")
    return time.monotonic() - began


async def ask_all(vps: lab.Vps, cards: list[dict[str, Any]]) -> list[float]:
    """How long each bot takes to answer, asked one after the other."""
    async with internet(vps.host.address) as web:
        return [await ask(web, card) for card in cards]


def main() -> None:
    """Measure on a VPS made for it, and report."""
    defaults = yaml.safe_load((ROOT / "roles/platform/defaults/main.yml").read_text())
    lab.down()
    vps = lab.up(memory=MEMORY, cpus=CPUS)
    cgroup = Cgroup.of(vps)
    cgroup.check([])
    image = build_image(lab.CA_BUNDLE)
    options = {"bot_image": image.tag, "bot_image_archive": image.archive}
    write_env()
    progress("prepare the VPS")
    # In a container /proc/meminfo is the machine's: what the role finds on a real VPS is said here.
    budget = MEMORY // MB - megabytes(defaults["platform_reserved_memory"])
    variables = {"platform_memory_budget": f"{budget}m", "platform_acme_weekly_limit": 1000}
    prepared = run_playbook(ROOT / "playbooks" / "prepare_host.yml", lab.INVENTORY, variables).check()
    progress(f"prepared in {prepared.seconds:.0f} s")

    figures: dict[str, Any] = {"memory_mb": MEMORY // MB, "cpus": CPUS, "healthy_bots": 0}
    steps: list[dict[str, float]] = []
    cards: list[dict[str, Any]] = []

    def measure() -> dict[str, float]:
        found = json.loads(vps.exec("python3", "-c", LOOK))
        return {
            "bots": len(cards),
            "healthy": found["healthy"],
            "used_mb": cgroup.used() / MB,
            "kernel_mb": cgroup.kernel() / MB,
            **{f"{kind}_mb": found[kind] / 1024 for kind in ("bot", "shim", "platform")},
        }

    steps.append(measure())
    progress(f"empty: {steps[0]}")
    while True:
        last = len(cards) + STEP
        more, _, failure = deploy(list(range(last - STEP, last - 1)), options)
        if not failure:
            cards += more
            more, seconds, failure = deploy([last - 1], options)
        if failure:
            full = "memory reserved" in " ".join(failure.split())
            figures["refused"] = "memory_budget" if full else "unhealthy"
            progress("admission refuses more" if full else f"not deployed: {failure[-1500:]}")
            break
        cards += more
        cgroup.check(vps.exec("docker", "ps", "--quiet", "--no-trunc").split())
        times = asyncio.run(ask_all(vps, cards))
        step = measure() | {
            "deploy_s": seconds,
            "slowest_ms": max(times) * 1000,
            "median_ms": statistics.median(times) * 1000,
            "in_time": sum(duration < 1 for duration in times),
        }
        steps.append(step)
        progress(", ".join(f"{name} {value:.1f}" for name, value in step.items()))
        if step["healthy"] < len(cards):
            figures["refused"] = "unhealthy"
            break
        if step["in_time"] < len(cards):
            figures["refused"] = "slow"
            break
        figures["healthy_bots"] = len(cards)

    progress("watch the CPU time of 60 idle seconds")
    before, began = cgroup.cpu_seconds(), time.monotonic()
    time.sleep(60)
    idle = (cgroup.cpu_seconds() - before) / (time.monotonic() - began)
    first, final = steps[0], [step for step in steps if step["bots"] == figures["healthy_bots"]][-1]
    bots = final["bots"]
    figures |= {
        "pss_bot_mb": final["bot_mb"] / bots,
        "pss_shim_mb": final["shim_mb"] / bots,
        "pss_platform_mb": final["platform_mb"],
        "kernel_mb": final["kernel_mb"],
        "used_mb": final["used_mb"],
        "per_bot_mb": (final["used_mb"] - steps[1]["used_mb"]) / (bots - steps[1]["bots"]),
        "empty_used_mb": first["used_mb"],
        "deploy_last_s": final["deploy_s"],
        "slowest_ms": final["slowest_ms"],
        "oom_kills": cgroup.oom_kills(),
        "idle_cpu_pct": idle * 100,
    }
    for step in steps[1:]:
        figures |= {f"bots_{step['bots']}_{name}": value for name, value in step.items() if name != "bots"}
    PICTURE.write_text(draw(steps, MEMORY // MB))
    report(
        "density",
        {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()},
    )


if __name__ == "__main__":
    main()
