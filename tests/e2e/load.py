"""Many requests at once, from one event loop."""

import asyncio
import random
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from lb.framing import Direction, Framer, Framing
from tests.e2e.backend import LENGTH_PREFIXED
from tests.e2e.polling import PATIENCE

_LIMIT = 60.0 * PATIENCE


class Pipeline(asyncio.Protocol):
    """Keeps ``depth`` requests of one connection on their way until all are answered.

    With ``cuts`` what is written is cut at random, so that messages arrive in pieces.
    """

    def __init__(
        self,
        requests: Iterable[bytes],
        *,
        depth: int,
        framing: Framing = LENGTH_PREFIXED,
        cuts: random.Random | None = None,
    ) -> None:
        self.answers: list[bytes] = []
        self.asked = 0
        self.done = asyncio.get_running_loop().create_future()
        self._requests: Iterator[bytes] = iter(requests)
        self._depth = depth
        self._cuts = cuts
        self._rest = b""
        self._framer = Framer(framing, Direction.RESPONSE)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self.answers += [message.data for message in self._framer.feed(data)]
        if self._framer.error is not None:
            self._fail(self._framer.error)
        else:
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or EOFError(f"closed after {len(self.answers)} of {self.asked} answers"))

    def _ask(self) -> None:
        requests = []
        while self.asked - len(self.answers) < self._depth:
            request = next(self._requests, None)
            if request is None:
                break
            self.asked += 1
            requests.append(request)
        if self._cuts is None:
            self._transport.write(b"".join(requests))
        else:
            self._write_pieces(b"".join(requests))
        if self.asked == len(self.answers) and not self.done.done():
            self.done.set_result(None)

    def _write_pieces(self, data: bytes) -> None:
        """All but a rest, which goes out a little later: on its own, or with what follows it."""
        assert self._cuts is not None
        data = self._rest + data
        self._rest = b""
        while data:
            cut = self._cuts.choice([1, 3, 7, 8, 9, 100, 1448, 5000, 70_000])
            if cut >= len(data) or self._cuts.random() < 0.5:
                break
            self._transport.write(data[:cut])
            data = data[cut:]
        if len(data) > 1:
            cut = self._cuts.randrange(len(data))
            self._transport.write(data[:cut])
            data = data[cut:]
        if data:
            self._rest = data
            asyncio.get_running_loop().call_later(self._cuts.random() / 500, self._flush)

    def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._rest)
        self._rest = b""

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def pipelines(
    connect: Callable[[], socket.socket], count: int, make: Callable[[int], Pipeline]
) -> list[list[bytes]]:
    """Run a pipeline on each of ``count`` connections at once; return the answers of each."""

    async def run() -> list[list[bytes]]:
        loop = asyncio.get_running_loop()
        running: list[Pipeline] = []
        transports = []
        try:
            for number in range(count):
                transport, pipeline = await loop.create_connection(partial(make, number), sock=connect())
                transports.append(transport)
                running.append(pipeline)
            async with asyncio.timeout(_LIMIT):
                await asyncio.gather(*(pipeline.done for pipeline in running))
        finally:
            for transport in transports:
                transport.abort()
            for pipeline in running:
                pipeline.done.cancel()
        return [pipeline.answers for pipeline in running]

    return asyncio.run(run())


def pipeline(connect: Callable[[], socket.socket], requests: Iterable[bytes], *, depth: int) -> list[bytes]:
    """Run one pipeline."""
    (answers,) = pipelines(connect, 1, lambda _: Pipeline(requests, depth=depth))
    return answers
