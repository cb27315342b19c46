"""A bot whose agent is hostile, deployed like any other: what it tries from inside, and what that gets it.

The program that tries is tests/standin/hostile/hostile.c. Every target is the lab's own, and while this runs
the simulated internet has no way out.
"""

import asyncio
import json
import re
import shlex
import time
from collections.abc import Awaitable, Iterator

import aiohttp
import pytest

from tests import lab
from tests.customer import internet
from tests.e2e.conftest import Bot, Deploy, clawctl, in_bot, result_of, telegram_token
from tests.e2e.test_customer import ask
from tests.standin.build import HOSTILE, build_image

CALLS = re.findall(r'^    \{"(.+)", \w+\},$', (HOSTILE / "hostile.c").read_text(), re.MULTILINE)
REFUSED = {"EPERM", "EACCES", "EROFS", "ENOSYS"}

KERNEL_FILES = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/mtrr",
    "/sys/power/state", "/sys/kernel/profiling", "/sys/class/net/eth0/address",
)  # fmt: skip
ROOTS_FILES = (
    "/etc/passwd", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/sbin/docker-init", "/bin/busybox",
    "/usr/local/bin/nullclaw", "/usr/local/bin/hostile-setuid", "/nullclaw-data/.nullclaw/config.json",
)  # fmt: skip
DEVICES = (
    "/dev/mem",
    "/dev/kmsg",
    "/dev/port",
    "/dev/vda",
    "/dev/loop0",
    "/dev/loop-control",
    "/dev/fuse",
    "/dev/kvm",
)

# A socket for each address: an answer must come from where the question went.
UDP_ECHO = """
import select, socket, sys
sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in sys.argv[1:]]
for echo, address in zip(sockets, sys.argv[1:]):
    echo.bind((address, 9999))
while True:
    for echo in select.select(sockets, [], [])[0]:
        echo.sendto(*echo.recvfrom(100))
"""
# From the host itself every address answers, so that silence elsewhere means something.
UDP_ASK = """
import socket, sys, time
for address in sys.argv[1:]:
    asking = socket.socket(type=socket.SOCK_DGRAM)
    asking.connect((address, 9999))
    asking.settimeout(0.2)
    for attempt in range(25):
        try:
            asking.send(b"x")
            asking.recv(9)
            break
        except OSError:
            time.sleep(0.2)
    else:
        sys.exit(f"{address} does not answer")
"""
GATEWAY = "http://10.201.255.1:8788/api/v1/models"


@pytest.fixture(scope="module", autouse=True)
def no_way_out() -> Iterator[None]:
    with lab.cut_off():
        yield


@pytest.fixture(scope="module", autouse=True)
def nobody_watches(vps: lab.Vps) -> Iterator[None]:
    """It is the walls that are tried here: the watchdog would throttle the attacker, and then suspend it."""
    vps.exec("systemctl", "stop", "clawdeploy-watchdog")
    yield
    vps.exec("systemctl", "start", "clawdeploy-watchdog")


@pytest.fixture(scope="module")
def attacker(vps: lab.Vps, deploy: Deploy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bot]:
    image = build_image(lab.CA_BUNDLE, "hostile")
    token, result = telegram_token(7_100_000_666), tmp_path_factory.mktemp("hostile") / "bot.json"
    deploy(
        token=token,
        owner="4242",
        rotate_gateway_token=True,
        bot_image=image.tag,
        bot_image_archive=image.archive,
        result_file=str(result),
    ).check()
    bot = Bot(token, result_of(result))
    yield bot
    vps.exec("clawctl", "destroy", bot.id, "--yes", "--json")


def outcomes(output: str) -> dict[str, str]:
    """What `hostile calls`, `writes` and `probe` print: what was tried -> what came of it."""
    return dict(line.split("\t") for line in output.splitlines() if "\t" in line)


