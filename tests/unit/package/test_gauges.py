"""What bots use, from control groups of version 2 in the form the kernel documents, and how it is shown."""

import json
import os
import time
from pathlib import Path

import msgspec
import pytest

from clawdeploy import cgroups, gauges
from clawdeploy.cli import Machine
from clawdeploy.containers import ContainerSpec
from clawdeploy.engine import ContainerState
from clawdeploy.gauges import Gauge

from .conftest import Engine, container_spec, wanted
from .harness import ask, declared, run

CONTAINER = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4

# Laid out as Documentation/admin-guide/cgroup-v2.rst has it, cut down to what surrounds the values.
FILES = {
    "cpu.stat": "usage_usec 1738261\nuser_usec 1204911\nsystem_usec 533349\nnice_usec 0\nnr_periods 214\n"
    "nr_throttled 12\nthrottled_usec 402113\nnr_bursts 0\nburst_usec 0\n",
    "memory.current": "9318400\n",
    "memory.stat": "anon 2109440\nfile 6225920\nkernel 868352\ninactive_anon 2101248\nactive_anon 8192\n"
    "inactive_file 4005888\nactive_file 2220032\nunevictable 0\n",
    "memory.events": "low 0\nhigh 0\nmax 41\noom 2\noom_kill 2\noom_group_kill 0\n",
    "pids.current": "5\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """/sys/fs/cgroup of a host with one container of each of Docker's drivers."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma misc\n")
    for place in (f"system.slice/docker-{CONTAINER}.scope", f"docker/{OTHER}"):
        group = tmp_path / place
        group.mkdir(parents=True)
        for name, content in FILES.items():
            (group / name).write_text(content)
    (tmp_path / "system.slice/ssh.service").mkdir()
    return tmp_path


def test_version_2_is_read(tree: Path) -> None:
    groups = cgroups.find([CONTAINER, OTHER, "a" * 64], tree)
    assert set(groups) == {CONTAINER, OTHER}
    sample = groups[CONTAINER].sample()
    assert sample is not None
    assert (sample.cpu, sample.memory, sample.pids, sample.oom_kills) == (1.738261, 9318400 - 4005888, 5, 2)


def test_a_container_that_ended_meanwhile_has_no_sample(tree: Path) -> None:
    group = cgroups.find([OTHER], tree)[OTHER]
    (tree / "docker" / OTHER / "memory.current").unlink()
    assert group.sample() is None


def test_cpu_is_what_was_used_between_two_looks(
    tree: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tree / "docker" / OTHER / "cpu.stat"

    def sleep(seconds: float) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + seconds)
        stat.write_text("usage_usec 1863261\n")

    find = cgroups.find
    monkeypatch.setattr(cgroups, "find", lambda containers: find(containers, tree))
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(time, "sleep", sleep)
    states = {"bot": ContainerState("running", "Up", container=OTHER), "gone": ContainerState("exited", "")}
    read = gauges.read(machine.paths, states, 0.25)
    assert read["bot"] == Gauge(cpu=0.5, memory=5312512, pids=5, oom_kills=2)
    assert read["gone"] == Gauge()


# --- clawctl ----------------------------------------------------------------------------------------


@pytest.fixture
def bot(machine: Machine, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a bot named one, which uses something."""
    if os.geteuid() != 0:
        pytest.skip("clawctl is root's")
    bot_id: str = declared(machine, wanted(1, name="one"), wanted(2, name="two"))[0]["id"]
    engine.make(bot_id, msgspec.convert(container_spec(), ContainerSpec))
    used = Gauge(cpu=0.25, memory=40_000_000, pids=3, oom_kills=2, rps=1.5, open=1, last_seen=0.0)
    monkeypatch.setattr(gauges, "read", lambda *_: {bot_id: used})
    return bot_id


def test_list_top_and_limits_show_it(machine: Machine, bot: str) -> None:
    for verb in (["list"], ["top", "--count", "1"]):
        text = run(machine, *verb).stdout
        assert "25%" in text, verb
        assert "40 MB" in text, verb
    usage = {one["label"]: one["usage"] for one in ask(machine, "list")["bots"]}
    assert (usage["one"]["cpu"], usage["two"]) == (0.25, None)
    (look,) = run(machine, "top", "--json", "--count", "1").stdout.splitlines()
    assert [one["label"] for one in json.loads(look)["bots"]] == ["one", "two"], "the busiest first"
    found = ask(machine, "limits", "one")["limits"]
    assert found["memory"] == {"used": 40_000_000, "limit": 64_000_000}
    assert found["requests_per_second"] == {"used": 1.5, "limit": 5}
    text = run(machine, "limits", "one").stdout
    assert "64 MB" in text
    assert "Memory ran out 2 times" in text


def test_the_list_works_without_docker(machine: Machine, engine: Engine, bot: str) -> None:
    engine.broken = {"states"}
    result = run(machine, "list")
    assert "one" in result.stdout
    assert "Docker did not" in result.stderr


def test_logs_are_whole_lines(machine: Machine, bot: str) -> None:
    assert run(machine, "logs", "one").stdout == "first line\nsecond\nlast\n"
    assert ask(machine, "logs", "one")["lines"] == ["first line", "second", "last"]
    followed = run(machine, "logs", "one", "--follow", "--json").stdout.splitlines()
    assert [json.loads(line)["line"] for line in followed] == ["first line", "second", "last"]


def test_the_version_is_the_package_s(machine: Machine, bot: str) -> None:
    assert ask(machine, "version")["version"] in run(machine, "version").stdout
