"""Backups and restores with the real restic, real disks and a real ledger, between two hosts."""

import base64
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from cryptography.hazmat.primitives.poly1305 import Poly1305
from yoyo import get_backend, read_migrations

from clawdeploy import backup as backups
from clawdeploy import health
from clawdeploy.cli import Machine
from clawdeploy.errors import ClawError
from clawdeploy.health import Health
from clawdeploy.host import Paths
from clawdeploy.ledger import Bound, Hold, Outcome, Wanted
from clawdeploy.ledger_client import LedgerClient, Opening
from clawdeploy.models import Bot, Suspension
from clawdeploy.money import NANO
from clawdeploy.restic import Restic
from clawdeploy.store import LedgerStore

from .conftest import (
    HOST,
    MODEL,
    PLAN,
    Engine,
    Systemd,
    container_spec,
    make_paths,
    serving_ledger,
    set_host,
    unmount_all,
    wanted,
)
from .harness import ask, declared, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

PASSWORD = "correct horse battery"
KEY = "s3-secret-key-0123456789"
TALK = '[{"role": "user", "content": "remember the number 4711"}]'


@pytest.fixture(autouse=True)
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bot that has been started answers at once."""

    async def found(bots: Sequence[Bot], *_: Any) -> list[Health]:
        return [Health(bot.id, True, 0.1, "", []) for bot in bots]

    monkeypatch.setattr(health, "wait_until_healthy", found)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The events that went to the journal."""
    events: list[tuple[str, str]] = []
    monkeypatch.setattr(backups, "tell", lambda event, message: events.append((event, message)))
    return events


def use_repository(paths: Paths, repository: Path, password: str = PASSWORD) -> None:
    """What the role leaves on a host."""
    settings = {"repository": str(repository), "keep_daily": 7, "keep_weekly": 4, "keep_monthly": 6}
    paths.backup_settings.write_text(json.dumps(settings))
    paths.backup_password.parent.mkdir(exist_ok=True)
    paths.backup_password.write_text(f"{password}\n")
    paths.backup_environment.write_text(json.dumps({"AWS_SECRET_ACCESS_KEY": KEY}))


@dataclass
class Place:
    """One host: what its verbs work on, and what they did to its containers."""

    machine: Machine
    engine: Engine
    ledger: LedgerClient

    @property
    def paths(self) -> Paths:
        return self.machine.paths

    def deploy(self, number: int, **changes: Any) -> dict[str, Any]:
        """A running bot that remembers something, with one dollar."""
        bot = declared(self.machine, wanted(number, **changes))[0]
        home = f"{self.paths.bots}/{bot['id']}"
        config = {
            "base_url": HOST["llm_gateway_url"],
            "url": bot["url"],
            "model": f"clawdeploy/{HOST['openrouter_model']}",
            "proxies": [bot["host_address"], f"{bot['host_address']}0"],
        }
        made = ask(
            self.machine,
            *("home", "apply"),
            request={
                "bots": [
                    {
                        "id": bot["id"],
                        "uid": bot["uid"],
                        "disk_size": 32 << 20,
                        "directories": [
                            {"path": "data/.nullclaw", "mode": "0700"},
                            {"path": "skills", "mode": "0755"},
                        ],
                        "files": [{"path": "config.json", "content": json.dumps(config), "mode": "0400"}],
                    }
                ]
            },
        )["bots"][0]
        mounts = [
            {"source": f"{home}/data", "target": "/data", "read_only": False},
            {"source": f"{home}/config.json", "target": "/data/config.json", "read_only": True},
            {"source": f"{home}/skills", "target": "/data/skills", "read_only": True},
        ]
        network = {
            "bridge": f"cb-{bot['id']}",
            "subnet": bot["subnet"],
            "gateway": bot["host_address"],
            "address": bot["address"],
        }
        user = f"{bot['uid']}:{bot['uid']}"
        live = {
            "id": bot["id"],
            "config_hash": made["config_hash"],
            "image_digest": "sha256:1",
            "balance": "1.00",
            "container": container_spec(
                mounts=mounts, network=network, user=user, skills={"source": "skills"}
            ),
        }
        run_id = "0123456789abcdef"
        ask(self.machine, "live", request={"run_id": run_id, "bots": [live]})
        memory = self.home(bot) / "data/.nullclaw/memory.json"
        memory.write_text(TALK)
        (self.home(bot) / "data/link").symlink_to("/etc/shadow")
        with closing(sqlite3.connect(self.home(bot) / "data/notes.db")) as db, db:
            db.execute("CREATE TABLE note (text TEXT)")
            db.execute("INSERT INTO note VALUES ('buy milk')")
        for path in (memory, self.home(bot) / "data/link", self.home(bot) / "data/notes.db"):
            os.chown(path, bot["uid"], bot["uid"], follow_symlinks=False)
        return bot

    def home(self, bot: dict[str, Any]) -> Path:
        return self.paths.bots / str(bot["id"])

    def spend(self, bot: dict[str, Any], nano: int, settle: bool = True) -> None:
        """A call that the gateway let through; not settled: it is still running."""
        with closing(LedgerStore(self.paths.state / "ledger.db")) as store, store.transaction():
            bound = Bound(nano * 10**6, 0)
            hold = store.reserve(Wanted(bot["id"], MODEL, bound, 10, 1), time.time())
            assert isinstance(hold, Hold)
            if settle:
                store.settle(hold.call, Outcome("usage", nano, 7, 3, "gen-1"), time.time())

    def balance(self, bot: dict[str, Any]) -> str:
        (account,) = ask(self.machine, "balance", bot["id"])["accounts"]
        return str(account["balance_dollars"])


