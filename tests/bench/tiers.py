"""What each agent costs: image, start, memory, on a VPS in a container (everything on one machine).

Figures, each for the NullClaw stand-in and the real OpenClaw (`nullclaw_`, `openclaw_`):
  image_mb, archive_mb    the image on the host's disk, and as the file that is shipped there
  deploy_s                a first deploy: ship and load the image, start, answer through TLS
  start_s                 docker start → healthy by the agent's own health check (median of 3)
  idle_mb, busy_mb        memory that its processes hold a minute after the start, and after 20 messages
  answer_s                a message on Telegram → the answer, the model's own time excepted (median of 20)
  smallest_mb             smallest memory limit, of those tried, with which it starts and answers 10 messages
and `openclaw_build_s`: building its image anew.
"""

import asyncio
import json
import shlex
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tests import lab
from tests.bench.figures import progress, report
from tests.customer import TelegramUser
from tests.openclaw_image import build_openclaw, build_product
from tests.playbooks import OPERATOR, ROOT, Run, run_playbook, write_env
from tests.stage import prepare
from tests.standin.build import Image, build_image

HOST_FILE = "/etc/clawdeploy/host.json"
RESULT = OPERATOR / "bench-tiers.json"
MIB = 1 << 20

STARTS = """
set -eu
docker stop {container} >/dev/null
start=$(date +%s.%N)
docker start {container} >/dev/null
health() {{ docker inspect --format '{{{{.State.Health.Status}}}}' {container}; }}
until [ "$(health)" = healthy ]; do sleep 0.05; done
python3 -c "print($(date +%s.%N) - $start)"
"""
MEMORY = """
pids=$(docker top {container} -eo pid | tail -n +2)
awk '/^RssAnon|^RssShmem/ {{sum += $2}} END {{print sum}}' $(printf '/proc/%s/status ' $pids)
"""


@dataclass(frozen=True)
class Tier:
    """One agent, its image, and the memory limits (MiB) to try, smallest first."""

    agent: str
    plan: str
    image: Image
    number: int
    limits: tuple[int, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What deploy_bot is told."""
        token = f"{self.number}:AA{self.number:033d}"
        image = {"bot_image": self.image.tag, "bot_image_archive": self.image.archive}
        return {"token": token, "agent": self.agent, "owner": "4242", "balance": "100", **image}


def deploy(tier: Tier, **changes: Any) -> Run:
    """Deploy the tier's bot, whatever comes of it."""
    variables = tier.settings | {"result_file": str(RESULT)} | changes
    return run_playbook(ROOT / "deploy_bot.yml", lab.INVENTORY, variables)


async def talk(tier: Tier, messages: int) -> list[float]:
    """Seconds that each answer took; TimeoutError if one does not come in a minute."""
    seconds = []
    async with TelegramUser(tier.number) as owner:
        for number in range(messages):
            began = time.monotonic()
            await owner.write(f"message {number}")
            await owner.read(wait=60)
            seconds.append(time.monotonic() - began)
    return seconds


def megabytes(vps: lab.Vps, container: str) -> float:
    """Memory that the container's processes hold for themselves."""
    kilobytes = int(vps.exec("sh", "-c", MEMORY.format(container=container)))
    return kilobytes * 1024 / 1e6


def limit_memory(vps: lab.Vps, plan: str, size: int) -> None:
    """Change a plan on the host; the next deploy makes the container anew."""
    facts = json.loads(vps.exec("cat", HOST_FILE))
    facts["plans"][plan]["memory_limit"] = size
    vps.exec("sh", "-c", f"printf %s {shlex.quote(json.dumps(facts))} > {HOST_FILE}")


def survives(vps: lab.Vps, tier: Tier, container: str, size: int) -> bool:
    """Whether the bot starts and answers ten messages with that limit, without being killed."""
    limit_memory(vps, tier.plan, size)
    if deploy(tier).returncode:
        return False
    template = "{{.State.StartedAt}} {{.RestartCount}}"
    before = vps.exec("docker", "inspect", "--format", template, container)
    try:
        asyncio.run(talk(tier, 10))
    except TimeoutError:
        return False
    return vps.exec("docker", "inspect", "--format", template, container) == before


def measure(vps: lab.Vps, tier: Tier) -> dict[str, float]:
    """All figures of one agent."""
    progress(f"{tier.agent}: deploy")
    first = deploy(tier, rotate_gateway_token=True).check()
    (bot,) = json.loads(RESULT.read_text())["bots"]
    container = f"clawdeploy-{bot['id']}"
    size = int(vps.exec("docker", "image", "inspect", "--format", "{{.Size}}", tier.image.tag))
    progress(f"{tier.agent}: starts")
    starts = [float(vps.exec("sh", "-c", STARTS.format(container=container))) for _ in range(3)]
    time.sleep(60)  # what "idle" means
    idle = megabytes(vps, container)
    progress(f"{tier.agent}: twenty messages")
    answers = asyncio.run(talk(tier, 20))
    busy = megabytes(vps, container)
    smallest = bot["limits"]["memory_limit"]
    for limit in tier.limits:
        progress(f"{tier.agent}: with {limit} MiB")
        if survives(vps, tier, container, limit * MIB):
            smallest = limit * MIB
            break
    vps.exec("clawctl", "destroy", "--yes", bot["id"])
    figures = {
        "image_mb": size / 1e6,
        "archive_mb": Path(tier.image.archive).stat().st_size / 1e6,
        "deploy_s": first.seconds,
        "start_s": statistics.median(starts),
        "idle_mb": idle,
        "busy_mb": busy,
        "answer_s": statistics.median(answers),
        "smallest_mb": smallest / MIB,
    }
    return {f"{tier.agent}_{name}": round(value, 2) for name, value in figures.items()}


def main() -> None:
    """Measure both and report."""
    vps = lab.up()
    write_env()
    prepare(Console(stderr=True, highlight=False), vps)
    with tempfile.TemporaryDirectory() as folder:
        progress("openclaw: build its image anew")
        built = build_product(Path(folder) / "image.tar").check()
    figures: dict[str, float] = {"openclaw_build_s": round(built.seconds, 2)}
    nullclaw, openclaw = build_image(lab.CA_BUNDLE), build_openclaw(lab.CA_BUNDLE)
    facts = vps.exec("cat", HOST_FILE)
    try:
        for tier in (
            Tier("nullclaw", "nullclaw-small", nullclaw, 7_800_000_001, (6, 8, 16, 32)),
            Tier("openclaw", "openclaw-standard", openclaw, 7_800_000_002, (768, 1024, 1280, 1536)),
        ):
            figures |= measure(vps, tier)
    finally:
        vps.exec("sh", "-c", f"printf '%s\\n' {shlex.quote(facts)} > {HOST_FILE}")
    report("tiers", {name: figures[name] for name in sorted(figures)})


if __name__ == "__main__":
    main()
