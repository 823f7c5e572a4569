"""PROXY headers: whose connection it is that a proxy in front has made, and what backends are told.

A header is read before its socket enters the sockmap, and no byte behind it: the kernel would take it for the
start of a message, and user space must not take a message from the kernel. So the socket is looked at
(``MSG_PEEK``) until the header is whole, and exactly that is taken.

Only proxies that are trusted may speak for others. Who else connects is turned away: a header from anybody
would let him choose his address, by which clients are limited and hashed.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from ipaddress import ip_address

from lb import proxy
from lb.config import Address
from lb.dataplane import NO_MEMORY, sockets
from lb.server import faults
from lb.server.context import Listening
from lb.server.guard import Guard
from lb.slots import SlotRef

_log = logging.getLogger(__name__)


class Introduction:
    """A proxy's connection whose header has not come yet.

    Owns the socket and the slot until it gives both away, or turns the connection away.
    """

    __slots__ = ("_done", "_listening", "_peer", "_ref", "_sock", "_timer", "_watched")

    def __init__(
        self,
        listening: Listening,
        sock: socket.socket,
        peer: tuple[str, int],
        ref: SlotRef,
        done: Callable[[socket.socket, tuple[str, int], SlotRef, proxy.Header], None],
    ) -> None:
        """``done`` takes over the socket, not blocking, and its slot."""
        self._listening = listening
        self._sock: socket.socket | None = sock
        self._peer = peer
        self._ref = ref
        self._done = done
        self._timer: asyncio.TimerHandle | None = None
        self._watched = False
        listening.introductions.add(self)

    def __str__(self) -> str:
        return f"proxy {self._peer} of {self._listening.config.name}"

    @property
    def guard(self) -> Guard:
        """Around everything that is done for it."""
        return Guard(self)

    def start(self) -> None:
        """Looks at once; what is not there yet has as long as the rest of a message."""
        self._look()
        sock, services = self._sock, self._listening.services
        if sock is None:
            return
        try:
            services.poller.watch(sock.fileno(), self)
        except OSError as error:
            if error.errno not in NO_MEMORY:
                raise
            self._refuse("no_memory", str(error))
            return
        self._watched = True
        self._timer = services.loop.call_later(self._listening.timeouts.half_message, self._time_out)

    def on_events(self, mask: int) -> None:
        """Events of the socket, from the poller."""
        del mask
        self._look()

    def crashed(self) -> None:
        """A bug of ours ends it."""
        self.close()

    def close(self) -> None:
        """Resets the connection, if it still waits."""
        sock = self._sock
        if sock is not None:
            self._leave()
            self._listening.services.plane.release(self._ref)
            self._listening.services.quiescence.reclaim_soon()
            faults.reset_on_close(sock)
            sock.close()

    def _look(self) -> None:
        assert self._sock is not None
        # Asked before the look: what comes in between is an event of its own.
        ended = sockets.tcp_state(self._sock) != sockets.TCP_ESTABLISHED
        try:
            seen = self._sock.recv(proxy.LONGEST, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self.close()  # it has reset the connection before it said whom it was for
            return
        if not seen:
            self.close()  # a look whether the port is open
            return
        try:
            header = proxy.parse(seen)
        except proxy.HeaderError as error:
            self._refuse("proxy_header", str(error))
            return
        if header is not None:
            self._finish(self._sock, header)
        elif ended:
            self._refuse("proxy_header", "it ends within its header")

    def _finish(self, sock: socket.socket, header: proxy.Header) -> None:
        taken = sock.recv(header.length)
        assert len(taken) == header.length, "what was seen is there"
        self._leave()
        self._done(sock, self._peer, self._ref, header)

    def _time_out(self) -> None:
        with self.guard:
            self._refuse("proxy_timeout", "no whole header in time")

    def _refuse(self, reason: str, why: str) -> None:
        _log.info("%s: refused: %s", self, why)
        self._listening.refused[reason] += 1
        self.close()

    def _leave(self) -> None:
        """The socket is somebody else's from here on."""
        assert self._sock is not None
        if self._timer is not None:
            self._timer.cancel()
        if self._watched:
            self._listening.services.poller.unwatch(self._sock.fileno())
        self._sock = None
        self._listening.introductions.discard(self)


def endpoints(sock: socket.socket, peer: tuple[str, int]) -> proxy.Endpoints:
    """Both ends of an accepted connection that no proxy stands in front of."""
    return proxy.Endpoints(_address(peer), _address(sock.getsockname()))


def _address(sockaddr: tuple[str, int]) -> Address:
    host, port = sockaddr[:2]
    return Address(ip_address(host.partition("%")[0]), port)
