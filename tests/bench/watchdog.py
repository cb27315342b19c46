"""The watchdog beside busy but lawful bots, and what it costs; real containers on this machine's Docker.

Five innocents work for ten minutes (`make bench-watchdog MINUTES=10`) under the rules every host has, with
windows of one second instead of thirty: as many windows as five hours have. One keeps more than half of its
CPU busy, one its memory 80 % full, one half of its processes forking, one bursts to its CPU limit for ten
seconds of each minute, one crashes every two minutes. Thirty idle bots stand around them.

Figures:
  windows, innocents, touched    windows judged, lawful bots, and how many of them anything was done about
  busy_cpu, full_memory, forking_processes   what they used in the last window, as shares of their limits
  look_p50_ms, look_p99_ms       one look at all bots, decisions included
  docker_stats_ms                what `docker stats --no-stream` takes for the same bots
  cpu_percent                    of one core, for one look a second (a host makes one in five seconds)
  rss_mb                         memory of the process, the benchmark's own part included
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import docker
import msgspec

from clawdeploy.clitools import Machine
from clawdeploy.containers import ContainerSpec
from clawdeploy.engine import Engine
from clawdeploy.host import Paths
from clawdeploy.models import DeclareRequest, Running
from clawdeploy.notify import Notifier
from clawdeploy.store import migrate
from clawdeploy.watchdog.metrics import Metrics
from clawdeploy.watchdog.sensors import Sensors
from clawdeploy.watchdog.service import Status, Watchdog
from tests import lab
from tests.bench.figures import progress, report
from tests.unit.package.conftest import HOST, RUN, busybox_image, container_spec, wanted
from tests.unit.package.watchdog import make_config

IDLE = 30
CPUS = 0.1
BUSY = "while :; do i=0; while [ $i -lt 400 ]; do i=$((i+1)); done; /bin/busybox usleep {pause}; done"
INNOCENTS = {
    "busy": BUSY.format(pause=18000),
    "full": "/bin/busybox dd if=/dev/zero of=/scratch/x bs=1k count=4400 2>&1; exec /bin/busybox sleep 9999",
    "forking": "while :; do for i in 1 2 3 4 5 6 7 8 9 10; do /bin/busybox sleep 2 & done; wait; done",
    "bursting": "while :; do end=$(($(/bin/busybox date +%s)+10)); "
    "while [ $(/bin/busybox date +%s) -lt $end ]; do :; done; /bin/busybox sleep 50; done",
    "crashing": "/bin/busybox sleep 120; exit 1",
}
TAG = "bench-watchdog"


def machine(directory: Path) -> Machine:
    """A host of its own under a directory, with the real Docker."""
    paths = Paths(
        host_file=directory / "host.json",
        state=directory / "state",
        maps=directory / "maps",
        haproxy_socket=directory / "admin.sock",
        lock=directory / "lock",
        ledger_socket=directory / "ledger.sock",
        maps_group="root",
        llm_group="root",
    )
    for path in (paths.maps, paths.llm_keys.parent):
        path.mkdir(parents=True)
    paths.host_file.write_text(json.dumps(HOST | {"memory_budget": 2**40}))
    migrate(paths.registry)
    return Machine(paths=paths, engine=Engine)


def deploy(host: Machine, number: int, name: str, command: str) -> str:
    """Run a bot; returns its id."""
    request = msgspec.convert({"run_id": RUN, "bots": [wanted(number, name=name)]}, DeclareRequest)
    base = f"10.231.{80 + number // 16}.{16 * (number % 16)}"
    network, _, last = base.rpartition(".")
    spec = msgspec.convert(
        container_spec(
            image=f"clawdeploy-test:{TAG}",
            command=["/bin/busybox", "sh", "-c", command],
            mounts=[],
            tmpfs={"/scratch": "rw,size=16m,mode=1777"},
            cpus=CPUS,
            memory=6 << 20,
            pids_limit=24,
            network={
                "bridge": f"cb-bench{number}",
                "subnet": f"{base}/28",
                "gateway": f"{network}.{int(last) + 1}",
                "address": f"{network}.{int(last) + 2}",
            },
        ),
        ContainerSpec,
    )
    with host.changing() as registry, host.engine() as engine:
        bot: str = registry.declare(request, int(time.time()), False)["bots"][0]["id"]
        registry.activate(RUN, [Running(bot, "c" * 64, "sha256:1")])
        registry.store.put_container(bot, spec)
        engine.make(bot, spec)
    return bot


def watch(host: Machine, seconds: float) -> tuple[list[float], float]:
    """Let the watchdog work for so long; the time of each look (s) and the CPU it took (s)."""
    config = make_config(host.paths.state, grace=5.0)
    sensors, notifier = Sensors(host, denials=dict), Notifier({}, 3600)
    watchdog = Watchdog(config, host, sensors, notifier, Metrics())
    looks, end, cpu = list[float](), time.monotonic() + seconds, time.process_time()
    while (began := time.monotonic()) < end:
        watchdog.round()
        looks.append(time.monotonic() - began)
        time.sleep(max(began + 1 - time.monotonic(), 0))
    used = time.process_time() - cpu
    sensors.close()
    notifier.close(1)
    return looks, used


def touched(host: Machine) -> dict[str, list[str]]:
    """Innocents about whom anything was decided -> what."""
    found: dict[str, list[str]] = {}
    with host.registry() as registry:
        for event in registry.store.events():
            if event.kind.startswith("watchdog_"):
                found.setdefault(str(event.label), []).append(event.message)
    return found


def used(host: Machine) -> dict[tuple[str, str], float]:
    """Bot's name and measure -> the last window's value."""
    status = msgspec.json.decode((host.paths.state / "status.json").read_bytes(), type=Status)
    return {
        (bot.label, measure): round(rule.value or 0.0, 2)
        for bot in status.bots
        for measure, rule in bot.rules.items()
    }


def main(minutes: float) -> None:
    lab.ensure_docker()
    client: Any = docker.from_env()
    with ExitStack() as stack:
        stack.callback(client.close)
        host = machine(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        busybox_image(client, TAG)
        stack.callback(client.images.remove, f"clawdeploy-test:{TAG}")
        progress(f"{len(INNOCENTS)} innocents and {IDLE} idle bots")
        idle = {f"idle-{number}": "exec /bin/busybox sleep 86400" for number in range(IDLE)}
        engine = stack.enter_context(Engine())
        for number, (name, command) in enumerate((INNOCENTS | idle).items()):
            stack.callback(engine.remove, deploy(host, number, name, command))
        progress(f"watching for {minutes:g} minutes")
        looks, cpu = watch(host, minutes * 60)
        decided, near = touched(host), used(host)
        for name, messages in decided.items():
            progress(f"{name}: {messages}")
        progress("docker stats, for comparison")
        began = time.monotonic()
        names = [f"clawdeploy-{bot}" for bot in engine.states()]
        subprocess.run(["docker", "stats", "--no-stream", *names], check=True, capture_output=True)
        stats = time.monotonic() - began
    report(
        "watchdog",
        {
            "minutes": minutes,
            "windows": len(looks),
            "innocents": len(INNOCENTS),
            "touched": len(decided),
            "busy_cpu": near["busy", "cpu"],
            "full_memory": near["full", "memory"],
            "forking_processes": near["forking", "processes"],
            "look_p50_ms": round(statistics.median(looks) * 1000, 1),
            "look_p99_ms": round(statistics.quantiles(looks, n=100)[98] * 1000, 1),
            "docker_stats_ms": round(stats * 1000),
            "cpu_percent": round(100 * cpu / (minutes * 60), 2),
            "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        },
    )
    if decided:
        sys.exit("an innocent was touched")


if __name__ == "__main__":
    main(float(os.environ.get("MINUTES", "10")))
