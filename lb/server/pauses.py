"""Sources that stand still, and when they go on.

The parser pauses a source in front of a message when there is no room where it has to go
(``bpf/lb.bpf.c``). The kernel gives no event when a backlog has run empty, so the destinations of paused
sources, and of no others, are looked at: after a millisecond at first, then ever more seldom. A destination
whose backlog does not move for longer has a peer that does not read: its send queue is full, and TCP tells
when there is space in it. It is looked at again then, or when a long time has passed. Sources that wait
for a rate know their time.
"""

import asyncio
import heapq
import itertools
import time
from dataclasses import dataclass, field
from typing import Protocol

from lb.dataplane import DataPlane
from lb.server.guard import Guarded
from lb.server.waiting import until

_SHORTEST = 0.001
_LONGEST = 0.05  # seconds between two looks, where no event tells
_SELDOM = 5.0  # and where one does
_SHARE = 20  # looking takes at most 1/20 of the time
_SLICE = 2  # sources looked at in vain in one go: others on this processor wait meanwhile
_MOST = 64  # sources that go on at once


class Source(Guarded, Protocol):
    """A mapped socket whose messages wait."""

    def may_resume(self) -> bool:
        """Whether there is room now."""

    def resume(self) -> None:
        """Lets the programs look at the waiting messages again."""

    def waited(self, seconds: float) -> None:
        """Called while it stands still, with the time since it was paused first."""

    def due_in(self) -> float | None:
        """Seconds until it should be looked at; None if nobody knows."""

    def await_space(self) -> bool:
        """Asks for a call of :meth:`Pauses.hasten` when there is space; False if nothing will tell."""


@dataclass(order=True, slots=True)
class _Look:
    """The next look at a source's destinations."""

    due: float
    number: int
    source: Source = field(compare=False)
    since: float = field(compare=False)
    delay: float = field(compare=False, default=_SHORTEST)


class Pauses:
    """The sources that wait for room."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._waiting: dict[Source, _Look] = {}
        self._agenda: list[_Look] = []  # a heap; a look that was replaced stays in it until it is due
        self._numbers = itertools.count()
        self._sooner = asyncio.Event()

    def add(self, source: Source) -> None:
        """A source has been paused; it is resumed as soon as there is room."""
        if source not in self._waiting:
            delay = max(source.due_in() or 0.0, _SHORTEST)
            self._plan(source, asyncio.get_running_loop().time(), delay)
            self._sooner.set()

    def hasten(self, source: Source) -> None:
        """There may be room for a source, if it waits."""
        look = self._waiting.get(source)
        if look is not None:
            self._plan(source, look.since, _SHORTEST)
            self._sooner.set()

    def release(self, source: Source) -> None:
        """What a paused source waited for has come, or never will: it is looked at at once."""
        now = asyncio.get_running_loop().time()
        look = self._waiting.get(source)
        self._plan(source, now if look is None else look.since, _SHORTEST, due=now)
        self._sooner.set()

    def discard(self, source: Source) -> None:
        """The source ends, or somebody else takes care of it."""
        self._waiting.pop(source, None)

    def _plan(self, source: Source, since: float, delay: float, *, due: float | None = None) -> None:
        if due is None:
            due = asyncio.get_running_loop().time() + delay
        look = self._waiting[source] = _Look(due, next(self._numbers), source, since, delay)
        heapq.heappush(self._agenda, look)

    async def run(self) -> None:
        """Serves for ever; to be run as a task."""
        loop = asyncio.get_running_loop()
        while True:
            self._sooner.clear()
            if not self._agenda:
                await self._sooner.wait()
            elif (delay := self._agenda[0].due - loop.time()) > 0:
                try:
                    async with asyncio.timeout(delay):
                        await self._sooner.wait()
                except TimeoutError:
                    pass  # it is time
            # The thread's time: what others on this processor took is no reason to wait.
            before = time.thread_time()
            if ready := self._ready(loop.time()):
                await self._canary()
                self._resume(ready)
            else:
                await asyncio.sleep(min(_LONGEST, _SHARE * (time.thread_time() - before)))

    def _ready(self, now: float) -> list[Source]:
        """Looks at some of those that are due; those that may go on."""
        ready: list[Source] = []
        vain = 0
        while vain < _SLICE and len(ready) < _MOST and self._agenda and self._agenda[0].due <= now:
            look = heapq.heappop(self._agenda)
            if self._waiting.get(look.source) is look:  # it has not ended, or been hastened, meanwhile
                with look.source.guard:
                    if look.source.may_resume():
                        ready.append(look.source)
                    else:
                        vain += 1
                        self._look_again(look, now)
        return ready

    def _look_again(self, look: _Look, now: float) -> None:
        source = look.source
        delay = min(2 * look.delay, _LONGEST)
        if (due := source.due_in()) is not None:
            delay = max(due, _SHORTEST)
        elif delay == _LONGEST and source.await_space():
            delay = _SELDOM
        self._plan(source, look.since, delay)
        source.waited(now - look.since)

    async def _canary(self) -> None:
        self._plane.canary.send()
        await until(self._plane.canary.back)

    def _resume(self, ready: list[Source]) -> None:
        for source in ready:
            if source in self._waiting:  # it has not ended meanwhile
                self.discard(source)
                with source.guard:
                    source.resume()
