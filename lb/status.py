"""What is going on, as plain data for ``/status``, ``/readyz`` and ``sockmap-lb status``."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import TypedDict

import lb
from lb import config
from lb.backends import AdminState, Backend, Checked, Health
from lb.dataplane import Durations, bucket_limit, sockets
from lb.server import Server
from lb.server.context import Listening, Pool
from lb.server.names import Followed


class RateStatus(TypedDict):
    """How many messages may come, and what becomes of more."""

    messages_per_second: int
    burst: int
    over: str


class LimitsStatus(TypedDict):
    """What a listener allows; None: no limit."""

    max_clients: int | None
    max_clients_per_address: int | None
    idle_seconds: float
    rate: RateStatus | None
    rate_per_address: RateStatus | None


class ListenerStatus(TypedDict):
    """A listener and its clients."""

    name: str
    address: str
    protocol: str
    pool: str
    proxy_protocol: bool
    clients: int
    addresses: int
    rules: int
    limits: LimitsStatus
    requests: int
    responses: int
    request_bytes: int
    response_bytes: int
    accepted: int
    refused: dict[str, int]
    protocol_errors: dict[str, int]


class CheckStatus(TypedDict):
    """The latest health check: `ok`, or why it failed; how long it took, and how long ago it ended."""

    result: str
    duration_seconds: float
    seconds_ago: float


class BackendStatus(TypedDict):
    """A backend and its traffic, over all listeners.

    ``durations``: (from, below, messages) for each bucket that is not empty, in seconds.
    """

    name: str
    address: str
    admin: str
    health: str
    health_reason: str
    health_seconds: float
    last_check: CheckStatus | None
    ejected_seconds_left: float | None
    ejections: dict[str, int]
    weight: int
    priority: int
    effective_weight: float
    connections: int
    outstanding: int
    requests: int
    responses: int
    durations: list[tuple[float, float, int]]
    connect_failures: dict[str, int]


class OneBackendStatus(BackendStatus):
    """A backend alone; ``serving``: how many backends of its pool new messages go to."""

    pool: str
    serving: int


class NameStatus(TypedDict):
    """A name, how the last look at it went, and the addresses that are used."""

    name: str
    host: str
    result: str | None
    addresses: list[str]


class PoolStatus(TypedDict):
    """A pool and its backends."""

    name: str
    balance: str
    connections: str
    accept: str | None
    refused_workers: dict[str, int]
    send_proxy: str | None
    names: list[NameStatus]
    batch: int
    backends: list[BackendStatus]


class ServerStatus(TypedDict):
    """Everything."""

    version: str
    kernel: str
    configuration: str
    congestion_control: str
    uptime_seconds: float
    state: str
    ready: bool
    not_ready_because: list[str]
    sockets: int
    max_sockets: int
    buffered_bytes: int
    dropped_messages: dict[str, int]
    listeners: list[ListenerStatus]
    pools: list[PoolStatus]


class Status:
    """Looks at a running server."""

    def __init__(self, server: Server, source: Path) -> None:
        self._server = server
        self._source = source
        self._since = time.monotonic()
        self._default_congestion = sockets.default_congestion()  # no descriptor may be left later

    def obstacles(self) -> list[str]:
        """Why the balancer is not ready to serve; empty when it is."""
        server = self._server
        if not server.started.is_set():
            return ["starting"]
        if server.draining:
            return ["draining"]
        if server.leaving:
            return ["shutting down: new clients are still served"]
        reasons = [_darkness(pool) for pool in server.pools]
        return [] if None in reasons else [reason for reason in reasons if reason is not None]

    def find(self, pool: str, name: str) -> Backend | None:
        """The backend of this name, in the pool of that; None if there is none now."""
        named = (backend for each in self._server.pools for backend in each.backends)
        return next((backend for backend in named if (backend.pool, backend.name) == (pool, name)), None)

    def backend(self, backend: Backend) -> OneBackendStatus:
        """The state of a backend of a pool."""
        pool = next(pool for pool in self._server.pools if pool.config.name == backend.pool)
        serving = sum(1 for other in pool.backends if other.effective_weight)
        return OneBackendStatus(**self._backend(pool, backend), pool=backend.pool, serving=serving)

    def summary(self) -> str:
        """The state in a line, for a service manager."""
        backends = [backend for pool in self._server.pools for backend in pool.backends]
        up = sum(backend.health is Health.UP for backend in backends)
        clients = sum(len(listening.clients) for listening in self._server.listenings)
        return f"{self._server.state}: clients: {clients}, backends up: {up} of {len(backends)}"

    def snapshot(self) -> ServerStatus:
        """The state right now."""
        server = self._server
        obstacles = self.obstacles()
        return ServerStatus(
            version=lb.__version__,
            kernel=os.uname().release,
            configuration=str(self._source),
            congestion_control=server.settings.tcp.congestion or self._default_congestion,
            uptime_seconds=round(time.monotonic() - self._since, 3),
            state=server.state,
            ready=not obstacles,
            not_ready_because=obstacles,
            sockets=server.plane.slots.in_use,
            max_sockets=server.plane.slots.size,
            buffered_bytes=server.buffered_bytes(),
            dropped_messages=server.dropped_messages(),
            listeners=[
                self._listener(listener.address, listening)
                for listener, listening in zip(server.listeners, server.listenings, strict=True)
            ],
            pools=[self._pool(pool) for pool in server.pools],
        )

    def _listener(self, address: str, listening: Listening) -> ListenerStatus:
        backends = (each for pool in listening.pools for each in (*pool.backends, *pool.leaving))
        rows = [self._server.traffic(listening, backend) for backend in backends]
        return ListenerStatus(
            name=listening.config.name,
            address=address,
            protocol=listening.config.framing.name,
            pool=listening.config.pool,
            proxy_protocol=listening.config.trusted is not None,
            clients=self._server.client_count(listening.config.name),
            addresses=listening.clients.addresses,
            rules=len(listening.config.rules),
            limits=LimitsStatus(
                max_clients=listening.config.limits.max_clients,
                max_clients_per_address=listening.config.limits.max_clients_per_address,
                idle_seconds=listening.idle,
                rate=_rate(listening.config.limits.rate),
                rate_per_address=_rate(listening.config.limits.rate_per_address),
            ),
            requests=sum(row.requests for row in rows),
            responses=sum(row.responses for row in rows),
            request_bytes=sum(row.request_bytes for row in rows),
            response_bytes=sum(row.response_bytes for row in rows),
            accepted=listening.accepted,
            refused=_seen(listening.refused),
            protocol_errors=_seen(listening.protocol_errors),
        )

    def _pool(self, pool: Pool) -> PoolStatus:
        return PoolStatus(
            name=pool.config.name,
            balance=pool.config.balance.value,
            connections=pool.config.connections.value,
            accept=pool.workers.address if pool.workers is not None else None,
            refused_workers=_seen(pool.workers.refused) if pool.workers is not None else {},
            send_proxy=pool.config.send_proxy.value if pool.config.send_proxy is not None else None,
            names=[_name(followed) for followed in pool.members.names.followed],
            batch=pool.config.batch,
            backends=[self._backend(pool, backend) for backend in pool.backends],
        )

    def _backend(self, pool: Pool, backend: Backend) -> BackendStatus:
        rows = [
            self._server.traffic(listening, backend)
            for listening in self._server.listenings
            if pool in listening.pools
        ]
        return BackendStatus(
            name=backend.name,
            address=str(backend.config.address),
            admin=backend.admin.value,
            health=backend.health.value,
            health_reason=backend.reason,
            health_seconds=round(time.monotonic() - backend.since, 3),
            last_check=_check(backend.last_check),
            ejected_seconds_left=_left(backend.ejected_until),
            ejections=_seen(backend.ejections),
            weight=backend.weight,
            priority=backend.priority,
            effective_weight=backend.effective_weight,
            connections=backend.connections,
            outstanding=self._server.plane.outstanding(backend.index),
            requests=sum(row.requests for row in rows),
            responses=sum(row.responses for row in rows),
            durations=_durations(self._server.plane.counters.durations(backend.index)),
            connect_failures=dict(backend.connect_failures),
        )


def _darkness(pool: Pool) -> str | None:
    """Why no message of a pool can be sent; None if one can."""
    up = [backend for backend in pool.backends if backend.health is Health.UP]
    if any(backend.usable for backend in up):
        return None
    if not up:
        what = "is up"
    elif any(backend.admin is AdminState.READY for backend in up):
        what = "that is up and ready is not ejected"
    else:
        what = "that is up is ready: an operator has taken them out"
    names = ", ".join(pool.members.names.obstacles())
    return f"pool {pool.config.name}: no backend {what}" + (f" ({names})" if names else "")


def _name(followed: Followed) -> NameStatus:
    return NameStatus(
        name=followed.name.name,
        host=str(followed.name.target),
        result=followed.result.value if followed.result is not None else None,
        addresses=[str(host) for host in followed.known.hosts if host in followed.backends],
    )


def _check(checked: Checked | None) -> CheckStatus | None:
    if checked is None:
        return None
    return CheckStatus(
        result=checked.failure or "ok",
        duration_seconds=round(checked.seconds, 6),
        seconds_ago=round(time.monotonic() - checked.at, 3),
    )


def _left(until: float | None) -> float | None:
    return None if until is None else round(max(0.0, until - time.monotonic()), 3)


def _rate(rate: config.Rate | None) -> RateStatus | None:
    if rate is None:
        return None
    return RateStatus(messages_per_second=rate.messages_per_second, burst=rate.burst, over=rate.over.value)


def _durations(durations: Durations) -> list[tuple[float, float, int]]:
    limits = [0.0, *(bucket_limit(index) for index in range(len(durations.buckets)))]
    return [
        (limits[index], limits[index + 1], count) for index, count in enumerate(durations.buckets) if count
    ]


def _seen(counts: Counter[str]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count}
