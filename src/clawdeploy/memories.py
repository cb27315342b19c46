"""What a new bot takes over of another agent's bot: what that one has written down, and nothing else of it.

Which files these are, and how its own agent reads them, is the agent's data (ImportRules). Only those are
ever read, so no key and no configuration of the source can come along. They are read into memory, checked,
and shown to the agent's own command in a container without a network, before the bot starts for the first
time.
"""

import base64
import binascii
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from clawdeploy import backup, events
from clawdeploy.archives import Entry, File, Rules, checksum, files_in, plain_files, read_plain, write_files
from clawdeploy.containers import ContainerSpec, MountSpec
from clawdeploy.errors import ClawError
from clawdeploy.files import write_atomic
from clawdeploy.models import Bot, Kept
from clawdeploy.registry import Registry
from clawdeploy.storage import HomeFile, HomePath, Homes

if TYPE_CHECKING:
    from clawdeploy.clitools import Machine

RULES = Rules(
    what="migrate_from",
    code="source_invalid",
    part=re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]{1,200}"),
    names="without control characters",
    most_files=2000,
    most_bytes=8 << 20,  # all of which an agent with little memory has to hold
    most_unpacked=32 << 20,
    most_depth=3,
    smaller="take out of it what need not be remembered",
)
_FACTS = "memories.json"
_STAGE = "memories.new"
_SECONDS = 120
_MOST_NAMES = 20_000
_NOBODY = 65534
# A database may be made to harm whoever opens it, so that is done as nobody. What comes out of it is one
# file, which can be read where nothing can be written: a log beside it (WAL) could not.
_FLATTEN = """
import resource, sqlite3
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 26, 1 << 26))
database = sqlite3.connect("given.db")
database.execute("PRAGMA trusted_schema = OFF")
database.execute("SELECT count(*) FROM memories").fetchone()
database.execute("VACUUM INTO 'whole.db'")
"""


class ImportRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an agent takes over of another one, and how.

    workspace: the directory of the other's home that all of it is in; notes (text), databases (SQLite):
    patterns of paths below it that the agent's command reads; note_limit: bytes of a note that it reads, at
    most; files: what is copied as it is -> where to, in the new home. command: run in the agent's image, with
    all of it at ``mount``; answer: what it says when it is done, with the number of notes that are new to it
    and that it knew.
    """

    workspace: HomePath
    notes: tuple[str, ...]
    databases: tuple[str, ...] = ()
    files: dict[str, HomePath] = {}
    note_limit: Annotated[int, Meta(ge=1)]
    command: tuple[str, ...]
    mount: str
    answer: str

    def patterns(self) -> tuple[str, ...]:
        return (*self.notes, *self.databases, *(f"{name}-wal" for name in self.databases), *self.files)

    def wants(self, path: str) -> bool:
        return any(_matches(path, pattern) for pattern in self.patterns())


class Taking(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the bot of one Telegram bot takes over: of a bot of this host (``source``: id or name), or of an
    archive (base64) that its user calls ``source``. imports: by agent. container None: it is only checked.
    """

    telegram_id: int
    agent: str
    source: Annotated[str, Meta(min_length=1)]
    archive: str | None = None
    imports: dict[str, ImportRules]
    container: ContainerSpec | None = None


class TakingsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Input of ``clawctl memories apply``."""

    bots: tuple[Taking, ...]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a bot has taken over: of which bot (id) or archive (checksum), and what the user called that;
    ``since``: Unix seconds.
    """

    source: str
    asked: str
    label: str
    agent: str
    notes: int
    files: tuple[str, ...]
    since: int


@dataclass(frozen=True)
class _Source:
    """Where something is to be had: a bot that is here, one whose disk was kept, or an archive's bytes."""

    identity: str
    label: str
    agent: str
    rules: ImportRules
    place: Bot | Kept | None
    files: Mapping[str, File]


def facts(homes: Homes, bot_id: str) -> Facts | None:
    """What the bot has taken over; None if nothing, or if its disk is not mounted."""
    path = homes.mount_point(bot_id) / _FACTS
    return msgspec.json.decode(path.read_bytes(), type=Facts) if path.exists() else None


