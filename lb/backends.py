"""The live state of backends: who can be connected to, and what went wrong when one could not."""

import enum
import errno
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lb import config
from lb.events import event

_log = logging.getLogger(__name__)

_REASONS = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "timeout",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EADDRNOTAVAIL: "no_local_port",
    errno.EMFILE: "no_descriptor",
    errno.ENFILE: "no_descriptor",
    errno.ENOMEM: "no_memory",
    errno.ENOBUFS: "no_memory",
    errno.ENOSPC: "no_memory",  # in the poller
}
# What we lack ourselves says nothing about the backend, whose connections must not lose their turns for it.
_OURS = {"no_local_port", "no_descriptor", "no_memory", "no_slot"}


def connect_failure(code: int) -> str:
    """The reason, as in the label of a metric, why a connect failed with this errno."""
    return _REASONS.get(code, errno.errorcode.get(code, "unknown").lower())


class Health(enum.Enum):
    """What is known about a backend."""

    UNKNOWN = "unknown"  # not tried yet; clients try
    UP = "up"
    DOWN = "down"


class AdminState(enum.Enum):
    """What the operator wants of a backend, whatever its health."""

    READY = "ready"
    DRAIN = "drain"  # no new messages; connections end when they owe nothing
    MAINT = "maint"  # the same, and nobody connects to it, not even to check


MOST_WEIGHT = 256  # the kernel's turns are too coarse for more


@dataclass(frozen=True, slots=True)
class Checked:
    """The latest check: why it failed, None for success; how long it took, and when it ended (monotonic)."""

    failure: str | None
    seconds: float
    at: float


class Witness(Protocol):
    """Who is told what becomes of a backend's messages, and may eject it for that."""

    def saw_connection(self, backend: "Backend") -> None:
        """A connection for messages was made."""

    def saw_failure(self, backend: "Backend", reason: str) -> None:
        """A connection for messages could not be made."""

    def saw_loss(self, backend: "Backend", reason: str, failures: int) -> None:
        """A connection ended while it owed answers, or so many requests got none in time."""


