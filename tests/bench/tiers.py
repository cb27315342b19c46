"""What each agent costs: image, start, memory, on a VPS in a container (everything on one machine).

Figures, each for the NullClaw stand-in and the real OpenClaw (`nullclaw_`, `openclaw_`):
  build_s                 building its image anew
  image_mb, archive_mb    the image on the host's disk, and as the file that is shipped there
  deploy_s                a first deploy: ship and load the image, start, answer through TLS
  start_s                 docker start → healthy by the agent's own health check (median of 3)
  idle_mb, busy_mb        memory that its processes hold a minute after the start, and after 20 messages
  answer_s                a message on Telegram → the answer, the model's own time excepted (median of 20)
  skill_add_s             `clawctl skills add` alone (median of 5)
  skill_prompt_s          from the beginning of that until a prompt has the skill in it
  smallest_mb             smallest memory limit, of those tried, with which it starts and answers 10 messages
What a deploy to Fly.io takes is in bench-fly.
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

import aiohttp
from rich.console import Console
from rich.table import Table

from tests import lab
from tests.bench.figures import progress, report
from tests.customer import TelegramUser, internet
from tests.openclaw_image import build_openclaw, build_product
from tests.playbooks import OPERATOR, ROOT, Run, run_playbook, write_env
from tests.stage import prepare
from tests.standin import build
from tests.standin.build import Image, build_image

HOST_FILE = "/etc/clawdeploy/host.json"
RESULT = OPERATOR / "bench-tiers.json"
MIB = 1 << 20
LESSONS = 5
QUESTIONS = 10  # after which an agent should know what it was taught

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
    """One agent, its image, and the memory limits (MiB) to try, until one is too small."""

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


async def teach(vps: lab.Vps, tier: Tier, bot: str) -> dict[str, float]:
    """Figures of teaching the bot."""
    commands, prompts = list[float](), list[float]()
    async with internet(lab.OPENROUTER_ADDRESS) as openrouter, TelegramUser(tier.number) as owner:
        for number in range(LESSONS):
            name, word = f"lesson-{number}", f"Wisdom{number:04}"
            manifest = f"---\nname: {name}\ndescription: {word} in short\nversion: 1.0.0\n---\n{word}\n"
            folder = f"/tmp/{name}"
            vps.exec("sh", "-c", f"mkdir -p {folder}; printf %s {shlex.quote(manifest)} > {folder}/SKILL.md")
            began = time.monotonic()
            vps.exec("clawctl", "skills", "add", bot, folder)
            commands.append(time.monotonic() - began)
            prompts.append(await learnt(openrouter, owner, word) - began)
    return {"skill_add_s": statistics.median(commands), "skill_prompt_s": statistics.median(prompts)}


async def learnt(openrouter: aiohttp.ClientSession, owner: TelegramUser, word: str) -> float:
    """When a prompt of the bot had that word in it (on the monotonic clock); asks until one has."""
    for number in range(QUESTIONS):
        text = f"{word[-4:]}, question {number}"
        await owner.write(text)
        query = {"contains": text, "count": "1", "wait": "30"}
        async with openrouter.get("https://openrouter.ai/_sim/requests", params=query) as response:
            asked, seen = (await response.json())["requests"], time.monotonic()
        await owner.read(wait=60)
        if word in json.dumps(asked[-1]["body"]):
            return seen
    raise RuntimeError(f"{word} is in no prompt after {QUESTIONS} questions")


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
    vps.ssh(f"docker image rm --force {tier.image.tag}")  # an earlier run may have left it
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
    progress(f"{tier.agent}: skills")
    skills = asyncio.run(teach(vps, tier, bot["id"]))
    smallest = bot["limits"]["memory_limit"]
    for limit in tier.limits:
        progress(f"{tier.agent}: with {limit} MiB")
        # Downwards: OpenClaw that was killed three times leaves Telegram alone for five minutes.
        if not survives(vps, tier, container, limit * MIB):
            break
        smallest = limit * MIB
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
    } | skills
    return {f"{tier.agent}_{name}": round(value, 2) for name, value in figures.items()}


def build_anew() -> dict[str, float]:
    """Seconds that each image takes with nothing in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        progress("openclaw: build its image anew")
        built = build_product(Path(folder) / "image.tar").check()
        progress("nullclaw: build the stand-in's image anew")
        cache, build.CACHE = build.CACHE, Path(folder)
        began = time.monotonic()
        build_image(lab.CA_BUNDLE)
        seconds, build.CACHE = time.monotonic() - began, cache
    return {"openclaw_build_s": round(built.seconds, 2), "nullclaw_build_s": round(seconds, 2)}


def show(console: Console, figures: dict[str, float]) -> None:
    """Both agents side by side."""
    shown = Table("", "NullClaw stand-in", "OpenClaw")
    for name in sorted({name.partition("_")[2] for name in figures}):
        values = (figures.get(f"{agent}_{name}") for agent in ("nullclaw", "openclaw"))
        shown.add_row(name, *("-" if value is None else f"{value:g}" for value in values))
    console.print(shown)


def main() -> None:
    """Measure both and report."""
    vps = lab.up()
    write_env()
    console = Console(stderr=True, highlight=False)
    prepare(console, vps)
    figures = build_anew()
    nullclaw, openclaw = build_image(lab.CA_BUNDLE), build_openclaw(lab.CA_BUNDLE)
    facts = vps.exec("cat", HOST_FILE)
    try:
        for tier in (
            Tier("nullclaw", "nullclaw-small", nullclaw, 7_800_000_001, (32, 16, 8, 6)),
            Tier("openclaw", "openclaw-standard", openclaw, 7_800_000_002, (1536, 1280, 1024)),
        ):
            figures |= measure(vps, tier)
    finally:
        vps.exec("sh", "-c", f"printf '%s\\n' {shlex.quote(facts)} > {HOST_FILE}")
    show(console, figures)
    report("tiers", {name: figures[name] for name in sorted(figures)})


if __name__ == "__main__":
    main()