def tried(vps: lab.Vps, bot: Bot, *arguments: str) -> dict[str, str]:
    code, output = in_bot(vps, bot, shlex.join(("hostile", *arguments)))
    assert code == 0, output
    return outcomes(output)


async def while_neighbours_answer(
    web: aiohttp.ClientSession, bots: list[Bot], attack: Awaitable[tuple[int, str]]
) -> tuple[int, str]:
    """Let the attack run. Its neighbours meanwhile answer all in a second, each once with a model call."""
    running = asyncio.ensure_future(attack)
    await asyncio.wait({running}, timeout=0.3)
    for bot in bots:
        began = time.monotonic()
        assert "are you there" in await ask(web, bot, "are you there")
        assert time.monotonic() - began < 1, f"{bot.id} was slow while its neighbour attacked"
    while not running.done():
        for bot in bots:
            began = time.monotonic()
            async with web.get(f"{bot.url}health", headers=bot.authorization) as response:
                assert response.status == 200
            assert time.monotonic() - began < 1, f"{bot.id} was slow while its neighbour attacked"
        await asyncio.wait({running}, timeout=0.4)
    return await running


def attack(vps: lab.Vps, bot: Bot, *arguments: str) -> Awaitable[tuple[int, str]]:
    return asyncio.to_thread(in_bot, vps, bot, shlex.join(("hostile", *arguments)))


# --- what it may ask of the kernel ------------------------------------------------------------------


@pytest.fixture(scope="module")
def calls(vps: lab.Vps, attacker: Bot) -> dict[str, str]:
    """Tried by the agent itself, told to by a chat message."""

    async def tell() -> str:
        async with internet(vps.host.address) as web:
            return await ask(web, attacker, "!sh hostile calls")

    return outcomes(asyncio.run(tell()))


@pytest.mark.parametrize("call", CALLS)
def test_the_kernel_refuses(calls: dict[str, str], call: str) -> None:
    # There is no way to take the flag back, so the kernel does not know the request.
    assert calls[call] in (REFUSED if call != "drop no-new-privileges" else {"EINVAL"})


@pytest.fixture(scope="module")
def writes(vps: lab.Vps, attacker: Bot) -> dict[str, str]:
    return tried(vps, attacker, "writes", *KERNEL_FILES, *ROOTS_FILES, *DEVICES)


@pytest.mark.parametrize("path", [*KERNEL_FILES, *ROOTS_FILES])
def test_no_file_of_the_kernel_or_of_root_can_be_written(writes: dict[str, str], path: str) -> None:
    # Not every kernel has all of its files; root's are in every image.
    assert writes[path] in (REFUSED | {"ENOENT"} if path in KERNEL_FILES else REFUSED)


@pytest.mark.parametrize("path", DEVICES)
def test_no_device_of_the_machine_is_there(writes: dict[str, str], path: str) -> None:
    assert writes[path] == "ENOENT"


def test_no_cgroup_can_be_written(vps: lab.Vps, attacker: Bot) -> None:
    code, output = in_bot(vps, attacker, "find /sys/fs/cgroup -type f -o -type d | head -500")
    assert code == 0
    found = tried(vps, attacker, "writes", *output.split())
    assert found
    assert {path: word for path, word in found.items() if word == "done"} == {}


@pytest.mark.parametrize(
    "path", ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"]
)
def test_what_the_kernel_tells_about_the_machine_is_masked(vps: lab.Vps, attacker: Bot, path: str) -> None:
    _, output = in_bot(
        vps, attacker, f"if [ -d {path} ]; then ls -A {path}; elif [ -e {path} ]; then cat {path}; fi"
    )
    assert output == ""


def test_it_sees_and_traces_only_its_own_processes(vps: lab.Vps, attacker: Bot) -> None:
    assert in_bot(vps, attacker, "hostile processes") == (0, "0 others, 0 traced\n")


