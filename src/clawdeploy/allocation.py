"""Pure arithmetic: which slot, address and uid a bot gets, and whether the host can hold it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network

from clawdeploy.errors import ClawError
from clawdeploy.host import Host


@dataclass(frozen=True)
class Placement:
    """Where a bot lives. All of it follows from its slot, so no two bots can share any of it."""

    uid: int
    subnet: str
    host_address: str
    address: str


def capacity(pool: IPv4Network, prefix: int) -> int:
    """How many bots' subnets fit into the pool."""
    return 1 << (prefix - pool.prefixlen) if pool.prefixlen <= prefix <= 30 else 0


def place(slot: int, host: Host) -> Placement:
    """The slot's n-th subnet of the pool (host = first usable address, bot = second) and uid.

    ClawError("pool_exhausted") if the slot is outside the pool.
    """
    pool = host.pool
    if not 0 <= slot < capacity(pool, host.bot_subnet_prefix):
        raise ClawError(
            "pool_exhausted",
            f"bot_pool {pool} has no /{host.bot_subnet_prefix} left for bot number {slot + 1}: "
            "destroy bots or give this host a larger platform_bot_pool.",
        )
    base = int(pool.network_address) + (slot << (32 - host.bot_subnet_prefix))
    subnet = IPv4Network((base, host.bot_subnet_prefix))
    return Placement(
        uid=host.bot_uid_base + slot, subnet=str(subnet), host_address=str(subnet[1]), address=str(subnet[2])
    )


def lowest_free(taken: Collection[int], count: int) -> list[int]:
    """The ``count`` lowest slots that nobody has, ascending."""
    occupied, free, slot = set(taken), list[int](), 0
    while len(free) < count:
        if slot not in occupied:
            free.append(slot)
        slot += 1
    return free


def reserved_memory(plan_names: Iterable[str], host: Host) -> int:
    """Bytes that bots of these plans reserve together; a plan the host no longer has counts as nothing."""
    return sum(host.plans[name].memory_reserved for name in plan_names if name in host.plans)


def admits(before: int, after: int, budget: int) -> bool:
    """Whether the sum of reserved bytes may go from ``before`` to ``after``.

    A host that is over its budget already (the operator lowered it) still takes changes that add nothing.
    """
    return after <= budget or after <= before
