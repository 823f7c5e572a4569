"""Backends with moods. Each keeps a history of every connection that it accepted."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from tests.e2e.chaos.history import UpstreamHistory
from tests.e2e.chaos.mixes import SLOW, Mood
from tests.e2e.chaos.stream import Stream
from tests.e2e.chaos.wire import AGAIN, LARGEST, Cutter, Label, MalformedError, answer, forged, garbage, read

_TURN = 0.1  # seconds between the deeds of a mood that strikes again and again
_FAREWELL = 5.0  # seconds that the balancer has to end a connection after our FIN
_LOOK = 0.02  # seconds between two looks at the kernel's queues
_PACES = (1, 7, 60, 700)  # bytes a tick
Endpoint = tuple[str, int]


class Upstream:
    """One accepted connection."""

    def __init__(self, backend: "Backend", sock: socket.socket) -> None:
        self.history = UpstreamHistory(backend.name, time.monotonic())
        self._backend = backend
        self._cutter = Cutter()
        self.mute = False  # it has said its last word
        self.over = asyncio.Event()
        self._ended = False
        self.stream = Stream(sock, self._take, self._over)

    def _take(self, data: bytes) -> None:
        try:
            messages = self._cutter.feed(data)
        except MalformedError:
            self.history.corrupted += 1
            self.fail()
            self.stream.reset()
            self.forget()
            return
        asked = []
        for message in messages:
            label = read(message)
            if label is None or label.response:
                self.history.corrupted += 1
                continue
            self.history.reads.append((label.client, label.sequence))
            if not label.silent:
                asked.append((label, len(message)))
        if asked and not self.mute:
            self._backend.reply(self, asked)

    def _over(self, error: OSError | None) -> None:
        self._ended = True
        if error is None:
            self.history.corrupted += self._cutter.pending > 0
            self.stream.finish()
            asyncio.get_running_loop().create_task(self._leave())
        else:
            self.forget()

    async def _leave(self) -> None:
        await self.stream.drain()
        self.forget()

    def forget(self) -> None:
        """Close, and be none of the backend's connections."""
        self.stream.close()
        self._backend.connections.discard(self)
        self.over.set()

    def cut_history(self) -> UpstreamHistory:
        """What was seen until now, of a connection that goes on."""
        done, self.history = self.history, UpstreamHistory(self._backend.name, time.monotonic())
        return done

    def fail(self) -> None:
        """Note that what happens to this connection from here on is the backend's doing."""
        if self.history.failed is None:
            self.history.failed = time.monotonic()
        self.mute = True

    def reset(self) -> None:
        """End it the hard way; what was not read yet is counted."""
        self.fail()
        with contextlib.suppress(MalformedError):
            labels = [read(message) for message in self._cutter.feed(self.stream.unread())]
            self.history.unread += [(label.client, label.sequence) for label in labels if label is not None]
        self.stream.reset()
        self.forget()

    def finish(self) -> None:
        """End it in good order: answer nothing more, read what still comes."""
        if not self._ended and not self.mute:
            self.fail()
            self.stream.finish()
            asyncio.get_running_loop().call_later(_FAREWELL, self.forget)

    def poison(self, data: bytes) -> None:
        """Send what is no message."""
        self.fail()
        self.stream.write(data)


def _answer_size(label: Label, size: int) -> int:
    """Some answers are short, a few long, most as long as the question."""
    if label.sequence % 4 == 0:
        return size // 4
    return min(4 * size, LARGEST) if label.sequence % 17 == 0 else size


