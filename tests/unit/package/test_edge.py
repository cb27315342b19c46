"""The maps: what they hold, and how they reach files and a running HAProxy."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clawdeploy import edge, remotes
from clawdeploy.errors import ClawError
from clawdeploy.host import Paths
from clawdeploy.models import Bot, Edge

from .conftest import NOW, ROUTES, RunningHAProxy, make_host

HOST = make_host()
ROOT = Path(__file__).resolve().parents[3]
PAYLOAD_LIMIT = 16384

few = settings(max_examples=25, deadline=None)


def make_bot(slot: int = 0, **changes: Any) -> Bot:
    letters = "abcdefghijklmnopqrstuvwxyz"
    values: dict[str, Any] = {
        "id": f"bot{letters[slot // 26 % 26]}{letters[slot % 26]}{slot:07d}",
        "slot": slot,
        "telegram_id": 1000 + slot,
        "telegram_username": "some_bot",
        "name": None,
        "agent": "nullclaw",
        "plan": "small",
        "interface": "api",
        "llm_refusal": "message",
        "owner": None,
        "open_to_all": False,
        "state": "active",
        "suspended": False,
        "image": "i",
        "image_digest": None,
        "config_hash": None,
        "edge": {"body_limit": 3072, "routes": list(ROUTES)},
        "gateway_token_hash": f"{slot:064x}",
        "llm_key_hash": f"{slot + 1_000_000:064x}",
        "lease_run": None,
        "lease_at": 0,
        "created_at": NOW,
    }
    return msgspec.convert(values | changes, Bot)


bots = st.lists(st.integers(0, 4095), unique=True, max_size=12).flatmap(
    lambda slots: st.tuples(
        *(
            st.builds(
                make_bot,
                st.just(slot),
                suspended=st.booleans(),
                name=st.sampled_from([None, f"name-{slot}"]),
                state=st.sampled_from(["active", "deploying"]),
            )
            for slot in slots
        )
    )
)


# --- rendering --------------------------------------------------------------------------------------


def test_every_map_has_what_the_edge_looks_up() -> None:
    bot = make_bot(1, name="support", suspended=True)
    maps = edge.render([bot], {bot.id: "ci_x"}, HOST)
    assert maps == {
        "hosts.map": {"support": bot.id},
        "addresses.map": {bot.id: "10.200.0.18"},
        "routes.map": {f"{bot.id}:/health": "3000,public", f"{bot.id}:/webhook": "3000,token"},
        "prefixes.map": {f"{bot.id}:/ws/": "32123,token"},
        "tokens.map": {bot.gateway_token_hash: bot.id},
        "inject.map": {bot.id: "ci_x"},
        "plans.map": {bot.id: "small"},
        "body_limits.map": {bot.id: "3072"},
        "flags.map": {bot.id: "suspended"},
    }
    assert '"subnet": "10.200.0.16/28"' in edge.render_llm_keys([bot], HOST)


@few
@given(bots)
def test_maps_depend_on_the_registry_alone_and_not_on_its_order(rows: tuple[Bot, ...]) -> None:
    tokens = {bot.id: f"ci_{bot.slot}" for bot in rows}
    rendered = edge.render(rows, tokens, HOST)
    assert rendered == edge.render(tuple(reversed(rows)), tokens, HOST)
    assert edge.render_llm_keys(rows, HOST) == edge.render_llm_keys(tuple(reversed(rows)), HOST)
    assert sorted(rendered["hosts.map"].values()) == sorted(bot.id for bot in rows)
    assert set(rendered["flags.map"]) == {bot.id for bot in rows if bot.suspended}


@few
@given(bots)
def test_every_line_is_one_key_and_one_value(rows: tuple[Bot, ...]) -> None:
    for entries in edge.render(rows, {}, HOST).values():
        lines = edge.map_text(entries).splitlines()
        assert [tuple(line.split(" ")) for line in lines] == sorted(entries.items())
        assert not any(line.startswith("#") for line in lines)


words = st.text("abc019:/", min_size=1, max_size=90)


@few
@given(st.dictionaries(words, words, max_size=200))
def test_payloads_fit_and_together_are_the_map(entries: dict[str, str]) -> None:
    pieces = list(edge.payloads(entries))
    assert all(0 < len(piece) < PAYLOAD_LIMIT // 2 for piece in pieces)
    assert "".join(pieces) == edge.map_text(entries)


def test_health_path_is_the_named_one_or_the_public_exact_one() -> None:
    assert make_bot().edge.health() == "/health"
    assert msgspec.convert({"body_limit": 1, "routes": [], "health_path": "/up"}, Edge).health() == "/up"
    assert msgspec.convert({"body_limit": 1, "routes": [ROUTES[1]]}, Edge).health() is None


def test_a_host_without_bots_is_prepared_with_the_very_files_of_keys_that_a_sync_writes() -> None:
    tasks = yaml.safe_load((ROOT / "roles/llm_gateway/tasks/configure.yml").read_text())
    (begin,) = [task["ansible.builtin.copy"] for task in tasks if task["name"] == "Begin with no bots"]
    assert begin["content"] == edge.render_llm_keys([], HOST) == remotes.render_keys([])


# --- a real HAProxy ---------------------------------------------------------------------------------


def test_a_sync_reaches_the_running_haproxy_and_the_files(haproxy: RunningHAProxy, paths: Paths) -> None:
    bot = make_bot(1, name="support")
    result = edge.sync(paths, HOST, [bot], {bot.id: "ci_x"})
    assert set(result.changed) == {*edge.render([], {}, HOST), "keys.json"} - {"flags.map"}
    assert haproxy.ask("/support").split(" ")[0] == bot.id
    assert haproxy.ask(f"/{bot.id}").split(" ")[1] == "10.200.0.18"
    assert (paths.maps / "hosts.map").read_text() == f"support {bot.id}\n"
    assert (paths.maps / "inject.map").stat().st_mode & 0o777 == 0o640


def test_a_second_sync_changes_nothing(haproxy: RunningHAProxy, paths: Paths) -> None:
    rows = [make_bot(slot) for slot in range(30)]
    assert edge.sync(paths, HOST, rows, {}).changed
    before = {file: file.stat().st_ino for file in paths.maps.iterdir()}
    assert edge.sync(paths, HOST, rows, {}).changed == []
    assert {file: file.stat().st_ino for file in paths.maps.iterdir()} == before


def test_a_suspended_flag_works_at_once_and_is_taken_away(haproxy: RunningHAProxy, paths: Paths) -> None:
    bot = make_bot(1)
    edge.sync(paths, HOST, [bot], {})
    assert edge.sync(paths, HOST, [make_bot(1, suspended=True)], {}).changed == ["flags.map", "keys.json"]
    assert haproxy.ask(f"/{bot.id}").split(" ")[-1] == "suspended"
    edge.sync(paths, HOST, [bot], {})
    assert haproxy.ask(f"/{bot.id}").split(" ")[-1] == "-"


def test_a_thousand_bots_are_swapped_whole(haproxy: RunningHAProxy, paths: Paths) -> None:
    rows = [make_bot(slot) for slot in range(1000)]
    edge.sync(paths, HOST, rows, {})
    assert (
        haproxy.ask(f"/{rows[-1].id}").split(" ")[1]
        == edge.render(rows, {}, HOST)["addresses.map"][rows[-1].id]
    )
    edge.sync(paths, HOST, rows[:1], {})
    assert edge.HAProxy(paths.haproxy_socket).entries(paths.maps / "plans.map") == [(rows[0].id, "small")]


def test_a_sync_that_died_before_the_swap_is_made_good(haproxy: RunningHAProxy, paths: Paths) -> None:
    bot = make_bot(1)
    edge.sync(paths, HOST, [bot], {})
    edge.HAProxy(paths.haproxy_socket).swap(paths.maps / "plans.map", {bot.id: "old", "other": "x"})
    assert edge.sync(paths, HOST, [bot], {}).changed == ["plans.map"]
    assert edge.HAProxy(paths.haproxy_socket).entries(paths.maps / "plans.map") == [(bot.id, "small")]


def test_check_mode_tells_and_touches_nothing(haproxy: RunningHAProxy, paths: Paths) -> None:
    result = edge.sync(paths, HOST, [make_bot(1)], {"x": "ci_secret"}, check=True)
    assert "hosts.map" in result.changed
    assert (paths.maps / "hosts.map").read_text() == ""
    assert edge.HAProxy(paths.haproxy_socket).entries(paths.maps / "hosts.map") == []


def test_a_map_that_haproxy_does_not_use_is_an_error(haproxy: RunningHAProxy, paths: Paths) -> None:
    with pytest.raises(ClawError, match="does not use it"):
        edge.HAProxy(paths.haproxy_socket).entries(paths.maps / "nowhere.map")
    with pytest.raises(ClawError, match="prepare map") as error:
        edge.HAProxy(paths.haproxy_socket).swap(paths.maps / "nowhere.map", {"key": "secret"})
    assert "secret" not in error.value.message


def test_a_stopped_haproxy_gets_files_only(haproxy: RunningHAProxy, paths: Paths) -> None:
    haproxy.process.kill()
    haproxy.process.wait()
    assert "hosts.map" in edge.sync(paths, HOST, [make_bot(1)], {}).changed
    assert (paths.maps / "hosts.map").read_text()


def test_without_haproxys_files_the_host_is_called_unprepared(paths: Paths) -> None:
    shutil.rmtree(paths.maps)
    with pytest.raises(ClawError) as error:
        edge.sync(paths, HOST, [make_bot(1)], {})
    assert error.value.code == "host_unprepared"


def test_the_diff_has_no_tokens(paths: Paths) -> None:
    bot = make_bot(1)
    result = edge.sync(paths, HOST, [bot], {bot.id: "ci_secret"})
    assert "ci_secret" not in str(result)
    assert bot.gateway_token_hash not in str(result)
