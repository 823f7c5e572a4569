"""A socket on an event loop that can be made slow, and that ends in whatever way is wanted."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

_BITE = 256 * 1024  # bytes a read
_TICK = 0.003  # seconds between the pieces of a slow socket


class Stream:
    """Owns a connected socket.

    Args:
        sock: non-blocking.
        take: is given what arrives.
        over: is told once how the stream ended for reading: None for FIN, or the error. The socket is still
            open after FIN.
    """

    def __init__(
        self, sock: socket.socket, take: Callable[[bytes], None], over: Callable[[OSError | None], None]
    ) -> None:
        self.closed = False
        self.pace: int | None = None  # bytes a tick, both ways; None: as fast as it goes
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._take = take
        self._over = over
        self._out = bytearray()
        self._paused = self._ended = self._finishing = self._finished = False
        self._writing = False  # the writer or a timer will go on
        self._watching = False  # it is the writer
        self._resting = False  # a timer will read again
        self._drained: asyncio.Future[None] | None = None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop.add_reader(sock, self._readable)

    # Reading

    def pause(self) -> None:
        """Read nothing."""
        if not self._paused and not self.closed:
            self._paused = True
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Read on."""
        if self._paused and not self.closed:
            self._paused = False
            self._watch()

    def _watch(self) -> None:
        self._resting = False
        if not (self.closed or self._paused or self._ended):
            self._loop.add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(self.pace or _BITE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            self._end(None)
            return
        if self.pace is not None and not self._resting:
            self._resting = True
            self._loop.remove_reader(self._sock)
            self._loop.call_later(_TICK, self._watch)
        self._take(data)

    def _end(self, error: OSError | None) -> None:
        if not self._ended:
            self._ended = True
            if not self.closed:
                self._loop.remove_reader(self._sock)
            self._over(error)

    # Writing

    def write(self, data: bytes | bytearray) -> None:
        """Send, sooner or later."""
        if self.closed:
            return
        self._out += data
        if not self._writing:
            self._pump()

    def finish(self) -> None:
        """Send FIN behind what was written."""
        self._finishing = True
        if not self._writing:
            self._pump()

    async def drain(self) -> None:
        """Wait until all is in the kernel's hands, FIN too if it was asked for, or the stream is closed."""
        if self.closed or not (self._out or self._writing):
            return
        self._drained = self._loop.create_future()
        await self._drained

    def _pump(self) -> None:
        if self.closed:
            return
        if self._watching:
            self._loop.remove_writer(self._sock)
        self._writing = self._watching = False
        try:
            sent = self._sock.send(self._out[: self.pace] if self.pace else self._out) if self._out else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._out.clear()
            self._release()
            self._end(error)
            return
        del self._out[:sent]
        if self._out:
            self._writing = True
            if self.pace:
                self._loop.call_later(_TICK, self._pump)
            else:
                self._watching = True
                self._loop.add_writer(self._sock, self._pump)
            return
        if self._finishing and not self._finished:
            self._finished = True
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._end(error)
        self._release()

    def _release(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # Ending

    def unread(self) -> bytes:
        """What the kernel holds and nobody has read."""
        data = bytearray()
        with contextlib.suppress(OSError):
            while not self.closed and (piece := self._sock.recv(_BITE)):
                data += piece
        return bytes(data)

    def reset(self) -> None:
        """Send RST."""
        if not self.closed:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close()

    def close(self) -> None:
        """Close; the kernel sends FIN, or RST if something was not read."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._release()
