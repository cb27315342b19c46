"""``clawctl skills``: what bots were taught, and the host's library of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec

from clawdeploy import skills as teaching
from clawdeploy.clitools import Machine, check_option, now, say, show_table, stdin, summary, table, verb
from clawdeploy.models import Bot
from clawdeploy.registry import iso
from clawdeploy.skills import Bundle, Installed, SkillsRequest


@click.group()
def skills() -> None:
    """Skills of bots. Running bots learn and forget them with their next message, without a restart."""


@skills.command()
@click.option(
    "--sha256", default=None, metavar="HEX", help="Refuse the skill if its checksum is another one."
)
@click.argument("bot")
@click.argument("source")
@check_option
@verb
def add(machine: Machine, as_json: bool, bot: str, source: str, sha256: str | None, check: bool) -> None:
    """Give BOT (id or name) the skill SOURCE: a directory or archive here (with a / in it), or name[@version]
    of the library. What it had of that name can be brought back with `clawctl skills rollback`.

    \b
    Example: clawctl skills add support-bot ./refund-policy
             clawctl skills add support-bot refund-policy@1.2
    """
    with machine.changing() as registry:
        found = registry.find(bot)
        bundle = teaching.pinned(teaching.fetch(registry, source), source, sha256)
        shelf = teaching.shelf(registry, machine.homes, found)
        before, changed = _shown(shelf.installed().get(bundle.name)), not shelf.has(bundle)
        if not check:
            teaching.add(registry, machine.homes, found, bundle, source, now())
    _say_change(as_json, found, bundle.name, changed, before, f"{bundle.version} ({bundle.sha256})")


@skills.command()
@click.argument("bot")
@click.argument("skill")
@check_option
@verb
def remove(machine: Machine, as_json: bool, bot: str, skill: str, check: bool) -> None:
    """Take SKILL (its name) from BOT (id or name).

    \b
    Example: clawctl skills remove support-bot refund-policy
    """
    with machine.changing() as registry:
        found = registry.find(bot)
        shelf = teaching.shelf(registry, machine.homes, found)
        before = _shown(teaching.require(shelf, found, skill))
        if not check:
            teaching.remove(registry, machine.homes, found, skill)
    _say_change(as_json, found, skill, True, before, "absent")


@skills.command()
@click.argument("bot")
@click.argument("skill")
@verb
def rollback(machine: Machine, as_json: bool, bot: str, skill: str) -> None:
    """Give BOT (id or name) the version of SKILL that it had before; once more: the newer one again.

    \b
    Example: clawctl skills rollback support-bot refund-policy
    """
    with machine.changing() as registry:
        found = registry.find(bot)
        before = _shown(teaching.shelf(registry, machine.homes, found).installed().get(skill))
        back = teaching.roll_back(registry, machine.homes, found, skill, now())
    _say_change(as_json, found, skill, True, before, f"{back.version} ({back.sha256})")


def _shown(installed: Installed | None) -> str:
    return f"{installed.current.version} ({installed.current.sha256})" if installed else "absent"


def _say_change(as_json: bool, bot: Bot, skill: str, changed: bool, before: str, after: str) -> None:
    lines = {"before": f"{bot.id}/{skill}: {before}\n", "after": f"{bot.id}/{skill}: {after}\n"}
    diff = lines if changed else {"before": "", "after": ""}
    result = {"changed": changed, "diff": diff, "id": bot.id, "label": bot.label, "skill": skill}
    say(result, as_json, summary(result))


@skills.command(name="list")
@click.argument("bot", required=False)
@verb
def list_skills(machine: Machine, as_json: bool, bot: str | None) -> None:
    """Show the skills of BOT (id or name), or those in the library of this host.

    \b
    Example: clawctl skills list support-bot
             clawctl skills list
    """
    with machine.registry() as registry:
        if bot is None:
            _list_library(teaching.library(registry).bundles(), as_json)
            return
        found = registry.find(bot)
        shelf = teaching.shelf(registry, machine.homes, found)
        rows = [(name, one, shelf.intact(name)) for name, one in sorted(shelf.installed().items())]
    shown = table("Skill", "Version", "Since", "From", "Before that", "Files")
    for name, one, intact in rows:
        previous = one.previous.version if one.previous else "-"
        state = "as added" if intact else "[red]changed[/]"
        shown.add_row(name, one.current.version, iso(one.current.since), one.current.source, previous, state)
    listed = [{"name": name, **msgspec.to_builtins(one), "intact": intact} for name, one, intact in rows]
    _say_table({"id": found.id, "label": found.label, "skills": listed}, as_json, shown, "It has no skills.")


def _list_library(bundles: list[Bundle], as_json: bool) -> None:
    shown = table("Skill", "Version", "Checksum", "Description")
    for one in bundles:
        shown.add_row(one.name, one.version, one.sha256[:12], one.description)
    listed = [{**asdict(one), "files": sorted(one.files)} for one in bundles]
    _say_table({"skills": listed}, as_json, shown, "The library is empty: see `clawctl skills publish`.")


def _say_table(result: dict[str, Any], as_json: bool, shown: Any, otherwise: str) -> None:
    if as_json or not result["skills"]:
        say(result, as_json, otherwise)
    else:
        show_table(shown)


@skills.command()
@click.argument("source")
@verb
def publish(machine: Machine, as_json: bool, source: str) -> None:
    """Check SOURCE, a directory or an archive, and put it into the library of this host.

    A version that is there never changes: give a changed skill a new one.

    \b
    Example: clawctl skills publish ./refund-policy
    """
    with machine.changing() as registry:
        bundle = teaching.read_bundle(source, Path(source))
        changed = teaching.library(registry).publish(bundle)
    result = {"changed": changed, "name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}
    say(
        result, as_json, f"{bundle.name}@{bundle.version}{'' if changed else ' (was there)'}\n{bundle.sha256}"
    )


@skills.command()
@check_option
@verb
def apply(machine: Machine, as_json: bool, check: bool) -> None:
    """Let bots have exactly the skills of a JSON object on standard input. Playbooks use this.

    \b
    Example: clawctl skills apply --json --check < skills.json
    """
    with machine.changing() as registry:
        result = teaching.apply(registry, machine.homes, stdin(SkillsRequest), now(), check)
    say(result, as_json, summary(result))
