"""What differs between two configurations, in terms of what has to be done. Pure.

Names are identity. A pool or listener is *changed* when what is there can go on with new settings, and
*replaced* when a new one of the same name takes over and the old one serves those who are there to their end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from lb.config.model import Backend, Config, Connections, Listener, Pool
from lb.framing import Framing


class Named(Protocol):
    """What has a name, unique in its list."""

    @property
    def name(self) -> str:
        """Of the thing."""


T = TypeVar("T", bound=Named)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A change that a running balancer cannot make: where, what, and what to do about it."""

    path: str
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Changes(Generic[T]):
    """Of a list of things with names; pairs are old and new."""

    added: tuple[T, ...] = ()
    removed: tuple[T, ...] = ()
    changed: tuple[tuple[T, T], ...] = ()
    replaced: tuple[tuple[T, T], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.replaced)


@dataclass(frozen=True, slots=True)
class Difference:
    """From one configuration to another. With refusals nothing of it can be done."""

    refusals: tuple[Refusal, ...]
    pools: Changes[Pool]
    listeners: Changes[Listener]
    backends: Mapping[str, Changes[Backend]]  # of pools that are changed, by name

    def __bool__(self) -> bool:
        return bool(self.pools or self.listeners)

    def summary(self) -> dict[str, list[str]]:
        """What is done, by names; what is empty is left out."""
        told: dict[str, list[str]] = {}
        for kind, changes in (("pools", self.pools), ("listeners", self.listeners)):
            told[f"{kind}_added"] = [each.name for each in changes.added]
            told[f"{kind}_removed"] = [each.name for each in changes.removed]
            told[f"{kind}_changed"] = [new.name for _, new in changes.changed]
            told[f"{kind}_replaced"] = [new.name for _, new in changes.replaced]
        for pool, backends in self.backends.items():
            for what, them in (("added", backends.added), ("removed", backends.removed)):
                told.setdefault(f"backends_{what}", []).extend(f"{pool}/{each.name}" for each in them)
            for what, pairs in (("changed", backends.changed), ("replaced", backends.replaced)):
                told.setdefault(f"backends_{what}", []).extend(f"{pool}/{new.name}" for _, new in pairs)
        return {what: names for what, names in told.items() if names}


def difference(old: Config, new: Config) -> Difference:
    """What has to be done to get from `old` to `new`."""
    pools = _compare(
        old.pools,
        new.pools,
        lambda before, after: _pool_goes_on(before, after) and not _speaks_anew(after, old, new),
        lambda after: _speaks_anew(after, old, new),
    )
    successors = {after.name for _, after in pools.replaced}
    listeners = _compare(
        old.listeners,
        new.listeners,
        lambda before, after: (
            before.framing == after.framing
            and before.address == after.address
            and before.pools == after.pools
            and bool(before.rules) == bool(after.rules)
            and not successors.intersection(after.pools)
        ),
        lambda after: bool(successors.intersection(after.pools)),
    )
    return Difference(
        tuple(_refusals(old, new)),
        pools,
        listeners,
        {
            after.name: _compare(before.backends, after.backends, lambda one, two: one.address == two.address)
            for before, after in pools.changed
            if before.backends != after.backends
        },
    )


def apply(old: Config, to: Difference, new: Config) -> Config:
    """The configuration that a difference leads to; order, and what only a restart changes, is that of `new`.

    It is what the running balancer has done, for tests to compare with what the file says.
    """
    pools = _apply(old.pools, to.pools)
    changed = {after.name: (before, after) for before, after in to.pools.changed}
    for name, (before, after) in changed.items():
        backends = _apply(before.backends, to.backends.get(name, Changes()))
        order = [backend.name for backend in after.backends]
        pools[name] = replace(after, backends=tuple(backends[each] for each in order))
        assert backends.keys() == set(order)
    listeners = _apply(old.listeners, to.listeners)
    return replace(
        new,
        pools=tuple(pools[pool.name] for pool in new.pools),
        listeners=tuple(listeners[listener.name] for listener in new.listeners),
    )


def _apply(old: Sequence[T], to: Changes[T]) -> dict[str, T]:
    things = {each.name: each for each in old}
    for gone in to.removed:
        del things[gone.name]
    for _, after in (*to.changed, *to.replaced):
        things[after.name] = after
    for come in to.added:
        things[come.name] = come
    return things


def _never(_: object) -> bool:
    return False


def _compare(
    old: Sequence[T],
    new: Sequence[T],
    goes_on: Callable[[T, T], bool],
    affected: Callable[[T], bool] = _never,
) -> Changes[T]:
    """``affected``: by what changes elsewhere, although it is the same itself."""
    before, after = {each.name: each for each in old}, {each.name: each for each in new}
    both = [(before[name], each) for name, each in after.items() if name in before]
    differing = [(one, two) for one, two in both if one != two or affected(two)]
    return Changes(
        tuple(each for name, each in after.items() if name not in before),
        tuple(each for name, each in before.items() if name not in after),
        tuple(pair for pair in differing if goes_on(*pair)),
        tuple(pair for pair in differing if not goes_on(*pair)),
    )


def _pool_goes_on(before: Pool, after: Pool) -> bool:
    """Whether its connections and tables can stay what they are."""
    accept = [pool.workers.address if pool.workers is not None else None for pool in (before, after)]
    return (
        before.balance == after.balance
        and before.hash == after.hash
        and before.connections == after.connections
        and before.connections_per_backend == after.connections_per_backend
        and before.max_in_flight == after.max_in_flight
        and before.ejection == after.ejection
        and accept[0] == accept[1]
    )


def _speaks_anew(pool: Pool, old: Config, new: Config) -> bool:
    """Whether connections that clients share would speak another protocol."""
    if pool.connections is not Connections.SHARED:
        return False
    before, after = (_framing_of(settings, pool) for settings in (old, new))
    return before is not None and after is not None and before != after


def _framing_of(settings: Config, pool: Pool) -> Framing | None:
    """What the listeners of a pool speak; None if it has none."""
    return next((each.framing for each in settings.listeners if pool.name in each.pools), None)


def _refusals(old: Config, new: Config) -> list[Refusal]:
    fixed = {
        "admin": (old.admin != new.admin, "its socket was bound at the start"),
        "runtime.user": (
            old.runtime.user != new.runtime.user,
            "the privilege to become somebody is gone",
        ),
        "runtime.max_connections": (
            old.runtime.max_connections != new.runtime.max_connections,
            "the kernel's tables were loaded for the number that it had at the start",
        ),
    }
    return [
        Refusal(path, f"cannot be changed by a reload: {why}", "restart the balancer, or change it back")
        for path, (differs, why) in fixed.items()
        if differs
    ]
