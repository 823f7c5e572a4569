"""A backend whose every move is the test's: it answers as it is told, holds, closes, resets.

It runs on an event loop of its own thread. What a test asks of it is done in that thread before the call
returns; what it has received can be looked at any time.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from lb import proxy
from lb.framing import PRESETS, Direction, Framer, Framing, Message
from tests.e2e.messages import message
from tests.e2e.namespaces import Endpoint, Namespace
from tests.e2e.polling import LIMIT, eventually

T = TypeVar("T")
Respond = Callable[["Backend", Message], bytes | None]
LENGTH_PREFIXED = PRESETS["length-prefixed"]


def echo(backend: "Backend", asked: Message) -> bytes:
    """The same id, the backend's name, a space, and what was asked."""
    assert asked.id is not None
    return message(asked.id, backend.name.encode() + b" " + asked.data[8:])


class _Connection(asyncio.Protocol):
    def __init__(self, backend: "Backend") -> None:
        self._backend = backend
        self._framer = Framer(backend.framing, Direction.REQUEST)
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.lost = asyncio.Event()
        self.transport: asyncio.Transport
        self.ended = False
        self._introduced = not backend.proxied
        self._preface = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._backend.connections.append(self)
        self._backend.accepted += 1
        if self._backend.delay:
            self._task = asyncio.get_running_loop().create_task(self._answer_slowly())

    def data_received(self, data: bytes) -> None:
        if not self._introduced:
            self._preface += data
            header = proxy.parse(self._preface)
            if header is None:
                return
            self._introduced = True
            self._backend.headers.append(header)
            data = self._preface[header.length :]
        messages = self._framer.feed(data)
        assert self._framer.error is None, self._framer.error
        answers = bytearray()
        for asked in messages:
            self._backend.received.append(asked)
            answer = self._backend.respond(self._backend, asked)
            if answer is None:
                continue
            if self._backend.held is not None:
                self._backend.held.append((self, answer))
            elif self._task is not None:
                self._answers.put_nowait(answer)
            else:
                answers += answer
        if answers:
            self.transport.write(bytes(answers))

    async def _answer_slowly(self) -> None:
        while True:
            answer = await self._answers.get()
            await asyncio.sleep(self._backend.delay)
            self.transport.write(answer)
            if self.ended and self._answers.empty():
                self.transport.close()

    def eof_received(self) -> bool:
        """Answers that are still to come keep the connection open."""
        self.ended = True
        held = any(owner is self for owner, _ in self._backend.held or ())
        return held or not self._answers.empty() or self._backend.stubborn

    def connection_lost(self, error: Exception | None) -> None:
        if isinstance(error, ConnectionResetError):
            self._backend.resets += 1
        if self._framer.pending:
            self._backend.half_messages += 1
        if self._task is not None:
            self._task.cancel()
        self._backend.connections.remove(self)
        self.lost.set()


class Backend:
    """Listens inside a namespace until it is closed.

    Args:
        where: the namespace.
        name: what it calls itself.
        respond: the answer to a message, None for none.
        framing: of the messages.
        endpoint: where to listen; port 0 for any.
        delay: seconds before each answer of a connection, one after the other.
        holding: whether answers wait for :meth:`release`.
        stubborn: whether it keeps a connection whose peer has sent FIN.
        proxied: whether each connection begins with a PROXY header.
    """

    def __init__(
        self,
        where: Namespace,
        name: str,
        *,
        respond: Respond = echo,
        framing: Framing = LENGTH_PREFIXED,
        endpoint: Endpoint = ("127.0.0.1", 0),
        delay: float = 0.0,
        holding: bool = False,
        stubborn: bool = False,
        proxied: bool = False,
    ) -> None:
        self.name = name
        self.respond = respond
        self.framing = framing
        self.delay = delay
        self.stubborn = stubborn
        self.proxied = proxied
        self.headers: list[proxy.Header] = []
        self.received: list[Message] = []
        self.connections: list[_Connection] = []
        self.held: list[tuple[_Connection, bytes]] | None = [] if holding else None
        self.accepted = 0  # connections so far
        self.resets = 0
        self.half_messages = 0
        self._errors: list[dict[str, Any]] = []
        self._sock = where.listen(*endpoint)
        self.endpoint: Endpoint = self._sock.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self._errors.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"backend {name}")
        self._thread.start()
        self._server = self._do(self._listen())

    def release(self) -> None:
        """Give the answers that were held; hold none from here on."""
        self._do(self._release())

    def finish(self) -> None:
        """Close all connections in good order, as for being idle; they are gone then."""
        self._do(self._end_each(lambda connection: connection.transport.close()))

    def reset(self) -> None:
        """Reset all connections; they are gone then."""
        self._do(self._end_each(_reset))

    def say(self, data: bytes) -> None:
        """Send bytes on every connection, asked or not."""
        self._do(self._each(lambda connection: connection.transport.write(data)))

    def settle(self) -> None:
        """Wait until nothing is left of connections that their peers have closed."""
        for _ in range(5):  # those that are to be accepted, and then made
            self._do(asyncio.sleep(0))
        eventually(lambda: not self.connections, what="all connections are closed")
        self._do(asyncio.sleep(0))

    def close(self) -> None:
        """Stop to listen and close everything; errors in the backend's own code come out here."""
        if not self._thread.is_alive():
            return
        self._do(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        self._loop.close()
        assert not self._errors, self._errors

    async def _listen(self) -> asyncio.Server:
        return await self._loop.create_server(lambda: _Connection(self), sock=self._sock)

    async def _release(self) -> None:
        held, self.held = self.held or [], None
        for connection, answer in held:
            connection.transport.write(answer)
        for connection in {connection for connection, _ in held}:
            if connection.ended:
                connection.transport.close()

    async def _each(self, act: Callable[[_Connection], None]) -> None:
        for connection in list(self.connections):
            act(connection)

    async def _end_each(self, end: Callable[[_Connection], None]) -> None:
        ending = list(self.connections)
        await self._each(end)
        for connection in ending:
            await connection.lost.wait()

    async def _shut_down(self) -> None:
        # Those that are accepted are made first: after close() asyncio forgets them, with their descriptor.
        self._loop.remove_reader(self._sock.fileno())
        for _ in range(5):
            await asyncio.sleep(0)
        self._server.close()
        await self._each(lambda connection: connection.transport.abort())
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT)


def _reset(connection: _Connection) -> None:
    sock = connection.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.transport.abort()
