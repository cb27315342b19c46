"""Skills: what an operator teaches a bot. Their checks, the host's library of them, and what each bot has.

All of it lies on the bot's own disk, beside the one directory that the bot can write to.
"""

import base64
import binascii
import errno
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from clawdeploy import events
from clawdeploy.archives import (
    File,
    Rules,
    checksum,
    files_at,
    files_in,
    make_directory,
    of_directory,
    write_files,
)
from clawdeploy.containers import SkillRules
from clawdeploy.errors import ClawError
from clawdeploy.files import write_atomic
from clawdeploy.models import Bot
from clawdeploy.registry import Registry
from clawdeploy.storage import Homes

MANIFEST = "SKILL.md"
MOST_FILES = 200
MOST_BYTES = 2 << 20
MOST_MANIFEST = 128 << 10  # half of what agents read

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,31}")
_PART = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._+@ -]{1,100}")
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?\r?\n)---[ \t]*(\r?\n|$)", re.DOTALL)
_MOST_DESCRIPTION = 1024
RULES = Rules(
    what="skill",
    code="skill_invalid",
    part=_PART,
    names="of letters, digits and ._+@-",
    most_files=MOST_FILES,
    most_bytes=MOST_BYTES,
    most_unpacked=8 << 20,
    most_depth=6,
    smaller="leave out what the agent need not read",
)


# --- bundles ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundle:
    """A skill that passed all checks. files: relative path -> content; sha256 (hex) is over all of them."""

    name: str
    version: str
    description: str
    files: Mapping[str, File]
    sha256: str


def read_bundle(source: str, path: Path) -> Bundle:
    """The skill in a directory or an archive (tar, zip); ``source`` is what messages call it.

    ClawError("skill_invalid") with all that is wrong with it.
    """
    return _described(source, _without_top(files_at(RULES, source, path)))


def read_archive(source: str, content: bytes) -> Bundle:
    """The skill in an archive's bytes; see ``read_bundle``."""
    return _described(source, _without_top(files_in(RULES, source, content)))


def _without_top(files: dict[str, File]) -> dict[str, File]:
    """The files of an archive that was made of one directory, without that."""
    tops = {path.partition("/")[0] for path in files}
    if len(tops) == 1 and (top := f"{tops.pop()}/{MANIFEST}") in files:
        cut = len(top) - len(MANIFEST)
        return {path[cut:]: file for path, file in files.items()}
    return files


def _described(source: str, files: Mapping[str, File]) -> Bundle:
    for path in files:
        if any(other.startswith(f"{path}/") for other in files):
            raise RULES.refuse(source, f"{path} is both a file and a directory")
    if MANIFEST not in files:
        raise RULES.refuse(source, f"{MANIFEST} is missing at its top")
    known = _front_matter(source, files[MANIFEST].content)
    digest = checksum(files)
    name, description = known.get("name"), known.get("description")
    version = known.get("version", digest[:12])
    problems = []
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.append(f"its name in {MANIFEST} must be 1 to 64 of a-z, 0-9 and hyphens, none at an end")
    if not isinstance(description, str) or not 0 < len(description.strip()) <= _MOST_DESCRIPTION:
        problems.append(
            f"its description in {MANIFEST} must be a text of at most {_MOST_DESCRIPTION} characters"
        )
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        problems.append(f"its version in {MANIFEST} must be at most 32 letters, digits and .+_-")
    if problems:
        raise RULES.refuse(source, *problems)
    return Bundle(str(name), str(version), str(description).strip(), files, digest)


def _front_matter(source: str, content: bytes) -> Mapping[str, Any]:
    import yaml  # every verb of clawctl would wait for it

    if len(content) > MOST_MANIFEST:
        raise RULES.refuse(source, f"{MANIFEST} is larger than {MOST_MANIFEST >> 10} KiB")
    try:
        found = _FRONT_MATTER.match(content.decode())
        # BaseLoader makes text of everything: 1.10 is a version, and no number.
        known = yaml.load(found[1], yaml.BaseLoader) if found else None  # noqa: S506 # makes text only
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        raise RULES.refuse(
            source, f"{MANIFEST} must be UTF-8 text that begins with ---, name: and description:, ---"
        )
    return known


# --- on disk ----------------------------------------------------------------------------------------


