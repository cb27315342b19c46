"""Backups: what goes into a snapshot, and how it is taken from bots that are running.

A bot's snapshot has ``/bot.json`` (a BotRecord) and ``/home`` (its disk's files); the platform's has the
registry, the ledger, the host's facts, and bots' secrets and claims. The files of a bot are copied while its
processes stand still, for as long as a copy on the local disk takes: what is saved is what the disk would
hold had the power failed at that moment, which databases such as SQLite are made to survive.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import syslog
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from clawdeploy import claims, events, version
from clawdeploy.containers import ContainerSpec
from clawdeploy.errors import ClawError
from clawdeploy.files import private_directory
from clawdeploy.host import Paths, free_bytes
from clawdeploy.ledger_client import Account
from clawdeploy.models import Bot, BotSecrets, Suspension
from clawdeploy.registry import iso
from clawdeploy.restic import Restic, Settings, Snapshot
from clawdeploy.secret_files import load_secrets
from clawdeploy.store import RegistryStore, check_ledger_copy, migrate

if TYPE_CHECKING:
    from clawdeploy.clitools import Machine

Record = TypeVar("Record")

PLATFORM = "platform"
RECORD = "bot.json"
HOME = "home"
_FROZEN = "frozen"
_SPARE_BYTES = 64 << 20
_JOURNAL_NAME = "clawdeploy-backup"


class BotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``/bot.json`` of a bot's snapshot: all that is not on its disk.

    taken_at is Unix seconds, disk_size and used are bytes; home, url, llm_gateway_url and openrouter_model
    are what the host that it ran on had told it. ``account`` is None if nobody answered for the ledger.
    """

    schema: Literal[1]
    taken_at: int
    host: str
    home: str
    url: str
    llm_gateway_url: str
    openrouter_model: str
    disk_size: int
    used: int
    bot: Bot
    secrets: BotSecrets
    claim: claims.Claim | None
    suspension: Suspension | None
    container: ContainerSpec
    account: Account | None


class PlatformRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``/platform.json``; bots: id -> label of every bot there was. taken_at is Unix seconds."""

    schema: Literal[1]
    taken_at: int
    host: str
    version: str
    bots: dict[str, str]


def tell(event: str, message: str) -> None:
    """An event for the journal (``journalctl -t clawdeploy-backup``), whoever called."""
    level = syslog.LOG_ERR if event.endswith("failed") else syslog.LOG_INFO
    syslog.openlog(_JOURNAL_NAME, 0, syslog.LOG_DAEMON)
    syslog.syslog(level, f"event={event} {message}")


def note(machine: "Machine", event: str, message: str) -> None:
    """An event for the journal, and for ``clawctl events`` as far as there is a registry."""
    tell(event, message)
    with suppress(ClawError), machine.changing() as registry:
        events.record(registry.store, event, None, message)


def open_repository(paths: Paths) -> Restic:
    """restic with this host's settings. ClawError("backup_off") if there are none."""
    try:
        settings = msgspec.json.decode(paths.backup_settings.read_bytes(), type=Settings)
        environment = msgspec.json.decode(paths.backup_environment.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        raise ClawError(
            "backup_off",
            "this host makes no backups: set backup_repository and backup_password, then run prepare_host.",
        ) from None
    except msgspec.DecodeError as error:
        raise ClawError(
            "backup_invalid", f"the settings of backups cannot be used ({error}): run prepare_host again."
        ) from None
    private_directory(paths.backup_room)
    cache = paths.backup_room / "cache"
    return Restic(settings, paths.backup_password, environment, cache, socket.gethostname())


@contextmanager
def alone(paths: Paths) -> Iterator[None]:
    """Keep other backups and restores of this host away. ClawError("backup_busy") if one is at work."""
    lock = paths.lock.with_name("clawdeploy-backup.lock")
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClawError(
                "backup_busy",
                "another backup or restore is at work on this host: try again when it has ended.",
            ) from None
        yield


@contextmanager
def workplace(paths: Paths, name: str) -> Iterator[Path]:
    """An empty directory of root's, gone afterwards."""
    place = paths.backup_room / "work" / name
    shutil.rmtree(place, ignore_errors=True)
    private_directory(place)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def copying(paths: Paths, bot_id: str) -> bool:
    """Whether the bot stands still because a backup is copying its files right now."""
    if not (paths.backup_room / "work" / bot_id / _FROZEN).exists():
        return False
    try:
        with alone(paths):
            return False  # the backup that left the mark was killed
    except ClawError:
        return True


def tidy(machine: "Machine") -> dict[str, Any]:
    """Undo what an interrupted backup left: bots that stand still, half-made copies."""
    work = machine.paths.backup_room / "work"
    thawed = []
    for mark in sorted(work.glob(f"*/{_FROZEN}")):
        _thaw(machine, mark.parent.name)
        thawed.append(mark.parent.name)
    left = sorted(path.name for path in work.glob("*"))
    shutil.rmtree(work, ignore_errors=True)
    return {"changed": bool(left), "thawed": thawed, "removed": left}


# --- making backups ---------------------------------------------------------------------------------


def back_up(machine: "Machine", references: Sequence[str], now: int, check: bool) -> dict[str, Any]:
    """Back up these bots, or all of them and the platform; then let go of what is old.

    A bot that cannot be saved does not keep the others from it: ClawError with all that failed comes last.
    """
    restic = open_repository(machine.paths)
    with machine.registry() as registry:
        bots = [registry.find(reference) for reference in references] if references else registry.bots()
        url = {bot.id: registry.host.origin(bot.label) for bot in bots}
    names = [bot.label for bot in bots] + ([] if references else [PLATFORM])
    if check:
        restic.snapshots()
        return _backed_up(names, [], [])
    saved: list[dict[str, Any]] = []
    problems: list[tuple[str, str]] = []
    skipped: list[str] = []
    with alone(machine.paths):
        tidy(machine)
        restic.unlock()
        for bot in bots:
            if bot.state == "deploying" and not machine.homes.mount_point(bot.id).is_mount():
                skipped.append(bot.label)  # its first deploy is under way, or never came that far
                continue
            try:
                saved.append(_save_bot(machine, restic, bot, url[bot.id], now))
            except ClawError as error:
                problems += [(code, f"{bot.label}: {message}") for code, message in error.problems]
        if not references:
            try:
                saved.append(_save_platform(machine, restic, now))
            except ClawError as error:
                problems += [(code, f"{PLATFORM}: {message}") for code, message in error.problems]
        if not problems:
            restic.forget_old()
    if problems:
        raise ClawError.several(problems)
    return _backed_up([str(one["what"]) for one in saved], saved, skipped)


def _backed_up(names: Sequence[str], saved: list[dict[str, Any]], skipped: list[str]) -> dict[str, Any]:
    after = "".join(f"backup of {name}: made now\n" for name in names)
    return {
        "changed": bool(names),
        "diff": {"before": "", "after": after},
        "snapshots": saved,
        "skipped": skipped,
    }


def _save_bot(machine: "Machine", restic: Restic, bot: Bot, url: str, now: int) -> dict[str, Any]:
    with workplace(machine.paths, bot.id) as place:
        stood, record = _copy_bot(machine, bot, url, place, now)
        (place / RECORD).write_bytes(msgspec.json.encode(record))
        done = restic.save(place, ["bot", f"id={bot.id}", f"label={bot.label}"])
    return {
        "what": bot.label,
        "id": bot.id,
        "snapshot": done.snapshot_id,
        "bytes_added": done.data_added,
        "stood_still_ms": stood,
    }


def _copy_bot(machine: "Machine", bot: Bot, url: str, place: Path, now: int) -> tuple[int, BotRecord]:
    """The files to ``place``/home, the rest as a record; with how long (ms) the bot stood still for it."""
    home = machine.homes.mount_point(bot.id)
    if not home.is_mount():
        raise ClawError("not_mounted", "its disk is not mounted: `clawctl reconcile`, or deploy it again.")
    disk = os.statvfs(home)
    used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    if free_bytes(machine.paths) < used + _SPARE_BYTES:
        raise ClawError(
            "disk_full",
            f"no room for a copy of its {used / 1e6:.0f} MB on this host's disk: make room first.",
        )
    with machine.changing() as registry:
        secrets = load_secrets(machine.paths, bot.id)
        container = registry.store.container(bot.id)
        claim = claims.load_claim(machine.paths, bot.id)
        why = registry.store.suspensions().get(bot.id)
        host = registry.host
    if secrets is None or container is None:
        raise ClawError("not_deployed", "its secrets or its container are not known: deploy it again first.")
    account = _account(machine, bot.id)
    began = time.monotonic()
    with standing_still(machine, bot.id, place):
        done = subprocess.run(
            ["cp", "--archive", "--one-file-system", "--reflink=auto", f"{home}/.", str(place / HOME)],
            capture_output=True,
            text=True,
            check=False,
        )
    stood = round((time.monotonic() - began) * 1000)
    if done.returncode:
        raise ClawError("copy_failed", f"its files cannot be copied: {' '.join(done.stderr.split())[-300:]}")
    shutil.rmtree(place / HOME / "lost+found", ignore_errors=True)  # the new disk has its own
    return stood, BotRecord(
        schema=1,
        taken_at=now,
        host=socket.gethostname(),
        home=str(home),
        url=url,
        llm_gateway_url=host.llm_gateway_url,
        openrouter_model=host.openrouter_model,
        disk_size=machine.homes.image(bot.id).stat().st_size,
        used=used,
        bot=bot,
        secrets=secrets,
        claim=claim,
        suspension=why,
        container=container,
        account=account,
    )


def _account(machine: "Machine", bot_id: str) -> Account | None:
    with suppress(ClawError):  # its files are worth saving all the same
        return machine.ledger.account(bot_id)
    return None


@contextmanager
def standing_still(machine: "Machine", bot_id: str, place: Path) -> Iterator[None]:
    """The bot's processes do nothing meanwhile; a mark on the disk outlives us if we are killed.

    The host's lock is free, so that a bot can be suspended or destroyed at any time.
    """
    mark = place / _FROZEN
    frozen: bool | None = None
    try:
        mark.touch()
        with machine.halter() as halter:
            frozen = halter.freeze(bot_id)
        yield
    finally:
        if frozen is not False:
            _thaw(machine, bot_id)
        mark.unlink()


def _thaw(machine: "Machine", bot_id: str) -> None:
    """Under the lock: a bot that was suspended meanwhile must not wake up again."""
    with machine.changing() as registry:
        if any(bot.id == bot_id and not bot.suspended for bot in registry.bots()):
            with machine.engine() as engine:
                engine.thaw(bot_id)


def _save_platform(machine: "Machine", restic: Restic, now: int) -> dict[str, Any]:
    paths = machine.paths
    with workplace(paths, PLATFORM) as place:
        with machine.changing() as registry:
            registry.store.copy_to(place / "registry.db")
            shutil.copyfile(paths.host_file, place / "host.json")
            for directory in (paths.secrets, paths.claims):
                if directory.is_dir():
                    shutil.copytree(directory, place / directory.name)
            bots = {bot.id: bot.label for bot in registry.bots()}
        machine.ledger.copy(place / "ledger.db")
        record = PlatformRecord(
            schema=1, taken_at=now, host=socket.gethostname(), version=version(), bots=bots
        )
        (place / "platform.json").write_bytes(msgspec.json.encode(record))
        done = restic.save(place, [PLATFORM])
    return {"what": PLATFORM, "snapshot": done.snapshot_id, "bytes_added": done.data_added}


# --- looking at them --------------------------------------------------------------------------------


def described(snapshot: Snapshot, now: float) -> dict[str, Any]:
    """A snapshot as ``clawctl backups`` shows it; age in seconds."""
    return {
        "snapshot": snapshot.id[:8],
        "what": snapshot.tag("label") or PLATFORM,
        "id": snapshot.tag("id"),
        "host": snapshot.hostname,
        "time": iso(int(snapshot.at)),
        "age": max(0, round(now - snapshot.at)),
    }


def of_bot(snapshots: Sequence[Snapshot], reference: str) -> list[Snapshot]:
    """Snapshots of the bot with that id, or that had that name when they were made, oldest first.

    ClawError("no_backup") if there are none, "ambiguous" if several bots had the name.
    """
    found = [one for one in snapshots if reference in (one.tag("id"), one.tag("label"))]
    ids = sorted({str(one.tag("id")) for one in found})
    if not found:
        raise ClawError(
            "no_backup", f"the repository has no backup of a bot {reference!r}: see `clawctl backups`."
        )
    if len(ids) > 1:
        raise ClawError(
            "ambiguous", f"several bots were called {reference!r}: say which by its id ({', '.join(ids)})."
        )
    return found


def read_record(restic: Restic, snapshot: Snapshot) -> BotRecord:
    """A bot's record. ClawError("backup_strange") if another release wrote it in a form not known here."""
    return _decode(restic.read(snapshot, f"/{RECORD}"), BotRecord)


def read_platform(restic: Restic, snapshot: Snapshot) -> PlatformRecord:
    """The platform's record. ClawError("backup_strange")."""
    return _decode(restic.read(snapshot, "/platform.json"), PlatformRecord)


def _decode(raw: bytes, kind: type[Record]) -> Record:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise ClawError(
            "backup_strange",
            f"that backup was made by another release ({error}): use that release to restore.",
        ) from None


def verify(machine: "Machine", subset: str, now: float) -> dict[str, Any]:
    """Check the repository and read ``subset`` of it; restore this host's books and records to a test.

    Returns ok, problems, and how much there was. ClawError if the repository cannot be used at all.
    """
    restic = open_repository(machine.paths)
    with alone(machine.paths):
        restic.unlock()
        mine = [one for one in restic.snapshots() if one.hostname == socket.gethostname()]
        problems = []
        try:
            restic.check(subset)
        except ClawError as error:
            problems += [message for _, message in error.problems]
        platform = [one for one in mine if PLATFORM in one.tags]
        books: dict[str, int] = {}
        if platform:
            problems += _test_platform(machine.paths, restic, platform[-1], books)
        else:
            problems.append("there is no backup of this host's platform yet: `clawctl backup`.")
        newest = {str(one.tag("id")): one for one in mine if one.tag("id")}
        for snapshot in newest.values():
            try:
                read_record(restic, snapshot)
            except ClawError as error:
                problems.append(f"{snapshot.tag('label')}: {error.message}")
    return {
        "ok": not problems,
        "problems": problems,
        "snapshots": len(mine),
        "bots": len(newest),
        "ledger": books,
        "age": round(now - platform[-1].at) if platform else None,
    }


def _test_platform(paths: Paths, restic: Restic, snapshot: Snapshot, books: dict[str, int]) -> list[str]:
    with workplace(paths, "verify") as place:
        try:
            for name in ("ledger.db", "registry.db"):
                restic.fetch(snapshot, f"/{name}", place / name)
            books |= check_ledger_copy(place / "ledger.db")
            migrate(place / "registry.db")
            store = RegistryStore(place / "registry.db")
            try:
                return [f"the copy of the registry is damaged: {text}" for text in store.damage()]
            finally:
                store.close()
        except ClawError as error:
            return [message for _, message in error.problems]


def forget(machine: "Machine", reference: str, check: bool) -> dict[str, Any]:
    """Remove every backup of one bot, whichever host made it, for good."""
    restic = open_repository(machine.paths)
    with alone(machine.paths):
        found = of_bot(restic.snapshots(), reference)
        if not check:
            restic.unlock()
            restic.forget(found)
    before = "".join(f"backup {one.id[:8]} of {one.tag('label')}\n" for one in found)
    return {"changed": True, "diff": {"before": before, "after": ""}, "forgotten": len(found)}
