"""Bringing bots and books back from a backup, on the host where they were or on another one.

Nothing that is here is ever overwritten, and no balance comes back by itself: see docs/money.md.
"""

import json
import os
import secrets as random
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from clawdeploy import backup, claims, events, verbs
from clawdeploy.allocation import lowest_free, place
from clawdeploy.backup import HOME, PLATFORM, BotRecord
from clawdeploy.containers import ContainerSpec, LiveBot, LiveRequest
from clawdeploy.errors import ClawError
from clawdeploy.host import Host, free_bytes
from clawdeploy.ledger_client import Account
from clawdeploy.models import Bot, BotRequest, DeclareRequest
from clawdeploy.money import format_dollars
from clawdeploy.registry import Problem, Registry, describe, iso, review
from clawdeploy.restic import Restic, Snapshot
from clawdeploy.secret_files import save_secrets
from clawdeploy.storage import HomeFile, HomeRequest, file_state
from clawdeploy.store import LedgerStore, RegistryStore, check_ledger_copy, migrate

if TYPE_CHECKING:
    from clawdeploy.clitools import Machine

_NOFOLLOW = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


# --- bots -------------------------------------------------------------------------------------------


def restore_bots(
    machine: "Machine",
    references: Sequence[str] | None,
    snapshot_id: str | None,
    with_balance: bool,
    timeout: float,
    now: int,
    check: bool,
) -> dict[str, Any]:
    """Bring back these bots, or (None) all that the newest backup of a platform names and that are not here.

    Each gets whatever slot, uid and addresses are free. Returns changed, diff and one entry for each bot;
    ClawError with everything that could not be restored, after the others were.
    """
    restic = backup.open_repository(machine.paths)
    with backup.alone(machine.paths):
        snapshots = restic.snapshots()
        bots: list[dict[str, Any]] = []
        problems: list[Problem] = []
        if references is None:
            chosen, problems = _of_platform(machine, restic, snapshots)
        else:
            chosen = [_choose(snapshots, reference, snapshot_id) for reference in references]
        for snapshot in chosen:
            try:
                bots.append(_restore_bot(machine, restic, snapshot, with_balance, timeout, now, check))
            except ClawError as error:
                problems += error.problems
    if problems:
        raise ClawError.several(problems)
    return {
        "changed": bool(bots),
        "diff": {"before": "", "after": "".join(bot.pop("text") for bot in bots)},
        "bots": bots,
    }


def _choose(snapshots: Sequence[Snapshot], reference: str, snapshot_id: str | None) -> Snapshot:
    found = backup.of_bot(snapshots, reference)
    if snapshot_id is None:
        return found[-1]
    for snapshot in found:
        if len(snapshot_id) >= 8 and snapshot.id.startswith(snapshot_id):
            return snapshot
    raise ClawError(
        "no_backup", f"{snapshot_id} is no backup of {reference}: see `clawctl backups {reference}`."
    )


def _of_platform(
    machine: "Machine", restic: Restic, snapshots: Sequence[Snapshot]
) -> tuple[list[Snapshot], list[Problem]]:
    """The newest backup of each bot that is not here, and which bots never had one."""
    wanted = backup.read_platform(restic, newest_platform(snapshots, None)).bots
    with machine.registry() as registry:
        here = {bot.id for bot in registry.bots()}
    newest = {one.tag("id"): one for one in snapshots if one.tag("id") in wanted}
    lacking = [
        ("no_backup", f"{label}: it was never backed up.")
        for bot_id, label in wanted.items()
        if bot_id not in newest and bot_id not in here
    ]
    return [one for bot_id, one in newest.items() if bot_id not in here], lacking


