"""Clients that send messages without response as fast as they are let, until they are told to end."""

import asyncio
import contextlib
import socket
import time

from tests.e2e.chaos.history import ClientHistory, End
from tests.e2e.chaos.stream import Stream
from tests.e2e.chaos.wire import request

_LIMIT = 90.0  # seconds until all that was sent must have gone, and each connection have ended
Endpoint = tuple[str, int]


class _Sender:
    def __init__(self, number: int, sock: socket.socket) -> None:
        self.history = ClientHistory(number, "flood", fifo=False, well=True, began=time.monotonic())
        self.ended = asyncio.Event()
        self.stream = Stream(sock, lambda _: None, self._over)
        self._finished = False

    def _over(self, error: OSError | None) -> None:
        end = End.RESET if error is not None else End.LEFT if self._finished else End.EOF
        self.history.end = end
        self.history.ended = time.monotonic()
        self.ended.set()

    async def send(self, size: int, most: int, stop: asyncio.Event) -> None:
        history = self.history
        while not stop.is_set() and not self.ended.is_set() and len(history.sent) * size < most:
            message = request(history.client, len(history.sent), size, silent=True)
            history.sent.append(True)
            self.stream.write(message)
            await self.stream.drain()
            await asyncio.sleep(0)
        self._finished = True
        self.stream.finish()
        await self.stream.drain()
        history.complete = not self.ended.is_set() or history.end is End.LEFT
        await self.ended.wait()


class Flood:
    """What the process of the senders does, on call."""

    def __init__(self) -> None:
        self._senders: list[_Sender] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()

    async def open(self, endpoint: Endpoint, count: int) -> None:
        """Connect, and send nothing yet."""
        loop = asyncio.get_running_loop()
        for number in range(1, count + 1):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            async with asyncio.timeout(10):
                await loop.sock_connect(sock, endpoint)
            self._senders.append(_Sender(number, sock))

    async def pour(self, size: int, most: int) -> None:
        """Begin to send messages of ``size`` bytes, at most ``most`` bytes a connection."""
        self._tasks = [
            asyncio.create_task(sender.send(size, most, self._stop), name=f"sender {sender.history.client}")
            for sender in self._senders
        ]

    async def stop(self) -> list[ClientHistory]:
        """Send whole what was begun, then FIN; return what was sent once every connection has ended."""
        self._stop.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LIMIT):
                await asyncio.gather(*self._tasks)
        for sender in self._senders:
            sender.stream.close()
        return [sender.history for sender in self._senders]

    async def sent(self) -> int:
        """Messages so far."""
        return sum(len(sender.history.sent) for sender in self._senders)
