"""Slots, addresses and admission, for any host and any set of bots."""

import re
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawdeploy.allocation import admits, capacity, lowest_free, place
from clawdeploy.errors import ClawError
from clawdeploy.tokens import ID_PATTERN, new_bot_id

from .conftest import make_host

slots = st.sets(st.integers(0, 4095), min_size=2, max_size=40)


@given(slots, st.integers(27, 30))
def test_bots_never_share_an_address_or_uid(used: set[int], prefix: int) -> None:
    host = make_host(bot_pool="10.200.0.0/15", bot_subnet_prefix=prefix)
    placements = [place(slot, host) for slot in used]
    networks = sorted(IPv4Network(p.subnet) for p in placements)
    assert all(one.broadcast_address < two.network_address for one, two in pairwise(networks))
    assert len({p.uid for p in placements}) == len(used)
    for placement in placements:
        network = IPv4Network(placement.subnet)
        assert network.subnet_of(host.pool)
        usable = list(network.hosts())
        assert [IPv4Address(placement.host_address), IPv4Address(placement.address)] == usable[:2]


def test_first_two_bots_get_the_documented_addresses() -> None:
    second = place(1, make_host())
    assert (second.subnet, second.host_address, second.address, second.uid) == (
        "10.200.0.16/28",
        "10.200.0.17",
        "10.200.0.18",
        200001,
    )


def test_a_slot_outside_the_pool_is_refused() -> None:
    host = make_host(bot_pool="10.200.0.0/26")
    assert capacity(host.pool, 28) == 4
    assert place(3, host).subnet == "10.200.0.48/28"
    with pytest.raises(ClawError, match="platform_bot_pool") as error:
        place(4, host)
    assert error.value.code == "pool_exhausted"


@given(st.sets(st.integers(0, 60)), st.integers(0, 20))
def test_new_slots_are_the_lowest_that_are_free(taken: set[int], count: int) -> None:
    found = lowest_free(taken, count)
    assert len(found) == count
    assert taken.isdisjoint(found)
    assert found == sorted(set(found))
    if found:
        assert set(range(found[-1] + 1)) <= taken | set(found)


@given(st.integers(0, 10**10), st.integers(0, 10**10), st.integers(0, 10**10))
def test_reserved_memory_never_grows_past_the_budget(before: int, after: int, budget: int) -> None:
    if admits(before, after, budget) and after > before:
        assert after <= budget


def test_an_overcommitted_host_still_takes_changes_that_add_nothing() -> None:
    assert admits(before=100, after=100, budget=50)
    assert not admits(before=100, after=101, budget=50)


def test_ids_are_twelve_characters_that_any_host_name_can_have() -> None:
    ids = {new_bot_id(()) for _ in range(200)}
    assert len(ids) == 200
    assert all(re.fullmatch(ID_PATTERN, bot_id) for bot_id in ids)
