"""declare, activate, release: what the registry takes, keeps and refuses."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawdeploy import claims
from clawdeploy.cli import Machine
from clawdeploy.errors import ClawError
from clawdeploy.host import Paths, free_bytes
from clawdeploy.models import DeclareRequest, Running, decode
from clawdeploy.registry import Registry, review
from clawdeploy.secret_files import load_secrets, remove_secrets, save_secrets
from clawdeploy.tokens import sha256_hex

from .conftest import NOW, PLAN, RUN, UI_EDGE, make_host, set_host, wanted

OTHER_RUN = "fedcba9876543210"


def request(*bots: dict[str, Any], run: str = RUN) -> DeclareRequest:
    return msgspec.convert({"run_id": run, "bots": list(bots)}, DeclareRequest)


def declare(
    registry: Registry, *bots: dict[str, Any], run: str = RUN, now: int = NOW, check: bool = False
) -> Any:
    return registry.declare(request(*bots, run=run), now, check)


def finish(registry: Registry, answer: dict[str, Any], run: str = RUN) -> dict[str, Any]:
    done = [{"id": bot["id"], "config_hash": "c" * 64, "image_digest": "sha256:1"} for bot in answer["bots"]]
    return registry.activate(run, msgspec.convert(done, list[Running]))


def codes(error: pytest.ExceptionInfo[ClawError]) -> list[str]:
    return [code for code, _ in error.value.problems]


# --- new bots and second runs -----------------------------------------------------------------------


def test_a_new_bot_gets_everything_a_deploy_needs(registry: Registry) -> None:
    answer = declare(registry, wanted(1, name="support"))
    bot = answer["bots"][0]
    assert answer["changed"]
    assert bot["created"]
    assert bot["url"] == "https://support.bots.example.test/"
    assert (bot["uid"], bot["address"], bot["state"]) == (200000, "10.200.0.2", "deploying")
    assert bot["limits"]["memory_limit"] == 64_000_000
    assert bot["gateway_token"].startswith("cg_")
    assert bot["llm_key"].startswith("sk-claw-")
    assert bot["internal_token"].startswith("ci_")
    assert bot["claim"] == {"state": "none", "code": None, "link": None, "expires": None}


def test_only_hashes_of_tokens_are_in_the_registry(registry: Registry, paths: Paths) -> None:
    bot = declare(registry, wanted())["bots"][0]
    row = registry.find(bot["id"])
    assert row.gateway_token_hash == sha256_hex(bot["gateway_token"])
    assert row.llm_key_hash == sha256_hex(bot["llm_key"])
    stored = b"".join(file.read_bytes() for file in paths.state.glob("registry.db*"))
    for secret in (bot["gateway_token"], bot["llm_key"], bot["internal_token"], wanted()["telegram_token"]):
        assert secret.encode() not in stored
    secrets_file = paths.secrets / f"{bot['id']}.json"
    assert secrets_file.stat().st_mode & 0o777 == 0o600
    assert bot["gateway_token"] not in secrets_file.read_text()


def test_the_diff_has_no_secrets(registry: Registry) -> None:
    answer = declare(registry, wanted(1, owner=None))
    bot, diff = answer["bots"][0], str(answer["diff"])
    assert bot["id"] in diff
    for secret in (bot["gateway_token"], bot["llm_key"], bot["internal_token"], bot["claim"]["code"]):
        assert secret not in diff
    assert sha256_hex(bot["gateway_token"]) not in diff


def test_the_same_again_changes_nothing_and_shows_no_token(registry: Registry) -> None:
    first = declare(registry, wanted(1), wanted(2, owner=None))
    finish(registry, first)
    again = declare(registry, wanted(1), wanted(2, owner=None), run=OTHER_RUN, now=NOW + 9)
    assert not again["changed"]
    assert again["diff"] == {"before": "", "after": ""}
    assert [bot["gateway_token"] for bot in again["bots"]] == [None, None]
    assert [bot["id"] for bot in again["bots"]] == [bot["id"] for bot in first["bots"]]
    assert again["bots"][0]["llm_key"] == first["bots"][0]["llm_key"]
    assert again["bots"][1]["claim"]["state"] == "pending"
    assert again["bots"][1]["claim"]["code"] is None
    assert again["bots"][0]["config_hash"] == "c" * 64
    assert not finish(registry, again, OTHER_RUN)["changed"]


def test_a_deploy_that_never_ended_gets_a_token_that_can_be_shown(registry: Registry) -> None:
    first = declare(registry, wanted(1, owner=None))["bots"][0]
    second = declare(registry, wanted(1, owner=None))["bots"][0]
    assert second["id"] == first["id"]
    assert not second["created"]
    assert second["gateway_token"] not in (None, first["gateway_token"])
    assert second["claim"]["state"] == "issued"
    assert second["claim"]["code"] != first["claim"]["code"]


def test_rotation_gives_a_new_token_once(registry: Registry) -> None:
    finish(registry, declare(registry, wanted()))
    rotated = declare(registry, wanted(rotate_gateway_token=True))
    assert rotated["changed"]
    token = rotated["bots"][0]["gateway_token"]
    assert registry.bots()[0].gateway_token_hash == sha256_hex(token)


def test_an_agent_that_checks_the_gateway_token_is_given_it_and_each_new_one(
    registry: Registry, paths: Paths
) -> None:
    first = declare(registry, wanted(edge=UI_EDGE))
    bot = first["bots"][0]
    assert bot["internal_token"] == bot["gateway_token"]
    finish(registry, first)

    again = declare(registry, wanted(edge=UI_EDGE))["bots"][0]
    assert (again["gateway_token"], again["internal_token"]) == (None, bot["gateway_token"])

    rotated = declare(registry, wanted(edge=UI_EDGE, rotate_gateway_token=True))["bots"][0]
    assert rotated["internal_token"] == rotated["gateway_token"] != bot["gateway_token"]
    assert registry.internal_tokens() == {bot["id"]: rotated["gateway_token"]}


def test_an_agent_that_must_know_the_gateway_token_and_does_not_gets_another_one(
    registry: Registry, paths: Paths
) -> None:
    finish(registry, declare(registry, wanted()))
    now_checks = declare(registry, wanted(edge=UI_EDGE))
    bot = now_checks["bots"][0]
    assert bot["gateway_token"] == bot["internal_token"]
    finish(registry, now_checks)

    remove_secrets(paths, bot["id"])
    renewed = declare(registry, wanted(edge=UI_EDGE))["bots"][0]
    assert renewed["gateway_token"] == renewed["internal_token"] != bot["gateway_token"]


def test_changes_are_taken_over_and_reported(registry: Registry) -> None:
    finish(registry, declare(registry, wanted()))
    answer = declare(registry, wanted(image="registry.example.test/agent:v2", plan="large", name="support"))
    bot = answer["bots"][0]
    assert answer["changed"]
    assert '"plan": "small"' in answer["diff"]["before"]
    assert '"plan": "large"' in answer["diff"]["after"]
    assert (bot["label"], bot["image_digest"], bot["gateway_token"]) == ("support", None, None)
    assert declare(registry, wanted(plan="large"))["bots"][0]["name"] == "support"


def test_a_new_telegram_token_of_the_same_bot_is_stored(registry: Registry, paths: Paths) -> None:
    first = declare(registry, wanted())
    finish(registry, first)
    fresh = f"{wanted()['telegram_id']}:{'n' * 35}"
    answer = declare(registry, wanted(telegram_token=fresh))
    assert answer["changed"]
    assert fresh not in str(answer["diff"])
    stored = load_secrets(paths, first["bots"][0]["id"])
    assert stored is not None
    assert stored.telegram_token == fresh


def test_lost_secrets_are_replaced(registry: Registry, paths: Paths) -> None:
    first = declare(registry, wanted())
    finish(registry, first)
    remove_secrets(paths, first["bots"][0]["id"])
    again = declare(registry, wanted())
    assert again["changed"]
    assert again["bots"][0]["llm_key"] != first["bots"][0]["llm_key"]


def test_check_mode_stores_nothing(registry: Registry, paths: Paths) -> None:
    answer = declare(registry, wanted(owner=None), check=True)
    assert answer["changed"]
    assert answer["bots"][0]["gateway_token"] is None
    assert answer["bots"][0]["claim"]["code"] is None
    assert answer["bots"][0]["llm_key"]
    assert registry.bots() == []
    assert not paths.secrets.exists()
    assert not paths.claims.exists()


def test_path_mode_puts_the_label_into_the_path(machine: Machine, paths: Paths) -> None:
    set_host(paths, base_domain="", public_base_url="https://203.0.113.7")
    with machine.registry() as registry:
        assert declare(registry, wanted(name="support"))["bots"][0]["url"] == "https://203.0.113.7/support/"


def test_a_write_that_fails_leaves_nothing_behind(
    registry: Registry, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail_on_second(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save_secrets(*arguments)

    monkeypatch.setattr("clawdeploy.registry.save_secrets", fail_on_second)
    with pytest.raises(OSError, match="No space"):
        declare(registry, wanted(1), wanted(2))
    assert registry.bots() == []
    assert list(paths.secrets.iterdir()) == []


# --- owners -----------------------------------------------------------------------------------------


def test_a_bot_without_owner_gets_a_code_that_is_stored_as_a_hash(registry: Registry, paths: Paths) -> None:
    bot = declare(registry, wanted(owner=None))["bots"][0]
    code = bot["claim"]["code"]
    assert bot["claim"]["link"] == f"https://t.me/bot_1_bot?start={code}"
    stored = (paths.claims / f"{bot['id']}.json").read_text()
    assert code not in stored
    assert sha256_hex(code) in stored


def test_an_owner_given_later_ends_the_claim(registry: Registry, paths: Paths) -> None:
    bot = declare(registry, wanted(owner=None))["bots"][0]
    answer = declare(registry, wanted(owner="77"))
    assert answer["bots"][0]["owner"] == "77"
    assert answer["bots"][0]["claim"]["state"] == "none"
    assert claims.load_claim(paths, bot["id"]) is None


def test_open_to_all_needs_no_claim_and_closing_it_again_issues_one(registry: Registry) -> None:
    answer = declare(registry, wanted(owner=None, open_to_all=True))
    assert answer["bots"][0]["claim"]["state"] == "none"
    finish(registry, answer)
    assert declare(registry, wanted(owner=None))["bots"][0]["claim"]["state"] == "issued"


def test_an_expired_code_is_replaced_by_the_next_deploy(registry: Registry) -> None:
    finish(registry, declare(registry, wanted(owner=None)))
    later = declare(registry, wanted(owner=None), now=NOW + claims.CODE_SECONDS)
    assert later["changed"]
    assert later["bots"][0]["claim"]["state"] == "issued"


def test_a_claimed_bot_keeps_its_owner(registry: Registry) -> None:
    first = declare(registry, wanted(owner=None))
    finish(registry, first)
    registry.set_owner(first["bots"][0]["id"], "4711", "d" * 64)
    again = declare(registry, wanted(owner=None))["bots"][0]
    assert (again["owner"], again["claim"]["state"], again["config_hash"]) == ("4711", "claimed", "d" * 64)


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "advice"),
    [
        ({"name": "www"}, "name_reserved", "choose another"),
        ({"name": "Not-a-label"}, "name_invalid", "a-z, 0-9"),
        ({"name": "-x"}, "name_invalid", "hyphens"),
        ({"name": "taken"}, "name_taken", "choose another"),
        ({"plan": "smal"}, "unknown_plan", "large, small"),
        ({"telegram_token": f"999999:{'t' * 35}"}, "token_mismatch", "not that of"),
    ],
)
def test_a_bad_setting_is_refused_by_name(
    registry: Registry, change: dict[str, Any], code: str, advice: str
) -> None:
    declare(registry, wanted(9, name="taken"))
    with pytest.raises(ClawError, match=advice) as error:
        declare(registry, wanted(1, **change))
    assert codes(error) == [code]
    assert len(registry.bots()) == 1


def test_a_name_may_not_be_another_bots_id(registry: Registry) -> None:
    other = declare(registry, wanted(1))["bots"][0]["id"]
    with pytest.raises(ClawError) as error:
        declare(registry, wanted(2, name=other))
    assert codes(error) == ["name_taken"]


def test_all_problems_of_a_batch_are_reported_and_nothing_is_stored(registry: Registry) -> None:
    with pytest.raises(ClawError) as error:
        declare(
            registry,
            wanted(1, name="www"),
            wanted(2, plan="x"),
            wanted(3, name="a"),
            wanted(4, name="a"),
            wanted(3),
        )
    assert codes(error) == ["name_reserved", "unknown_plan", "token_twice", "name_twice"]
    assert error.value.code == "several_problems"
    assert "4 problems: (1)" in error.value.message
    assert registry.bots() == []


def test_a_bot_is_not_renamed_nor_given_another_agent(registry: Registry) -> None:
    finish(registry, declare(registry, wanted(name="one")))
    with pytest.raises(ClawError) as error:
        declare(registry, wanted(name="two", agent="openclaw"))
    assert codes(error) == ["agent_change", "token_in_use"]


def test_a_web_interface_needs_a_base_domain(machine: Machine, paths: Paths) -> None:
    set_host(paths, base_domain="", public_base_url="https://203.0.113.7")
    with machine.registry() as registry, pytest.raises(ClawError, match="BASE_DOMAIN") as error:
        declare(registry, wanted(interface="ui"))
    assert codes(error) == ["base_domain_needed"]


def test_memory_is_admitted_up_to_the_budget(registry: Registry) -> None:
    finish(registry, declare(registry, wanted(1, plan="large"), wanted(2, plan="large")))
    with pytest.raises(ClawError, match="larger host") as error:
        declare(registry, wanted(3, plan="large"))
    assert codes(error) == ["memory_budget"]
    assert declare(registry, wanted(3, plan="small"))["changed"]


def test_a_full_disk_refuses_new_bots_but_not_old_ones(machine: Machine, paths: Paths) -> None:
    with machine.registry() as registry:
        finish(registry, declare(registry, wanted(1)))
    set_host(paths, disk_floor=1 << 60)
    with machine.registry() as registry:
        assert not declare(registry, wanted(1))["changed"]
        with pytest.raises(ClawError) as error:
            declare(registry, wanted(2))
    assert codes(error) == ["disk_floor"]


def test_the_disk_is_never_promised_twice(machine: Machine, paths: Paths) -> None:
    paths.disks.mkdir(parents=True, exist_ok=True)
    half = free_bytes(paths) // 2
    set_host(paths, disk_floor=half)
    with machine.registry() as registry:
        finish(registry, declare(registry, wanted(1)))
        with (paths.disks / "someone.img").open("wb") as disk:
            disk.truncate(half)
        with pytest.raises(ClawError, match="promised to no bot") as error:
            declare(registry, wanted(2))
    assert codes(error) == ["disk_floor"]


def test_a_plan_with_a_larger_disk_needs_room_too(machine: Machine, paths: Paths) -> None:
    set_host(paths, plans={"small": PLAN, "large": PLAN | {"disk_size": 1 << 60}})
    with machine.registry() as registry:
        finish(registry, declare(registry, wanted(1)))
        with pytest.raises(ClawError) as error:
            declare(registry, wanted(1, plan="large"))
    assert codes(error) == ["disk_floor"]


def test_what_a_sparse_disk_may_still_grow_by_is_not_free(paths: Paths) -> None:
    paths.disks.mkdir(parents=True)
    free = free_bytes(paths)
    with (paths.disks / "bot.img").open("wb") as disk:
        disk.write(bytes(1 << 20))
        disk.truncate(1 << 40)
    promised = free - free_bytes(paths)
    assert abs(promised - (1 << 40)) < 1 << 32, "others write to this disk too"


def test_a_full_pool_is_refused(machine: Machine, paths: Paths) -> None:
    set_host(paths, bot_pool="10.200.0.0/27")
    with machine.registry() as registry:
        declare(registry, wanted(1), wanted(2))
        with pytest.raises(ClawError) as error:
            declare(registry, wanted(3))
    assert codes(error) == ["pool_exhausted"]


def test_new_certificates_of_a_week_are_counted_under_acme(machine: Machine, paths: Paths) -> None:
    set_host(paths, tls_mode="acme", acme_weekly_limit=2)
    with machine.registry() as registry:
        declare(registry, wanted(1, name="one"), wanted(2))
        assert declare(registry, wanted(1, name="one"))["bots"]  # its certificate exists already
        with pytest.raises(ClawError, match="dns01") as error:
            declare(registry, wanted(3))
        assert codes(error) == ["acme_weekly_limit"]
        assert declare(registry, wanted(3), now=NOW + 7 * 24 * 3600)["changed"]


def test_a_bot_another_run_works_on_is_left_alone_for_five_minutes(registry: Registry) -> None:
    declare(registry, wanted(), run=RUN)
    with pytest.raises(ClawError, match="wait") as error:
        declare(registry, wanted(), run=OTHER_RUN, now=NOW + 299)
    assert codes(error) == ["bot_busy"]
    assert declare(registry, wanted(), run=OTHER_RUN, now=NOW + 300)["changed"]


def test_release_lets_the_next_run_begin_at_once(registry: Registry) -> None:
    declare(registry, wanted(), run=RUN)
    assert registry.release(RUN)["changed"]
    assert declare(registry, wanted(), run=OTHER_RUN)["changed"]


def test_a_run_that_lost_its_lease_cannot_activate(registry: Registry) -> None:
    answer = declare(registry, wanted(), run=RUN)
    declare(registry, wanted(), run=OTHER_RUN, now=NOW + 400)
    with pytest.raises(ClawError) as error:
        finish(registry, answer, RUN)
    assert codes(error) == ["lease_lost"]
    assert registry.bots()[0].state == "deploying"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"run_id": "x", "bots": []}',
        '{"run_id": "0123456789abcdef", "bots": [{"telegram_id": 1}]}',
        '{"run_id": "0123456789abcdef", "bots": [], "typo": 1}',
    ],
)
def test_input_that_is_not_a_request_is_refused(text: str) -> None:
    with pytest.raises(ClawError) as error:
        decode(text, DeclareRequest)
    assert error.value.code == "bad_request"


@pytest.mark.parametrize(
    "route",
    [
        {"path": "/a b", "match": "exact"},
        {"path": "/a\nb", "match": "exact"},
        {"path": "/a/../b", "match": "exact"},
        {"path": "/a//b", "match": "exact"},
        {"path": "a", "match": "exact"},
        {"path": "/%2e", "match": "exact"},
        {"path": "/ws", "match": "prefix"},
    ],
)
def test_paths_that_could_confuse_the_edge_are_refused(route: dict[str, str]) -> None:
    edge = {"body_limit": 1, "routes": [{**route, "port": 1, "auth": "public"}]}
    with pytest.raises(msgspec.ValidationError):
        request(wanted(edge=edge))


# --- any history ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["small", "large"])), max_size=4),
            st.sets(st.integers(0, 5), max_size=2),
        ),
        max_size=5,
    )
)
def test_whatever_is_declared_and_forgotten_slots_and_memory_hold(
    registry: Registry, steps: list[tuple[list[tuple[int, str]], set[int]]]
) -> None:
    for bot in registry.bots():
        registry.forget(bot.id)
    for bots, forgotten in steps:
        try:
            declare(registry, *(wanted(number, plan=plan) for number, plan in bots))
        except ClawError as error:
            assert {code for code, _ in error.problems} <= {"token_twice", "memory_budget"}  # noqa: PT017
        rows = registry.bots()
        assert len({bot.slot for bot in rows}) == len({bot.telegram_id for bot in rows}) == len(rows)
        plans = registry.host.plans
        assert sum(plans[bot.plan].memory_reserved for bot in rows) <= registry.host.memory_budget
        for index in forgotten & set(range(len(rows))):
            registry.forget(rows[index].id)


def test_review_is_pure(registry: Registry) -> None:
    batch = request(wanted(name="www"))
    one = review(batch, [], make_host(), {}, 0, NOW)
    assert one == review(batch, [], make_host(), {}, 0, NOW)
    assert registry.bots() == []