@contextmanager
def prepared(place: Path, empty_registry: Path) -> Iterator[Place]:
    paths = make_paths(place, empty_registry)
    engine, systemd = Engine(), Systemd(paths.units)
    machine = Machine(
        paths=paths,
        systemctl=systemd,
        engine=lambda: engine,  # type: ignore[arg-type, return-value]
        halter=lambda: engine,  # type: ignore[arg-type, return-value]
    )
    with serving_ledger(paths) as ledger:
        yield Place(machine, engine, ledger)
    unmount_all(paths)


@pytest.fixture(scope="session")
def quick_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty repository whose password is checked in no time: restic makes that take half a second, which
    each of its calls would wait for. The key in it is wrapped anew as restic's design document describes.
    """
    place = tmp_path_factory.mktemp("restic")
    (place / "password").write_text(PASSWORD)
    command = [
        "restic",
        f"--repo={place}/repository",
        f"--password-file={place}/password",
        "--no-cache",
        "init",
    ]
    subprocess.run(command, capture_output=True, check=True)
    (slow,) = (place / "repository/keys").iterdir()
    wrapped = json.loads(slow.read_text())
    data = base64.b64decode(wrapped["data"])
    master = crypt(derive(wrapped)[0], data[:16], data[16:-16])
    quick = wrapped | {"N": 2, "r": 1, "p": 1}
    encryption, mac = derive(quick)
    nonce = os.urandom(16)
    sealed = crypt(encryption, nonce, master)
    quick["data"] = base64.b64encode(nonce + sealed + sign(mac, nonce, sealed)).decode()
    text = json.dumps(quick).encode()
    slow.unlink()
    slow.with_name(hashlib.sha256(text).hexdigest()).write_bytes(text)
    return place / "repository"


def derive(key: dict[str, Any]) -> tuple[bytes, bytes]:
    """The keys for encryption and for signing that follow from the password."""
    salt, cost = base64.b64decode(key["salt"]), {name.lower(): key[name] for name in ("N", "r", "p")}
    both = hashlib.scrypt(PASSWORD.encode(), salt=salt, dklen=64, maxmem=1 << 28, **cost)
    return both[:32], both[32:]


def crypt(key: bytes, nonce: bytes, data: bytes) -> bytes:
    """AES in counter mode, which is the same both ways."""
    return Cipher(AES(key), CTR(nonce)).encryptor().update(data)


def sign(key: bytes, nonce: bytes, data: bytes) -> bytes:
    """Poly1305-AES."""
    pad = Cipher(AES(key[:16]), ECB()).encryptor().update(nonce)  # one block, as specified
    return Poly1305.generate_tag(key[16:] + pad, data)


@pytest.fixture
def repository(tmp_path: Path, quick_repository: Path) -> Path:
    shutil.copytree(quick_repository, tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture
def here(tmp_path: Path, empty_registry: Path, repository: Path) -> Iterator[Place]:
    """A host with a repository."""
    (tmp_path / "here").mkdir()
    with prepared(tmp_path / "here", empty_registry) as place:
        use_repository(place.paths, repository)
        yield place


@pytest.fixture
def elsewhere(tmp_path: Path, empty_registry: Path, repository: Path) -> Iterator[Place]:
    """Another host with the same repository, domain, gateway and model, and a bot in its first slot."""
    (tmp_path / "elsewhere").mkdir()
    with prepared(tmp_path / "elsewhere", empty_registry) as place:
        use_repository(place.paths, repository)
        declared(place.machine, wanted(99, name="first"))
        set_host(
            place.paths,
            base_domain="other.test",
            llm_gateway_url="http://10.9.9.1:8788/api/v1",
            openrouter_model="vendor/better",
            bot_uid_base=300000,
        )
        yield place


def owners(root: Path) -> set[tuple[int, int]]:
    """Owners of everything in a home but the file system's own directory."""
    found = (path.lstat() for path in [root, *root.rglob("*")] if "lost+found" not in path.parts)
    return {(one.st_uid, one.st_gid) for one in found}


