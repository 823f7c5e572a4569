"""What happened, for those who look later: the last events, each of which was one line of the log too.

A module tells of an event as it logs anything, and says what it is about in ``extra``:

    _log.warning("backend %s is down", backend, extra=event("health", backend="a"))

The ring is a handler of the log that keeps those lines and no others. What can come in floods (clients that
are refused) is told in sums: :mod:`lb.server.bursts`.
"""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypedDict

KEPT = 1000  # of a kilobyte at most, and more than anybody reads
_LONGEST = 500  # characters of a message

About = str | int | float


class Event(TypedDict):
    """One event. ``seq`` counts from 1 in the life of the process; ``time`` is in seconds since 1970."""

    seq: int
    time: float
    level: str
    kind: str
    message: str
    about: dict[str, About]


class Events(TypedDict):
    """Some events: ``next`` is what to ask ``after`` next time, ``missed`` how many were forgotten."""

    events: list[Event]
    next: int
    missed: int


class _Told(NamedTuple):
    kind: str
    about: dict[str, About]


def event(kind: str, **about: About) -> dict[str, _Told]:
    """What makes an event of a log line, as its ``extra``; ``about`` names what it concerns."""
    return {"event": _Told(kind, about)}


def told(record: logging.LogRecord) -> _Told | None:
    """What :func:`event` has added to a log line."""
    found = getattr(record, "event", None)
    return found if isinstance(found, _Told) else None


class Ring(logging.Handler):
    """The last events."""

    def __init__(self, size: int = KEPT) -> None:
        super().__init__(logging.INFO)
        self._kept: deque[Event] = deque(maxlen=size)
        self._latest = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a log line, if it is an event. The log calls one at a time, from any thread."""
        what = told(record)
        if what is None:
            return
        self._latest += 1
        self._kept.append(
            Event(
                seq=self._latest,
                time=round(record.created, 3),
                level=record.levelname.lower(),
                kind=what.kind,
                message=record.getMessage()[:_LONGEST],
                about=what.about,
            )
        )

    def after(self, seq: int = 0) -> Events:
        """The events after one, oldest first; after one of an earlier life of the process: all."""
        self.acquire()
        try:
            latest, kept = self._latest, list(self._kept)
        finally:
            self.release()
        if seq > latest:
            seq = 0
        events = [each for each in kept if each["seq"] > seq]
        return Events(events=events, next=latest, missed=latest - seq - len(events))


@contextmanager
def recorded() -> Iterator[Ring]:
    """A ring of all that the program's modules log from here on."""
    ring, log = Ring(), logging.getLogger("lb")
    log.addHandler(ring)
    try:
        yield ring
    finally:
        log.removeHandler(ring)
