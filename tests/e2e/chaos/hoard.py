"""Clients that ask and do not read the answers, until they are told to."""

import asyncio
import random
import time

from tests.e2e.chaos.asker import Asker
from tests.e2e.messages import message
from tests.e2e.namespaces import Endpoint

_LIMIT = 60.0  # seconds for all answers to come, once they are read
_BODIES = random.Random("bodies").randbytes(1 << 17)


class _Hoarder:
    def __init__(self) -> None:
        self.asked: dict[int, bytes] = {}
        self.wrong = 0
        self.asker: Asker
        self.stop = asyncio.Event()

    async def connect(self, endpoint: Endpoint) -> None:
        self.asker = await Asker.connect(endpoint, self._hear)
        self.asker.stream.pause()

    def _hear(self, answer: bytes) -> None:
        number = int.from_bytes(answer[4:8], "big")
        self.wrong += self.asked.pop(number, None) != answer

    async def ask(self, size: int, most: int) -> None:
        """Ask until nothing is taken any more, or that many bytes were."""
        number = 0
        while not (self.stop.is_set() or self.asker.over.is_set()) and number * size < most:
            start = number * 127 % (1 << 16)
            self.asked[number] = question = message(number, _BODIES[start : start + size - 8])
            number += 1
            self.asker.stream.write(question)
            await self.asker.stream.drain()
            await asyncio.sleep(0)

    async def read(self) -> bool:
        """Read on, to the end; whether every answer came, as it was asked, and the end was a good one."""
        self.stop.set()
        self.asker.stream.resume()
        return await self.asker.finish(_LIMIT) and not self.asked and not self.wrong


class Hoard:
    """What the process of the clients that do not read does, on call."""

    def __init__(self) -> None:
        self._hoarders: list[_Hoarder] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, endpoint: Endpoint, count: int) -> None:
        """Connect."""
        self._hoarders = [_Hoarder() for _ in range(count)]
        for hoarder in self._hoarders:
            await hoarder.connect(endpoint)

    async def ask(self, size: int, most: int) -> None:
        """Begin to ask."""
        self._tasks = [
            asyncio.create_task(hoarder.ask(size, most), name=f"hoarder {number}")
            for number, hoarder in enumerate(self._hoarders)
        ]

    async def fill(self, quiet: float, limit: float) -> tuple[int, int]:
        """Wait until nothing was taken for ``quiet`` seconds; return messages, and clients still blocked."""
        end = time.monotonic() + limit
        before = -1
        while (now := sum(len(hoarder.asked) for hoarder in self._hoarders)) != before:
            before = now
            if time.monotonic() > end:
                break
            await asyncio.sleep(quiet)
        return now, sum(not task.done() for task in self._tasks)

    async def read(self) -> int:
        """Let all of them read; return how many got every answer."""
        good = await asyncio.gather(*(hoarder.read() for hoarder in self._hoarders))
        await asyncio.gather(*self._tasks)
        return sum(good)
