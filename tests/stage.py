"""A prepared VPS for a person at a terminal: playbooks with progress, run only when needed."""

import hashlib
from typing import Any

from rich.console import Console

from tests import lab
from tests.playbooks import OPERATOR, ROOT, Run, run_playbook

# Left in the VPS: it is gone when the VPS is.
PREPARED = "/root/.prepared-with"
SHAPES_THE_HOST = ("playbooks", "plugins", "requirements", "roles", "src")


def play(console: Console, title: str, playbook: str, variables: dict[str, Any] | None = None) -> Run:
    """Run a playbook, its present task on the screen; all output goes to build/lab/operator/<playbook>.log.

    Raises RuntimeError with the end of the output if it fails.
    """
    with console.status(title) as status:
        run = run_playbook(
            ROOT / playbook,
            lab.INVENTORY,
            variables,
            on_task=lambda task: status.update(f"{title}  [dim]{task.rpartition(' : ')[2]}[/dim]"),
        )
    (OPERATOR / f"{playbook.rpartition('/')[2]}.log").write_text(run.output)
    run.check()
    console.print(f"[green]✓[/green] {title} [dim]({run.seconds:.0f} s, {run.changed} changes)[/dim]")
    return run


def prepare(console: Console, vps: lab.Vps) -> None:
    """Run prepare_host on the VPS unless the same playbook and roles have already prepared it."""
    if vps.ssh(f"cat {PREPARED}").stdout != fingerprint():
        play(console, "prepare_host: a virgin VPS becomes a host", "playbooks/prepare_host.yml")
        vps.exec("sh", "-c", f"printf %s {fingerprint()} > {PREPARED}")


def fingerprint() -> str:
    """Hash of every file that shapes a host, the lab's inventory with them."""
    digest = hashlib.sha256(lab.INVENTORY.read_bytes())
    for folder in SHAPES_THE_HOST:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()
