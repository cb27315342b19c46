"""What a hostile agent can do from inside its container. Every target is the lab's own."""

import json

import pytest

from tests import lab
from tests.e2e.conftest import Bot, clawctl, in_bot

# busybox's nc: exit code 0 when the connection is made.
REACH = "echo | timeout 3 nc -w 2 {address} {port}"


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


def test_the_public_internet_is_open(vps: lab.Vps, bot: Bot) -> None:
    code, output = in_bot(vps, bot, REACH.format(address=lab.WEBSITE_ADDRESS, port=80))
    assert code == 0, output


@pytest.mark.parametrize(
    ("address", "port"),
    [
        pytest.param("169.254.169.254", 80, id="cloud metadata"),
        pytest.param("192.168.77.6", 80, id="a private range"),
        pytest.param(lab.WEBSITE_ADDRESS, 25, id="SMTP"),
        pytest.param("10.201.255.1", 22, id="ssh on the gateway's address"),
        pytest.param("198.51.100.10", 22, id="ssh on the host's public address"),
        pytest.param("198.51.100.10", 443, id="the edge from behind"),
    ],
)
def test_everything_else_is_closed(vps: lab.Vps, bot: Bot, address: str, port: int) -> None:
    there = vps.ssh(f"timeout 5 bash -c '</dev/tcp/{address}/{port}'")
    assert there.returncode == 0, f"nobody listens there, so the test would prove nothing: {there.stderr}"
    code, output = in_bot(vps, bot, REACH.format(address=address, port=port))
    assert code != 0, output


def test_the_host_and_other_bots_are_out_of_reach(vps: lab.Vps, bots: list[Bot]) -> None:
    first, second = bots
    own, other = (clawctl(vps, "show", bot.id) for bot in (first, second))
    for address, port in (
        (own["host_address"], 22),
        (other["host_address"], 22),
        (other["address"], 3000),
        (other["address"], 32123),
    ):
        code, output = in_bot(vps, first, REACH.format(address=address, port=port))
        assert code != 0, f"{address}:{port}: {output}"


def test_the_gateway_takes_a_key_only_from_its_own_bot(vps: lab.Vps, bots: list[Bot]) -> None:
    first, second = bots
    secrets = json.loads(vps.exec("cat", f"/var/lib/clawdeploy/secrets/{second.id}.json"))
    url = "http://10.201.255.1:8788/api/v1/models"
    get = "wget -q -O - --header 'Authorization: Bearer {key}' " + url
    assert in_bot(vps, second, get.format(key=secrets["llm_key"]))[0] == 0
    code, output = in_bot(vps, first, get.format(key=secrets["llm_key"]))
    assert code != 0
    assert "openai/gpt-4o-mini" not in output


def test_a_fork_bomb_stays_in_its_container(vps: lab.Vps, bot: Bot) -> None:
    in_bot(vps, bot, "i=0; while [ $i -lt 200 ]; do sleep 5 & i=$((i+1)); done; wait")
    assert int(vps.exec("sh", "-c", "ls /proc | grep -c '^[0-9]'")) < 1000


def test_a_bot_that_fills_its_disk_fills_only_its_own(vps: lab.Vps, bots: list[Bot]) -> None:
    first, second = bots
    code, output = in_bot(vps, first, "dd if=/dev/zero of=/nullclaw-data/fill bs=1M count=4096")
    assert code != 0
    assert "space" in output.lower()
    assert in_bot(vps, first, "rm /nullclaw-data/fill")[0] == 0
    assert in_bot(vps, second, "echo x > /nullclaw-data/note && rm /nullclaw-data/note")[0] == 0


def test_an_idle_bot_stays_under_ten_megabytes(vps: lab.Vps, bot: Bot) -> None:
    processes = vps.exec("docker", "top", bot.container, "-o", "pid,comm").splitlines()
    agents = [line.split()[0] for line in processes if "nullclaw" in line]
    rollups = vps.exec("cat", *(f"/proc/{pid}/smaps_rollup" for pid in agents))
    pss = sum(int(line.split()[1]) for line in rollups.splitlines() if line.startswith("Pss:"))
    assert pss < 10 * 1024, f"{pss} kB"
