"""What the density benchmark reads and draws: cgroup trees of both versions, and its picture."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench.curve import draw
from tests.bench.density import Cgroup

BOT = "0adbf9a16534fb0c9e36e78c4ccc2126c217b226350d54a36636dad9326137a9"
SVG = "{http://www.w3.org/2000/svg}"


def write(top: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return top


@pytest.fixture
def version_2(tmp_path: Path) -> Cgroup:
    """As a kernel 6.12 has it for a container with 1 GB and one CPU, one bot below it."""
    tree = {
        "memory.max": "1073741824\n",
        "memory.current": "734003200\n",
        "memory.stat": "anon 400000000\nfile 200000000\nkernel 94371840\ninactive_file 104857600\n",
        "memory.events": "low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\noom_group_kill 0\n",
        "cpu.max": "100000 100000\n",
        "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n",
        f"system.slice/docker-{BOT}.scope/memory.max": "67108864\n",
    }
    return Cgroup(dict.fromkeys(("memory", "cpu", "cpuacct"), write(tmp_path, tree)))


@pytest.fixture
def version_1(tmp_path: Path) -> Cgroup:
    memory = {
        "memory.limit_in_bytes": "1073741824\n",
        "memory.usage_in_bytes": "734003200\n",
        "memory.kmem.usage_in_bytes": "94371840\n",
        "memory.stat": "cache 1\ninactive_file 5\ntotal_inactive_file 104857600\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
        f"docker/{BOT}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    }
    cpu = {
        "cpu.cfs_quota_us": "100000\n",
        "cpu.cfs_period_us": "100000\n",
        f"docker/{BOT}/cpu.shares": "1024\n",
    }
    directories = {
        "memory": write(tmp_path / "memory", memory),
        "cpu": write(tmp_path / "cpu", cpu),
        "cpuacct": write(tmp_path / "cpuacct", {"cpuacct.usage": "1500000000\n"}),
    }
    return Cgroup(directories)


@pytest.fixture(params=["version_1", "version_2"])
def cgroup(request: pytest.FixtureRequest) -> Cgroup:
    found: Cgroup = request.getfixturevalue(request.param)
    return found


def test_what_is_used_leaves_out_the_idle_file_cache(cgroup: Cgroup) -> None:
    assert cgroup.used() == 600 << 20
    assert cgroup.kernel() == 90 << 20
    assert cgroup.oom_kills() == 2
    assert cgroup.cpu_seconds() == 1.5


def test_limits_and_places_of_the_bots_are_checked(cgroup: Cgroup) -> None:
    cgroup.check([BOT])
    with pytest.raises(RuntimeError, match="not below the VPS's memory cgroup: \\['f00'\\]"):
        cgroup.check([BOT, "f00"])


def test_a_vps_with_other_limits_is_refused(version_2: Cgroup) -> None:
    (version_2.directories["memory"] / "memory.max").write_text("2147483648\n")
    with pytest.raises(RuntimeError, match="2147483648 bytes"):
        version_2.check([])


def test_the_picture_shows_every_step_and_its_deploy_time() -> None:
    empty: dict[str, float] = {"bots": 0, "used_mb": 280, "platform_mb": 240, "shim_mb": 0, "bot_mb": 0}
    steps = [empty | {"bots": bots, "shim_mb": 4 * bots, "deploy_s": 10 + bots} for bots in (10, 20, 30)]
    picture = ElementTree.fromstring(draw([empty, *steps], 1024))
    words = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"0", "10", "20", "30", "20.0 s", "40.0 s", "1024"} <= set(words)
    assert len(list(picture.iter(f"{SVG}polygon"))) == 4