# --- one bot ----------------------------------------------------------------------------------------


def test_a_destroyed_bot_comes_back_with_its_memory_and_its_own_account(here: Place) -> None:
    bot = here.deploy(1, name="support")
    done = ask(here.machine, "backup")
    assert [one["what"] for one in done["snapshots"]] == ["support", "platform"]
    assert here.engine.frozen == set()
    secrets = (here.paths.secrets / f"{bot['id']}.json").read_text()
    here.spend(bot, 250_000_000)
    ask(here.machine, "destroy", "support", "--yes")
    blocker = here.deploy(2)
    assert blocker["uid"] == bot["uid"], "its place is taken by now"

    rehearsal = ask(here.machine, "restore", "support", "--check")
    assert rehearsal["changed"]
    assert "balance $0.75 (kept)" in rehearsal["diff"]["after"]
    assert not here.home(bot).exists()

    (restored,) = ask(here.machine, "restore", "support")["bots"]
    assert restored["healthy"]
    assert (restored["id"], restored["uid"]) == (bot["id"], bot["uid"] + 1)
    assert restored["money"]["rule"] == "kept"
    assert here.balance(bot) == "0.75", "what was spent after the backup stays spent"
    assert (here.home(bot) / "data/.nullclaw/memory.json").read_text() == TALK
    assert str((here.home(bot) / "data/link").readlink()) == "/etc/shadow"
    assert stat.S_IMODE((here.home(bot) / "config.json").stat().st_mode) == 0o400
    assert owners(here.home(bot)) == {(bot["uid"] + 1, bot["uid"] + 1)}
    assert (Path("/etc/shadow").stat().st_uid, Path("/etc/shadow").stat().st_mode & 0o002) == (0, 0)
    assert (here.paths.secrets / f"{bot['id']}.json").read_text() == secrets
    spec = here.engine.made[bot["id"]]
    assert spec.user == f"{bot['uid'] + 1}:{bot['uid'] + 1}"
    assert spec.network.address == restored["address"] != bot["address"]
    shown = ask(here.machine, "show", "support")
    assert (shown["state"], shown["config_hash"] is not None) == ("active", True)


def test_another_host_gives_it_new_addresses_and_no_money(here: Place, elsewhere: Place) -> None:
    bot = here.deploy(1, name="support")
    ask(here.machine, "backup", "support")
    (restored,) = ask(elsewhere.machine, "restore", bot["id"])["bots"]
    assert (restored["uid"], restored["url"]) == (300001, "https://support.other.test/")
    assert owners(elsewhere.home(bot)) == {(300001, 300001)}
    assert elsewhere.balance(bot) == "0.00"
    config = json.loads((elsewhere.home(bot) / "config.json").read_text())
    assert config == {
        "base_url": "http://10.9.9.1:8788/api/v1",
        "url": "https://support.other.test/",
        "model": "clawdeploy/vendor/better",
        "proxies": [ask(elsewhere.machine, "show", bot["id"])["host_address"], f"{bot['host_address']}0"],
    }
    with closing(sqlite3.connect(elsewhere.home(bot) / "data/notes.db")) as db:
        assert db.execute("SELECT text FROM note").fetchall() == [("buy milk",)]
    (hosts,) = [
        line for line in (elsewhere.paths.maps / "hosts.map").read_text().splitlines() if "support" in line
    ]
    assert hosts == f"support {bot['id']}"


