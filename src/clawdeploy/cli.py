"""``clawctl``: the operator's and the playbooks' way to the package."""

import click

from clawdeploy import __version__


@click.group()
@click.version_option(__version__, prog_name="clawctl")
def main() -> None:
    """Manage the bots of this host."""
