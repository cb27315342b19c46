"""The host held against a hardening benchmark for Docker hosts: what is set, who owns what, what listens.

A check that only repeats what a test from inside proves better is not here (test_hostile.py).
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from testinfra.host import Host

from tests import lab
from tests.e2e.conftest import Bot
from tests.playbooks import run_playbook

# Everything that listens on the host, as docs/threat-model.md has it: (address, port) -> program.
LISTENING = {
    ("0.0.0.0", 22): "sshd",
    ("[::]", 22): "sshd",
    ("*", 80): "caddy",
    ("*", 443): "caddy",
    ("127.0.0.1", 8479): "haproxy",
    ("127.0.0.1", 9465): "clawdeploy-llm-",
    ("127.0.0.1", 9466): "clawctl",
    ("10.201.255.1", 8788): "clawdeploy-llm-",
}


@pytest.fixture(scope="module")
def containers(host: Host, bots: list[Bot]) -> list[dict[str, Any]]:
    """Every container of the host as the engine sees it."""
    found: list[dict[str, Any]] = json.loads(host.check_output("docker inspect $(docker ps --all --quiet)"))
    assert len(found) >= len(bots)
    return found


# --- the engine -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("icc", False),
        ("live-restore", True),
        ("no-new-privileges", True),
        ("userland-proxy", False),
        ("default-cgroupns-mode", "private"),
        ("log-driver", "local"),
        ("log-opts", {"max-file": "3", "max-size": "10m"}),
        ("ip", "127.0.0.1"),
    ],
)
def test_the_engine_is_set_for_hostile_tenants(host: Host, key: str, value: Any) -> None:
    assert json.loads(host.file("/etc/docker/daemon.json").content_string)[key] == value


def test_the_engine_has_no_setting_that_opens_it(host: Host) -> None:
    settings = json.loads(host.file("/etc/docker/daemon.json").content_string)
    for key in (
        "hosts",
        "insecure-registries",
        "experimental",
        "seccomp-profile",
        "userns-remap",
        "selinux-enabled",
    ):
        assert key not in settings
    assert settings.get("iptables", True) is True


def test_the_engine_says_of_itself_what_was_set(host: Host) -> None:
    info = json.loads(host.check_output("docker info --format '{{json .}}'"))
    assert info["LiveRestoreEnabled"] is True
    assert info["ExperimentalBuild"] is False
    assert info["LoggingDriver"] == "local"
    assert "name=seccomp,profile=builtin" in info["SecurityOptions"]
    assert "name=no-new-privileges" in info["SecurityOptions"]
    assert info["Swarm"]["LocalNodeState"] == "inactive"
    assert info["RegistryConfig"]["IndexConfigs"].keys() == {"docker.io"}


def test_the_engine_is_reached_by_root_alone(host: Host) -> None:
    socket = host.file("/run/docker.sock")
    assert (socket.user, socket.group, socket.mode) == ("root", "docker", 0o660)
    assert host.group("docker").members == [], "who is in this group is root"
    assert "-H tcp" not in host.check_output("ps axww -o args")


def test_the_default_bridge_has_no_container(containers: list[dict[str, Any]]) -> None:
    assert {name for container in containers for name in container["NetworkSettings"]["Networks"]}.isdisjoint(
        {"bridge", "host", "none"}
    )


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "owner", "group", "mode"),
    [
        ("/etc/docker", "root", "root", 0o755),
        ("/etc/docker/daemon.json", "root", "root", 0o644),
        ("/etc/containerd/clawdeploy.toml", "root", "root", 0o644),
        ("/etc/systemd/system/containerd.service.d/clawdeploy.conf", "root", "root", 0o644),
        ("/usr/lib/systemd/system/docker.service", "root", "root", 0o644),
        ("/usr/lib/systemd/system/docker.socket", "root", "root", 0o644),
        ("/var/lib/docker", "root", "root", 0o710),
        ("/run/containerd/containerd.sock", "root", "root", 0o660),
        ("/etc/clawdeploy", "root", "root", 0o755),
        ("/etc/clawdeploy/firewall.nft", "root", "root", 0o644),
        ("/etc/clawdeploy/host.json", "root", "root", 0o644),
        ("/etc/clawdeploy/secrets", "root", "root", 0o711),
        ("/etc/haproxy/haproxy.cfg", "root", "root", 0o644),
        ("/etc/haproxy/maps", "root", "haproxy", 0o750),
        ("/run/haproxy/admin.sock", "root", "haproxy", 0o600),
        ("/run/haproxy/edge.sock", "haproxy", "caddy", 0o660),
        ("/run/caddy", "caddy", "caddy", 0o700),
        ("/run/clawdeploy-llm", "clawdeploy-llm", "clawdeploy-llm", 0o700),
        ("/var/lib/clawdeploy", "root", "root", 0o711),
        ("/var/lib/clawdeploy/bots", "root", "root", 0o711),
        ("/var/lib/clawdeploy/claims", "root", "root", 0o700),
        ("/var/lib/clawdeploy/disks", "root", "root", 0o700),
        ("/var/lib/clawdeploy/secrets", "root", "root", 0o700),
        ("/var/lib/clawdeploy/ledger", "clawdeploy-llm", "clawdeploy-llm", 0o700),
    ],
)
def test_owner_and_mode(host: Host, path: str, owner: str, group: str, mode: int) -> None:
    file = host.file(path)
    assert (file.user, file.group, file.mode) == (owner, group, mode)


def test_nothing_of_ours_can_be_changed_by_others(host: Host) -> None:
    names = ("clawdeploy", "docker", "containerd", "haproxy", "caddy", "systemd/system")
    places = " ".join(("/opt/clawdeploy", *(f"/etc/{name}" for name in names)))
    found = host.check_output(
        f"find {places} ! -type l -perm /022 -print -o ! -type l ! -user root ! -path '*/secrets/*' -print"
    )
    assert found == ""


def test_a_bots_disk_and_secrets_are_closed_to_all_others(host: Host, bots: list[Bot]) -> None:
    for bot in bots:
        for path in (f"/var/lib/clawdeploy/disks/{bot.id}.img", f"/var/lib/clawdeploy/secrets/{bot.id}.json"):
            file = host.file(path)
            assert (file.user, file.mode) == ("root", 0o600)
        assert host.file(f"/var/lib/clawdeploy/bots/{bot.id}").mode == 0o700


# --- containers -------------------------------------------------------------------------------------


def test_no_container_shares_a_namespace_with_the_host(containers: list[dict[str, Any]]) -> None:
    for container in containers:
        limits = container["HostConfig"]
        assert not limits["Privileged"]
        assert limits["NetworkMode"] not in ("host", "bridge", "default")
        assert limits["PidMode"] == limits["UTSMode"] == limits["UsernsMode"] == ""
        assert limits["IpcMode"] == "private"
        assert limits["CgroupnsMode"] == "private"
        assert limits["CgroupParent"] in ("", "clawdeploy.slice")


def test_no_container_has_devices_capabilities_or_an_open_profile(containers: list[dict[str, Any]]) -> None:
    for container in containers:
        limits = container["HostConfig"]
        assert limits["CapDrop"] == ["ALL"]
        assert not limits["CapAdd"]
        assert not limits["Devices"]
        assert not limits["DeviceRequests"]
        assert not limits["GroupAdd"]
        assert not any("unconfined" in option for option in limits["SecurityOpt"])
        assert limits["MaskedPaths"]
        assert limits["ReadonlyPaths"]


def test_no_container_mounts_anything_but_its_own_home(containers: list[dict[str, Any]]) -> None:
    for container in containers:
        home = f"/var/lib/clawdeploy/bots/{container['Config']['Labels']['clawdeploy.bot']}/"
        for mount in container["Mounts"]:
            assert mount["Source"].startswith(home)
            assert mount["Propagation"] == "rprivate"


def test_every_container_has_limits_a_health_check_and_no_endless_log(
    containers: list[dict[str, Any]],
) -> None:
    for container in containers:
        limits = container["HostConfig"]
        assert 0 < limits["Memory"] == limits["MemorySwap"]
        assert limits["NanoCpus"] > 0
        assert limits["PidsLimit"] > 0
        assert not limits["OomKillDisable"]
        assert limits["ReadonlyRootfs"]
        assert limits["LogConfig"] == {"Type": "local", "Config": {"max-file": "3", "max-size": "10m"}}
        assert container["Config"]["Healthcheck"]["Test"]
        assert container["HostConfig"]["PortBindings"] in (None, {})


def test_every_bot_is_a_user_of_its_own_who_is_nobody_on_the_host(
    host: Host, containers: list[dict[str, Any]]
) -> None:
    users = [container["Config"]["User"] for container in containers]
    assert len(set(users)) == len(users)
    for user in users:
        uid, gid = map(int, user.split(":"))
        assert uid == gid >= 200_000
        assert host.run(f"getent passwd {uid} || getent group {gid}").stdout == ""


# --- the host ---------------------------------------------------------------------------------------


def test_nothing_listens_but_what_is_documented(host: Host) -> None:
    found = {}
    for line in host.check_output(
        "ss --no-header --listening --numeric --tcp --udp --processes"
    ).splitlines():
        fields = line.split()
        address, _, port = fields[4].rpartition(":")
        if address == "127.0.0.11":
            continue  # the engine's resolver for the lab's own container, which is the VPS
        found[(address.partition("%")[0], int(port))] = fields[6].split('"')[1]
    assert found == LISTENING


def test_the_firewall_refuses_what_no_rule_lets_in(host: Host) -> None:
    for chain in ("input", "forward"):
        assert "policy drop" in host.check_output(f"nft list chain inet clawdeploy {chain}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.ipv4.conf.all.accept_redirects", 0),
        ("net.ipv4.conf.all.send_redirects", 0),
        ("net.ipv4.conf.all.accept_source_route", 0),
        ("net.ipv4.conf.all.rp_filter", 2),
        ("net.ipv4.conf.all.route_localnet", 0),
        ("net.ipv4.tcp_syncookies", 1),
        ("net.ipv6.conf.all.accept_redirects", 0),
        ("fs.protected_hardlinks", 1),
        ("fs.protected_symlinks", 1),
        ("fs.suid_dumpable", 0),
    ],
)
def test_kernel_setting(host: Host, name: str, value: int) -> None:
    assert host.sysctl(name) == value


def test_kernel_settings_that_only_a_real_machine_takes_are_kept_for_it(host: Host) -> None:
    kept = host.file("/etc/sysctl.d/60-clawdeploy.conf").content_string
    assert kept.startswith("#")
    assert "net.ipv4.ip_forward" in kept


@pytest.mark.parametrize(
    "unit", ["caddy", "haproxy", "docker", "containerd", "clawdeploy-llm-gateway", "clawdeploy-watchdog"]
)
def test_when_memory_runs_out_a_bot_goes_before_the_platform(host: Host, unit: str) -> None:
    # What systemd was told: in the lab it may not lower the kernel's figure.
    assert int(host.check_output(f"systemctl show --property=OOMScoreAdjust --value {unit}")) <= -500


def test_no_bot_is_spared_when_memory_runs_out(containers: list[dict[str, Any]]) -> None:
    for container in containers:
        assert container["HostConfig"]["OomScoreAdj"] >= 0


def test_security_updates_install_themselves(host: Host) -> None:
    assert host.service("unattended-upgrades").is_enabled
    assert host.service("apt-daily-upgrade.timer").is_enabled
    origins = host.check_output("apt-config dump Unattended-Upgrade::Origins-Pattern")
    assert "label=Debian-Security" in origins


def test_no_account_of_the_platform_has_a_shell_or_a_password(host: Host) -> None:
    for name in ("haproxy", "caddy", "clawdeploy-llm"):
        assert host.user(name).shell in ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false")
        assert host.check_output(f"getent shadow {name}").split(":")[1] in ("!", "!*", "*", "!!")


@pytest.fixture(scope="module")
def hardened_sshd(vps: lab.Vps, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What sshd says of itself after the operator has asked for base_ssh_hardening."""
    playbook = tmp_path_factory.mktemp("base") / "base.yml"
    playbook.write_text("[{hosts: vps, become: true, gather_facts: false, roles: [clawdeploy.fleet.base]}]\n")
    run_playbook(playbook, lab.INVENTORY, {"base_ssh_hardening": True}).check()
    yield dict(line.split(" ", 1) for line in vps.exec("sshd", "-T").splitlines())
    vps.exec("rm", "/etc/ssh/sshd_config.d/10-clawdeploy.conf")
    vps.exec("systemctl", "reload", "ssh")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("passwordauthentication", "no"),
        ("kbdinteractiveauthentication", "no"),
        ("permitemptypasswords", "no"),
        ("permitrootlogin", "without-password"),
        ("maxauthtries", "3"),
        ("logingracetime", "30"),
        ("x11forwarding", "no"),
        ("allowagentforwarding", "no"),
    ],
)
def test_sshd_is_hardened_where_the_operator_asks_for_it(
    hardened_sshd: dict[str, str], name: str, value: str
) -> None:
    assert hardened_sshd[name] == value
