"""Clients that behave in every way there is. Each connection keeps its history."""

import asyncio
import contextlib
import itertools
import random
import socket
import time
from collections.abc import Sequence

from tests.e2e.chaos.history import ClientHistory, End
from tests.e2e.chaos.mixes import WELL_BEHAVED, Behaviour
from tests.e2e.chaos.stream import Stream
from tests.e2e.chaos.wire import (
    LARGEST,
    LEAST,
    NO_SEQUENCE,
    Cutter,
    MalformedError,
    garbage,
    oversize,
    read,
    request,
)

# Seconds without which an answer, or the end of the connection, is overdue. Longer than any mood of a
# backend lasts, than drain and half_message, and than two busy processors take.
PATIENCE = 15.0
_CONNECT = 10.0
_WINDOW = 512 * 1024  # most bytes of requests that a client has on their way
_SIZES = ((LEAST, 64), (LEAST, 200), (LEAST, 4000), (LEAST, LARGEST))
Endpoint = tuple[str, int]


class Client:
    """One connection."""

    def __init__(self, history: ClientHistory, sock: socket.socket, source: random.Random) -> None:
        self.history = history
        self.stream = Stream(sock, self._take, self._over)
        self.over = False
        self._news = asyncio.Event()
        self._source = source
        self._cutter = Cutter()
        self._finished = False
        self._due = 0  # requests whose answer has not come
        self._depth = 0  # requests to keep on their way; 0: ask no more by yourself
        self._sizes = source.choice(_SIZES)
        self._seen: set[int] = set()

    # Asking

    def ask(self, count: int, *, silent: float = 0.0, most: int = LARGEST) -> None:
        """Send requests; a share of them wants no answer."""
        history = self.history
        least, largest = self._sizes
        requests = []
        for _ in range(count):
            mute = self._source.random() < silent
            sequence = len(history.sent)
            size = self._source.randint(least, min(largest, most))
            requests.append(
                request(
                    history.client,
                    sequence,
                    size,
                    silent=mute,
                    fifo=history.fifo,
                    shared=history.shared,
                )
            )
            history.sent.append(mute)
            self._due += not mute
        self.stream.write(b"".join(requests))

    def _go_on(self) -> None:
        if self._depth and not self.over:
            while self._due < self._depth:
                self.ask(self._depth - self._due, silent=0.1)

    # Hearing

    def _take(self, data: bytes) -> None:
        history = self.history
        try:
            messages = self._cutter.feed(data)
        except MalformedError:
            history.corrupted += 1
            self.stream.reset()
            self._over(None)
            return
        for message in messages:
            label = read(message)
            if label is None or not label.response:
                history.corrupted += 1
            elif label.client != history.client:
                history.foreign.append(label.client)
            else:
                history.answers.append((label.sequence, label.copy))
                if label.sequence != NO_SEQUENCE and label.sequence not in self._seen:
                    self._seen.add(label.sequence)
                    self._due -= 1
        self._go_on()
        if not self._due:
            self._news.set()

    def _over(self, error: OSError | None) -> None:
        if self.over:
            return
        self.over = True
        if error is not None:
            self.history.end = End.RESET
        else:
            self.history.corrupted += self._cutter.pending > 0
            if not self._finished:
                self.history.end = End.EOF
            else:
                self.history.end = End.SHORT if self._due else End.LEFT
        self._news.set()

    # Waiting

    async def wait_answers(self) -> bool:
        """Wait until nothing is due; False if the connection ended before, or patience did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self._due and not self.over:
                    self._news.clear()
                    await self._news.wait()
        return not (self._due or self.over)

    async def wait_end(self) -> None:
        """Wait for the end of the connection, as long as patience lasts."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not self.over:
                    self._news.clear()
                    await self._news.wait()

    async def send_all(self) -> bool:
        """Wait until the kernel has everything; False if the connection or patience ended first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self.stream.drain()
                return not self.over
        return False

    async def finish(self) -> None:
        """Send FIN and wait for the other one."""
        self._finished = True
        self.stream.finish()
        self.history.complete = await self.send_all()
        await self.wait_end()

    # Behaving

    async def behave(self) -> None:
        """Live the whole life of the connection."""
        match Behaviour(self.history.behaviour):
            case Behaviour.LOAD | Behaviour.LAZY:
                await self._load(lazy=self.history.behaviour == Behaviour.LAZY.value)
            case Behaviour.HALF:
                self.ask(self._source.randint(1, 40), silent=0.1)
                await self.finish()
            case Behaviour.CRUMBS:
                self.stream.pace = 1
                self.ask(self._source.randint(1, 5), most=100)
                if await self.wait_answers():
                    await self.finish()
            case Behaviour.FORGET:
                self.ask(self._source.randint(1, 50), silent=1.0)
                self.history.complete = await self.send_all()
                self._leave()
            case Behaviour.LEAVE:
                self._leave()
            case _:
                await self._misbehave()

    async def _load(self, *, lazy: bool) -> None:
        most = max(1, _WINDOW // self._sizes[1])
        self._depth = min(most, self._source.choice([1, 4, 16, 64]))
        end = time.monotonic() + self._source.uniform(0.2, 2.5)
        self._go_on()
        while (left := end - time.monotonic()) > 0 and not self.over:
            nap = min(left, self._source.uniform(0.1, 0.8))
            if lazy:
                self.stream.pause()
            await asyncio.sleep(nap)
            self.stream.resume()
            if lazy:
                await asyncio.sleep(nap / 4)
        self._depth = 0
        if await self.wait_answers():
            await self.finish()

    async def _misbehave(self) -> None:
        self.ask(self._source.randint(0, 20), silent=0.1)
        match Behaviour(self.history.behaviour):
            case Behaviour.RESET:
                if self._source.random() < 0.5:
                    await asyncio.sleep(self._source.random() / 20)
                if not self.over:
                    self.history.end = End.GONE
                    self.over = True
                    self.stream.reset()
            case Behaviour.GARBAGE:
                self.stream.write(garbage(self._source))
                await self.wait_end()
            case _:
                self.stream.write(oversize(self._source) + self._source.randbytes(10_000))
                await self.wait_end()

    def _leave(self) -> None:
        if not self.over:
            self.over = True
            self.history.end = End.LEFT
        self.stream.close()


class Clients:
    """What the process of the clients does, on call."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    async def live(
        self,
        listeners: dict[str, Endpoint],
        behaviours: dict[str, Sequence[Behaviour]],
        seed: int,
        seconds: float,
        count: int,
    ) -> dict[str, list[ClientHistory]]:
        """Keep ``count`` connections alive at each listener for a time; return them by listener.

        A listener whose name ends in ``fifo`` takes answers in the order of the questions; at one whose name
        has ``shared`` in it clients share upstreams.
        """
        end = time.monotonic() + seconds
        histories: dict[str, list[ClientHistory]] = {name: [] for name in listeners}
        async with asyncio.TaskGroup() as group:
            for place, (name, endpoint) in enumerate(listeners.items()):
                for number in range(count):
                    source = random.Random(seed * 1_000_003 + place * 1009 + number)
                    group.create_task(
                        self._lives(name, endpoint, behaviours[name], source, end, histories[name]),
                        name=f"{name} {number}",
                    )
        return histories

    async def _lives(
        self,
        listener: str,
        endpoint: Endpoint,
        behaviours: Sequence[Behaviour],
        source: random.Random,
        end: float,
        histories: list[ClientHistory],
    ) -> None:
        while time.monotonic() < end:
            behaviour = source.choice(behaviours)
            history = ClientHistory(
                client=next(self._numbers),
                behaviour=behaviour.value,
                fifo=listener.endswith("fifo"),
                well=behaviour in WELL_BEHAVED or behaviour is Behaviour.LEAVE,
                began=time.monotonic(),
                shared="shared" in listener,
            )
            histories.append(history)
            await _live(history, endpoint, source)
            history.ended = time.monotonic()
            await asyncio.sleep(source.random() / 50)


async def _live(history: ClientHistory, endpoint: Endpoint, source: random.Random) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(_CONNECT):
            await asyncio.get_running_loop().sock_connect(sock, endpoint)
    except (OSError, TimeoutError):
        sock.close()
        history.end = End.REFUSED
        return
    client = Client(history, sock, source)
    try:
        await client.behave()
    finally:
        client.stream.close()
