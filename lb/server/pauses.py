"""Sources that stand still, and when they go on.

The parser pauses a source in front of a message when there is no room where it has to go
(``bpf/lb.bpf.c``). The kernel gives no event when a backlog has run empty, so the destinations of paused
sources, and of no others, are looked at: every millisecond at first, ever more seldom while nothing changes,
and never so often that looking takes more than a small part of the processor.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from lb.dataplane import DataPlane
from lb.server.guard import Guarded
from lb.server.waiting import until

_SHORTEST = 0.001
_LONGEST = 0.05
_SHARE = 20  # looking takes at most 1/20 of the time
_SLICE = 4  # sources looked at in one go: others on this processor wait meanwhile


class Source(Guarded, Protocol):
    """A mapped socket whose messages wait."""

    def may_resume(self) -> bool:
        """Whether there is room now."""

    def resume(self) -> None:
        """Lets the programs look at the waiting messages again."""

    def waited(self, seconds: float) -> None:
        """Called while it stands still, with the time since it was paused first."""


class Pauses:
    """The sources that wait for room."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._waiting: dict[Source, float] = {}
        self._any = asyncio.Event()

    def add(self, source: Source) -> None:
        """A source has been paused; it is resumed as soon as there is room."""
        if source not in self._waiting:
            self._waiting[source] = asyncio.get_running_loop().time()
            self._any.set()

    def discard(self, source: Source) -> None:
        """The source ends, or somebody else takes care of it."""
        self._waiting.pop(source, None)

    async def run(self) -> None:
        """Serves for ever; to be run as a task."""
        loop = asyncio.get_running_loop()
        while True:
            await self._any.wait()
            self._any.clear()
            delay = _SHORTEST
            while self._waiting:
                found = False
                waiting = list(self._waiting.items())
                for part in (waiting[at : at + _SLICE] for at in range(0, len(waiting), _SLICE)):
                    before = loop.time()
                    if ready := self._ready(part, before):
                        found = True
                        await self._canary()
                        self._resume(ready)
                    else:
                        await asyncio.sleep(_SHARE * (loop.time() - before))
                delay = _SHORTEST if found else min(delay * 2, _LONGEST)
                await asyncio.sleep(delay)

    def _ready(self, part: Sequence[tuple[Source, float]], now: float) -> list[Source]:
        ready = []
        for source, since in part:
            if source in self._waiting:  # it has not ended meanwhile
                with source.guard:
                    if source.may_resume():
                        ready.append(source)
                    else:
                        source.waited(now - since)
        return ready

    async def _canary(self) -> None:
        self._plane.canary.send()
        await until(self._plane.canary.back)

    def _resume(self, ready: list[Source]) -> None:
        for source in ready:
            if source in self._waiting:  # it has not ended meanwhile
                self.discard(source)
                with source.guard:
                    source.resume()
