"""What prepare_host made of the machine."""

import json

import pytest
from testinfra.host import Host


@pytest.mark.parametrize(
    "unit",
    [
        *("docker", "haproxy", "caddy", "unattended-upgrades"),
        *("clawdeploy-llm-gateway", "clawdeploy-firewall", "clawdeploy-watchdog"),
    ],
)
def test_service_runs_and_comes_back_at_boot(host: Host, unit: str) -> None:
    service = host.service(unit)
    assert service.is_enabled
    assert service.is_running, host.run(f"journalctl --no-pager --lines=30 --unit={unit}").stdout


@pytest.mark.parametrize(
    ("path", "owner", "group", "mode"),
    [
        ("/var/lib/clawdeploy/registry.db", "root", "root", 0o600),
        ("/etc/clawdeploy/secrets/openrouter_api_key", "clawdeploy-llm", "root", 0o400),
        ("/etc/haproxy/maps/tokens.map", "root", "haproxy", 0o640),
        ("/etc/haproxy/maps/inject.map", "root", "haproxy", 0o640),
        ("/var/lib/clawdeploy/llm_gateway/keys.json", "root", "clawdeploy-llm", 0o640),
    ],
)
def test_secrets_are_readable_only_by_their_service(
    host: Host, path: str, owner: str, group: str, mode: int
) -> None:
    file = host.file(path)
    assert (file.user, file.group, file.mode) == (owner, group, mode)


def test_docker_is_configured_for_hostile_tenants(host: Host) -> None:
    settings = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert settings["live-restore"] is True
    assert settings["userland-proxy"] is False
    assert settings["icc"] is False
    assert settings["no-new-privileges"] is True
    assert settings["dns"]
    assert settings["log-opts"]


def test_only_ssh_http_and_https_are_reachable_from_outside(host: Host) -> None:
    rules = host.run("nft list chain inet clawdeploy input").stdout
    assert "policy drop" in rules


def test_the_gateway_may_do_little_on_the_host(host: Host) -> None:
    shown = host.run(
        "systemctl show clawdeploy-llm-gateway --property=NoNewPrivileges,ProtectSystem,ProtectHome,User"
    ).stdout
    assert "NoNewPrivileges=yes" in shown
    assert "ProtectSystem=strict" in shown
    assert "User=clawdeploy-llm" in shown


def test_no_unit_has_failed(host: Host) -> None:
    assert host.run("systemctl --failed --no-legend --plain").stdout == ""
