"""``clawctl login``: into a bot's web interface."""

import click

from clawdeploy.clitools import Machine, say, verb
from clawdeploy.errors import ClawError
from clawdeploy.login import make_link


@click.command()
@click.argument("bot")
@verb
def login(machine: Machine, as_json: bool, bot: str) -> None:
    """Print a link into the web interface of BOT (id or name), for its owner.

    It works once and for a few minutes, and makes the browser that opens it one of the owner's. Hand it over
    as you would a password.

    \b
    Example: clawctl login support-bot
    """
    with machine.registry() as registry:
        found, origin = registry.find(bot), registry.host.origin(registry.find(bot).label)
    if found.suspended:
        raise ClawError("suspended", f"{found.label} is suspended: its web interface does not answer.")
    with machine.engine() as engine:
        link = make_link(found, origin, engine)
    say({"id": found.id, "link": link}, as_json, link)
