"""Clients that ask without a pause, come back when they are cut off, and note how each request went."""

import asyncio
import time

from tests.e2e.chaos.asker import Asker
from tests.e2e.messages import message, read_answer
from tests.e2e.namespaces import Endpoint

_OVERDUE = 10.0  # seconds for the last answers
_BODY = bytes(56)
# When it was asked, when it was known how it went (seconds of CLOCK_MONOTONIC), and who answered; "": nobody.
Outcome = tuple[float, float, str]


class _Striker:
    def __init__(self, endpoint: Endpoint, depth: int) -> None:
        self.outcomes: list[Outcome] = []
        self.refused = 0
        self._endpoint = endpoint
        self._depth = depth
        self._number = 0
        self._due: dict[int, float] = {}
        self._asker: Asker | None = None
        self._stopping = False
        self._done = asyncio.Event()

    def _hear(self, data: bytes) -> None:
        answer = read_answer(data)
        assert answer.asked == _BODY
        self.outcomes.append((self._due.pop(answer.number), time.monotonic(), answer.backend))
        if not self._stopping:
            self._ask(1)
        elif not self._due:
            self._done.set()

    def _ask(self, count: int) -> None:
        assert self._asker is not None
        questions = []
        for _ in range(count):
            self._number += 1
            self._due[self._number] = time.monotonic()
            questions.append(message(self._number, _BODY))
        self._asker.stream.write(b"".join(questions))

    async def strike(self) -> None:
        """Ask until :meth:`stop`."""
        while not self._stopping:
            try:
                self._asker = await Asker.connect(self._endpoint, self._hear)
            except OSError:
                self.refused += 1
                continue
            self._ask(self._depth)
            await self._asker.over.wait()
            self._asker.stream.close()
            now = time.monotonic()
            self.outcomes += [(since, now, "") for since in self._due.values()]
            self._due.clear()

    async def stop(self) -> None:
        """Wait for the last answers; those that do not come count as errors."""
        self._stopping = True
        if self._due:
            try:
                async with asyncio.timeout(_OVERDUE):
                    await self._done.wait()
            except TimeoutError:
                now = time.monotonic()
                self.outcomes += [(since, now, "") for since in self._due.values()]
        assert self._asker is not None
        self._asker.stream.finish()


class Strikers:
    """What the process of these clients does, on call."""

    def __init__(self) -> None:
        self._strikers: list[_Striker] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def strike(self, endpoint: Endpoint, count: int, depth: int) -> None:
        """Begin: so many connections, each with so many requests on their way."""
        self._strikers = [_Striker(endpoint, depth) for _ in range(count)]
        self._tasks = [asyncio.create_task(striker.strike()) for striker in self._strikers]

    async def stop(self) -> tuple[list[Outcome], int]:
        """End: every request, and how many connections were refused."""
        await asyncio.gather(*(striker.stop() for striker in self._strikers))
        await asyncio.wait(self._tasks, timeout=_OVERDUE)
        outcomes = [outcome for striker in self._strikers for outcome in striker.outcomes]
        return outcomes, sum(striker.refused for striker in self._strikers)
