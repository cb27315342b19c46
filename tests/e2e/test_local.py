"""Local mode: bots on somebody's own machine, and everything gone again afterwards.

Ansible runs on the machine itself, as its user: a virtual environment, this checkout and connection: local.
The machine reaches no package index, so the release's archive is carried there.
"""

import http.client
import importlib.metadata
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import lab
from tests.e2e.conftest import telegram_token
from tests.lab.inventory import LAB_VARIABLES
from tests.playbooks import ROOT, Run
from tests.standin.build import Image

HOME = "/home/ops"
CHECKOUT = f"{HOME}/clawDeploy"
ENV_FILE = """\
OPENROUTER_BASE_URL=http://127.0.0.1:11434/v1
OPENROUTER_API_KEY=ollama
OPENROUTER_MODEL=library/llama3.2:3b
"""
OWN_PORT = 8000
GATEWAY = "10.201.255.1"
# Caches and logs, what dpkg and systemd keep for themselves, the user's own files, mounts of the lab.
VOLATILE = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/cache", "/var/log", "/var/lib/apt"),
    *("/var/lib/dpkg", "/var/lib/systemd", "/etc/ld.so.cache", "/root/.ansible", "/root/.cache", HOME),
    *("/var/lib/docker", "/var/lib/containerd"),
)
PRUNED = " -o ".join(f"-path {path}" for path in VOLATILE)
LOOKS = {
    "packages": "dpkg-query --show --showformat '${Package} ${Version} ${db:Status-Status}\\n'",
    # -xdev leaves out Docker's directories, which are file systems of their own here.
    "files": rf"""
        find / -xdev \( {PRUNED} -o -name __pycache__ -o -name '*-' -path '/etc/*' \) -prune \
          -o -printf '%p %y %m %U:%G %l\n'
        find /var/lib/docker /var/lib/containerd -mindepth 1
        find /etc -xdev -type f ! -name '*-' ! -name ld.so.cache -exec sha256sum {{}} +
    """,
    "units": "systemctl list-unit-files --no-legend --plain; systemctl list-units --failed --no-legend",
    "packet filter": "nft --stateless list ruleset",
    "users": "getent passwd; getent group",
    "listeners": r"ss -Hltunp | sed -E 's/pid=[0-9]+,fd=[0-9]+//g' | awk '{print $1, $5, $7}'",
    "addresses": "ip -oneline address | awk '{print $2, $4}'",
    "forwarding": "cat /proc/sys/net/ipv4/ip_forward",
}