class Backend:
    """A backend of a pool. Takes part in the choice unless it is known to be down, ejected, or taken out."""

    def __init__(self, pool: str, backend: config.Backend, check: config.HealthCheck, index: int) -> None:
        self.pool = pool
        self.config = backend
        self.sockaddr = backend.address.sockaddr  # stays, whatever else of its settings changes
        self.index = index
        self.health = Health.UNKNOWN
        self.admin = AdminState.READY
        self.reason = "not tried yet"  # why its health is what it is ...
        self.since = time.monotonic()  # ... and since when
        self.last_check: Checked | None = None
        self.checks: Counter[str] = Counter()  # by result: ok, or why they failed
        self.changes: Counter[tuple[str, str]] = Counter()  # of health, by (to, reason)
        # Both are set by who knows the whole pool (lb/server/weights.py).
        self.serving = True
        self.warmth: float = 1  # below 1 while it starts slowly
        self.connections = 0
        self.connect_failures: Counter[str] = Counter()
        self.ejected_until: float | None = None  # monotonic; None: it is not
        self.ejections: Counter[str] = Counter()  # by the reason of the last failure
        self.errors_before = 0  # error responses that its number had counted for another one
        self.witness: Witness | None = None
        self.on_change: list[Callable[[Backend], None]] = []
        self._check = check
        self._weight: int | None = None  # instead of the configured one
        self._run = 0  # of equal results, when they contradict the health

    def __str__(self) -> str:
        return f"{self.pool}/{self.config.name}"

    @property
    def name(self) -> str:
        """Unique in its pool."""
        return self.config.name

    @property
    def weight(self) -> int:
        """Its share of the messages while it is usable: the configured one, or :meth:`set_weight`."""
        return self.config.weight if self._weight is None else self._weight

    @property
    def priority(self) -> int:
        """Its level."""
        return self.config.priority

    @property
    def effective_weight(self) -> float:
        """Its share of the messages right now."""
        return round(self.weight * self.warmth, 3) if self.serving else 0

    @property
    def down(self) -> bool:
        """Whether it is known not to work."""
        return self.health is Health.DOWN

    @property
    def usable(self) -> bool:
        """Whether it may get messages: ready, neither down nor ejected. It does if it is :attr:`serving`."""
        return self.admin is AdminState.READY and not self.down and not self.ejected

    @property
    def dismissed(self) -> bool:
        """Whether its connections are to end: taken out, or alive in a level that is not needed."""
        return not self.serving and (self.usable or self.admin is not AdminState.READY)

    @property
    def ejected(self) -> bool:
        """Whether it gets no messages for a while, because of what became of others."""
        return self.ejected_until is not None

    @property
    def changing(self) -> bool:
        """Whether results contradict its health, and are too few yet to change it."""
        return self._run > 0

    def recheck(self, check: config.HealthCheck) -> None:
        """Changes how many results in a row change its health."""
        self._check = check
        self._run = 0

    def administer(self, state: AdminState) -> None:
        """Takes it out, or back; its messages follow at once, its connections in good order."""
        before, self.admin = self.admin, state
        if state is before:
            return
        if state is AdminState.MAINT:
            self.health, self._run = Health.UNKNOWN, 0  # nobody looks any more: what was known grows old
            self.reason, self.since = "maint", time.monotonic()
        about = event("admin", pool=self.pool, backend=self.name, admin=state.value)
        _log.info("backend %s: %s (was %s)", self, state.value, before.value, extra=about)
        self._changed()

    def set_weight(self, weight: int | None) -> None:
        """Changes its share of the messages, 0 to :data:`MOST_WEIGHT`; None: back to the configured one."""
        before, self._weight = self.weight, weight
        if self.weight != before:
            about = event("weight", pool=self.pool, backend=self.name, weight=self.weight)
            _log.info("backend %s: weight %d (was %d)", self, self.weight, before, extra=about)
            self._changed()

    def connected(self) -> None:
        """A connection for messages succeeded; that is no answer, where checks ask for one."""
        if self._check.ping is None:
            self._result(Health.UP, self._check.rise, "connected")
        if self.witness is not None:
            self.witness.saw_connection(self)

    def failed(self, reason: str) -> None:
        """A connection for messages failed."""
        self._not_connected(reason)
        if self.witness is not None and reason not in _OURS:
            self.witness.saw_failure(self, reason)

    def lost(self, reason: str, failures: int = 1) -> None:
        """A connection ended while it owed answers, or so many requests got no response in time."""
        if self.witness is not None and failures:
            self.witness.saw_loss(self, reason, failures)

    def checked(self, failure: str | None, seconds: float, *, connected: bool) -> None:
        """A check succeeded or failed, which took so long, with or without a connection."""
        self.last_check = Checked(failure, seconds, time.monotonic())
        self.checks[failure or "ok"] += 1
        if failure is None:
            reason = "connected" if self._check.ping is None else "answered"
            self._result(Health.UP, self._check.rise, reason)
        elif not connected:
            self._not_connected(failure)
        elif failure not in _OURS:
            self._result(Health.DOWN, self._check.fall, failure)

    def eject(self, reason: str, failures: int, seconds: float) -> None:
        """Takes it out for a while, after so many failures in a row."""
        self.ejected_until = time.monotonic() + seconds
        self.ejections[reason] += 1
        _log.warning(
            "backend %s is ejected for %g s: %d failures in a row, the last: %s",
            self,
            seconds,
            failures,
            reason,
        )
        self._changed()

    def readmit(self) -> None:
        """Takes it back; whether it gets messages depends on its health."""
        if self.ejected:
            self.ejected_until = None
            _log.info("backend %s is not ejected any more", self)
            self._changed()

    def _not_connected(self, reason: str) -> None:
        self.connect_failures[reason] += 1
        if reason not in _OURS:
            self._result(Health.DOWN, self._check.fall, reason)

    def _result(self, health: Health, needed: int, reason: str) -> None:
        if self.admin is AdminState.MAINT:
            return  # of an attempt from before
        if health is self.health:
            self._run = 0
            return
        self._run += 1
        if self._run < needed and self.health is not Health.UNKNOWN:
            return
        before, self.health, self._run = self.health, health, 0
        self.reason, self.since = reason, time.monotonic()
        self.changes[health.value, reason] += 1
        _log.log(
            logging.WARNING if health is Health.DOWN else logging.INFO,
            "backend %s is %s (was %s): %s",
            self,
            health.value,
            before.value,
            reason,
            extra=event(
                "health",
                pool=self.pool,
                backend=self.name,
                health=health.value,
                before=before.value,
                reason=reason,
            ),
        )
        self._changed()

    def _changed(self) -> None:
        for observer in self.on_change:
            observer(self)


def backoff(attempt: int, *, shortest: float = 0.1, longest: float = 5.0) -> float:
    """Seconds to wait before the given attempt (0, 1, ...): doubling, half of it random."""
    ceiling = min(longest, shortest * 2.0 ** min(attempt, 16))
    return ceiling * random.uniform(0.5, 1.0)