def _restore_bot(
    machine: "Machine",
    restic: Restic,
    snapshot: Snapshot,
    with_balance: bool,
    timeout: float,
    now: int,
    check: bool,
) -> dict[str, Any]:
    record = backup.read_record(restic, snapshot)
    account = _account_here(machine, record.bot.id)
    money = _money(record, account, with_balance)
    run_id = random.token_hex(8)
    if not check:
        with machine.engine() as engine:
            engine.fetch(record.container.image)
    with machine.changing() as registry:
        problems = _review(machine, registry, record, run_id, now)
        if problems:
            raise ClawError.several([(code, f"{record.bot.label}: {text}") for code, text in problems])
        host = registry.host
        bot = _row(registry, record, run_id, now)
        if not check:
            _enter(registry, record, bot, now)
    answer = {
        **describe(bot, host),
        "snapshot": snapshot.id[:8],
        "taken_at": iso(record.taken_at),
        "money": money,
        "text": _text(bot, host, snapshot, record, money),
    }
    if check:
        return answer
    try:
        config_hash = _bring_home(machine, restic, snapshot, record, bot, host)
        live = LiveBot(
            id=bot.id,
            config_hash=config_hash,
            image_digest=bot.image_digest or record.container.image,
            container=placed(record, bot, host),
            balance=money["opening"],
            spend_limit=record.account.spend_limit if record.account and account is None else None,
        )
        result = verbs.go_live(
            machine.changing,
            machine.engine,
            machine.halter,
            machine.systemctl,
            machine.ledger,
            LiveRequest(run_id=run_id, bots=(live,)),
            timeout,
            now,
            False,
        )
    except BaseException:
        _undo(machine, bot, now)
        raise
    with machine.changing() as registry:
        details = {"snapshot": snapshot.id[:8], "taken_at": record.taken_at, "money": money}
        events.record(registry.store, "restored", bot, f"{bot.label} restored from a backup", details)
    health = result["bots"][0] if result["bots"] else {"healthy": True, "reason": None}
    return answer | {"healthy": health["healthy"], "reason": health["reason"]}


def _account_here(machine: "Machine", bot_id: str) -> Account | None:
    try:
        return machine.ledger.account(bot_id)
    except ClawError as error:
        if error.code != "no_account":
            raise
        return None


def _money(record: BotRecord, here: Account | None, with_balance: bool) -> dict[str, Any]:
    """What its balance will be, by which rule (kept, zero, backup), and how much of it may be spent already.

    opening: dollars with which an account is opened; what the backup saw held by running calls is not in it.
    """
    label = record.bot.label
    if here is not None:
        if with_balance:
            raise ClawError(
                "account_exists",
                f"{label}: this host's books have its account, with {format_dollars(here.balance)}, and keep "
                "it: leave out --with-balance.",
            )
        return _rule("kept", here.balance, 0)
    if not with_balance:
        return _rule("zero", 0, 0)
    if record.account is None:
        raise ClawError(
            "no_balance",
            f"{label}: its backup does not know its balance, for the LLM gateway did not answer: leave out "
            "--with-balance.",
        )
    left = max(0, record.account.balance - record.account.held)
    return _rule("backup", left, left)


def _rule(rule: str, balance: int, at_risk: int) -> dict[str, Any]:
    dollars = format_dollars(balance).replace("$", "")
    return {
        "rule": rule,
        "balance_dollars": dollars,
        "at_risk_dollars": format_dollars(at_risk).replace("$", ""),
        "opening": "0" if rule == "kept" else dollars,
    }


def _review(
    machine: "Machine", registry: Registry, record: BotRecord, run_id: str, now: int
) -> list[Problem]:
    """What forbids to have this bot here: all that forbids a deploy of it, and being here already."""
    bot, bots = record.bot, registry.bots()
    for other in bots:
        if other.id == bot.id:
            return [
                (
                    "bot_exists",
                    f"it is on this host, and nothing is overwritten: `clawctl destroy {other.label}` first.",
                )
            ]
        if other.telegram_id == bot.telegram_id:
            return [
                (
                    "token_in_use",
                    f"its token @{bot.telegram_username} runs here as {other.label}: destroy that one first.",
                )
            ]
    if any(bot.id == one.id for one in registry.store.kept()) or machine.homes.image(bot.id).exists():
        return [
            (
                "data_exists",
                "its disk was kept here, and a deploy of its token brings that back; to have the backup's, "
                f"remove it first (`clawctl destroy --purge {bot.id}`).",
            )
        ]
    request = DeclareRequest(run_id=run_id, bots=(_request(record),))
    problems = review(
        request, bots, registry.host, registry.store.certificate_names(), free_bytes(machine.paths), now
    )
    if free_bytes(machine.paths) < record.used + registry.host.disk_floor:
        problems.append(
            ("disk_full", f"its {record.used / 1e6:.0f} MB do not fit on this host's disk: make room first.")
        )
    return problems


def _request(record: BotRecord) -> BotRequest:
    # What a row has of a request; the rest comes back with its secrets.
    shared = {
        name: getattr(record.bot, name)
        for name in BotRequest.__struct_fields__
        if name in Bot.__struct_fields__
    }
    return BotRequest(telegram_token=record.secrets.telegram_token, **shared)


def _row(registry: Registry, record: BotRecord, run_id: str, now: int) -> Bot:
    taken = {bot.slot for bot in registry.bots()} | {one.slot for one in registry.store.kept()}
    (slot,) = lowest_free(taken, 1)
    place(slot, registry.host)  # outside the pool? refuse before anything is stored
    return msgspec.structs.replace(record.bot, slot=slot, state="deploying", lease_run=run_id, lease_at=now)