def test_it_does_not_learn_its_place_among_the_hosts_cgroups(vps: lab.Vps, attacker: Bot) -> None:
    _, output = in_bot(vps, attacker, "cat /proc/self/cgroup")
    assert {line.split(":", 2)[2] for line in output.splitlines()} == {"/"}


def test_the_engines_sockets_are_not_in_there(vps: lab.Vps, attacker: Bot) -> None:
    _, output = in_bot(
        vps, attacker, "find / -xdev -type s; find /run /var/run -name '*.sock*'; cat /proc/net/unix"
    )
    assert not re.search(r"docker|containerd|shim|systemd|dbus|haproxy|clawdeploy", output), output


def test_setuid_means_nothing_wherever_it_can_write(vps: lab.Vps, attacker: Bot) -> None:
    _, output = in_bot(vps, attacker, "cat /proc/mounts")
    mounts = {line.split()[1]: set(line.split()[3].split(",")) for line in output.splitlines()}
    writable = {path: options for path, options in mounts.items() if "rw" in options}
    assert {"/nullclaw-data", "/tmp", "/dev/shm"} <= writable.keys()
    assert {path for path, options in writable.items() if "nosuid" not in options} == set()


# --- where it may go --------------------------------------------------------------------------------


def listening(vps: lab.Vps) -> set[int]:
    """The TCP ports that something on the host listens on, whatever the address."""
    lines = vps.exec("ss", "--no-header", "--listening", "--numeric", "--tcp").splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in lines}


def test_no_port_of_the_host_is_open_by_any_of_its_addresses(
    vps: lab.Vps, bots: list[Bot], attacker: Bot
) -> None:
    interfaces = json.loads(vps.exec("ip", "-json", "address"))
    addresses = {
        info["local"] + ("%eth0" if info["local"].startswith("fe80") else "")
        for interface in interfaces
        for info in interface["addr_info"]
        if not info["local"].startswith(("127.", "::1"))
    }
    ports = listening(vps) | {2375, 2376}
    assert {22, 80, 443, 8788} <= ports
    assert len(addresses) >= 6, "public, docker0, the gateway's, each bot's network"
    targets = [f"tcp:{address}:{port}" for address in addresses for port in ports]
    answers = tried(vps, attacker, "probe", *targets)
    assert len(answers) == len(targets)
    assert [target for target, answer in answers.items() if answer == "open"] == ["tcp:10.201.255.1:8788"]


def test_no_udp_port_of_the_host_answers(vps: lab.Vps, attacker: Bot) -> None:
    own = clawctl(vps, "show", attacker.id)["host_address"]
    places = ("198.51.100.10", "10.201.255.1", "10.202.0.1", own)
    vps.exec("systemd-run", "--quiet", "--collect", "--unit=hostile-echo", "python3", "-c", UDP_ECHO, *places)
    try:
        vps.exec("python3", "-c", UDP_ASK, *places)
        answers = tried(vps, attacker, "probe", *(f"udp:{address}:9999" for address in places))
    finally:
        vps.exec("systemctl", "stop", "hostile-echo")
    assert "open" not in answers.values(), answers


def test_other_bots_are_out_of_reach_by_address(vps: lab.Vps, bots: list[Bot], attacker: Bot) -> None:
    targets = []
    for bot in bots:
        shown = clawctl(vps, "show", bot.id)
        for address in (shown["address"], shown["host_address"]):
            targets += [f"tcp:{address}:{port}" for port in (3000, 32123, 22, 80, 443, 8788)]
        assert vps.ssh(f"timeout 3 bash -c '</dev/tcp/{shown['address']}/3000'").returncode == 0
    answers = tried(vps, attacker, "probe", *targets)
    assert "open" not in answers.values(), answers


def test_other_bots_have_no_names(vps: lab.Vps, bots: list[Bot], attacker: Bot) -> None:
    code, output = in_bot(vps, attacker, f"nslookup bot-{attacker.id}")
    assert code == 0, f"its own name resolves, so this would notice others: {output}"
    other = clawctl(vps, "show", bots[0].id)
    for name in (bots[0].container, f"bot-{bots[0].id}", bots[0].id, other["address"], other["host_address"]):
        code, output = in_bot(vps, attacker, f"timeout 5 nslookup {name}")
        assert code != 0, output


