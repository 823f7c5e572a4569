"""Taking a backend out because of what becomes of the messages that it gets.

A failure is a connection for messages that cannot be made, one that ends while it owes answers, a request
that gets no response in time, or a response that the protocol calls an error. So many of them in a row,
without a good response between them, and the backend is *ejected*: it gets no new messages for a while, which
grows with each ejection, and comes back by itself. What the checks say is another matter: for messages both
have to agree.

The programs count responses (:class:`lb.dataplane.Answers`); connections that are made again forgive those
that could not be, but not requests that were lost there.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from lb import config
from lb.backends import Backend
from lb.dataplane import Answers

_log = logging.getLogger(__name__)

_LOOK = 0.1  # seconds between two looks at what the programs have counted
ERROR_RESPONSE = "error_response"
_REASONS = (
    "refused",
    "timeout",
    "unreachable",
    "reset",
    "closed",
    "malformed",
    "response_timeout",
    ERROR_RESPONSE,
)


class Timer(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """It does not come."""


class Clock(Protocol):
    """Of an event loop, what ejections need."""

    def time(self) -> float:
        """Seconds."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls back after so many seconds."""


class _Record:
    """What is known of one backend."""

    def __init__(self, answers: Answers) -> None:
        self.unconnected = 0  # connections in a row that could not be made
        self.lost = 0  # requests, or connections with some, that were lost since the last good response
        self.good = answers.good
        self.pardoned = answers.errors  # error responses that count no more
        self.ejections = 0  # that make the next one longer
        self.returned = 0.0
        self.spared = False  # it would have been ejected, but for the others
        self.timer: Timer | None = None

    def look(self, answers: Answers) -> int:
        """Takes note of the answers; the failures in a row."""
        if answers.good > self.good:
            self.good = answers.good
            self.unconnected = self.lost = 0
            self.spared = False
        return self.unconnected + self.lost + answers.errors - max(answers.forgiven, self.pardoned)

    def forgive(self, answers: Answers) -> None:
        """Nothing of what was counts any more."""
        self.unconnected = self.lost = 0
        self.pardoned = answers.errors
        self.spared = False


class Ejections:
    """Ejects backends of one pool."""

    def __init__(
        self, settings: config.Ejection, clock: Clock, answers: Callable[[Backend], Answers]
    ) -> None:
        """``answers``: what a backend has answered so far."""
        self._settings = settings
        self._clock = clock
        self._answers = answers
        self._records: dict[Backend, _Record] = {}

    def add(self, backend: Backend) -> None:
        """Watches a backend of the pool."""
        answers = self._answers(backend)
        self._records[backend] = _Record(answers)
        backend.errors_before = answers.errors
        backend.ejections.update(dict.fromkeys(_REASONS, 0))  # a rate needs a first value
        backend.witness = self

    def remove(self, backend: Backend) -> None:
        """The backend has left the pool."""
        record = self._records.pop(backend, None)
        if record is not None:
            backend.witness = None
            if record.timer is not None:
                record.timer.cancel()

    def close(self) -> None:
        """Watches nobody any more; who is ejected is back."""
        for backend in list(self._records):
            self.remove(backend)
            backend.readmit()

    async def run(self) -> None:
        """Looks at the responses for ever; to be run as a task where some are errors."""
        while True:
            await asyncio.sleep(_LOOK)
            self.look()

    def look(self) -> None:
        """Looks at the responses of all backends once."""
        for backend in self._records:
            self._judge(backend, ERROR_RESPONSE)

    def saw_connection(self, backend: Backend) -> None:
        """A connection for messages was made."""
        if (record := self._records.get(backend)) is not None:
            record.unconnected = 0

    def saw_failure(self, backend: Backend, reason: str) -> None:
        """A connection for messages could not be made."""
        if (record := self._records.get(backend)) is not None:
            record.look(self._answers(backend))
            record.unconnected += 1
            self._judge(backend, reason)

    def saw_loss(self, backend: Backend, reason: str, failures: int = 1) -> None:
        """A connection ended while it owed answers, or so many requests got none in time."""
        if (record := self._records.get(backend)) is not None:
            record.look(self._answers(backend))
            record.lost += failures
            self._judge(backend, reason)

    def _judge(self, backend: Backend, reason: str) -> None:
        record = self._records[backend]
        failures = record.look(self._answers(backend))
        if failures < self._settings.consecutive_failures or backend.ejected:
            return
        ejected = sum(other.ejected for other in self._records)
        if 100 * (ejected + 1) > self._settings.max_ejection_percent * len(self._records):
            if not record.spared:
                record.spared = True
                _log.warning(
                    "backend %s is not ejected after %d failures in a row (%s):"
                    " %d of %d are, and at most %d%% may be",
                    backend,
                    failures,
                    reason,
                    ejected,
                    len(self._records),
                    self._settings.max_ejection_percent,
                )
            return
        self._eject(backend, record, reason, failures)

    def _eject(self, backend: Backend, record: _Record, reason: str, failures: int) -> None:
        settings, now = self._settings, self._clock.time()
        if record.ejections:  # one is forgotten for each base_ejection in which it was not ejected
            forgotten = int((now - record.returned) / settings.base_ejection)
            record.ejections = max(0, record.ejections - forgotten)
        record.ejections += 1
        seconds = min(record.ejections * settings.base_ejection, settings.max_ejection)
        record.timer = self._clock.call_later(seconds, lambda: self._return(backend, record))
        backend.eject(reason, failures, seconds)

    def _return(self, backend: Backend, record: _Record) -> None:
        record.timer = None
        record.returned = self._clock.time()
        record.forgive(self._answers(backend))
        backend.readmit()