def apply(machine: "Machine", request: TakingsRequest, now: int, check: bool) -> dict[str, Any]:
    """Let these bots take over what they are to, each once and before it first starts.

    Everything is checked before anything is changed: ClawError with all that is wrong.
    """
    plans, problems = list[tuple[Taking, Bot | None, Facts | _Source]](), list[tuple[str, str]]()
    with machine.registry() as registry:
        for taking in request.bots:
            try:
                plans.append((taking, *_plan(machine, registry, taking)))
            except ClawError as error:
                problems += error.problems
    if problems:
        raise ClawError.several(problems)
    after, told = list[str](), list[dict[str, Any]]()
    for taking, bot, plan in plans:
        known = plan if isinstance(plan, Facts) else None
        if isinstance(plan, _Source) and taking.container is not None:
            label = bot.label if bot else taking.source
            after.append(f"memory of {label}: what {plan.label} knew ({len(plan.files)} files)\n")
            if not check:
                known = _take_over(machine, taking, _there(bot, taking), taking.container, plan, now)
        told.append({"telegram_id": taking.telegram_id, "facts": msgspec.to_builtins(known)})
    return {
        "changed": bool(after),
        "diff": {"before": "", "after": "".join(after)},
        "bots": told,
    }


def _there(bot: Bot | None, taking: Taking) -> Bot:
    if bot is None:
        raise ClawError("unknown_bot", f"this host has no bot {taking.telegram_id}: declare it first.")
    return bot


# --- what is asked for ------------------------------------------------------------------------------


def _plan(machine: "Machine", registry: Registry, taking: Taking) -> tuple[Bot | None, Facts | _Source]:
    """The bot, if it is there, and what it is to take over, or has."""
    bot = next((one for one in registry.bots() if one.telegram_id == taking.telegram_id), None)
    if bot is not None and bot.agent != taking.agent:
        bot = None  # it cannot stay: declare says so
    known = facts(machine.homes, bot.id) if bot else None
    if known is not None and known.asked == taking.source and taking.archive is None:
        return bot, known
    source = _find(machine, registry, taking)
    if known is not None:
        if known.source == source.identity:
            return bot, known
        raise RULES.refuse(
            taking.source,
            f"the bot has taken over what {known.label} knew, and that is not mixed with anything else; "
            "leave migrate_from out, or destroy the bot first",
        )
    if bot is not None and (bot.config_hash is not None or registry.store.container(bot.id) is not None):
        raise RULES.refuse(
            taking.source,
            f"{bot.label} has run already, and what it remembers is not touched; leave migrate_from out, or "
            f"destroy it first (`clawctl destroy {bot.label}`)",
        )
    for kept in registry.store.kept() if bot is None else ():
        if kept.telegram_id == taking.telegram_id and kept.agent == taking.agent:
            raise RULES.refuse(
                taking.source,
                "the bot was here before, and its own data comes back with this deploy; leave migrate_from "
                f"out, or remove that data first (`clawctl destroy --purge {kept.id}`)",
            )
    return bot, source


def _find(machine: "Machine", registry: Registry, taking: Taking) -> _Source:
    if taking.archive is not None:
        return _of_archive(taking, taking.archive)
    place = _bot_of(registry, taking)
    rules = taking.imports.get(place.agent)
    if rules is None:
        agents = ", ".join(sorted(taking.imports)) or "none"
        raise RULES.refuse(
            taking.source,
            f"{place.label} runs {place.agent}, and {taking.agent} takes over only what bots of these agents "
            f"know: {agents}",
        )
    with _home_of(machine, place) as root:
        files = _read(taking.source, root, rules)
    return _Source(place.id, place.label, place.agent, rules, place, files)


def _bot_of(registry: Registry, taking: Taking) -> Bot | Kept:
    here: list[Bot | Kept] = [*registry.bots(), *registry.store.kept()]
    for one in here:
        if taking.source in (one.id, one.name) and not (
            one.telegram_id == taking.telegram_id and one.agent == taking.agent
        ):
            return one
    elsewhere = any(taking.source in (one.id, one.name) for one in registry.store.remotes())
    if elsewhere:
        raise RULES.refuse(
            taking.source, "that bot runs elsewhere; make an archive of its workspace and give the file"
        )
    raise RULES.refuse(
        taking.source,
        "this host has no other bot of that id or name; see `clawctl list` and `clawctl list --kept`, or "
        "give an archive, with a / in its path",
    )


def _of_archive(taking: Taking, archive: str) -> _Source:
    try:
        content = base64.b64decode(archive, validate=True)
    except binascii.Error:
        raise RULES.refuse(taking.source, "it arrived damaged") from None
    refusal: ClawError | None = None
    for agent, rules in sorted(taking.imports.items()):
        try:
            choose = partial(_choose, taking.source, rules)
            files = _checked(taking.source, rules, files_in(RULES, taking.source, content, choose))
        except ClawError as error:
            refusal = refusal or error
            continue
        label = PurePosixPath(taking.source).name
        return _Source(checksum(files), label, agent, rules, None, files)
    raise refusal or RULES.refuse(taking.source, f"{taking.agent} takes over nobody's memory")


