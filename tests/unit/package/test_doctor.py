"""clawctl doctor: what is right is said, what is wrong is found, each by its own check."""

import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import msgspec
import pytest
import trustme

from clawdeploy import doctor
from clawdeploy.cli import Machine
from clawdeploy.containers import ContainerSpec
from clawdeploy.host import load_host
from clawdeploy.ledger_client import LedgerClient
from clawdeploy.models import Running
from clawdeploy.watchdog import trial

from .conftest import NOW, RUN, Engine, RunningHAProxy, Systemd, container_spec, wanted
from .harness import ask, declared, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clawctl is root's")


@pytest.fixture
def bot(machine: Machine, engine: Engine, haproxy: RunningHAProxy, ledger: LedgerClient) -> str:
    """The id of a bot named one that is at work."""
    bot_id = str(declared(machine, wanted(1, name="one"))[0]["id"])
    with machine.changing() as registry:
        registry.activate(RUN, [Running(bot_id, "c" * 64, "sha256:1")])
    engine.make(bot_id, msgspec.convert(container_spec(), ContainerSpec))
    ask(machine, "sync")
    return bot_id


def wrong(machine: Machine, port: int = 1) -> dict[str, str]:
    """Check -> message of those that failed."""
    return {one.check: one.message for one in doctor.examine(machine, NOW, port) if not one.good}


@contextmanager
def edge(machine: Machine, name: str, **validity: Any) -> Iterator[int]:
    """The port of a TLS server with a certificate for ``name``, whose CA the host trusts."""
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(name, **validity).configure_cert(context)
    root = machine.paths.state / "root.pem"
    ca.cert_pem.write_to_path(str(root))
    host = msgspec.structs.replace(load_host(machine.paths), tls_ca_file=str(root))
    machine.paths.host_file.write_bytes(msgspec.json.encode(host))
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_host_on_which_all_is_well_passes_what_can_be_checked_here(machine: Machine, bot: str) -> None:
    with edge(machine, "one.bots.example.test") as port:
        found = wrong(machine, port)
    # There is no table of ours in this machine's firewall, and the bot's container is none of Docker's.
    assert set(found) == {"readings"}


def test_a_service_that_is_down_is_named(machine: Machine, systemd: Systemd, bot: str) -> None:
    systemd.down = {"caddy.service"}
    assert wrong(machine)["services"] == "not running: caddy.service: see `systemctl status caddy.service`."


def test_backups_that_are_set_up_must_have_their_timer(machine: Machine, systemd: Systemd, bot: str) -> None:
    systemd.down = {"clawdeploy-backup.timer"}
    assert "services" not in wrong(machine)
    machine.paths.backup_settings.write_text("{}")
    assert "clawdeploy-backup.timer" in wrong(machine)["services"]


def test_what_differs_from_the_registry_is_told_and_left_alone(machine: Machine, bot: str) -> None:
    routes = machine.paths.maps / "routes.map"
    routes.write_text("")
    assert wrong(machine)["registry"].endswith("run `clawctl reconcile`.")
    assert routes.read_text() == ""


def test_a_gateway_that_is_down_fails_its_checks_and_no_other(machine: Machine, tmp_path: Path) -> None:
    found = wrong(machine)
    assert {"books", "price"} <= set(found)
    assert not {"disk", "certificates"} & set(found)


def test_too_little_disk_is_said_in_figures(machine: Machine, bot: str) -> None:
    host = msgspec.structs.replace(load_host(machine.paths), disk_floor=1 << 60)
    machine.paths.host_file.write_bytes(msgspec.json.encode(host))
    assert "fewer than the 1152921504.6 GB to be kept" in wrong(machine)["disk"]


def test_a_certificate_nobody_trusts_and_a_port_nobody_serves_are_found(machine: Machine, bot: str) -> None:
    with edge(machine, "other.example.test") as port:
        assert "one.bots.example.test: " in wrong(machine, port)["certificates"]
    assert "one.bots.example.test: " in wrong(machine)["certificates"]


@pytest.mark.parametrize(("left", "good"), [(timedelta(days=16), True), (timedelta(days=14), False)])
def test_a_certificate_that_was_not_renewed_in_time_is_found(
    machine: Machine, bot: str, left: timedelta, good: bool
) -> None:
    begins = datetime.now(UTC) - timedelta(days=90) + left
    now = int(datetime.now(UTC).timestamp())
    with edge(
        machine, "one.bots.example.test", not_before=begins, not_after=begins + timedelta(days=90)
    ) as port:
        (found,) = (one for one in doctor.examine(machine, now, port) if one.check == "certificates")
    assert found.good == good, found
    assert good or "was not renewed" in found.message


def test_findings_become_events_of_which_the_operator_is_told(machine: Machine, bot: str) -> None:
    doctor.note(
        machine,
        [
            doctor.Finding("certificates", False, "one.bots.example.test: expired"),
            doctor.Finding("services", False, "not running: caddy.service"),
            doctor.Finding("disk", True, "9 GB are free"),
        ],
    )
    noted = {event["kind"]: event["message"] for event in ask(machine, "events")["events"]}
    assert noted["certificate_failed"] == "certificates: one.bots.example.test: expired"
    assert noted["doctor_failed"] == "services: not running: caddy.service"
    assert "disk: 9 GB are free" not in noted.values()


def test_the_verb_fails_when_something_is_wrong_and_shows_a_table(
    machine: Machine, systemd: Systemd, bot: str
) -> None:
    systemd.down = {"caddy.service"}
    assert "not running: caddy.service" in run(machine, "doctor", code=1).stdout
    answer = ask(machine, "doctor", code=1)
    assert answer["good"] is False
    assert [one["check"] for one in answer["findings"]] == [
        *("services", "readings", "registry", "books", "price", "disk", "certificates")
    ]


@pytest.mark.docker
def test_the_offenders_run_into_their_limits_and_leave_nothing() -> None:
    found = {one.check: one for one in trial.run()}
    assert list(found) == ["cpu", "memory", "processes"]
    assert all(one.good for one in found.values()), found

    client = docker.from_env()
    left = (
        client.images.list("clawdeploy-trial"),
        client.containers.list(all=True, filters={"label": "clawdeploy.trial"}),
    )
    client.close()
    assert left == ([], [])
