"""What a user may ask for when deploying bots: one place that checks it and fills it up.

Pure functions; nothing here reads a host. Messages never hold a token or a value that may be one.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._memories import read_source
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._names import suggest, unknown_names
from ansible_collections.clawdeploy.fleet.plugins.plugin_utils._skills import read_skill, read_tool

OPTIONS = (
    "token",
    "bot_name",
    "plan",
    "owner",
    "agent",
    "bot_image",
    "bot_image_archive",
    "bot_env",
    "bot_config",
    "open_to_all",
    "balance",
    "spend_limit",
    "rotate_gateway_token",
    "skills",
    "tools",
    "migrate_from",
)

# Telegram: "123456:ABC-DEF1234ghIkl-zyx57W2v1u123ew11" (https://core.telegram.org/bots/api#authorizing-your-bot)
_TOKEN = re.compile(r"([1-9][0-9]{5,15}):[A-Za-z0-9_-]{30,64}")
_TOKEN_CHARS = re.compile(r"[A-Za-z0-9_:-]*")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# Telegram usernames: 5 to 32 characters (https://core.telegram.org/method/account.checkUsername), or 4.
_OWNER = re.compile(r"[1-9][0-9]{0,15}|@[A-Za-z][A-Za-z0-9_]{3,31}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_TAGGED = re.compile(r"[^\s@]+(:[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})")
# As the host reads them (clawdeploy.money).
_DOLLARS = re.compile(r"[0-9]{1,7}(\.[0-9]{1,9})?")
_PERIOD = re.compile(rf"{_DOLLARS.pattern}/(day|month)")
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class SettingError(ValueError):
    """A setting's value cannot be used; the text says why and what to write instead."""


def read_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise SettingError(f"is a {type(value).__name__}, expected text")
    return str(value).strip()


def _token(value: Any) -> str:
    token = read_text(value)
    if _TOKEN.fullmatch(token):
        return token
    if not token:
        raise SettingError("is empty; paste the token that @BotFather gave you")
    shape = [f"{len(token)} characters"]
    if ":" not in token:
        shape.append("no colon")
    if not _TOKEN_CHARS.fullmatch(token):
        shape.append("characters that no token has")
    raise SettingError(
        f"is not a Telegram bot token ({', '.join(shape)}); @BotFather's look like 123456789:AbC…, "
        "digits, a colon and 35 letters, digits, _ or -"
    )


def _label(value: Any) -> str:
    name = read_text(value)
    if not _LABEL.fullmatch(name):
        raise SettingError(f"{name!r} is not a DNS label; use a-z, 0-9 and - inside, at most 63 characters")
    return name


def _owner(value: Any) -> str:
    owner = read_text(value)
    if not _OWNER.fullmatch(owner):
        raise SettingError(
            f"{owner!r} is neither a Telegram user id (digits, better) nor a @username; "
            "leave it out to let the owner claim the bot through the card's link"
        )
    return owner


def read_image(value: Any) -> str:
    image = read_text(value)
    if not _TAGGED.fullmatch(image) or image.endswith(":latest"):
        raise SettingError(f"{image!r} names no fixed version; write name:version, and not :latest")
    return image


def read_archive(value: Any) -> str:
    archive = Path(read_text(value)).expanduser()
    if not archive.is_file():
        raise SettingError(
            f"no such file on this machine: {archive}; make one with docker save -o FILE IMAGE"
        )
    return str(archive.resolve())


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingError(f"is a {type(value).__name__}, expected a dictionary; with -e pass JSON or @file")
    return dict(value)


def _environment(value: Any) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, content in _mapping(value).items():
        if not _ENV_NAME.fullmatch(name):
            raise SettingError(f"{name!r} is not a name for an environment variable")
        if _SECRET_NAME.search(name):
            raise SettingError(
                f"{name} looks like a secret, and a container's environment is readable with docker inspect; "
                "put secrets into bot_config, which only the bot reads"
            )
        if isinstance(content, (Mapping, list)) or content is None:
            raise SettingError(f"{name} is a {type(content).__name__}, expected text or a number")
        result[name] = str(content).lower() if isinstance(content, bool) else str(content)
    return result


def _dollars(value: Any) -> str:
    # YAML and JSON have numbers for amounts: 5.00 arrives as 5.0.
    text = str(value).strip() if isinstance(value, float) else read_text(value)
    if not _DOLLARS.fullmatch(text):
        raise SettingError(f"{text!r} is not an amount in US dollars; write for example 5.00")
    return text


