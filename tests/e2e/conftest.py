"""The prepared VPS, the playbooks that act on it, and bots deployed for the tests."""

import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import testinfra
from testinfra.host import Host

from tests import lab
from tests.customer import internet
from tests.playbooks import ROOT, Run, run_playbook, write_env
from tests.standin.build import Image, build_image

Deploy = Callable[..., Run]


@dataclass(frozen=True)
class Bot:
    """A deployed bot as its customer got it: the result file's entry of it."""

    token: str
    card: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.card["id"])

    @property
    def url(self) -> str:
        return str(self.card["url"])

    @property
    def container(self) -> str:
        return f"clawdeploy-{self.id}"

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.card['gateway_token']}"}


def telegram_token(number: int) -> str:
    """A token that the simulated Telegram accepts, for Telegram bot `number`."""
    return f"{number}:AA{number:033d}"


@pytest.fixture(scope="session")
def vps() -> lab.Vps:
    return lab.vps()


@pytest.fixture(scope="session")
def host(vps: lab.Vps) -> Host:
    """The VPS in testinfra's words, over ssh."""
    # testinfra starts ansible-inventory by its name.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return testinfra.get_host(f"ansible://{vps.host.name}?ansible_inventory={lab.INVENTORY}")


@pytest.fixture(scope="session")
def image() -> Image:
    return build_image(lab.CA_BUNDLE)


@pytest.fixture(scope="session")
def deploy(image: Image) -> Deploy:
    """Runs deploy_bot with the stand-in's image and the variables given; returns the run, failed or not."""
    write_env()

    def run(*options: str, **variables: Any) -> Run:
        standin = {"bot_image": image.tag, "bot_image_archive": image.archive}
        return run_playbook(ROOT / "deploy_bot.yml", lab.INVENTORY, standin | variables, *options)

    return run


@pytest.fixture(scope="session")
def bots(deploy: Deploy, tmp_path_factory: pytest.TempPathFactory) -> list[Bot]:
    """Two bots of two customers, deployed in one run; their owner is Telegram user 4242."""
    result = tmp_path_factory.mktemp("result") / "bots.json"
    tokens = [telegram_token(7_100_000_001), telegram_token(7_100_000_002)]
    entries = [{"token": token, "owner": "4242", "rotate_gateway_token": True} for token in tokens]
    deploy(bots=entries, result_file=str(result)).check()
    cards = json.loads(result.read_text())["bots"]
    return [Bot(token, card) for token, card in zip(tokens, cards, strict=True)]


@pytest.fixture
def bot(bots: list[Bot]) -> Bot:
    return bots[0]


@pytest.fixture
async def web(vps: lab.Vps) -> AsyncIterator[aiohttp.ClientSession]:
    """A customer's browser: every name leads to the VPS, certificates are checked."""
    async with internet(vps.host.address) as session:
        yield session


def clawctl(vps: lab.Vps, *arguments: str) -> Any:
    """Run clawctl --json on the VPS and return what it answered."""
    return json.loads(vps.exec("clawctl", *arguments, "--json"))


def in_bot(vps: lab.Vps, bot: Bot, command: str) -> tuple[int, str]:
    """Run a shell command inside a bot's container, as a hostile agent would; return exit code and output."""
    result = vps.ssh(f"docker exec {bot.container} /bin/sh -c {shlex.quote(command)}")
    return result.returncode, result.stdout + result.stderr


def footprint(vps: lab.Vps) -> dict[str, Any]:
    """Everything of bots that is on the VPS: what a refused deploy must leave as it is."""
    label = "--filter label=clawdeploy.bot"
    places = " ".join(f"/var/lib/clawdeploy/{folder}" for folder in ("bots", "claims", "disks", "secrets"))
    # What they use changes all the time.
    bots = [bot | {"usage": None} for bot in clawctl(vps, "list")["bots"]]
    return {
        "bots": bots,
        "docker": sorted(vps.ssh(f"docker ps -aq {label}; docker network ls -q {label}").stdout.split()),
        "files": sorted(vps.ssh(f"find {places} -maxdepth 1").stdout.split()),
        "maps": vps.ssh("sha256sum /etc/haproxy/maps/*").stdout,
        "mounts": sorted(vps.ssh("findmnt -rno TARGET | grep /var/lib/clawdeploy || :").stdout.split()),
    }


def result_of(path: Path) -> dict[str, Any]:
    """The one bot of a result file."""
    (bot,) = json.loads(path.read_text())["bots"]
    return dict(bot)


@pytest.fixture
def host_setting(vps: lab.Vps) -> Iterator[Callable[[str, Any], None]]:
    """Changes a fact of the host until the test is over: stands for a host that is full."""
    path = "/etc/clawdeploy/host.json"
    original = vps.exec("cat", path)

    facts = json.loads(original)

    def change(name: str, value: Any) -> None:
        facts[name] = value
        vps.exec("sh", "-c", f"printf %s {shlex.quote(json.dumps(facts))} > {path}")

    yield change
    vps.exec("sh", "-c", f"printf '%s\\n' {shlex.quote(original)} > {path}")