def _choose(source: str, rules: ImportRules, entries: Sequence[Entry]) -> list[Entry]:
    """The entries of the one workspace in an archive, with their paths in it; and those whose path leads out
    of the archive, for the checks to refuse.

    That is the directory called like a workspace which is least deep, else any that holds what is wanted.
    """
    bad, found = list[Entry](), dict[str, list[Entry]]()
    for entry in entries:
        parts = entry.path.removeprefix("./").split("/")
        if parts[0] == "" or ".." in parts:
            bad.append(entry)
            continue
        for depth in range(len(parts)):
            path = "/".join(parts[depth:])
            if rules.wants(path):
                moved = Entry(path, entry.mode, entry.size, entry.read)
                found.setdefault("/".join(parts[:depth]), []).append(moved)
    name = PurePosixPath(rules.workspace).name

    def rank(root: str) -> tuple[bool, int]:
        return PurePosixPath(root).name != name, len(PurePosixPath(root).parts)

    best = sorted(found, key=rank)[:2]
    if len(best) == 2 and rank(best[0]) == rank(best[1]):
        raise RULES.refuse(
            source, f"it holds more than one workspace ({', '.join(best)}); make an archive of one of them"
        )
    return bad + (found[best[0]] if best else [])


def _matches(path: str, pattern: str) -> bool:
    """Whether a path fits; a * is never more than one name of it."""
    names, parts = path.split("/"), pattern.split("/")
    return len(names) == len(parts) and all(map(fnmatchcase, names, parts))


# --- reading it -------------------------------------------------------------------------------------


