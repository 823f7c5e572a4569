"""Taps: some messages of a listener, for somebody who looks, with who sent and who answered them.

The kernel says when a request went and when its response came (``bpf/lb_tap.h``); the two are put together
here. One whose response does not come within :data:`PATIENCE` is shown without. All that a viewer costs is
bounded: samples a second in the kernel, and here what waits for it, of which the newest are lost.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypedDict

from lb.abi import Fate
from lb.backends import Backend
from lb.dataplane import Answer, NoTapError, Sample, Taps
from lb.server.context import Listening, Pool

if TYPE_CHECKING:
    from lb.server.client import Client

PATIENCE: Final = 10.0  # seconds for a response, and the memory of a sample
MOST_SAMPLES: Final = 1000  # a second, of one viewer: a few percent of one processor
_BACKLOG: Final = 4096  # lines that a viewer may leave unread
_SWEEP: Final = 0.5  # seconds
_NANO: Final = 1_000_000_000

_OUTCOMES = {
    Fate.AWAITED: "unanswered",  # yet
    Fate.UNTIMED: "untimed",
    Fate.QUIET: "no-response",
    Fate.DENIED: "denied",
}


class Line(TypedDict):
    """A message that was sampled.

    ``outcome``: ``answered``; ``unanswered`` (yet); ``no-response``: it gets none by its protocol;
    ``untimed``: which response is its own cannot be told; ``denied``: by a rule of the configuration.
    """

    time: float  # when it was sent on, in seconds since the epoch
    client: str
    pool: str | None
    backend: str | None
    size: int
    batch: int
    duration_seconds: float | None
    outcome: str
    bytes: str  # hexadecimal, the first of the message


class UnknownListenerError(Exception):
    """There is no listener of this name."""


class TooManyViewersError(Exception):
    """No more taps can be open at once."""


class _World(Protocol):
    """What there is to look at."""

    @property
    def listenings(self) -> list[Listening]:
        """What the clients of each listener share."""

    @property
    def pools(self) -> list[Pool]:
        """All of them."""


@dataclass(slots=True)
class _Outstanding:
    viewer: "Viewer"
    line: Line
    since: int  # nanoseconds of the programs' clock


class Viewer:
    """Who looks at a listener. Iterate over :meth:`lines`, and close it."""

    def __init__(self, tapping: "Tapping", listening: Listening, place: int, life: int) -> None:
        self.listening = listening
        self.place = place
        self.life = life
        self.lost = 0  # samples, in the kernel or here
        self._tapping = tapping
        self._lines: deque[Line] = deque()
        self._news = asyncio.Event()
        self._closed = False

    async def lines(self) -> AsyncIterator[Line]:
        """What is seen, until the balancer ends or the viewer is closed."""
        while not self._closed or self._lines:
            if not self._lines:
                self._news.clear()
                await self._news.wait()
            while self._lines:
                yield self._lines.popleft()

    def show(self, line: Line) -> None:
        """One more line."""
        if len(self._lines) >= _BACKLOG:
            self.lost += 1
            return
        self._lines.append(line)
        self._news.set()

    def close(self) -> None:
        """Looks no more; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self.lost += self._tapping.leave(self)
            self._news.set()


class Tapping:
    """Opens taps while somebody looks. Lives in the event loop."""

    def __init__(self, taps: Taps, world: _World) -> None:
        self._taps = taps
        self._world = world
        self._viewers: dict[tuple[int, int], Viewer] = {}  # by place and life
        self._outstanding: dict[int, _Outstanding] = {}  # by number of the sample, oldest first
        self._sweeping: asyncio.TimerHandle | None = None

    def open(self, name: str, rate: int) -> Viewer:
        """Starts to look at a listener, at most so many times a second.

        Raises:
            UnknownListenerError: there is none of this name.
            TooManyViewersError: as many look already as can.
        """
        named = [each for each in self._world.listenings if each.config.name == name]
        if not named:
            names = ", ".join(each.config.name for each in self._world.listenings)
            raise UnknownListenerError(f"there is no listener {name}; there are: {names}")
        if not self._viewers:
            self._taps.read()  # late answers to nobody
        try:
            place, life = self._taps.open(named[0].policy.listener, rate)
        except NoTapError:
            raise TooManyViewersError(
                f"{len(self._viewers)} taps are open, and there cannot be more: close one"
            ) from None
        if not self._viewers:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._taps.fileno(), self._read)
            self._sweeping = loop.call_later(_SWEEP, self._sweep)
        viewer = self._viewers[place, life] = Viewer(self, named[0], place, life)
        return viewer

    def leave(self, viewer: Viewer) -> int:
        """A viewer looks no more; returns how many samples found no room in the kernel."""
        del self._viewers[viewer.place, viewer.life]
        lost = self._taps.shut(viewer.place)
        if not self._viewers:
            asyncio.get_running_loop().remove_reader(self._taps.fileno())
            if self._sweeping is not None:
                self._sweeping.cancel()
            self._outstanding.clear()
        return lost

    def close(self) -> None:
        """Nobody looks any more: their lines end."""
        for viewer in list(self._viewers.values()):
            viewer.close()

    def _read(self) -> None:
        records = self._taps.read()
        members = (each for pool in self._world.pools for each in (*pool.backends, *pool.leaving))
        backends = {backend.index: backend for backend in members}
        for record in records:
            if isinstance(record, Answer):
                asked = self._outstanding.pop(record.number, None)
                if asked is not None:
                    asked.line["duration_seconds"] = (record.time - asked.since) / _NANO
                    asked.line["outcome"] = "answered"
                    asked.viewer.show(asked.line)
            elif viewer := self._viewers.get((record.place, record.life)):
                backend = None if record.backend is None else backends.get(record.backend)
                line = _line(record, viewer.listening.clients.find(record.ref), backend)
                if record.fate is Fate.AWAITED:
                    self._outstanding[record.number] = _Outstanding(viewer, line, record.time)
                else:
                    viewer.show(line)

    def _sweep(self) -> None:
        """Shows what has waited too long for its response."""
        self._sweeping = asyncio.get_running_loop().call_later(_SWEEP, self._sweep)
        since = self._taps.now() - int(PATIENCE * _NANO)
        for number in _older(self._outstanding, since):
            asked = self._outstanding.pop(number)
            asked.viewer.show(asked.line)


def _older(outstanding: dict[int, _Outstanding], since: int) -> Iterable[int]:
    numbers = []
    for number, asked in outstanding.items():
        if asked.since >= since:
            break
        numbers.append(number)
    return numbers


def _line(sample: Sample, client: "Client | None", backend: Backend | None) -> Line:
    """A line without a duration; ``client`` is None if it has left already."""
    age = (Taps.now() - sample.time) / _NANO
    return Line(
        time=round(time.time() - age, 6),
        client=sample.client if client is None else client.endpoint,
        pool=None if backend is None else backend.pool,
        backend=None if backend is None else backend.name,
        size=sample.length,
        batch=sample.batch,
        duration_seconds=None,
        outcome=_OUTCOMES[sample.fate],
        bytes=sample.shown.hex(),
    )