def test_a_bot_comes_back_with_what_it_was_taught(here: Place, elsewhere: Place, tmp_path: Path) -> None:
    bot = here.deploy(1, name="support")
    for version in ("1", "2"):
        folder = tmp_path / f"refunds-{version}"
        folder.mkdir()
        (folder / "SKILL.md").write_text(f"---\nname: refunds\ndescription: d\nversion: {version}\n---\n")
        ask(here.machine, "skills", "add", "support", str(folder))
    ask(here.machine, "backup", "support")
    ask(elsewhere.machine, "restore", bot["id"])
    (skill,) = ask(elsewhere.machine, "skills", "list", "support")["skills"]
    assert (skill["current"]["version"], skill["intact"]) == ("2", True)
    ask(elsewhere.machine, "skills", "rollback", "support", "refunds")
    assert "version: 1" in (elsewhere.home(bot) / "skills/refunds/SKILL.md").read_text()


def test_a_balance_comes_back_only_when_asked_for_and_only_what_no_call_held(
    here: Place, elsewhere: Place
) -> None:
    bot = here.deploy(1, name="support")
    here.spend(bot, 100_000_000)
    here.spend(bot, 50_000_000, settle=False)
    ask(here.machine, "spend-limit", "support", "prepaid")
    ask(here.machine, "backup", "support")
    here.spend(bot, 500_000_000)
    told = run(elsewhere.machine, "restore", "support", "--with-balance").stdout
    assert elsewhere.balance(bot) == "0.85"
    assert "at most $0.85 are paid twice" in " ".join(told.split())
    ask(elsewhere.machine, "destroy", "support", "--yes")
    error = ask(elsewhere.machine, "restore", "support", "--with-balance", code=1)["error"]
    assert error["code"] == "account_exists"
    assert ask(elsewhere.machine, "restore", "support")["bots"][0]["money"]["rule"] == "kept"
    assert elsewhere.balance(bot) == "0.85"


def test_without_the_gateway_files_are_saved_but_no_balance(
    here: Place, elsewhere: Place, told: list[tuple[str, str]]
) -> None:
    here.deploy(1, name="support")
    quiet = Machine(
        paths=replace(here.paths, ledger_socket=here.paths.state / "nobody.sock"),
        systemctl=here.machine.systemctl,
        engine=here.machine.engine,
        halter=here.machine.halter,
    )
    error = ask(quiet, "backup", code=1)["error"]
    assert error["code"] == "gateway_down"
    assert [event for event, _ in told] == ["backup_failed"]
    assert [one["what"] for one in ask(here.machine, "backups")["backups"]] == ["support"]
    error = ask(elsewhere.machine, "restore", "support", "--with-balance", code=1)["error"]
    assert error["code"] == "no_balance"
    assert ask(elsewhere.machine, "restore", "support")["bots"][0]["money"]["rule"] == "zero"


def test_what_is_here_is_never_overwritten(here: Place, elsewhere: Place) -> None:
    bot = here.deploy(1, name="support")
    ask(here.machine, "backup")
    assert ask(here.machine, "restore", "support", code=1)["error"]["code"] == "bot_exists"
    twin = elsewhere.deploy(1, name="twin")
    assert ask(elsewhere.machine, "restore", "support", code=1)["error"]["code"] == "token_in_use"
    ask(elsewhere.machine, "destroy", twin["id"], "--yes")
    declared(elsewhere.machine, wanted(5, name="support"))
    error = ask(elsewhere.machine, "restore", bot["id"], code=1)["error"]
    assert error["code"] == "name_taken"
    assert "support: bot_name 'support' is taken" in error["message"]
    ask(here.machine, "destroy", "support", "--yes")
    here.machine.homes.image(bot["id"]).write_text("kept")
    assert ask(here.machine, "restore", "support", code=1)["error"]["code"] == "data_exists"


