"""Very many clients: held at once, or one after the other."""

import asyncio
import resource
from collections import Counter

from tests.e2e.chaos.asker import Asker
from tests.e2e.messages import message
from tests.e2e.namespaces import Endpoint

_LIMIT = 20.0  # seconds for an answer
_AT_ONCE = 200  # that connect or ask at the same time
_SPARE = 50  # descriptors of the process itself


class _Person:
    def __init__(self) -> None:
        self.asker: Asker | None = None
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def come(self, endpoint: Endpoint) -> None:
        self.asker = await Asker.connect(endpoint, self._hear, self._end)

    def _end(self, error: OSError | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed without an answer"))

    def _hear(self, answer: bytes) -> None:
        self._answer.set_result(answer)

    async def ask(self, number: int) -> bool:
        """Ask one question; whether the right answer came in time."""
        assert self.asker is not None
        question = message(number, number.to_bytes(8, "big"))
        self.asker.stream.write(question)
        try:
            async with asyncio.timeout(_LIMIT):
                return await self._answer == question
        except (OSError, TimeoutError):
            return False

    async def leave(self, number: int) -> None:
        """Close, in one of three ways."""
        assert self.asker is not None
        if number % 3 == 0:
            await self.asker.finish(_LIMIT)
        elif number % 3 == 1:
            self.asker.stream.reset()
        self.asker.stream.close()


class Crowd:
    """What the process of these clients does, on call."""

    def __init__(self) -> None:
        self._people: list[_Person] = []

    async def room(self) -> int:
        """How many clients this process can be."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE

    async def hold(self, endpoint: Endpoint, count: int) -> int:
        """Connect so many, then let each ask while all are there; return how many were answered."""
        self._people = [_Person() for _ in range(count)]
        gate = asyncio.Semaphore(_AT_ONCE)

        async def come(person: _Person) -> None:
            async with gate:
                await person.come(endpoint)

        async def ask(number: int, person: _Person) -> bool:
            async with gate:
                return await person.ask(number)

        await asyncio.gather(*(come(person) for person in self._people))
        return sum(await asyncio.gather(*(ask(number, person) for number, person in enumerate(self._people))))

    async def leave(self) -> None:
        """All at once."""
        await asyncio.gather(*(person.leave(number) for number, person in enumerate(self._people)))
        self._people = []

    async def churn(self, endpoint: Endpoint, count: int, at_once: int) -> dict[str, int]:
        """Come, ask, get the answer and leave, so many times; how it went, by how often."""
        outcomes: Counter[str] = Counter()
        numbers = iter(range(count))

        async def visit() -> None:
            for number in numbers:
                person = _Person()
                try:
                    await person.come(endpoint)
                except (OSError, TimeoutError) as error:
                    outcomes[type(error).__name__] += 1
                    continue
                outcomes["answered" if await person.ask(number) else "not answered"] += 1
                await person.leave(number)

        await asyncio.gather(*(visit() for _ in range(at_once)))
        return dict(outcomes)