def _drop(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _read(root: Path) -> dict[str, File]:
    return {
        entry.path: File(entry.read(), bool(entry.mode & 0o111))
        for entry in of_directory(root)
        if stat.S_ISREG(entry.mode)
    }


class Library:
    """Skills that all bots of this host may take by name, each version once: ``<name>/<version>/``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, bundle: Bundle) -> bool:
        """Put the skill in; whether it was not there. ClawError("skill_differs") if a version was changed."""
        place = self.root / bundle.name / bundle.version
        if place.is_dir():
            if checksum(_read(place)) == bundle.sha256:
                return False
            raise ClawError(
                "skill_differs",
                f"the library has another {bundle.name} {bundle.version}: give yours a new version.",
            )
        fresh = place.with_name(f".{bundle.version}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        for directory in (self.root, place.parent):
            make_directory(directory)
        write_files(fresh, bundle.files)
        fresh.rename(place)
        return True

    def bundles(self) -> list[Bundle]:
        """All of them, by name and version."""
        return [
            read_bundle(f"{place.parent.name}@{place.name}", place)
            for name in sorted(self.root.glob("[!.]*"))
            for place in sorted(name.glob("[!.]*"), key=lambda place: _ascending(place.name))
        ]

    def find(self, reference: str) -> Bundle:
        """The skill called ``name`` (its highest version) or ``name@version``; ClawError("unknown_skill")."""
        name, _, version = reference.partition("@")
        if _NAME.fullmatch(name) and (not version or _VERSION.fullmatch(version)):
            found = sorted((self.root / name).glob(version or "[!.]*"), key=lambda one: _ascending(one.name))
            if found:
                return read_bundle(reference, found[-1])
        raise ClawError(
            "unknown_skill",
            f"the library has no skill {reference!r}: see `clawctl skills list`; a path has a / in it.",
        )


def _ascending(version: str) -> list[tuple[int, str]]:
    """1.10 comes after 1.9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", version)]


# --- what a bot has ---------------------------------------------------------------------------------


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a skill that a bot has; ``source``: where it came from, ``since``: Unix seconds."""

    version: str
    sha256: str
    source: str
    since: int


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """A skill of a bot, and what ``rollback`` brings back."""

    current: Version
    previous: Version | None = None


class Shelf:
    """The skills of one bot: ``skills/`` (what its agent sees), ``skills.previous/`` and ``skills.json``.

    The bot can write to none of them. Whoever changes something holds the host's lock.
    """

    def __init__(self, homes: Homes, bot: Bot, rules: SkillRules | None) -> None:
        if rules is None:
            raise ClawError(
                "no_skills",
                f"{bot.label} takes no skills: its agent ({bot.agent}) knows none, or it was deployed before "
                "there were any; then run the upgrade_bots playbook and try again.",
            )
        self._homes, self._bot, self._rules = homes, bot, rules
        self._root = homes.mounted(bot.id)
        self._seen, self._kept = self._root / rules.source, self._root / "skills.previous"
        self._state = self._root / "skills.json"

    def installed(self) -> dict[str, Installed]:
        """By name."""
        if not self._state.exists():
            return {}
        return msgspec.json.decode(self._state.read_bytes(), type=dict[str, Installed])

    def intact(self, name: str) -> bool:
        """Whether what the agent sees are the files whose checksum is pinned."""
        return self._sum(self._seen / name) == self.installed()[name].current.sha256

    def has(self, bundle: Bundle) -> bool:
        """Whether the bot has exactly this version."""
        found = self.installed().get(bundle.name)
        return found is not None and found.current.sha256 == bundle.sha256 and self.intact(bundle.name)

    def put(self, bundle: Bundle, source: str, now: int) -> bool:
        """Let the bot have this version; what it had becomes the previous one. Whether it had it not."""
        if self.has(bundle):
            return False
        known = self.installed()
        old = known.get(bundle.name)
        same = old is not None and old.current.sha256 == bundle.sha256
        place, kept = self._seen / bundle.name, self._kept / bundle.name
        with self._fresh(bundle) as fresh:
            if not same:
                _drop(kept)
                if place.is_dir():
                    make_directory(self._kept)
                    place.rename(kept)
            _drop(place)
            fresh.rename(place)
        version = Version(version=bundle.version, sha256=bundle.sha256, source=source, since=now)
        previous = (old.previous if same else old.current) if old else None
        self._save(known | {bundle.name: Installed(current=version, previous=previous)})
        return True

    def remove(self, name: str) -> None:
        """Take the skill away, its previous version too."""
        known = self.installed()
        _drop(self._seen / name)
        _drop(self._kept / name)
        self._save({other: installed for other, installed in known.items() if other != name})

    def roll_back(self, name: str, now: int) -> Version:
        """Let current and previous version change places; returns what is current then.

        ClawError("no_previous") if there is none whose checksum is right.
        """
        known = self.installed()
        place, kept, aside = self._seen / name, self._kept / name, self._root / "skills.new"
        previous = known[name].previous
        if previous is None or self._sum(kept) != previous.sha256:
            raise ClawError(
                "no_previous", f"{self._bot.label} has no other version of {name} to go back to: add one."
            )
        _drop(aside)
        place.rename(aside)
        kept.rename(place)
        aside.rename(kept)
        back = msgspec.structs.replace(previous, since=now)
        self._save(known | {name: Installed(current=back, previous=known[name].current)})
        return back

    @contextmanager
    def _fresh(self, bundle: Bundle) -> Iterator[Path]:
        """The files of a skill in a directory of their own, on the bot's disk, which they must not fill."""
        fresh = self._root / "skills.new"
        try:
            _drop(fresh)
            write_files(fresh, self._dressed(bundle))
            yield fresh
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ClawError(
                    "disk_full",
                    f"the disk of {self._bot.label} has no room for {bundle.name}: let it remove files, or "
                    "give it a plan with a larger disk_size.",
                ) from None
            raise
        finally:
            _drop(fresh)

    def _save(self, known: Mapping[str, Installed]) -> None:
        write_atomic(self._state, msgspec.json.encode(known, order="deterministic").decode())
        if self._rules.touch:
            self._homes.touch(self._bot.id, self._rules.touch)

    def _dressed(self, bundle: Bundle) -> dict[str, File]:
        """With what the agent wants to find beside SKILL.md, unless the bundle brings its own."""
        files = dict(bundle.files)
        if self._rules.manifest and self._rules.manifest not in files:
            about = {"name": bundle.name, "description": bundle.description, "version": bundle.version}
            text = msgspec.json.encode(about | self._rules.manifest_content, order="deterministic")
            files[self._rules.manifest] = File(text, False)
        return files

    def _sum(self, place: Path) -> str:
        """Checksum of the bundle that ``place`` was made from."""
        files = _read(place)
        bare = {path: file for path, file in files.items() if path != self._rules.manifest}
        with suppress(ClawError):
            if self._dressed(_described(place.name, bare)) == files:
                return checksum(bare)
        return checksum(files)


# --- verbs (callers hold the host's lock) -----------------------------------------------------------


class WantedSkill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One skill of a deploy: from an archive (base64), or by its name from the library if there is none."""

    source: Annotated[str, Meta(min_length=1)]
    archive: str | None = None
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None = None


class SkillsOfBot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All skills that a bot (id or name) should have, by their sources."""

    id: Annotated[str, Meta(min_length=1)]
    skills: tuple[str, ...]


class SkillsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Input of ``clawctl skills apply``; without bots it is only checked."""

    skills: tuple[WantedSkill, ...]
    bots: tuple[SkillsOfBot, ...] = ()


def library(registry: Registry) -> Library:
    return Library(Path(registry.host.skills_library))


def shelf(registry: Registry, homes: Homes, bot: Bot) -> Shelf:
    """ClawError("no_skills") if its agent takes none, "not_mounted" if its disk is not there."""
    spec = registry.store.container(bot.id)
    return Shelf(homes, bot, spec.skills if spec else None)


def fetch(registry: Registry, source: str) -> Bundle:
    """The skill at a path of this host, or of that name in its library."""
    return read_bundle(source, Path(source)) if "/" in source else library(registry).find(source)


def pinned(bundle: Bundle, source: str, sha256: str | None) -> Bundle:
    """The bundle, if it is the one that was meant; ClawError("checksum_differs")."""
    if sha256 and sha256 != bundle.sha256:
        raise ClawError(
            "checksum_differs",
            f"skill {source}: its checksum is {bundle.sha256}, not {sha256}: it was changed.",
        )
    return bundle


def add(registry: Registry, homes: Homes, bot: Bot, bundle: Bundle, source: str, now: int) -> bool:
    """Give the bot a skill; whether it had it not."""
    changed = shelf(registry, homes, bot).put(bundle, source, now)
    if changed:
        details = {"skill": bundle.name, "version": bundle.version, "sha256": bundle.sha256, "source": source}
        said = f"{bot.label} got skill {bundle.name} {bundle.version}"
        events.record(registry.store, "skill_added", bot, said, details)
    return changed


def remove(registry: Registry, homes: Homes, bot: Bot, name: str) -> None:
    """Take a skill from the bot; ClawError("unknown_skill")."""
    found = shelf(registry, homes, bot)
    require(found, bot, name)
    found.remove(name)
    events.record(registry.store, "skill_removed", bot, f"{bot.label} lost skill {name}", {"skill": name})


def roll_back(registry: Registry, homes: Homes, bot: Bot, name: str, now: int) -> Version:
    """Give the bot the version of a skill that it had before; ClawError("unknown_skill", "no_previous")."""
    found = shelf(registry, homes, bot)
    require(found, bot, name)
    back = found.roll_back(name, now)
    details = {"skill": name, "version": back.version, "sha256": back.sha256}
    said = f"{bot.label} went back to skill {name} {back.version}"
    events.record(registry.store, "skill_rolled_back", bot, said, details)
    return back


def require(found: Shelf, bot: Bot, name: str) -> Installed:
    """What the bot has of that name; ClawError("unknown_skill")."""
    if name not in (known := found.installed()):
        raise ClawError(
            "unknown_skill", f"{bot.label} has no skill {name!r}; it has {', '.join(known) or 'none'}."
        )
    return known[name]


def apply(registry: Registry, homes: Homes, request: SkillsRequest, now: int, check: bool) -> dict[str, Any]:
    """Let these bots have exactly the skills asked for, once all of those have passed their checks."""
    bundles, problems = dict[str, Bundle](), list[tuple[str, str]]()
    for wanted in request.skills:
        try:
            bundles[wanted.source] = pinned(_of(registry, wanted), wanted.source, wanted.sha256)
        except ClawError as error:
            problems += error.problems
    if problems:
        raise ClawError.several(problems)
    lines = list[tuple[str, str]]()
    for one in request.bots:
        bot = _named_bot(registry, one.id, check)
        found = shelf(registry, homes, bot) if bot and registry.store.container(bot.id) else None
        names = _named(one.skills, bundles)
        for name in found.installed().keys() - names.keys() if found else ():
            lines.append((f"{one.id}/{name}: there\n", f"{one.id}/{name}: absent\n"))
            if bot and not check:
                remove(registry, homes, bot, name)
        for name, source in names.items():
            bundle = bundles[source]
            if found and found.has(bundle):
                continue
            shown = f"{bundle.version} ({bundle.sha256})"
            lines.append((f"{one.id}/{name}: absent or different\n", f"{one.id}/{name}: {shown}\n"))
            if bot and not check:
                add(registry, homes, bot, bundle, source, now)
    return {
        "changed": bool(lines),
        "diff": {"before": "".join(was for was, _ in lines), "after": "".join(now_ for _, now_ in lines)},
        "skills": [
            {"source": source, "name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}
            for source, bundle in bundles.items()
        ],
    }


def _named_bot(registry: Registry, reference: str, check: bool) -> Bot | None:
    """In check mode an id that ``declare --check`` made up is taken for a new bot, None."""
    try:
        return registry.find(reference)
    except ClawError:
        if check:
            return None
        raise


def _of(registry: Registry, wanted: WantedSkill) -> Bundle:
    if wanted.archive is None:
        return library(registry).find(wanted.source)
    try:
        return read_archive(wanted.source, base64.b64decode(wanted.archive, validate=True))
    except binascii.Error:
        raise RULES.refuse(wanted.source, "it arrived damaged") from None


def _named(sources: Sequence[str], bundles: Mapping[str, Bundle]) -> dict[str, str]:
    """Name -> source; ClawError("skill_twice") if two sources are one skill."""
    names = dict[str, str]()
    for source in sources:
        other = names.setdefault(bundles[source].name, source)
        if other != source:
            raise ClawError(
                "skill_twice",
                f"skills {other} and {source} are both called {bundles[source].name}: give one.",
            )
    return names