def _enter(registry: Registry, record: BotRecord, bot: Bot, now: int) -> None:
    save_secrets(registry.paths, bot.id, record.secrets)
    if record.claim is not None:
        claims.save_claim(registry.paths, record.claim)
    with registry.store.transaction():
        registry.store.put(bot)
        if record.suspension is not None:
            registry.store.suspend(bot.id, record.suspension)
        if registry.host.base_domain:
            registry.store.add_certificate_name(f"{bot.label}.{registry.host.base_domain}", now)


def _text(bot: Bot, host: Host, snapshot: Snapshot, record: BotRecord, money: Mapping[str, Any]) -> str:
    spot = place(bot.slot, host)
    return (
        f"{bot.label}: as of {iso(record.taken_at)} (backup {snapshot.id[:8]}), uid {spot.uid}, "
        f"address {spot.address}, balance ${money['balance_dollars']} ({money['rule']})\n"
    )


# --- its disk ---------------------------------------------------------------------------------------


def _bring_home(
    machine: "Machine", restic: Restic, snapshot: Snapshot, record: BotRecord, bot: Bot, host: Host
) -> str:
    """Disk, files and their owner; returns the hash of its configuration as it is now."""
    uid = place(bot.slot, host).uid
    size = max(record.disk_size, host.plans[bot.plan].disk_size)
    with machine.changing():
        machine.homes.apply([HomeRequest(id=bot.id, uid=uid, disk_size=size)])
    root = machine.homes.mount_point(bot.id)
    restic.restore(snapshot, f"/{HOME}", root)
    _lift(root)
    give_to(root, uid)
    return _adapt(machine, record, bot, host)


def _lift(root: Path) -> None:
    """Move what restic put into a directory of the disk up to its top."""
    below = root / f".restored-{random.token_hex(8)}"
    (root / HOME).rename(below)
    for entry in below.iterdir():
        entry.rename(root / entry.name)
    below.rmdir()


def give_to(root: Path, uid: int) -> None:
    """Let everything in a home belong to ``uid``; links are changed themselves, never followed."""
    for directory, folders, files in os.walk(root):
        if directory == str(root) and "lost+found" in folders:
            folders.remove("lost+found")
        os.chown(directory, uid, uid, follow_symlinks=False)
        for name in (*folders, *files):
            os.chown(os.path.join(directory, name), uid, uid, follow_symlinks=False)  # noqa: PTH118 # names as they are


def _adapt(machine: "Machine", record: BotRecord, bot: Bot, host: Host) -> str:
    """Put what this host is called in place of what the other one was, in files that only deploys write.

    Those are the ones which the bot has mounted read-only.
    """
    change = _renaming(record, bot, host)
    states, changed = {}, False
    for mount in record.container.mounts:
        if not mount.read_only or not mount.source.startswith(f"{record.home}/"):
            continue
        path = mount.source.removeprefix(f"{record.home}/")
        found = _read(machine.homes.mount_point(bot.id) / path)
        if found is None:
            continue
        content, mode = found
        file = HomeFile(path=path, content=change(content), mode=f"{mode:04o}")
        states[path] = file_state(file)
        if file.content != content:
            changed = True
            machine.homes.write_file(bot.id, file)
    if record.claim is not None and record.claim.file is not None:
        written = msgspec.structs.replace(record.claim.file, content=change(record.claim.file.content))
        files = {path: states.get(path, state) for path, state in record.claim.files.items()}
        claims.save_claim(machine.paths, msgspec.structs.replace(record.claim, file=written, files=files))
    return claims.config_hash(states) if changed or not bot.config_hash else bot.config_hash


def _renaming(record: BotRecord, bot: Bot, host: Host) -> Callable[[str], str]:
    names = {
        record.llm_gateway_url: host.llm_gateway_url,
        record.url.rstrip("/"): host.origin(bot.label).rstrip("/"),
        record.openrouter_model: host.openrouter_model,
        # The edge's address, by which some agents trust it. In quotes, for it may begin another address.
        json.dumps(record.container.network.gateway): json.dumps(place(bot.slot, host).host_address),
    }

    def change(content: str) -> str:
        for old, new in names.items():
            content = content.replace(old, new)
        return content

    return change


