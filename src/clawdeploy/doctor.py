"""One look at everything that has to be right on a host. It changes nothing; repairs are ``reconcile``'s."""

import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import msgspec

from clawdeploy import events
from clawdeploy.clitools import Machine
from clawdeploy.errors import ClawError
from clawdeploy.health import customers_trust
from clawdeploy.host import Host
from clawdeploy.reconcile import reconcile

SERVICES = (
    "docker.service",
    "haproxy.service",
    "caddy.service",
    "clawdeploy-firewall.service",
    "clawdeploy-llm-gateway.service",
    "clawdeploy-watchdog.service",
)
_BACKUPS = "clawdeploy-backup.timer"
_CERTIFICATES = "certificates"
_TLS_SECONDS = 10
# Whoever renews begins when a third of a certificate's life is left.
_LATE = 1 / 6


class Finding(msgspec.Struct, frozen=True):
    """One check: whether all is well, and in a sentence what was seen or has to be done."""

    check: str
    good: bool
    message: str


Check = Callable[[Machine, int], str]


def examine(machine: Machine, now: int, port: int = 443) -> Iterator[Finding]:
    """Make all checks, whatever the others find. ``now``: Unix seconds; ``port``: the edge's on 127.0.0.1."""
    checks: dict[str, Check] = {
        "services": _services,
        "readings": _readings,
        "registry": _registry,
        "books": _books,
        "price": _price,
        "disk": _disk,
        _CERTIFICATES: lambda machine, now: _certificates(machine, now, port),
    }
    for name, check in checks.items():
        try:
            yield Finding(name, True, check(machine, now))
        except ClawError as error:
            yield Finding(name, False, "; ".join(message for _, message in error.problems))


def note(machine: Machine, findings: list[Finding]) -> None:
    """Write what is wrong into the events, from which the watchdog tells the operator."""
    with machine.changing() as registry:
        for finding in findings:
            if not finding.good:
                kind = "certificate_failed" if finding.check == _CERTIFICATES else "doctor_failed"
                events.record(registry.store, kind, None, f"{finding.check}: {finding.message}")


def _services(machine: Machine, _now: int) -> str:
    wanted = (*SERVICES, _BACKUPS) if machine.paths.backup_settings.exists() else SERVICES
    down = [unit for unit in wanted if not _active(machine, unit)]
    if down:
        raise ClawError("services_down", f"not running: {', '.join(down)}: see `systemctl status {down[0]}`.")
    return f"{len(wanted)} run"


def _active(machine: Machine, unit: str) -> bool:
    try:
        machine.systemctl("is-active", "--quiet", unit)
    except ClawError:
        return False
    return True


def _readings(machine: Machine, _now: int) -> str:
    """Everything that the watchdog reads, read once."""
    from clawdeploy.watchdog.sensors import Sensors

    sensors = Sensors(machine)
    try:
        look = sensors.look({})
    finally:
        sensors.close()
    problems = [("reading_failed", f"{sensor} cannot be read: {why}") for sensor, why in look.failed.items()]
    running = [sight for sight in look.sights if sight.state == "running"]
    problems += [
        ("reading_failed", f"the control group of {sight.bot.label} cannot be read")
        for sight in running
        if sight.cpu_seconds is None
    ]
    if problems:
        raise ClawError.several(problems)
    return f"control groups of {len(running)} running bots, edge, ledger, firewall"


def _registry(machine: Machine, now: int) -> str:
    with machine.changing() as registry:
        found = reconcile(
            registry, machine.homes, machine.engine, machine.halter, machine.systemctl, now, check=True
        )
        bots = len(registry.bots())
    if found["done"]:
        what = ", ".join(f"{one['what']} ({one['was']})" for one in found["done"])
        raise ClawError("host_differs", f"{what}: run `clawctl reconcile`.")
    return f"the host is what it says of {bots} bots"


def _books(machine: Machine, _now: int) -> str:
    books = machine.ledger.verify()
    if not books.ok:
        raise ClawError("books_wrong", f"{'; '.join(books.problems)}: see `clawctl ledger verify`.")
    return f"{books.accounts} accounts and {books.entries} entries add up"


def _price(machine: Machine, now: int) -> str:
    price = machine.ledger.price(None)
    age = "the operator's" if price.fetched is None else f"{(now - price.fetched) / 3600:.0f} hours old"
    return f"{price.model}: ${price.prompt} and ${price.completion} a million tokens, {age}"


def _disk(machine: Machine, _now: int) -> str:
    with machine.registry() as registry:
        floor = registry.host.disk_floor
    free = shutil.disk_usage(machine.paths.state).free
    if free < floor:
        raise ClawError(
            "disk_low",
            f"{free / 1e9:.1f} GB are free, fewer than the {floor / 1e9:.1f} GB to be kept: remove what "
            "nobody needs (`clawctl list --kept`, `clawctl images`).",
        )
    return f"{free / 1e9:.1f} GB are free"


def _certificates(machine: Machine, now: int, port: int) -> str:
    """Every bot's certificate as a customer gets it, and whether its renewal is late."""
    with machine.registry() as registry:
        host, bots = registry.host, registry.bots()
    names = sorted({urlsplit(host.origin(bot.label)).hostname or "" for bot in bots if bot.state == "active"})
    problems, nearest = [], float("inf")
    for name in names:
        try:
            begins, ends = _validity(host, name, port)
        except (OSError, ssl.SSLError) as error:
            problems.append(("certificate_failed", f"{name}: {error}"))
            continue
        nearest = min(nearest, ends - now)
        if ends - now < _LATE * (ends - begins):
            left = (ends - now) / 3600
            problems.append(
                (
                    "certificate_failed",
                    f"{name}: ends in {left:.0f} hours and was not renewed: `journalctl -u caddy`",
                )
            )
    if problems:
        raise ClawError.several(problems)
    return f"{len(names)} verified, the first ends in {nearest / 86400:.1f} days" if names else "no bots"


def _validity(host: Host, name: str, port: int) -> tuple[float, float]:
    """Begin and end (Unix seconds) of the certificate; OSError if a customer's client would refuse it."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=_TLS_SECONDS) as connection,
        customers_trust(host).wrap_socket(connection, server_hostname=name) as tls,
    ):
        found = tls.getpeercert() or {}
    begins, ends = (ssl.cert_time_to_seconds(str(found[field])) for field in ("notBefore", "notAfter"))
    return float(begins), float(ends)