@contextmanager
def _home_of(machine: "Machine", place: Bot | Kept) -> Iterator[Path]:
    """Where the files of a bot are. A disk that was kept is mounted for it, read-only."""
    if isinstance(place, Bot):
        yield machine.homes.mounted(place.id)
        return
    with backup.alone(machine.paths), backup.workplace(machine.paths, f"kept-{place.id}") as root:
        options = "loop,ro,nodev,nosuid,noexec"
        done = subprocess.run(
            ["mount", "-o", options, str(machine.homes.image(place.id)), str(root)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClawError(
                "mount_failed",
                f"the kept disk of {place.label} cannot be mounted ({' '.join(done.stderr.split())[-300:]}).",
            )
        try:
            yield root
        finally:
            subprocess.run(["umount", str(root)], check=True, capture_output=True)


def _read(source: str, root: Path, rules: ImportRules) -> dict[str, File]:
    """What of a bot's home is to be taken over. The bot owns all of it, so no name in there is followed."""
    with ExitStack() as stack:
        entries = list(_entries(source, root, rules, stack))
        return _checked(source, rules, plain_files(RULES, source, entries))


def _entries(source: str, root: Path, rules: ImportRules, stack: ExitStack) -> Iterator[Entry]:
    def enter(name: str, directory: int | None) -> int | None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError:
            raise RULES.refuse(source, f"{name} in its workspace is no directory") from None
        stack.callback(os.close, descriptor)
        return descriptor

    def walk(path: str, directory: int | None) -> int | None:
        for name in PurePosixPath(path).parts:
            directory = enter(name, directory) if directory is not None else None
        return directory

    workspace = walk(rules.workspace, enter(str(root), None))
    for folder in sorted({str(PurePosixPath(pattern).parent) for pattern in rules.patterns()}):
        directory = walk(folder, workspace)
        if directory is None:
            continue
        with os.scandir(directory) as listed:
            names = sorted(entry.name for entry in islice(listed, _MOST_NAMES))
        for name in names:
            path = str(PurePosixPath(folder, name))
            if rules.wants(path):
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                read = partial(read_plain, name, RULES.most_bytes, directory)
                yield Entry(path, status.st_mode, status.st_size, read)


def _checked(source: str, rules: ImportRules, files: Mapping[str, File]) -> dict[str, File]:
    """The files as the agent will see them. ClawError if it could not read one, or if there are none."""
    done, problems = dict[str, File](), list[str]()
    for path, file in sorted(files.items()):
        if any(_matches(path, f"{pattern}-wal") for pattern in rules.databases):
            continue
        if any(_matches(path, pattern) for pattern in rules.databases):
            log = files.get(f"{path}-wal")
            whole = _flattened(file.content, log.content if log else b"")
            if whole is None:
                problems.append(f"{path} is no SQLite database of memories that can be read")
            else:
                done[path] = File(whole, False)
        elif len(file.content) > rules.note_limit:
            problems.append(
                f"{path} is larger than {rules.note_limit >> 10} KiB, and would not be read at all"
            )
        elif not _is_text(file.content):
            problems.append(f"{path} is no text in UTF-8")
        else:
            done[path] = File(file.content, False)
    if problems:
        raise RULES.refuse(source, *problems)
    if not done:
        wanted = ", ".join((*rules.notes, *rules.databases, *rules.files))
        raise RULES.refuse(source, f"nothing was written down there; none of {wanted} is in its workspace")
    return done


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def _flattened(content: bytes, log: bytes) -> bytes | None:
    """The database, and what its write-ahead log adds, as one file; None if it is none."""
    with tempfile.TemporaryDirectory(prefix="clawdeploy-memories-") as name:
        place = Path(name)
        for file, data in (("given.db", content), ("given.db-wal", log)):
            if data:
                (place / file).write_bytes(data)
                os.chown(place / file, _NOBODY, _NOBODY)
        os.chown(place, _NOBODY, _NOBODY)
        done = subprocess.run(
            [str(Path(sys.executable).resolve()), "-I", "-S", "-c", _FLATTEN],
            cwd=place,
            env={},
            user=_NOBODY,
            group=_NOBODY,
            extra_groups=(),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            return None
        whole = read_plain(place / "whole.db", RULES.most_unpacked)
        return whole if len(whole) <= RULES.most_unpacked else None


# --- taking it over ---------------------------------------------------------------------------------


def _take_over(
    machine: "Machine", taking: Taking, bot: Bot, container: ContainerSpec, source: _Source, now: int
) -> Facts:
    files, rules = _still(machine, taking, source), source.rules
    root = machine.homes.mounted(bot.id)
    stage = root / _STAGE
    try:
        _clear(stage)
        write_files(stage, files)
        read = any(path not in rules.files for path in files)
        notes = _import(machine, taking, bot, container, rules, stage) if read else 0
    finally:
        _clear(stage)
    for path, target in rules.files.items():
        if path in files:
            text = files[path].content.decode()
            machine.homes.write_file(bot.id, HomeFile(path=target, content=text, mode="0600"))
    done = Facts(
        source=source.identity,
        asked=source.label if taking.archive else taking.source,
        label=source.label,
        agent=source.agent,
        notes=notes,
        files=tuple(sorted(files)),
        since=now,
    )
    write_atomic(root / _FACTS, msgspec.json.encode(done).decode())
    with machine.changing() as registry:
        said = f"{bot.label} took over what {source.label} ({source.agent}) knew: {notes} notes"
        details = {"from": source.identity, "agent": source.agent, "notes": notes, "files": list(done.files)}
        events.record(registry.store, "migrated", bot, said, details)
    return done


def _still(machine: "Machine", taking: Taking, source: _Source) -> Mapping[str, File]:
    """The files as they are while the source stands still, so that a database and its log belong together."""
    if not isinstance(source.place, Bot):
        return source.files
    bot_id = source.place.id
    with (
        backup.alone(machine.paths),
        backup.workplace(machine.paths, bot_id) as place,
        backup.standing_still(machine, bot_id, place),
        _home_of(machine, source.place) as root,
    ):
        return _read(taking.source, root, source.rules)


def _import(
    machine: "Machine", taking: Taking, bot: Bot, container: ContainerSpec, rules: ImportRules, stage: Path
) -> int:
    """How many notes the bot knows after its agent's command; ClawError("import_failed")."""
    with machine.engine() as engine:
        if bot.id in engine.states():
            raise RULES.refuse(
                taking.source, f"{bot.label} has a container already; destroy it first, then deploy it again"
            )
        seen = MountSpec(source=str(stage), target=rules.mount, read_only=True)
        code, output = engine.once(bot.id, container, rules.command, seen, _SECONDS)
    answer = re.search(rules.answer, output)
    if code != 0 or answer is None:
        raise ClawError(
            "import_failed",
            f"migrate_from {taking.source}: the import into {bot.label} ended with code {code}: "
            f"{' '.join(output.split())[-300:] or 'it said nothing'}.",
        )
    return sum(int(group) for group in answer.groups())


def _clear(stage: Path) -> None:
    if stage.exists():
        shutil.rmtree(stage)