def test_arp_shows_nobody_but_its_own_gateway(vps: lab.Vps, bots: list[Bot], attacker: Bot) -> None:
    shown, other = (clawctl(vps, "show", bot.id) for bot in (attacker, bots[0]))
    tried(vps, attacker, "probe", f"udp:{other['address']}:3000", f"tcp:{other['address']}:3000")
    in_bot(vps, attacker, f"arping -c 1 -w 1 {other['address']}")
    _, table = in_bot(vps, attacker, "cat /proc/net/arp")
    assert {line.split()[0] for line in table.splitlines()[1:]} == {shown["host_address"]}
    neighbours = json.loads(vps.exec("ip", "-json", "neigh", "show", "dev", f"cb-{attacker.id}"))
    assert {entry["dst"] for entry in neighbours} <= {shown["address"]}


@pytest.mark.parametrize(
    ("address", "port"),
    [
        *(
            (address, 80)
            for address in (lab.METADATA_ADDRESS, lab.PRIVATE_ADDRESS, *lab.OTHER_PRIVATE_ADDRESSES)
        ),
        *((lab.WEBSITE_ADDRESS, port) for port in (25, 465, 587, 2525)),
    ],
)
def test_metadata_private_networks_and_mail_are_closed(
    vps: lab.Vps, attacker: Bot, address: str, port: int
) -> None:
    there = vps.ssh(f"timeout 5 bash -c '</dev/tcp/{address}/{port}'")
    assert there.returncode == 0, f"nobody listens there, so the test would prove nothing: {there.stderr}"
    target = f"tcp:{address}:{port}"
    assert tried(vps, attacker, "probe", target, f"tcp:{lab.WEBSITE_ADDRESS}:80") == {
        target: "ECONNREFUSED",
        f"tcp:{lab.WEBSITE_ADDRESS}:80": "open",
    }


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param("", id="as it is"),
        pytest.param("--header 'X-Forwarded-For: {address}'", id="claiming the other's address"),
        pytest.param(
            "--header 'Forwarded: for={address}' --header 'X-Real-IP: {address}'", id="in other words"
        ),
    ],
)
def test_another_bots_llm_key_is_worth_nothing(
    vps: lab.Vps, bots: list[Bot], attacker: Bot, headers: str
) -> None:
    other = bots[0]
    key = json.loads(vps.exec("cat", f"/var/lib/clawdeploy/secrets/{other.id}.json"))["llm_key"]
    get = f"wget -q -O - --header 'Authorization: Bearer {key}' {{}} {GATEWAY}"
    assert in_bot(vps, other, get.format(""))[0] == 0
    code, output = in_bot(
        vps, attacker, get.format(headers.format(address=clawctl(vps, "show", other.id)["address"]))
    )
    assert code != 0
    assert "403" in output or "401" in output, output


# --- what it may use up -----------------------------------------------------------------------------


async def test_a_fork_bomb_ends_at_the_limit(
    vps: lab.Vps, web: aiohttp.ClientSession, bots: list[Bot], attacker: Bot
) -> None:
    code, output = await while_neighbours_answer(web, bots, attack(vps, attacker, "forks", "5000", "3"))
    assert code == 0, output
    made, why = output.split()
    assert int(made) < 64
    assert why == "EAGAIN"


async def test_open_files_end_at_the_limit(
    vps: lab.Vps, web: aiohttp.ClientSession, bots: list[Bot], attacker: Bot
) -> None:
    code, output = await while_neighbours_answer(web, bots, attack(vps, attacker, "files", "40", "3"))
    assert code == 0, output
    counts = re.findall(r"^(\d+) EMFILE$", output, re.MULTILINE)
    assert len(counts) > 20
    assert max(map(int, counts)) < 1024


