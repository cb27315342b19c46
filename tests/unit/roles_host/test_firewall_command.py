"""The command on the host that loads, tries and takes back rules, run in a network namespace of its own.

Nothing here has systemd: `systemd-run` and `systemctl` are stand-ins that keep the armed rollback in a file,
so that a test decides when the time is up.
"""

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.roles_host.harness import COMMAND, Namespace, render, run

SYSTEMD_RUN = """#!/bin/sh
for argument; do [ "$argument" = rollback ] && echo "$previous" >"$ARMED"; previous=$argument; done
"""
SYSTEMCTL = """#!/bin/sh
[ "$*" = "stop clawdeploy-firewall-rollback.timer" ] && rm "$ARMED"
"""
USERS = [{"user": "nobody", "reach": "bots"}, {"user": "not-here-yet", "reach": "internet"}]


class Host:
    """A host with the command, its files under a temporary directory."""

    def __init__(self, directory: Path, namespace: Namespace) -> None:
        self.namespace = namespace
        self.saved = directory / "firewall.nft"
        self.candidate = directory / "candidate.nft"
        self.armed = directory / "armed"
        self.command = directory / "firewall"
        self.passwd = directory / "passwd"
        self.bin = directory / "bin"
        text = COMMAND.read_text()
        for place, mine in (
            ("/etc/clawdeploy/firewall.nft", self.saved),
            ("/run/clawdeploy-firewall", directory / "run"),
        ):
            assert place in text
            text = text.replace(place, str(mine))
        self._write(self.command, text)
        self.bin.mkdir()
        self._write(self.bin / "systemd-run", SYSTEMD_RUN)
        self._write(self.bin / "systemctl", SYSTEMCTL)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = [f"PATH={self.bin}:{os.environ['PATH']}", f"ARMED={self.armed}"]
        return self.namespace.run("env", *environment, self.command, *arguments, check=False)

    def time_is_up(self) -> None:
        """Let the armed rollback happen."""
        assert self.armed.read_text().strip() == str(self.command)
        self.armed.unlink()
        assert self("rollback").returncode == 0

    def loaded(self) -> str:
        """Return the loaded table, or nothing."""
        return self.namespace.run("nft", "list", "table", "inet", "clawdeploy", check=False).stdout

    def has(self, port: int) -> bool:
        """Whether the loaded rules open a port that only one of two rule sets opens."""
        return f"tcp dport {port} accept" in self.loaded()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    namespace = Namespace(f"claw{os.getpid()}-command")
    run("ip", "netns", "add", namespace.name)
    host = Host(tmp_path, namespace)
    host.candidate.write_text(render(__firewall_ssh_ports=[2222], firewall_confined_users=USERS))
    try:
        yield host
    finally:
        run("ip", "netns", "delete", namespace.name)


@pytest.fixture
def prepared(host: Host) -> Host:
    """A host that has saved and loaded rules (ssh on port 22)."""
    host.saved.write_text(render(__firewall_ssh_ports=[22], firewall_confined_users=USERS))
    assert host("load").returncode == 0
    assert host("status").returncode == 0
    return host


def test_rules_on_trial_are_loaded_but_not_saved(prepared: Host) -> None:
    before = prepared.saved.read_text()
    assert prepared("try", prepared.candidate, "30").returncode == 0
    assert prepared.has(2222)
    assert prepared.saved.read_text() == before
    assert prepared("status").returncode == 1


def test_confirmed_rules_are_saved_and_the_rollback_is_disarmed(prepared: Host) -> None:
    wanted = prepared.candidate.read_text()
    prepared("try", prepared.candidate, "30")
    assert prepared("confirm").returncode == 0
    assert prepared.saved.read_text() == wanted
    assert not prepared.armed.exists()
    assert prepared("status").returncode == 0


def test_unconfirmed_rules_are_taken_back(prepared: Host) -> None:
    prepared("try", prepared.candidate, "30")
    prepared.time_is_up()
    assert prepared.has(22)
    assert prepared("status").returncode == 0


def test_first_rules_that_are_not_confirmed_leave_the_host_without_any(host: Host) -> None:
    host("try", host.candidate, "30")
    assert host.has(2222)
    host.time_is_up()
    assert host.loaded() == ""
    assert not host.saved.exists()


def test_rules_taken_back_cannot_be_confirmed(prepared: Host) -> None:
    before = prepared.saved.read_text()
    prepared("try", prepared.candidate, "30")
    prepared.time_is_up()
    result = prepared("confirm")
    assert result.returncode == 3
    assert "taken back" in result.stderr
    assert prepared.saved.read_text() == before


def test_rollback_that_comes_too_late_keeps_the_confirmed_rules(prepared: Host) -> None:
    prepared("try", prepared.candidate, "30")
    prepared("confirm")
    assert prepared("rollback").returncode == 0
    assert prepared.has(2222)


def test_invalid_rules_are_not_tried(prepared: Host) -> None:
    prepared.candidate.write_text("table inet clawdeploy { nonsense }")
    assert prepared("try", prepared.candidate, "30").returncode != 0
    assert prepared.has(22)
    assert not prepared.armed.exists()


def test_flushed_rules_are_noticed_and_refreshed(prepared: Host) -> None:
    prepared.namespace.run("nft", "flush", "ruleset")
    assert prepared("status").returncode == 1
    assert prepared("refresh").returncode == 0
    assert prepared("status").returncode == 0


def test_confined_users_are_known_by_number_as_soon_as_they_exist(prepared: Host) -> None:
    def members(user: str) -> str:
        listing = prepared.namespace.run("nft", "list", "set", "inet", "clawdeploy", f"user_{user}").stdout
        return listing.partition("elements = { ")[2].partition(" }")[0]

    # nft shows names where it finds them.
    assert members("nobody") in ("nobody", str(pwd.getpwnam("nobody").pw_uid))
    assert members("not-here-yet") == ""
    prepared._write(prepared.bin / "id", '#!/bin/sh\n[ "$2" = not-here-yet ] && echo 54321\n')
    assert prepared("refresh").returncode == 0
    assert members("not-here-yet") == "54321"
    assert members("nobody") == "", "a user that is gone is not confined by the number that another may get"


def test_unknown_verb_shows_the_verbs(host: Host) -> None:
    result = host("frobnicate")
    assert result.returncode == 64
    assert "clawdeploy-firewall try FILE SECONDS" in result.stderr
