"""A closed loop of pipelined requests over one connection."""

import asyncio
import itertools
import time
from collections import Counter, deque
from typing import cast

from lb.framing import PRESETS, Direction, Framer

_HEADER = 8


class Tally:
    """Who answered how many requests, and how long the latest took."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.wrong = 0
        self.durations: deque[float] = deque(maxlen=20_000)


class LoadConnection(asyncio.Protocol):
    """Keeps ``depth`` requests on their way until it is closed; checks each answer against its request."""

    def __init__(self, tally: Tally, *, depth: int, size: int) -> None:
        self.failed = asyncio.get_running_loop().create_future()
        self._tally = tally
        self._depth = depth
        self._size = size
        self._numbers = itertools.count()
        self._pending: dict[int, tuple[bytes, float]] = {}
        self._framer = Framer(PRESETS["length-prefixed"], Direction.RESPONSE)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the first requests."""
        self._transport = cast("asyncio.Transport", transport)
        self._ask(self._depth)

    def data_received(self, data: bytes) -> None:
        """Takes answers; asks as many new questions."""
        now = time.perf_counter()
        messages = self._framer.feed(data)
        for message in messages:
            assert message.id is not None
            body, since = self._pending.pop(message.id, (None, now))
            name, _, echoed = message.data[_HEADER:].partition(b" ")
            if echoed == body:
                self._tally.answers[name.decode()] += 1
                self._tally.durations.append(now - since)
            else:
                self._tally.wrong += 1
        self._ask(len(messages))

    def connection_lost(self, error: Exception | None) -> None:
        """Tells who waits."""
        if not self.failed.done():
            self.failed.set_result(error)

    def _ask(self, count: int) -> None:
        assert self._transport is not None
        now = time.perf_counter()
        requests = bytearray()
        for _ in range(count):
            number = next(self._numbers) % (1 << 32)
            body = number.to_bytes(8, "big").ljust(self._size - _HEADER, b".")
            self._pending[number] = (body, now)
            requests += (len(body) + 4).to_bytes(4, "big") + number.to_bytes(4, "big") + body
        self._transport.write(bytes(requests))
