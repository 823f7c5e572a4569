"""A connection that asks ``length-prefixed`` questions; its answers are cut by the framing's oracle."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from lb.framing import PRESETS, Direction, Framer
from tests.e2e.chaos.stream import Stream
from tests.e2e.namespaces import Endpoint

_CONNECT = 20.0  # seconds: on two busy processors, many at once


class Asker:
    """Gives each answer to ``hear``, and the end of the connection to ``end``: None, or the error."""

    def __init__(
        self,
        sock: socket.socket,
        hear: Callable[[bytes], None],
        end: Callable[[OSError | None], None] = lambda _: None,
    ) -> None:
        self.over = asyncio.Event()
        self.error: OSError | None = None
        self._hear = hear
        self._end = end
        self._framer = Framer(PRESETS["length-prefixed"], Direction.RESPONSE)
        self.stream = Stream(sock, self._take, self._over)

    @classmethod
    async def connect(
        cls,
        endpoint: Endpoint,
        hear: Callable[[bytes], None],
        end: Callable[[OSError | None], None] = lambda _: None,
    ) -> "Asker":
        """A new connection. Raises OSError, TimeoutError."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(_CONNECT):
                await asyncio.get_running_loop().sock_connect(sock, endpoint)
        except BaseException:
            sock.close()
            raise
        return cls(sock, hear, end)

    def _take(self, data: bytes) -> None:
        for answer in self._framer.feed(data):
            self._hear(answer.data)
        if self._framer.error is not None:
            self.stream.reset()
            self._over(ConnectionAbortedError("the answer is no message"))

    def _over(self, error: OSError | None) -> None:
        self.error = error
        self.over.set()
        self._end(error)

    async def finish(self, limit: float) -> bool:
        """Send FIN, read to the end; whether that came in time and was no reset."""
        self.stream.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self.over.wait()
        self.stream.close()
        return self.over.is_set() and self.error is None
