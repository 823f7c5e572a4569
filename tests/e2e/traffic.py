"""Clients that keep asking while something is done to the balancer, and notice all that goes wrong."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.e2e.messages import message, read_answer
from tests.e2e.polling import LIMIT, eventually

_HEADER = 8


class Traffic:
    """What clients of `length-prefixed` have seen so far. Each keeps ``depth`` requests on their way."""

    def __init__(self, depth: int) -> None:
        self.answers = 0
        self.by: Counter[str] = Counter()
        self.errors: list[str] = []
        self._depth = depth
        self._stop = threading.Event()

    def proceed(self, answers: int = 200) -> None:
        """Wait for so many more answers."""
        until = self.answers + answers
        eventually(lambda: self.answers >= until or self.errors, what=f"{answers} more answers")
        assert not self.errors, self.errors[:3]

    def sleep(self, seconds: float) -> None:
        """Let them ask for a while."""
        self._stop.wait(seconds)

    def stop(self) -> None:
        """Nothing new is asked."""
        self._stop.set()

    async def run(self, socks: Sequence[socket.socket]) -> None:
        """Until it is stopped."""
        await asyncio.gather(*(self._client(sock, number) for number, sock in enumerate(socks)))

    async def _client(self, sock: socket.socket, client: int) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=sock)
            await self._ask(reader, writer, client)
            writer.close()
        except (OSError, asyncio.IncompleteReadError, AssertionError) as error:
            self.errors.append(f"client {client}: {error!r}")

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: int) -> None:
        number = 0
        outstanding: dict[int, bytes] = {}
        while outstanding or not self._stop.is_set():
            while len(outstanding) < self._depth and not self._stop.is_set():
                number = (number + 1) % (1 << 32)
                outstanding[number] = b"%d %d" % (client, number)
                writer.write(message(number, outstanding[number]))
            async with asyncio.timeout(LIMIT):
                head = await reader.readexactly(_HEADER)
                body = await reader.readexactly(int.from_bytes(head[:4], "big") - 4)
            answer = read_answer(head + body)
            asked = outstanding.pop(answer.number, None)
            assert asked == answer.asked, f"{asked!r} was asked and {answer} answered"
            self.answers += 1
            self.by[answer.backend] += 1


@contextmanager
def traffic(socks: Sequence[socket.socket], *, depth: int = 8, strict: bool = True) -> Iterator[Traffic]:
    """Clients on these connections meanwhile; every request must be answered, once, with its answer.

    ``strict``: or an AssertionError says what went wrong.
    """
    running = Traffic(depth)
    thread = threading.Thread(target=lambda: asyncio.run(running.run(socks)), name="traffic")
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join(2 * LIMIT)
        assert not thread.is_alive()
    assert not strict or not running.errors, running.errors[:3]
