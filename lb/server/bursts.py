"""What comes in floods, told in sums: clients that are refused, messages that are dropped.

Each reason is told of within a second when it is new, and then, as long as it goes on, in sums of ten
seconds: a flood makes a few lines in the log, and does not push everything else out of the events.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from lb.events import event

_log = logging.getLogger(__name__)

_LOOK = 1.0
_QUIET = 10.0


class Count(NamedTuple):
    """What is counted: of a listener, or of all, for a reason."""

    kind: str  # of the event
    listener: str  # "": all
    reason: str


_WORDS = {
    "refused": "clients refused",
    "malformed": "connections closed because of malformed messages",
    "dropped": "messages not delivered",
}


class Bursts:
    """Tells of counts that grow."""

    def __init__(self, counts: Callable[[], Mapping[Count, int]]) -> None:
        self._counts = counts
        self._told: dict[Count, tuple[int, float]] = {}  # how many, and when

    async def run(self) -> None:
        """Serves for ever; to be run as a task."""
        clock = asyncio.get_running_loop().time
        try:
            while True:
                await asyncio.sleep(_LOOK)
                self.tell(clock())
        finally:
            self.tell(float("inf"))

    def tell(self, now: float) -> None:
        """Logs what is to be told now."""
        for count, grown in self.news(now):
            about = {"listener": count.listener} if count.listener else {}
            _log.warning(
                "%s%d %s (%s)",
                f"listener {count.listener}: " if count.listener else "",
                grown,
                _WORDS[count.kind],
                count.reason,
                extra=event(count.kind, reason=count.reason, count=grown, **about),
            )

    def news(self, now: float) -> Iterator[tuple[Count, int]]:
        """What has grown since it was told, and by how much, unless it was told a moment ago."""
        for count, value in self._counts().items():
            before, when = self._told.get(count, (0, -_QUIET))
            if value > before and now - when >= _QUIET:
                self._told[count] = (value, now)
                yield count, value - before
