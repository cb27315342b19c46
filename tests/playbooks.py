"""Run the project's playbooks as an operator would: own working directory, own .env, real ssh."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.internet import on_internet
from tests.lab.pki import CA_CERT

ROOT = Path(__file__).resolve().parent.parent
OPERATOR = ROOT / "build" / "lab" / "operator"
"""The working directory of the pretended operator; its .env is the server-wide configuration."""

ENV_FILE = {
    "OPENROUTER_API_KEY": "sk-or-v1-lab0000000000000000",
    "OPENROUTER_MODEL": "openai/gpt-4o-mini",
    "BASE_DOMAIN": "bots.example.test",
    "SUPPORT_EMAIL": "help@example.test",
}


@dataclass(frozen=True)
class Run:
    """One finished ansible-playbook: exit code, everything it printed, and how long it took in seconds."""

    returncode: int
    output: str
    seconds: float

    @property
    def changed(self) -> int:
        """Tasks that changed something, added up over all hosts of the play recap."""
        return sum(int(count) for count in re.findall(r"\bchanged=(\d+)", self.output))

    def check(self) -> "Run":
        """Return self, or raise RuntimeError with the end of the output if the playbook failed."""
        if self.returncode:
            raise RuntimeError(f"ansible-playbook failed ({self.returncode}):\n{self.output[-6000:]}")
        return self


def write_env(settings: dict[str, str] | None = None) -> None:
    """Write the operator's .env (0600) with `settings` in place of the lab's usual ones."""
    OPERATOR.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name}={value}\n" for name, value in (settings or ENV_FILE).items())
    path = OPERATOR / ".env"
    path.touch(mode=0o600)
    path.write_text(text)


def run_playbook(
    playbook: str | Path,
    inventory: Path,
    variables: dict[str, Any] | None = None,
    *options: str,
    host: str = "vps1",
    on_lab: bool = False,
    on_task: Callable[[str], None] = lambda name: None,
) -> Run:
    """Run `playbook` with `variables` as extra variables, handed over in a 0600 file as the docs say.

    Only `host` of the inventory is acted on. `on_task` is called with the name of each task as it starts.
    `on_lab`: the operator's own machine is on the simulated internet too, and trusts its CA.
    """
    if not (OPERATOR / ".env").exists():
        write_env()
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        "PYTHONUNBUFFERED": "1",
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json", dir=OPERATOR) as extra:
        json.dump(variables or {}, extra)
        extra.flush()
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            str(playbook),
            f"--inventory={inventory}",
            f"--limit={host}",
            f"--extra-vars=@{extra.name}",
            *options,
        ]
        if on_lab:
            command = list(on_internet(*command))
            environment |= {"SSL_CERT_FILE": str(CA_CERT)}
        start = time.monotonic()
        lines: list[str] = []
        with subprocess.Popen(
            command,
            cwd=OPERATOR,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if task := re.match(r"(?:TASK|RUNNING HANDLER) \[(.+)\]", line):
                    on_task(task[1])
    return Run(process.returncode, "".join(lines), time.monotonic() - start)
