"""Which bots an upgrade is for, to which image, in which order. Pure functions; nothing here reads a host."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._entries import (
    SettingError,
    check_result_file,
    read_archive,
    read_image,
    read_text,
)
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._names import suggest

Bot = Mapping[str, Any]


def _names(value: Any) -> list[str]:
    """A list, or text with commas, as -e gives it."""
    parts = value if isinstance(value, list) else read_text(value).split(",")
    return [read_text(part) for part in parts if read_text(part)]


def _count(value: Any) -> int:
    number = _seconds(value)
    if number < 1:
        raise SettingError(f"is {number}; write how many bots at the same time, 1 or more")
    return number


def _seconds(value: Any) -> int:
    text = read_text(value)
    if not text.isdecimal():
        raise SettingError(f"{text!r} is not a whole number")
    return int(text)


def _on_failure(value: Any) -> str:
    choice = read_text(value)
    if choice not in ("stop", "continue"):
        raise SettingError(f"{choice!r} is unknown; write stop or continue")
    return choice


_READERS: dict[str, Callable[[Any], Any]] = {
    "bots": _names,
    "agent": read_text,
    "bot_image": read_image,
    "bot_image_archive": read_archive,
    "canary": read_text,
    "canary_seconds": _seconds,
    "batch": _count,
    "on_failure": _on_failure,
}


def plan(
    settings: Mapping[str, Any], bots: Sequence[Bot], images: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Read an upgrade's settings in the light of the bots there are; returns the plan and all problems.

    ``settings`` are those of the playbook, empty ones not given; ``bots`` as bot_recall returns them;
    ``images``: agent -> the image that this collection was tested with. The plan has the settings and, in
    ``bots``, those that are meant, each with the ``image`` it is to run and the ``image_digest`` that is
    held, if any; with problems it is of no use.
    """
    read, problems = _read(settings)
    problems += check_result_file(str(settings.get("result_file") or ""))
    if read["agent"] and read["agent"] not in images:
        hint = suggest(read["agent"], images, "agents")
        problems.append(f"agent: {read['agent']!r} does not exist; {hint}")
    chosen = _chosen(read, bots, problems)
    for bot in chosen:
        if bot["agent"] not in images:
            problems.append(f"{bot['label']}: this collection has no agent {bot['agent']!r}; use a newer one")
    agents = sorted({str(bot["agent"]) for bot in chosen})
    if read["bot_image"] and len(agents) > 1:
        problems.append(f"bot_image: these bots run different agents; choose with agent={agents[0]}")
    canary = _canary(read["canary"], chosen, problems)
    if problems:
        return {}, problems
    return {
        **read,
        "canary": canary,
        "bots": [_with_image(bot, read["bot_image"], images[bot["agent"]]) for bot in chosen],
    }, []


def _read(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    read: dict[str, Any] = {}
    problems: list[str] = []
    for name, reader in _READERS.items():
        value = settings.get(name)
        try:
            read[name] = [] if name == "bots" else ""
            if value not in (None, "", []):
                read[name] = reader(value)
        except SettingError as error:
            problems.append(f"{name}: {error}")
    return read, problems


def _chosen(read: Mapping[str, Any], bots: Sequence[Bot], problems: list[str]) -> list[Bot]:
    known = {name for bot in bots for name in (bot["id"], bot["label"])}
    labels = [str(bot["label"]) for bot in bots]
    problems += [
        f"bots: this host has no {name!r}; {suggest(name, labels, 'bots')}"
        for name in read["bots"]
        if name not in known
    ]
    return [
        bot
        for bot in bots
        if (not read["bots"] or {bot["id"], bot["label"]} & set(read["bots"]))
        and read["agent"] in ("", bot["agent"])
    ]


def _canary(name: str, bots: Sequence[Bot], problems: list[str]) -> str:
    """Id of the bot that goes first: the one named, else the oldest that can be upgraded, if any can."""
    able = [bot for bot in bots if not bot["reason"]]
    if not name:
        return str(able[0]["id"]) if able else ""
    for bot in bots:
        if name in (bot["id"], bot["label"]):
            if bot["reason"]:
                problems.append(f"canary: {name!r} cannot go first ({bot['reason']}); name another bot")
            return str(bot["id"])
    hint = suggest(name, [str(bot["label"]) for bot in bots], "bots")
    problems.append(f"canary: {name!r} is none of the bots to upgrade; {hint}")
    return ""


def _with_image(bot: Bot, asked: str, tested: str) -> dict[str, Any]:
    """The bot with the image it is to run: the one asked for, else the agent's tested one.

    One of another name than that has been chosen by somebody: it stays. So does all of a bot that cannot be
    upgraded now.
    """
    if bot["reason"]:
        return dict(bot)
    same_name = _name(str(bot["image"])) == _name(tested)
    image = asked or (tested if same_name else str(bot["image"]))
    return {**bot, "image": image, "image_digest": bot["image_digest"] if image == bot["image"] else None}


def _name(image: str) -> str:
    """An image's name without its version."""
    name = image.partition("@")[0]
    path, colon, tag = name.rpartition(":")
    return path if colon and "/" not in tag else name


def batches(pending: Sequence[str], canary: str, size: int) -> list[list[str]]:
    """The order of turns: the canary alone, unless it is there already, then so many of the others each."""
    first = [[canary]] if canary in pending else []
    rest = [bot for bot in pending if bot != canary]
    return first + [rest[start : start + size] for start in range(0, len(rest), size)]
