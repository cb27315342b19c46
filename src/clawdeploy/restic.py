"""restic on this host's repository: the only module that knows how it is called and what it says.

The password goes by file, keys of a store by the environment of restic alone: neither is ever an argument.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from clawdeploy.errors import ClawError

_STOP_SECONDS = 20
# restic's own exit codes since 0.17; older ones say it in words only.
_NO_REPOSITORY, _LOCKED, _WRONG_PASSWORD = 10, 11, 12


class Settings(msgspec.Struct, frozen=True):
    """``/etc/clawdeploy/backup.json``, written by the backup role."""

    repository: str
    keep_daily: int
    keep_weekly: int
    keep_monthly: int


class Snapshot(msgspec.Struct, frozen=True):
    """One snapshot as ``restic snapshots --json`` lists it."""

    id: str
    time: datetime
    hostname: str
    tags: tuple[str, ...] = ()

    @property
    def at(self) -> float:
        """Unix seconds."""
        return self.time.timestamp()

    def tag(self, name: str) -> str | None:
        """What follows ``name=`` in one of its tags."""
        return next((tag.partition("=")[2] for tag in self.tags if tag.startswith(f"{name}=")), None)


class Saved(msgspec.Struct, frozen=True):
    """What a backup made: the snapshot's id, and the bytes that were new to the repository."""

    snapshot_id: str
    data_added: int


class Restic:
    """Every method raises ClawError: "repository_missing", "wrong_password", "repository_locked",
    "restic_missing", or "restic_failed" with restic's own last words.
    """

    def __init__(
        self, settings: Settings, password_file: Path, environment: Mapping[str, str], cache: Path, host: str
    ) -> None:
        """``environment``: keys for the store; ``host``: the name under which this host's snapshots go."""
        self._settings, self._password_file, self._host = settings, password_file, host
        self._secrets = [value for value in environment.values() if len(value) > 3]
        self._environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": "/root",  # where ssh, for a repository by sftp, finds its keys
            "LANG": "C.UTF-8",
            **environment,
            "RESTIC_REPOSITORY": settings.repository,
            "RESTIC_CACHE_DIR": str(cache),
        }

    def init(self, check: bool) -> bool:
        """Make the repository unless it is there; whether it had to be (``check``: would have to be) made."""
        try:
            self._run("cat", "config")
        except ClawError as error:
            if error.code != "repository_missing":
                raise
        else:
            return False
        if not check:
            self._run("init")
        return True

    def unlock(self) -> None:
        """Remove the locks of processes that are no more."""
        self._run("unlock")

    def save(self, directory: Path, tags: Sequence[str]) -> Saved:
        """A snapshot of everything in ``directory``, by names relative to it."""
        labels = [f"--tag={tag}" for tag in tags]
        names = sorted(path.name for path in directory.iterdir())
        said = self._run(
            "backup", "--json", "--quiet", f"--host={self._host}", *labels, *names, directory=directory
        )
        (summary,) = (line for line in said.splitlines() if b'"summary"' in line)
        return msgspec.json.decode(summary, type=Saved)

    def snapshots(self) -> list[Snapshot]:
        """All of them, whichever host made them, oldest first."""
        found = msgspec.json.decode(self._run("snapshots", "--json") or b"[]", type=list[Snapshot] | None)
        return sorted(found or [], key=lambda snapshot: snapshot.time)

    def read(self, snapshot: Snapshot, path: str) -> bytes:
        """One (small) file of a snapshot."""
        return self._run("dump", snapshot.id, path)

    def fetch(self, snapshot: Snapshot, path: str, target: Path) -> None:
        """One file of a snapshot, however large, to a new file (0600)."""
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            self._run("dump", snapshot.id, path, output=file)

    def restore(self, snapshot: Snapshot, path: str, target: Path) -> None:
        """What lies at ``path`` of a snapshot, as ``target``/``path``."""
        self._run("restore", snapshot.id, f"--target={target}", f"--include={path}")

    def forget_old(self) -> None:
        """Keep what the settings say of this host's snapshots, and free the room of all others."""
        keep = {
            "daily": self._settings.keep_daily,
            "weekly": self._settings.keep_weekly,
            "monthly": self._settings.keep_monthly,
        }
        self._run(
            *("forget", "--prune", "--quiet", f"--host={self._host}", "--group-by=paths"),
            *(f"--keep-{span}={count}" for span, count in keep.items() if count),
        )

    def forget(self, snapshots: Sequence[Snapshot]) -> None:
        """Remove these and free their room."""
        if snapshots:
            self._run("forget", "--prune", "--quiet", *(snapshot.id for snapshot in snapshots))

    def check(self, subset: str) -> None:
        """Check the repository's structure, and read ``subset`` of its data (``5%``, ``1G``, ``2/10``)."""
        self._run("check", f"--read-data-subset={subset}")

    def _run(self, *arguments: str, directory: Path | None = None, output: IO[Any] | None = None) -> bytes:
        command = ["restic", f"--password-file={self._password_file}", *arguments]
        try:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output or subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError:
            raise ClawError(
                "restic_missing", "restic is not installed: run prepare_host with backup_repository set."
            ) from None
        try:
            said, complaint = process.communicate()
        except BaseException:
            process.terminate()  # it then removes its lock from the repository
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
        if process.returncode:
            raise self._error(arguments[0], process.returncode, complaint.decode(errors="replace"))
        return said or b""

    def _error(self, verb: str, code: int, complaint: str) -> ClawError:
        repository = self._settings.repository
        if code == _NO_REPOSITORY or "Is there a repository at the following location?" in complaint:
            return ClawError(
                "repository_missing",
                f"there is no repository at {repository}: is its disk mounted, is the address right? "
                "prepare_host makes a new one.",
            )
        if code == _WRONG_PASSWORD or "wrong password or no key found" in complaint:
            return ClawError(
                "wrong_password",
                f"the repository {repository} has another password: set backup_password to the one that it "
                "was made with.",
            )
        if code == _LOCKED or "already locked" in complaint:
            return ClawError(
                "repository_locked", f"another process is at work in {repository}: try again later."
            )
        for secret in self._secrets:
            complaint = complaint.replace(secret, "***")
        words = " ".join(complaint.split())[-400:] or f"exit code {code}"
        return ClawError("restic_failed", f"`restic {verb}` failed: {words}")
