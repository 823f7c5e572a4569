"""What happens between two looks at ``/status``: rates and durations, as plain data."""

from collections.abc import Iterable, Sequence
from typing import TypedDict

from lb.status import BackendStatus, ServerStatus


class BackendRates(TypedDict):
    """A backend in an interval; durations in seconds, None where no message was answered."""

    pool: str
    backend: str
    admin: str
    health: str
    effective_weight: float
    messages_per_second: float
    outstanding: int
    p50: float | None
    p99: float | None
    connections: int


class Rates(TypedDict):
    """The balancer in an interval."""

    seconds: float
    state: str
    ready: bool
    not_ready_because: list[str]
    clients: int
    messages_per_second: float
    dropped_per_second: float
    buffered_bytes: int
    backends: list[BackendRates]


def between(before: ServerStatus, after: ServerStatus) -> Rates:
    """What has happened from one look to another. What has begun anew in between is counted from 0."""
    seconds = after["uptime_seconds"] - before["uptime_seconds"]
    restarted = seconds <= 0
    if restarted:
        seconds = after["uptime_seconds"]
    seconds = max(seconds, 1e-3)
    known = {} if restarted else dict(_backends(before))
    backends = [
        _backend(pool, now, known.get((pool, now["name"])), seconds) for (pool, _), now in _backends(after)
    ]
    dropped = 0 if restarted else sum(before["dropped_messages"].values())
    return Rates(
        seconds=round(seconds, 3),
        state=after["state"],
        ready=after["ready"],
        not_ready_because=after["not_ready_because"],
        clients=sum(listener["clients"] for listener in after["listeners"]),
        messages_per_second=sum(backend["messages_per_second"] for backend in backends),
        dropped_per_second=max(0, sum(after["dropped_messages"].values()) - dropped) / seconds,
        buffered_bytes=after["buffered_bytes"],
        backends=backends,
    )


def _backends(status: ServerStatus) -> Iterable[tuple[tuple[str, str], BackendStatus]]:
    return (
        ((pool["name"], backend["name"]), backend) for pool in status["pools"] for backend in pool["backends"]
    )


def _backend(pool: str, now: BackendStatus, before: BackendStatus | None, seconds: float) -> BackendRates:
    if before is not None and now["requests"] < before["requests"]:
        before = None  # another one of the same name
    requests = now["requests"] - (before["requests"] if before is not None else 0)
    grown = _grown(now["durations"], before["durations"] if before is not None else [])
    return BackendRates(
        pool=pool,
        backend=now["name"],
        admin=now["admin"],
        health=now["health"],
        effective_weight=now["effective_weight"],
        messages_per_second=requests / seconds,
        outstanding=now["outstanding"],
        p50=percentile(grown, 0.5),
        p99=percentile(grown, 0.99),
        connections=now["connections"],
    )


Bucket = tuple[float, float, int]  # from, to, how many


def _grown(now: Sequence[Sequence[float]], before: Sequence[Sequence[float]]) -> list[Bucket]:
    counted = {(low, high): count for low, high, count in before}
    grown = [(low, high, round(count - counted.get((low, high), 0))) for low, high, count in now]
    return [bucket for bucket in grown if bucket[2] > 0]


def percentile(buckets: Sequence[Bucket], part: float) -> float | None:
    """The duration that this part of the messages did not exceed; None without messages.

    Within a bucket, as if its messages were spread evenly.
    """
    wanted = part * sum(count for _, _, count in buckets)
    if not wanted:
        return None
    for low, high, count in buckets:
        if count >= wanted:
            return low + (high - low) * wanted / count
        wanted -= count
    return buckets[-1][1]