async def test_a_memory_hog_is_killed_alone(
    vps: lab.Vps, web: aiohttp.ClientSession, bots: list[Bot], attacker: Bot
) -> None:
    code, output = await while_neighbours_answer(web, bots, attack(vps, attacker, "memory", "500"))
    assert code == 137, output


async def test_a_burner_of_cpu_time_gets_its_share_and_no_more(
    vps: lab.Vps, web: aiohttp.ClientSession, bots: list[Bot], attacker: Bot
) -> None:
    code, output = await while_neighbours_answer(web, bots, attack(vps, attacker, "spin", "8", "4"))
    assert (code, output) == (0, "8 all\n")


async def test_a_full_disk_is_its_own(
    vps: lab.Vps, web: aiohttp.ClientSession, bots: list[Bot], attacker: Bot
) -> None:
    def free() -> int:
        return int(vps.exec("df", "--output=avail", "--block-size=1", "/var/lib/clawdeploy").split()[1])

    before, size = free(), clawctl(vps, "show", attacker.id)["limits"]["disk_size"]
    fill = "dd if=/dev/zero of=/nullclaw-data/fill bs=1M count=4096; sync"
    _, output = await while_neighbours_answer(web, bots, asyncio.to_thread(in_bot, vps, attacker, fill))
    assert "No space left" in output
    assert before - free() < size + (64 << 20)
    assert in_bot(vps, bots[0], "echo x > /nullclaw-data/note && rm /nullclaw-data/note")[0] == 0
    assert in_bot(vps, attacker, "rm /nullclaw-data/fill")[0] == 0


async def test_inodes_run_out_on_its_own_disk_only(
    vps: lab.Vps, web: aiohttp.ClientSession, bots: list[Bot], attacker: Bot
) -> None:
    in_bot(vps, attacker, "mkdir -p /nullclaw-data/many")
    _, output = await while_neighbours_answer(
        web, bots, attack(vps, attacker, "inodes", "/nullclaw-data/many")
    )
    assert output.endswith("ENOSPC\n")
    assert in_bot(vps, bots[0], "echo x > /nullclaw-data/note && rm /nullclaw-data/note")[0] == 0
    assert in_bot(vps, attacker, "rm -rf /nullclaw-data/many")[0] == 0


async def test_a_flood_of_log_lines_is_cut_down(
    vps: lab.Vps, web: aiohttp.ClientSession, bots: list[Bot], attacker: Bot
) -> None:
    flood = "head -c 100000000 /dev/urandom | base64 > /proc/1/fd/1"
    code, output = await while_neighbours_answer(web, bots, asyncio.to_thread(in_bot, vps, attacker, flood))
    assert code == 0, output
    container = vps.exec("docker", "inspect", "--format", "{{.Id}}", attacker.container).strip()
    kept = int(vps.exec("du", "--summarize", "--bytes", f"/var/lib/docker/containers/{container}").split()[0])
    assert (5 << 20) < kept < (31 << 20)


async def test_connections_end_at_the_limit(
    vps: lab.Vps, web: aiohttp.ClientSession, bots: list[Bot], attacker: Bot
) -> None:
    many = ("connections", lab.WEBSITE_ADDRESS, "80", "500", "2")
    code, output = await while_neighbours_answer(web, bots, attack(vps, attacker, *many))
    assert code == 0, output
    assert 100 < int(output) <= 256


async def test_after_all_that_the_host_is_whole_and_the_bot_itself_answers(
    vps: lab.Vps, web: aiohttp.ClientSession, bots: list[Bot], attacker: Bot
) -> None:
    assert vps.failed_units() == ""
    assert clawctl(vps, "wait", attacker.id)["bots"][0]["healthy"]
    for bot in (*bots, attacker):
        assert "hello" in await ask(web, bot, "hello")
