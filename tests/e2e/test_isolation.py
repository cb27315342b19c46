"""How a bot is walled in, and that its secrets show nowhere. What tries to get out is in test_hostile.py."""

import json

from tests import lab
from tests.e2e.conftest import Bot, clawctl, in_bot


def test_the_container_is_hardened(vps: lab.Vps, bot: Bot) -> None:
    (container,) = json.loads(vps.exec("docker", "inspect", bot.container))
    config, limits = container["Config"], container["HostConfig"]
    assert limits["ReadonlyRootfs"]
    assert limits["CapDrop"] == ["ALL"]
    assert limits["CapAdd"] in (None, [])
    assert any(option.startswith("no-new-privileges") for option in limits["SecurityOpt"])
    assert limits["Init"]
    assert not limits["Privileged"]
    assert limits["PidsLimit"] == 64
    assert limits["Memory"] == limits["MemorySwap"] == 64 * 2**20
    assert limits["NanoCpus"] == 500_000_000
    assert limits["RestartPolicy"]["Name"] == "unless-stopped"
    assert limits["PortBindings"] in (None, {})
    assert {limit["Name"] for limit in limits["Ulimits"]} == {"nofile", "core"}
    uid = clawctl(vps, "show", bot.id)["uid"]
    assert config["User"] == f"{uid}:{uid}"
    assert uid >= 200_000


def test_no_secret_is_in_what_docker_tells_or_in_any_process_list(vps: lab.Vps, bot: Bot) -> None:
    secrets = json.loads(vps.exec("cat", f"/var/lib/clawdeploy/secrets/{bot.id}.json"))
    visible = vps.exec("docker", "inspect", bot.container) + vps.exec("ps", "axww", "-o", "args")
    for name, value in secrets.items():
        assert value not in visible, name
    assert bot.card["gateway_token"] not in visible
    assert "sk-or-v1-lab0000000000000000" not in visible


def test_no_secret_is_in_the_journal(vps: lab.Vps, bot: Bot) -> None:
    secrets = json.loads(vps.exec("cat", f"/var/lib/clawdeploy/secrets/{bot.id}.json"))
    journal = vps.ssh("journalctl --no-pager --output=cat").stdout
    assert journal
    for name, value in secrets.items():
        assert value not in journal, name
    assert bot.card["gateway_token"] not in journal
    assert "sk-or-v1-lab0000000000000000" not in journal


def test_the_agent_cannot_write_its_configuration_or_the_image(vps: lab.Vps, bot: Bot) -> None:
    for path in ("/nullclaw-data/.nullclaw/config.json", "/usr/local/bin/nullclaw", "/etc/passwd"):
        code, output = in_bot(vps, bot, f"echo x >> {path}")
        assert code != 0, f"{path}: {output}"


def test_the_agent_has_no_capabilities_and_gains_none(vps: lab.Vps, bot: Bot) -> None:
    code, status = in_bot(vps, bot, "cat /proc/self/status")
    assert code == 0
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_an_idle_bot_stays_under_ten_megabytes(vps: lab.Vps, bot: Bot) -> None:
    processes = vps.exec("docker", "top", bot.container, "-o", "pid,comm").splitlines()
    agents = [line.split()[0] for line in processes if "nullclaw" in line]
    rollups = vps.exec("cat", *(f"/proc/{pid}/smaps_rollup" for pid in agents))
    pss = sum(int(line.split()[1]) for line in rollups.splitlines() if line.startswith("Pss:"))
    assert pss < 10 * 1024, f"{pss} kB"