def _spend_limit(value: Any) -> str:
    limit = read_text(value)
    if limit in ("prepaid", "unlimited") or _PERIOD.fullmatch(limit):
        return limit
    raise SettingError(
        f"{limit!r} is unknown; write prepaid, unlimited, or dollars a day or a month, such as 2.00/day"
    )


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    try:
        return _BOOLEANS[str(value).strip().lower()]
    except KeyError:
        raise SettingError(f"{value!r} is neither true nor false") from None


def _source(value: Any) -> str:
    try:
        return read_source(read_text(value))
    except ValueError as error:
        raise SettingError(str(error)) from None


def _each(read: Callable[[Any], dict[str, Any]], key: str) -> Callable[[Any], list[dict[str, Any]]]:
    """Reads a list whose elements all have another ``key``."""

    def read_all(value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list):
            raise SettingError(f"is a {type(value).__name__}, expected a list; with -e pass JSON or @file")
        try:
            found = [read(one) for one in value]
        except (ValueError, OSError) as error:
            raise SettingError(str(error)) from None
        names = [one[key] for one in found]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SettingError(f"{', '.join(twice)} is there twice")
        return found

    return read_all


READERS: dict[str, Callable[[Any], Any]] = {
    "token": _token,
    "bot_name": _label,
    "plan": read_text,
    "owner": _owner,
    "agent": read_text,
    "bot_image": read_image,
    "bot_image_archive": read_archive,
    "bot_env": _environment,
    "bot_config": _mapping,
    "open_to_all": _boolean,
    "balance": _dollars,
    "spend_limit": _spend_limit,
    "rotate_gateway_token": _boolean,
    "skills": _each(read_skill, "source"),
    "tools": _each(read_tool, "name"),
    "migrate_from": _source,
}
_ABSENT: dict[str, Any] = {"rotate_gateway_token": False}


def read_entries(
    entries: Sequence[Any],
    *,
    agents: Collection[str] = (),
    plans: Collection[str] = (),
    reserved: Collection[str] = (),
) -> tuple[list[dict[str, Any]], list[str]]:
    """Check and fill up the bots a user asks for.

    ``entries`` hold OPTIONS; an option that is missing, None or "" counts as not given. ``agents``, ``plans``
    and ``reserved`` are the names there are and the labels that must not be used; empty: not checked.
    Returns the bots (each with all OPTIONS, None where nothing was given, and the number ``telegram_id``) and
    the problems found in all of them, one sentence each; with problems the bots are of no use.
    """
    bots: list[dict[str, Any]] = []
    problems: list[str] = []
    first_with: dict[tuple[str, Any], int] = {}
    if not entries:
        problems.append("no bot to deploy: give token=… or a list of bots")
    for index, entry in enumerate(entries):
        where = f"bots[{index}]." if len(entries) > 1 else ""
        if not isinstance(entry, Mapping):
            problems.append(f"bots[{index}]: is a {type(entry).__name__}, expected a dictionary with a token")
            continue
        problems += [where + text for text in unknown_names(entry, OPTIONS)]
        bot: dict[str, Any] = {name: _ABSENT.get(name) for name in OPTIONS}
        failed = False
        for name in OPTIONS:
            value = entry.get(name)
            if name != "token" and (value is None or value == ""):
                continue
            try:
                bot[name] = READERS[name]("" if value is None else value)
            except SettingError as error:
                failed = True
                problems.append(f"{where}{name}: {error}")
        if failed:
            continue
        bot["telegram_id"] = int(bot["token"].partition(":")[0])
        bots.append(bot)
        for name, known, kind in (("agent", agents, "agents"), ("plan", plans, "plans")):
            if bot[name] and known and bot[name] not in known:
                problems.append(
                    f"{where}{name}: {bot[name]!r} does not exist; {suggest(bot[name], known, kind)}"
                )
        if bot["bot_name"] in reserved:
            problems.append(
                f"{where}bot_name: {bot['bot_name']!r} is reserved on this host; choose another name"
            )
        if bot["owner"] and bot["open_to_all"]:
            problems.append(f"{where}open_to_all: contradicts owner {bot['owner']!r}; give one of the two")
        for key, value in (("token", bot["telegram_id"]), ("bot_name", bot["bot_name"])):
            if value is not None and first_with.setdefault((key, value), index) != index:
                problems.append(
                    f"{where}{key}: same as in bots[{first_with[key, value]}]; each bot needs its own"
                )
    return bots, problems


def check_result_file(path: str) -> list[str]:
    """Problems with the place where the result is to be written; ``path`` is empty if it is not."""
    target = Path(path).expanduser()
    if not path:
        return []
    if target.is_dir():
        return [f"result_file: {target} is a directory; name a file in it"]
    if not target.absolute().parent.is_dir():
        return [f"result_file: no directory {target.absolute().parent} on this machine; create it first"]
    return []