@dataclass
class Machine:
    """Somebody's own Debian, with what its user has on it."""

    vps: lab.Vps

    def user(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command as the machine's user, in the checkout."""
        return subprocess.run(
            [
                *("docker", "exec", "--user=ops", f"--env=HOME={HOME}", f"--workdir={CHECKOUT}"),
                *(self.vps.host.container, "bash", "-c", command),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    def playbook(self, name: str, *options: str) -> Run:
        """Run one of the checkout's playbooks, as the docs say."""
        command = ["python", "-m", "ansible", "playbook", "-i", "inventory/local", f"playbooks/{name}.yml"]
        words = shlex.join([*command, *options])
        done = self.user(f". .venv/bin/activate && {words}")
        return Run(done.returncode, done.stdout + done.stderr, 0)

    def look(self) -> dict[str, list[str]]:
        """Everything that uninstalling must bring back."""
        return {
            what: sorted(self.vps.exec("sh", "-c", command).splitlines()) for what, command in LOOKS.items()
        }

    def put(self, tar: bytes, directory: str) -> None:
        """Unpack a tar archive as the user."""
        subprocess.run(
            [
                *("docker", "exec", "--interactive", "--user=ops", self.vps.host.container),
                *("sh", "-c", f"mkdir -p {directory} && tar -x -C {directory}"),
            ],
            input=tar,
            check=True,
        )

    def reachable(self, port: int, address: str = "") -> bool:
        """Whether somebody else's machine gets an HTTP answer."""
        connection = http.client.HTTPConnection(address or self.vps.host.address, port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status > 0
        except OSError:
            return False
        finally:
            connection.close()


def packed(files: dict[str, Path | bytes]) -> bytes:
    """A tar archive of files, or of contents, by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, source in files.items():
            if isinstance(source, Path):
                tar.add(source, name, recursive=False)
            else:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(source), 0o600
                tar.addfile(entry, io.BytesIO(source))
    return buffer.getvalue()


def controller_packages() -> dict[str, Path | bytes]:
    """What requirements/controller.txt installs; of the many collections only the one that is used."""
    names = re.findall(r"^([\w.-]+)==", (ROOT / "requirements/controller.txt").read_text(), re.MULTILINE)
    files: dict[str, Path | bytes] = {}
    for name in names:
        for file in importlib.metadata.distribution(name).files or ():
            other = file.parts[0] == "ansible_collections" and file.parts[1:3] != ("community", "docker")
            if file.parts[0] != ".." and not other and "__pycache__" not in file.parts:
                files[str(file)] = Path(str(file.locate()))
    return files


def release_archive() -> Path:
    """The archive that the role platform would make on a controller that reaches a package index."""
    script = ROOT / "roles/platform/files/release.py"
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    command = [
        sys.executable,
        str(script),
        f"--source={ROOT}",
        "--python=3.11",
        f"--machine={machine}",
        "--build",
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Path(json.loads(made)["archive"])


@pytest.fixture(scope="module")
def machine(image: Image) -> Iterator[Machine]:
    """A Debian 12 with a checkout, a model of its own (Ollama) and a server that others use."""
    lab.down("vps12")
    machine = Machine(lab.up("vps12"))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]
    archive = release_archive()
    settings = {name: LAB_VARIABLES[name] for name in ("docker_dns", "edge_caddy_repository")}
    # The setting that inventory/local shows in a comment.
    settings["llm_gateway_price"] = {"prompt": 0, "completion": 0}
    machine.put(packed({name: ROOT / name for name in tracked} | {".env": ENV_FILE.encode()}), CHECKOUT)
    machine.put(
        packed(
            {
                f".cache/clawdeploy/{archive.name}": archive,
                "image.tar": Path(image.archive),
                "clawDeploy/inventory/local/host_vars/localhost.yml": json.dumps(settings).encode(),
            }
        ),
        HOME,
    )
    assert machine.user("python3 -m venv --without-pip .venv").returncode == 0
    machine.put(packed(controller_packages()), f"{CHECKOUT}/.venv/lib/python3.11/site-packages")
    for unit, command in {
        "ollama": f"python3 {CHECKOUT}/tests/simulators/ollama.py",
        "own-server": f"python3 -m http.server {OWN_PORT}",
    }.items():
        machine.vps.exec("systemd-run", "--quiet", f"--unit={unit}", *command.split())
    machine.vps.exec("sh", "-c", "for p in 8000 11434; do until ss -ltn | grep -q :$p; do :; done; done")
    # As on any machine that is used: an index of packages is there, and its cache is warm.
    machine.vps.exec("apt-get", "update")
    yield machine
    lab.down("vps12")


@pytest.fixture(scope="module")
def before(machine: Machine) -> dict[str, list[str]]:
    """The machine as it was."""
    return machine.look()


@pytest.fixture(scope="module")
def card(machine: Machine, before: dict[str, list[str]], image: Image) -> dict[str, Any]:
    """The one bot, deployed after the machine was prepared."""
    machine.playbook("prepare_host").check()
    options = {
        "token": telegram_token(7_620_000_001),
        "owner": "4242",
        "bot_image": image.tag,
        "bot_image_archive": f"{HOME}/image.tar",
        "result_file": f"{HOME}/bot.json",
    }
    machine.playbook("deploy_bot", "-e", json.dumps(options)).check()
    (bot,) = json.loads(machine.vps.exec("cat", f"{HOME}/bot.json"))["bots"]
    return dict(bot)


def ask(machine: Machine, card: dict[str, Any], text: str, *options: str) -> str:
    """What the bot answers to its owner's curl."""
    command = [
        "curl", "--silent", "--show-error", "--fail-with-body", *options, f"{card['url']}webhook",
        "--header", f"Authorization: Bearer {card['gateway_token']}", "--json", json.dumps({"message": text}),
    ]  # fmt: skip
    done = machine.user(shlex.join(command))
    return done.stdout + done.stderr


def test_a_machine_with_a_docker_of_its_own_is_left_alone(
    machine: Machine, before: dict[str, list[str]]
) -> None:
    machine.vps.exec("sh", "-c", "mkdir -p /etc/docker && echo '{}' >/etc/docker/daemon.json")
    try:
        run = machine.playbook("prepare_host")
    finally:
        machine.vps.exec("rm", "-r", "/etc/docker")
    assert run.returncode != 0
    assert "/etc/docker/daemon.json, which clawDeploy would take over" in run.output
    assert machine.look() == before


def test_a_bot_answers_at_its_local_name_with_the_model_of_the_machine(
    machine: Machine, card: dict[str, Any]
) -> None:
    assert card["url"] == f"https://{card['id']}.localhost/"
    assert "certificate" in ask(machine, card, "hello")
    root = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
    trusted = "/usr/local/share/ca-certificates/clawdeploy-local.crt"
    assert (
        machine.user(f"sudo install -m 0644 {root} {trusted} && sudo update-ca-certificates").returncode == 0
    )
    assert "LOCAL: hello" in ask(machine, card, "hello")
    assert machine.user(f"sudo rm {trusted} && sudo update-ca-certificates --fresh").returncode == 0
    assert "certificate" in ask(machine, card, "hello")
    balance = json.loads(machine.vps.exec("clawctl", "balance", card["id"], "--json"))
    assert balance["accounts"][0]["balance_dollars"] == "1.00"


def test_nothing_listens_for_others_and_what_did_still_does(
    machine: Machine, before: dict[str, list[str]], card: dict[str, Any]
) -> None:
    new = [line.split()[1] for line in machine.look()["listeners"] if line not in before["listeners"]]
    assert new
    assert {address.rpartition(":")[0] for address in new} <= {"127.0.0.1", GATEWAY}
    assert machine.reachable(OWN_PORT)
    assert not machine.reachable(80)
    assert not machine.reachable(443)


def test_a_second_run_changes_nothing(machine: Machine, card: dict[str, Any]) -> None:
    assert machine.playbook("prepare_host").check().changed == 0


def test_uninstalling_spares_a_docker_that_others_use(
    machine: Machine, card: dict[str, Any], image: Image
) -> None:
    machine.vps.exec("docker", "create", "--name=of-others", image.tag)
    try:
        run = machine.playbook("uninstall", "-e", "confirm=localhost")
    finally:
        machine.vps.exec("docker", "rm", "of-others")
    assert run.returncode != 0
    assert "others use it now: of-others." in run.output
    assert run.changed == 0
    assert "LOCAL: hello" in ask(machine, card, "hello", "--insecure")


def test_uninstalling_asks_first_and_then_leaves_the_machine_as_it_was(
    machine: Machine, before: dict[str, list[str]], card: dict[str, Any]
) -> None:
    refused = machine.playbook("uninstall")
    assert refused.returncode != 0
    assert "-e confirm=localhost" in refused.output
    assert refused.changed == 0
    machine.playbook("uninstall", "-e", "confirm=localhost").check()
    after = machine.look()
    for what, lines in before.items():
        assert after[what] == lines, what
    assert machine.reachable(OWN_PORT)
    assert machine.playbook("uninstall", "-e", "confirm=localhost").check().changed == 0
