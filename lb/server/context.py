"""What the connections of one listener share."""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lb import config
from lb.backends import Backend
from lb.dataplane import DataPlane, Policy
from lb.framing import Framing, Ordering
from lb.rules import Target
from lb.server import faults
from lb.server.census import Census
from lb.server.inquest import Inquest
from lb.server.lookup import Lookups
from lb.server.pauses import Pauses
from lb.server.poller import Poller
from lb.server.poster import Poster
from lb.server.quiescence import Quiescence
from lb.server.rates import Buckets

if TYPE_CHECKING:
    from lb.config import Timeouts
    from lb.server.bundle import Bundle
    from lb.server.client import Client
    from lb.server.members import Members
    from lb.server.proxy import Introduction
    from lb.server.workers import Workers

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Losses:
    """Messages that user space knows to be lost, by reason."""

    dropped: Counter[str] = field(default_factory=Counter)
    refused: int = 0  # of these, answered by the protocol's refusal

    def add(self, reason: str, messages: int) -> None:
        """Counts lost messages; none leave no trace."""
        if messages > 0:
            self.dropped[reason] += messages


@dataclass(slots=True)
class Relayed:
    """What went through user space between a listener and a backend."""

    requests: int = 0
    responses: int = 0
    request_bytes: int = 0
    response_bytes: int = 0


@dataclass(slots=True)
class Departed:
    """Messages between listeners and backends that are both counted nowhere else any more, by who carried."""

    all: int = 0
    relayed: int = 0


@dataclass(slots=True)
class Services:
    """One of each for the whole process."""

    loop: asyncio.AbstractEventLoop
    plane: DataPlane
    poller: Poller
    quiescence: Quiescence
    pauses: Pauses
    inquest: Inquest
    poster: Poster
    buckets: Buckets
    tasks: asyncio.TaskGroup
    background: asyncio.TaskGroup
    losses: Losses
    lookups: Lookups
    congestion: str | None = None  # control algorithm of connections to come; None: the machine's
    departed: Departed = field(default_factory=Departed)
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a connection's work; the work guards itself, so that an error here is a bug of ours."""
        return self.tasks.create_task(work, name=name)

    def serve(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs what has no end of its own; it is cancelled when the last connection has ended."""
        task = self.background.create_task(work, name=name)
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        return task


@dataclass(slots=True, eq=False)
class Pool:
    """A pool at work."""

    config: config.Pool
    index: int
    route: int | None = None  # that all clients share
    backends: list[Backend] = field(default_factory=list)
    leaving: list[Backend] = field(default_factory=list)  # members no more; they answer what is due
    listenings: list["Listening"] = field(default_factory=list)  # whose clients it serves
    clients: set["Client"] = field(default_factory=set)
    table: bytes = b""  # hashed: which member has each place
    _members: "Members | None" = None
    workers: "Workers | None" = None
    bundle: "Bundle | None" = None  # of the upstreams, if the clients share them

    @property
    def members(self) -> "Members":
        """Who lets backends come and leave."""
        assert self._members is not None
        return self._members

    @members.setter
    def members(self, members: "Members") -> None:
        self._members = members


def _no_refusals() -> Counter[str]:
    reasons = (
        "max_clients",
        "max_clients_per_address",
        "max_connections",
        "no_backend",
        "no_memory",
        "half_closed",
        "untrusted_proxy",
        "proxy_header",
        "proxy_timeout",
    )
    return Counter(dict.fromkeys(reasons, 0))


def _no_errors() -> Counter[str]:
    reasons = faults.MALFORMED.values()
    return Counter(dict.fromkeys([*reasons, *(f"backend_{reason}" for reason in reasons)], 0))


@dataclass(slots=True, eq=False)
class Listening:
    """What a listener's clients need of it, and what they tell it."""

    config: config.Listener
    pools: tuple[Pool, ...]  # that its messages may go to: its own, then those that rules name
    published: Framing  # as the programs know its framing
    policy: Policy
    services: Services
    traffic: dict[int, int] = field(default_factory=dict)  # index of a backend -> row of the counters
    rows: tuple[int, int] | None = None  # that it has side by side: the first, and their number
    clients: Census["Client"] = field(default_factory=Census)
    introductions: set["Introduction"] = field(default_factory=set)  # clients that may become of them
    accepted: int = 0
    relayed: dict[Backend, Relayed] = field(default_factory=dict)
    # Reasons that are known beforehand are there from the start: a rate needs a first value.
    refused: Counter[str] = field(default_factory=_no_refusals)
    protocol_errors: Counter[str] = field(default_factory=_no_errors)

    def carried(self, backend: Backend) -> int:
        """Messages to and from a backend that user space carried itself."""
        row = self.relayed.get(backend)
        return 0 if row is None else row.requests + row.responses

    def renew(self, budget: int) -> None:
        """Takes over what clients and upstreams to come get: ``budget`` and the pool's batch."""
        self.policy = replace(self.policy, batch=self.pool.config.batch, budget=budget)

    @property
    def pool(self) -> Pool:
        """Where its messages go that no rule sends elsewhere."""
        return self.pools[0]

    def pool_of(self, backend: Backend) -> Pool | None:
        """The one that a backend is of, or was; None if it is gone."""
        for pool in self.pools:
            if pool.config.name == backend.pool:
                return pool
        return None

    @property
    def timeouts(self) -> "Timeouts":
        """Those of the pool."""
        return self.pool.config.timeouts

    @property
    def idle(self) -> float:
        """Seconds that a client may send nothing."""
        idle = self.config.limits.idle
        return self.timeouts.idle if idle is None else idle

    @property
    def one_at_a_time(self) -> bool:
        """Whether a message for another backend waits until those before it are answered."""
        hashes = (pool.config.hash for pool in self.pools)
        by_message = any(by is not None and by.by_message for by in hashes) or any(
            rule.by_message and isinstance(rule.action, Target) for rule in self.config.rules
        )
        return by_message and self.config.framing.ordering is Ordering.FIFO

    @property
    def max_message(self) -> int:
        """Bytes."""
        return self.config.framing.max_message

    def over_limit(self, address: str | None) -> str | None:
        """Why one more client is one too many, as in the label of a metric; or None.

        ``address``: where it comes from; None: only a proxy knows, who has not said it yet.
        """
        limits = self.config.limits
        clients = len(self.clients) + len(self.introductions)
        if limits.max_clients is not None and clients >= limits.max_clients:
            return "max_clients"
        most = limits.max_clients_per_address
        if address is None:
            return None
        if most is not None and self.clients.at(address) >= most:
            return "max_clients_per_address"
        return None