class Backend:
    """Listens, and does what its mood is."""

    def __init__(self, number: int, name: str, sock: socket.socket, *, shared: bool) -> None:
        """Take over a listening, non-blocking socket; ``shared``: its connections outlive the clients."""
        self.number = number
        self.name = name
        self.shared = shared
        self.connections: set[Upstream] = set()
        self.histories: list[UpstreamHistory] = []
        self._sock: socket.socket | None = None
        self._family = sock.family
        self.endpoint: Endpoint = sock.getsockname()[:2]
        self._mood = Mood.WELL
        self._source = random.Random()
        self._pace: int | None = None
        self._listen(sock)

    def _listen(self, sock: socket.socket) -> None:
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock, self._accept)

    def _accept(self) -> None:
        assert self._sock is not None
        while True:
            try:
                sock, _peer = self._sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            sock.setblocking(False)
            upstream = Upstream(self, sock)
            self.connections.add(upstream)
            self.histories.append(upstream.history)
            upstream.stream.pace = self._pace
            if self._mood is Mood.STALL:
                upstream.stream.pause()

    def reply(self, upstream: Upstream, asked: list[tuple[Label, int]]) -> None:
        """Answer requests of one connection, in the mood of the moment."""
        source = self._source
        answers = []
        for label, asked_size in asked:
            size = _answer_size(label, asked_size)
            answers.append(answer(label, self.number, size))
            if self._mood is Mood.TWICE and source.random() < 0.3:
                upstream.history.deceived = True
                answers.append(answer(label, self.number, size, AGAIN))
            elif self._mood is Mood.UNKNOWN and source.random() < 0.3:
                upstream.history.deceived = True
                place = len(answers) - (source.random() < 0.5)
                answers.insert(place, forged(label, self.number, source.getrandbits(32) | 1 << 31))
            upstream.history.answered += 1
        if not asked[0][0].fifo and self._mood is not Mood.WELL:
            source.shuffle(answers)
        if self._mood is Mood.GARBAGE and source.random() < 0.05:
            upstream.stream.write(b"".join(answers[: source.randrange(len(answers) + 1)]))
            upstream.poison(garbage(source))
            return
        upstream.stream.write(b"".join(answers))

    # Moods

    async def play(self, moods: tuple[Mood, ...], seed: int, seconds: float) -> None:
        """Change moods at random for a time; be well at the end."""
        loop = asyncio.get_running_loop()
        self._source = source = random.Random(seed)
        end = loop.time() + seconds
        try:
            while (left := end - loop.time()) > 0:
                # One slow time after the other would add up to what is overdue.
                self._mood = Mood.WELL if self._mood in SLOW else source.choice(moods)
                await self._live(min(left, source.uniform(0.2, 1.5)))
        finally:
            self._set_pace(None)
            self._mood = Mood.WELL

    async def stall(self, seconds: float) -> None:
        """Read nothing for a time."""
        self._mood = Mood.STALL
        try:
            await self._live(seconds)
        finally:
            self._mood = Mood.WELL

    async def _live(self, seconds: float) -> None:
        self._set_pace(self._source.choice(_PACES) if self._mood is Mood.TRICKLE else None)
        match self._mood:
            case Mood.STALL:
                for upstream in self.connections:
                    upstream.stream.pause()
                await asyncio.sleep(seconds)
                for upstream in self.connections:
                    upstream.stream.resume()
            case Mood.DIE:
                await self._die(seconds)
            case Mood.RESET | Mood.CLOSE:
                end = asyncio.get_running_loop().time() + seconds
                while asyncio.get_running_loop().time() < end:
                    for upstream in list(self.connections):
                        if self._source.random() < 0.2:
                            if self._mood is Mood.RESET:
                                upstream.reset()
                            else:
                                upstream.finish()
                    await asyncio.sleep(_TURN)
            case _:
                await asyncio.sleep(seconds)

    async def _die(self, seconds: float) -> None:
        self.hang_up()
        try:
            await asyncio.sleep(seconds)
        finally:
            sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(self.endpoint)
            sock.listen(4096)
            self._listen(sock)

    def hang_up(self) -> None:
        """Close the listener and reset all connections."""
        if self._sock is not None:
            self._accept()  # so that those who wait have a history, with this end
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        for upstream in list(self.connections):
            upstream.reset()

    def _set_pace(self, pace: int | None) -> None:
        self._pace = pace
        for upstream in self.connections:
            upstream.stream.pace = pace


def _queues() -> Iterator[tuple[int, int]]:
    """Of each TCP socket of this network, for both of its ports: bytes in its queues; see proc(5)."""
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        waiting = sum(int(queue, 16) for queue in queues.split(":"))
        yield from ((int(end.partition(":")[2], 16), waiting) for end in (local, remote))


class Backends:
    """What the process of the backends does, on call."""

    def __init__(self) -> None:
        self._backends: list[Backend] = []
        self._plays: list[asyncio.Task[None]] = []

    async def open(self, names: list[str], shared: Collection[str] = ()) -> list[Endpoint]:
        """Listen, once for each name; return where."""
        for number, name in enumerate(names, 1):
            sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
            sock.setblocking(False)
            self._backends.append(Backend(number, name, sock, shared=name in shared))
        return [backend.endpoint for backend in self._backends]

    async def play(self, moods: dict[str, tuple[Mood, ...]], seed: int, seconds: float) -> None:
        """Begin a round; backends that are not named are well."""
        self._plays = [
            asyncio.create_task(
                backend.play(moods[backend.name], seed + backend.number, seconds), name=backend.name
            )
            for backend in self._backends
            if backend.name in moods
        ]

    async def stall(self, seconds: float) -> None:
        """Begin a time in which no backend reads."""
        self._plays = [
            asyncio.create_task(backend.stall(seconds), name=backend.name) for backend in self._backends
        ]

    async def collect(self, patience: float) -> tuple[list[UpstreamHistory], int]:
        """End a round: what was seen, and how many connections the balancer did not end.

        Those that clients share go on; what is on its way to them must arrive.
        """
        await asyncio.gather(*self._plays)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                # One more may come while others end: to try whether a backend is back, say.
                while left := self._ending():
                    await asyncio.gather(*(upstream.over.wait() for upstream in left))
                while self._on_its_way():  # noqa: ASYNC110 - the kernel tells nobody
                    await asyncio.sleep(_LOOK)
        histories: list[UpstreamHistory] = []
        for upstream in left:
            upstream.reset()
        for backend in self._backends:
            histories += backend.histories
            going_on = backend.connections if backend.shared else ()
            for upstream in going_on:
                upstream.cut_history()
            backend.histories = [upstream.history for upstream in going_on]
        return histories, len(left)

    def _ending(self) -> list[Upstream]:
        return [
            upstream
            for backend in self._backends
            for upstream in backend.connections
            if upstream.mute or not backend.shared
        ]

    def _on_its_way(self) -> bool:
        """Whether the kernel has bytes from or for a shared connection, unsent, unacknowledged or unread."""
        ports = {backend.endpoint[1] for backend in self._backends if backend.shared}
        return any(port in ports and waiting for port, waiting in _queues())