def test_a_host_without_its_plan_or_image_changes_nothing(here: Place, elsewhere: Place) -> None:
    bot = here.deploy(1, name="support")
    ask(here.machine, "backup")
    elsewhere.engine.missing_images.add("clawdeploy-test:none")
    assert ask(elsewhere.machine, "restore", "support", code=1)["error"]["code"] == "image_missing"
    elsewhere.engine.missing_images.clear()
    set_host(elsewhere.paths, plans={"other": PLAN})
    assert ask(elsewhere.machine, "restore", "support", code=1)["error"]["code"] == "unknown_plan"
    assert list(elsewhere.paths.state.rglob(f"*{bot['id']}*")) == []


def test_a_restore_that_fails_half_way_leaves_nothing_and_can_be_repeated(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot = here.deploy(1, name="support")
    ask(here.machine, "backup")
    ask(here.machine, "destroy", "support", "--yes")
    make = here.engine.make
    monkeypatch.setattr(here.engine, "make", _refuse)
    assert ask(here.machine, "restore", "support", code=1)["error"]["code"] == "container_failed"
    assert list(here.paths.state.rglob(f"*{bot['id']}*")) == []
    assert ask(here.machine, "list")["bots"] == []
    monkeypatch.setattr(here.engine, "make", make)
    assert ask(here.machine, "restore", "support")["bots"][0]["healthy"]


def _refuse(*_: object) -> None:
    raise ClawError("container_failed", "no.")


def test_a_suspended_bot_comes_back_suspended_and_is_not_woken(here: Place) -> None:
    bot = here.deploy(1, name="support")
    with here.machine.changing() as registry:
        registry.store.suspend(bot["id"], Suspension("abuse report 4711", 1))
    ask(here.machine, "backup")
    assert here.engine.frozen == {bot["id"]}, "only whoever resumes it may wake it"
    ask(here.machine, "destroy", "support", "--yes")
    here.engine.made.clear()
    assert ask(here.machine, "restore", "support")["bots"][0]["suspended"]
    assert here.engine.made == {}
    shown = ask(here.machine, "show", "support")
    assert (shown["state"], shown["suspension"]["reason"]) == ("active", "abuse report 4711")
    ask(here.machine, "resume", "support")
    assert here.engine.made[bot["id"]].user == f"{shown['uid']}:{shown['uid']}"


def test_an_older_backup_can_be_chosen(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Restic, "forget_old", lambda restic: None)  # both are of today
    bot = here.deploy(1, name="support")
    first = ask(here.machine, "backup", "support")["snapshots"][0]["snapshot"][:8]
    (here.home(bot) / "data/.nullclaw/memory.json").write_text("[]")
    ask(here.machine, "backup", "support")
    ask(here.machine, "destroy", "support", "--yes")
    error = ask(here.machine, "restore", "support", "--snapshot", "ffffffff", code=1)["error"]
    assert error["code"] == "no_backup"
    assert ask(here.machine, "backups", "support")["backups"][0]["snapshot"] == first
    ask(here.machine, "restore", "support", "--snapshot", first)
    assert (here.home(bot) / "data/.nullclaw/memory.json").read_text() == TALK
    run(here.machine, "restore", "--platform", "support", code=2)
    assert ask(here.machine, "restore", "nobody", code=1)["error"]["code"] == "no_backup"


# --- the platform -----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_balance", [False, True])
def test_an_empty_host_gets_books_and_bots_but_no_spent_money(
    here: Place, elsewhere: Place, with_balance: bool
) -> None:
    bots = [here.deploy(1, name="support"), here.deploy(2)]
    declared(here.machine, wanted(3, name="unborn"))
    here.spend(bots[0], 100_000_000)
    here.spend(bots[0], 200_000_000, settle=False)
    ask(here.machine, "top-up", "support", "2.00", "--ref", "invoice-17")
    ask(here.machine, "backup")
    option = ["--with-balance"] if with_balance else []
    before = ask(elsewhere.machine, "restore", "--platform", *option, "--check")
    assert before["ledger"] == {"accounts": 2, "entries": 4, "calls": 2}
    assert elsewhere.ledger.accounts() == []
    done = ask(elsewhere.machine, "restore", "--platform", *option)
    assert [bot["label"] for bot in done["bots"]] == ["support", bots[1]["id"], "unborn"]
    # The call that was running is charged at its bound; all else is what the backup says, or nothing.
    left = {account.bot: account.balance for account in elsewhere.ledger.accounts()}
    expected = {bots[0]["id"]: 2_700_000_000, bots[1]["id"]: NANO} if with_balance else dict.fromkeys(left, 0)
    assert left == expected
    assert elsewhere.ledger.verify().ok
    error = ask(elsewhere.machine, "restore", "--all", code=1)["error"]
    assert error["message"] == "unborn: it was never backed up.", "all others are"
    listed = {bot["id"]: bot["state"] for bot in ask(elsewhere.machine, "list")["bots"]}
    assert {listed[bot["id"]] for bot in bots} == {"active"}
    assert {account.bot: account.balance for account in elsewhere.ledger.accounts()} == expected
    # A payment that was entered before the backup is still known, and does not count again.
    assert not ask(elsewhere.machine, "top-up", "support", "2.00", "--ref", "invoice-17")["changed"]
    assert ask(elsewhere.machine, "restore", "--platform", code=1)["error"]["code"] == "ledger_in_use"


def test_books_that_are_there_are_kept(here: Place, elsewhere: Place) -> None:
    here.deploy(1)
    ask(here.machine, "backup")
    elsewhere.ledger.open([Opening("abcdefghijkl", NANO)], check=False)
    assert ask(elsewhere.machine, "restore", "--platform", code=1)["error"]["code"] == "ledger_in_use"
    assert [account.balance for account in elsewhere.ledger.accounts()] == [NANO]


def test_a_copy_of_the_ledger_is_whole_while_calls_go_on(here: Place, tmp_path: Path) -> None:
    bot = here.deploy(1)
    for number in range(20):
        here.spend(bot, 1000 + number)
    here.ledger.copy(tmp_path / "copy.db")
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    with closing(LedgerStore(tmp_path / "copy.db")) as store:
        assert store.verify() == []
        assert store.counts() == {"accounts": 1, "entries": 21, "calls": 20}
    assert list(here.paths.state.glob("copy-*")) == []


def test_books_of_the_first_release_are_taken_over(elsewhere: Place, tmp_path: Path) -> None:
    """A backup may be older than the ledger's present form."""
    old, folder = tmp_path / "old.db", resources.files("clawdeploy.store") / "ledger_migrations"
    backend = get_backend(f"sqlite:///{old}")
    first = read_migrations(str(folder))[:1]
    backend.apply_migrations(backend.to_apply(first))
    backend.connection.close()
    with closing(sqlite3.connect(old)) as db, db:
        db.execute(
            "INSERT INTO account VALUES ('abcdefghijkl', 1, 'prepaid', 0, 5, 0, 0, 0, 0, 0, 0, 'nothing')"
        )
        db.execute("INSERT INTO entry VALUES (1, 'abcdefghijkl', 1, 'opening', 5, 'opening:abcdefghijkl')")
    (account,) = elsewhere.ledger.adopt(old, keep_balances=False)
    assert account.balance == 0
    assert elsewhere.ledger.verify().ok
    with closing(sqlite3.connect(elsewhere.paths.state / "ledger.db")) as db:
        assert db.execute("SELECT kind, amount FROM entry ORDER BY id").fetchall() == [
            ("opening", 5),
            ("write_off", -5),
        ]
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute("DELETE FROM entry")


def test_a_copy_that_does_not_add_up_is_refused(here: Place, elsewhere: Place, tmp_path: Path) -> None:
    here.deploy(1)
    copy = tmp_path / "copy.db"
    here.ledger.copy(copy)
    with closing(sqlite3.connect(copy)) as db, db:
        db.execute("UPDATE account SET balance = balance + 1")
    for broken in (copy.read_bytes(), b"no database at all"):
        copy.write_bytes(broken)
        with pytest.raises(ClawError) as error:
            elsewhere.ledger.adopt(copy, keep_balances=True)
        assert error.value.code == "books_damaged"
    assert elsewhere.ledger.accounts() == []
    assert list(elsewhere.paths.state.glob("copy-*")) == []


# --- trouble ----------------------------------------------------------------------------------------


def test_a_wrong_password_is_said_and_told(here: Place, told: list[tuple[str, str]]) -> None:
    here.paths.backup_password.write_text("something else\n")
    error = ask(here.machine, "backup", code=1)["error"]
    assert error["code"] == "wrong_password"
    assert "something else" not in error["message"]
    assert [event for event, _ in told] == ["backup_failed"]
    assert ask(here.machine, "backup", "init", code=1)["error"]["code"] == "wrong_password"


def test_a_missing_repository_is_no_reason_to_make_one(here: Place, repository: Path) -> None:
    here.deploy(1)
    repository.rename(repository.with_name("unplugged"))
    for verb in (["backup"], ["backups"], ["backup", "verify"], ["restore", "x"], ["backup", "--check"]):
        assert ask(here.machine, *verb, code=1)["error"]["code"] == "repository_missing"
    assert not repository.exists()
    assert here.engine.frozen == set()


def test_the_repository_is_made_once_and_backups_can_begin(here: Place, tmp_path: Path) -> None:
    use_repository(here.paths, tmp_path / "new")
    assert ask(here.machine, "backup", "init", "--check")["changed"]
    assert not (tmp_path / "new").exists()
    assert ask(here.machine, "backup", "init")["changed"]
    assert not ask(here.machine, "backup", "init")["changed"]
    assert "No backups yet" in run(here.machine, "backups").stdout


def test_a_host_without_settings_says_which_it_needs(machine: Machine) -> None:
    error = ask(machine, "backup", code=1)["error"]
    assert error["code"] == "backup_off"
    assert "backup_repository" in error["message"]


def test_one_bot_that_cannot_be_saved_does_not_keep_the_others_from_it(
    here: Place, told: list[tuple[str, str]]
) -> None:
    first, second = here.deploy(1, name="first"), here.deploy(2, name="second")
    subprocess.run(["umount", here.home(first)], check=True)
    error = ask(here.machine, "backup", code=1)["error"]
    assert error["message"].startswith("first: its disk is not mounted")
    assert told == [("backup_failed", f"not_mounted: {error['message']}")]
    made = [one["what"] for one in ask(here.machine, "backups")["backups"]]
    assert made == ["second", "platform"]
    assert second["id"] not in here.engine.frozen


def test_a_bot_whose_first_deploy_is_under_way_is_left_out(here: Place) -> None:
    declared(here.machine, wanted(1, name="coming"))
    done = ask(here.machine, "backup")
    assert done["skipped"] == ["coming"]
    assert [one["what"] for one in done["snapshots"]] == ["platform"]


def test_only_one_backup_at_a_time(here: Place) -> None:
    with backups.alone(here.paths):
        assert ask(here.machine, "backup", code=1)["error"]["code"] == "backup_busy"


def test_an_interrupted_backup_lets_the_bot_go_on_and_the_next_one_works(here: Place) -> None:
    bot = here.deploy(1, name="support")
    work = here.paths.backup_room / "work" / bot["id"]
    work.mkdir(parents=True)
    (work / "frozen").touch()
    (work / "bot.json").write_text("{}")
    here.engine.status[bot["id"]] = "paused"
    assert ask(here.machine, "backup", "tidy")["thawed"] == [bot["id"]]
    assert here.engine.frozen == set()
    assert not work.exists()
    assert not ask(here.machine, "backup", "tidy")["changed"]
    assert ask(here.machine, "backup")["changed"]


def test_restic_killed_by_power_loss_leaves_a_lock_that_the_next_backup_removes(
    here: Place, repository: Path
) -> None:
    here.deploy(1)
    environment = {
        "PATH": os.environ["PATH"],
        "RESTIC_REPOSITORY": str(repository),
        "RESTIC_PASSWORD_FILE": str(here.paths.backup_password),
        "RESTIC_CACHE_DIR": str(here.paths.state / "cache"),
    }
    command = ["restic", "backup", "--stdin"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while not locks(repository) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    assert len(locks(repository)) == 1
    assert ask(here.machine, "backup")["changed"]
    assert locks(repository) == []


def locks(repository: Path) -> list[Path]:
    """Those that are written to their end."""
    return [path for path in (repository / "locks").iterdir() if "-tmp-" not in path.name]


def test_a_terminated_backup_thaws_its_bot(tmp_path: Path) -> None:
    """The signal that systemd sends ends the process in order: what must be undone is undone."""
    script = f"""
import signal, time
from pathlib import Path
from click.testing import CliRunner
from clawdeploy import backup, cli_backup
from clawdeploy.cli import main
def slow(*_):
    try:
        Path({str(tmp_path / "frozen")!r}).touch()
        time.sleep(60)
    finally:
        Path({str(tmp_path / "frozen")!r}).unlink()
backup.back_up = slow
main(["backup"])
"""
    environment = {**os.environ, "PYTHONPATH": "src"}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as process:
        deadline = time.monotonic() + 20
        while not (tmp_path / "frozen").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert not (tmp_path / "frozen").exists()


# --- looking after them -----------------------------------------------------------------------------


def test_backups_are_verified_down_to_the_books(
    here: Place, repository: Path, told: list[tuple[str, str]]
) -> None:
    bot = here.deploy(1, name="support")
    assert "no backup of this host's platform" in run(here.machine, "backup", "verify", code=1).stdout
    here.spend(bot, 1000)
    ask(here.machine, "backup")
    checked = ask(here.machine, "backup", "verify", "--read", "100%")
    assert (checked["ok"], checked["bots"]) == (True, 1)
    assert checked["ledger"] == {"accounts": 1, "entries": 2, "calls": 1}
    assert "its books add up (1 accounts)" in run(here.machine, "backup", "verify").stdout
    told.clear()
    packs = sorted((repository / "data").rglob("*"), key=lambda path: path.stat().st_size)
    packs[-1].chmod(0o600)
    packs[-1].write_bytes(
        bytes(packs[-1].stat().st_size)
    )  # a shorter one restic would ask for again and again
    assert not ask(here.machine, "backup", "verify", "--read", "100%", code=1)["ok"]
    assert {event for event, _ in told} == {"backup_verify_failed"}


def test_old_backups_go_and_the_list_tells_the_age(here: Place) -> None:
    here.deploy(1, name="support")
    made = [ask(here.machine, "backup", "support")["snapshots"][0]["snapshot"] for _ in range(4)]
    left = ask(here.machine, "backups")["backups"]
    # The day's last one; newer releases of restic also keep the very first of all.
    assert 1 <= len(left) <= 2
    assert (left[-1]["snapshot"], left[-1]["what"]) == (made[-1][:8], "support")
    assert left[-1]["age"] < 100
    assert "support" in run(here.machine, "backups").stdout


def test_a_customer_who_left_can_be_forgotten(here: Place) -> None:
    here.deploy(1, name="gone")
    here.deploy(2, name="stays")
    ask(here.machine, "backup")
    assert ask(here.machine, "backup", "forget", "gone", "--check")["forgotten"] == 1
    ask(here.machine, "backup", "forget", "gone", "--yes")
    assert [one["what"] for one in ask(here.machine, "backups")["backups"]] == ["stays", "platform"]


def test_no_secret_is_an_argument_or_in_an_answer(
    here: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot = here.deploy(1, name="support")
    spy = tmp_path / "bin" / "restic"
    spy.parent.mkdir()
    real = subprocess.run(["which", "restic"], capture_output=True, text=True, check=True).stdout.strip()
    spy.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/argv\nenv >> {tmp_path}/env\nexec {real} "$@"\n'
    )
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy.parent}:{os.environ['PATH']}")
    output = "".join(
        run(here.machine, *verb).output for verb in (["backup"], ["backups"], ["backup", "verify"])
    )
    secrets = [PASSWORD, KEY, *json.loads((here.paths.secrets / f"{bot['id']}.json").read_text()).values()]
    arguments, environment = (tmp_path / "argv").read_text(), (tmp_path / "env").read_text()
    for secret in secrets:
        assert secret not in output + arguments
    assert KEY in environment
    assert PASSWORD not in environment
    assert KEY not in os.environ.values()