def _read(path: Path) -> tuple[str, int] | None:
    """Text and mode of a regular file of a home; None if it is none."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        with os.fdopen(os.open(path, _NOFOLLOW), encoding="utf-8") as file:
            return file.read(), os.fstat(file.fileno()).st_mode & 0o777
    except (OSError, UnicodeDecodeError):
        return None


def placed(record: BotRecord, bot: Bot, host: Host) -> ContainerSpec:
    """What its container was, in its new place and with this host's limits of its plan."""
    spot, plan, old = place(bot.slot, host), host.plans[bot.plan], record.container
    return msgspec.structs.replace(
        old,
        user=f"{spot.uid}:{spot.uid}",
        network=msgspec.structs.replace(
            old.network, subnet=spot.subnet, gateway=spot.host_address, address=spot.address
        ),
        cpus=plan.cpus,
        memory=plan.memory_limit,
        pids_limit=plan.pids_limit,
        ulimits={**old.ulimits, "nofile": plan.nofile_limit},
        cgroup_parent=host.cgroup_parent,
    )


def _undo(machine: "Machine", bot: Bot, now: int) -> None:
    """As if nothing had been restored, so that it can be tried again; an account that was opened stays."""
    with suppress(ClawError), machine.engine() as engine:
        engine.remove(bot.id)
    with machine.changing() as registry:
        with suppress(ClawError):
            machine.homes.remove(bot.id)
        registry.forget(bot.id)
        with suppress(ClawError):
            verbs.sync(registry, machine.systemctl, now, False)


# --- the platform -----------------------------------------------------------------------------------


def newest_platform(snapshots: Sequence[Snapshot], snapshot_id: str | None) -> Snapshot:
    """The newest backup of a platform, or the one asked for.

    ClawError("no_backup") if there is none, "ambiguous" if several hosts use the repository.
    """
    found = [one for one in snapshots if PLATFORM in one.tags]
    if snapshot_id is not None:
        found = [one for one in found if len(snapshot_id) >= 8 and one.id.startswith(snapshot_id)]
    if not found:
        what = (
            f"{snapshot_id} is no backup of a platform" if snapshot_id else "there is no backup of a platform"
        )
        raise ClawError("no_backup", f"{what}: see `clawctl backups`.")
    hosts = sorted({one.hostname for one in found})
    if len(hosts) > 1:
        raise ClawError(
            "ambiguous", f"platforms of {', '.join(hosts)} are in the repository: choose one with --snapshot."
        )
    return found[-1]


def restore_platform(
    machine: "Machine", snapshot_id: str | None, with_balance: bool, check: bool
) -> dict[str, Any]:
    """Fill the empty books of this host, and tell which bots there were. Without ``with_balance`` every
    account comes back with its history but with nothing left on it.
    """
    restic = backup.open_repository(machine.paths)
    with backup.alone(machine.paths), backup.workplace(machine.paths, "restore") as workplace:
        snapshot = newest_platform(restic.snapshots(), snapshot_id)
        record = backup.read_platform(restic, snapshot)
        if machine.ledger.accounts():
            raise ClawError(
                "ledger_in_use",
                "this host has books of its own, and two hosts' books cannot become one: restore bots one by "
                "one, or use a host without accounts.",
            )
        for name in ("ledger.db", "registry.db"):
            restic.fetch(snapshot, f"/{name}", workplace / name)
        counts = check_ledger_copy(workplace / "ledger.db")
        at_risk = _total(workplace / "ledger.db") if with_balance else 0
        if not check:
            machine.ledger.adopt(workplace / "ledger.db", with_balance)
            _remember_certificates(machine, workplace / "registry.db")
    rule = "as in the backup" if with_balance else "written off"
    return {
        "changed": True,
        "diff": {
            "before": "",
            "after": f"books of {record.host} as of {iso(record.taken_at)}: {counts['accounts']} accounts, "
            f"balances {rule}\n",
        },
        "snapshot": snapshot.id[:8],
        "host": record.host,
        "taken_at": iso(record.taken_at),
        "ledger": counts,
        "rule": "backup" if with_balance else "zero",
        "at_risk_dollars": format_dollars(at_risk).replace("$", ""),
        "bots": [{"id": bot_id, "label": label} for bot_id, label in record.bots.items()],
    }


def _total(copy: Path) -> int:
    """The sum (nano) of all balances in a copy of the ledger."""
    store = LedgerStore(copy)
    try:
        return sum(max(0, account.balance) for account in store.accounts())
    finally:
        store.close()


def _remember_certificates(machine: "Machine", copy: Path) -> None:
    """Certificates asked for on the other host count towards the same weekly limit."""
    migrate(copy)
    store = RegistryStore(copy)
    try:
        names = store.certificate_names()
    finally:
        store.close()
    with machine.changing() as registry, registry.store.transaction():
        for name, first_seen in names.items():
            registry.store.add_certificate_name(name, first_seen)
