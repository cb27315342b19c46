"""Command line of the lab: `python -m tests.lab up | down | status | reboot | ssh-config`."""

import sys

import click

from tests import lab
from tests.lab.settings import HOSTS
from tests.lab.vps import ssh_options

host_option = click.option(
    "--host", "name", type=click.Choice(list(HOSTS)), default="vps1", show_default=True, help="Which VPS."
)


@click.group()
def main() -> None:
    """A simulated internet on this machine, with VPSs in containers on it."""


@main.command()
@host_option
@click.option("--memory", type=click.IntRange(min=2**27), help="Memory limit of the VPS, in bytes.")
@click.option("--cpus", type=click.FloatRange(min=0.1), help="CPU limit of the VPS, in cores.")
def up(name: str, memory: int | None, cpus: float | None) -> None:
    """Start what is missing; print the path of the inventory."""
    lab.up(name, memory, cpus)
    print(lab.INVENTORY)


@main.command()
@click.option("--host", "name", type=click.Choice(list(HOSTS)), help="Only this VPS; the internet stays up.")
@click.option("--all", "caches", is_flag=True, help="Also the images and root file systems.")
def down(name: str | None, caches: bool) -> None:
    """Remove everything that `up` made."""
    lab.down(name, caches)


@main.command()
def status() -> None:
    """Print the state of each part."""
    for name, state in lab.status().items():
        print(f"{name:<12}{state}")


@main.command()
@host_option
def reboot(name: str) -> None:
    """Restart a VPS and wait until ssh answers again."""
    print(f"{lab.vps(name).reboot():.1f} s")


@main.command("ssh-config")
def ssh_config() -> None:
    """Print a configuration for `ssh -F`: `ssh -F <(python -m tests.lab ssh-config) vps1`."""
    options = [
        option.removeprefix("-o").replace("=", " ", 1) for option in ssh_options() if option.startswith("-o")
    ]
    for host in HOSTS.values():
        print(f"Host {host.name}\n  HostName {host.address}\n  User root\n  IdentityFile {lab.SSH_KEY}")
        print("".join(f"  {option}\n" for option in options))


if __name__ == "__main__":
    try:
        main()
    except lab.LabError as error:
        sys.exit(f"lab: {error}")
