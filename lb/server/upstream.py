"""A connection to a backend that carries the messages of one client, or of many."""

import asyncio
import errno
import logging
import select
import socket
from typing import TYPE_CHECKING, Protocol

from lb.backends import Backend, connect_failure
from lb.dataplane import NO_MEMORY, MappedSocket, PeerGoneError, sockets
from lb.framing import Direction, Framing, Responses
from lb.server import faults, takeover
from lb.server.guard import Guard
from lb.server.poller import CONNECTING, SPACE, STATE
from lb.server.waiting import until
from lb.session import Event, State, step
from lb.slots import SlotRef

if TYPE_CHECKING:
    from lb.config import Timeouts
    from lb.server.context import Services

_log = logging.getLogger(__name__)

_BROKEN = select.EPOLLERR | select.EPOLLHUP
_FIN = 1  # counts as a byte received


class Owner(Protocol):
    """Whose messages an upstream carries: a client, or the bundle of all that clients share."""

    @property
    def services(self) -> "Services":
        """Of the process."""

    @property
    def timeouts(self) -> "Timeouts":
        """Those of the pool."""

    @property
    def framing(self) -> Framing:
        """What both sides speak."""

    def preface(self, backend: Backend) -> bytes:
        """What a backend is told before all messages."""

    def map_upstream(self, upstream: "Upstream", sock: socket.socket) -> MappedSocket:
        """Puts its socket into the maps; raises as :meth:`DataPlane.insert_upstream` does."""

    def route(self, upstream: "Upstream") -> None:
        """Lets messages be sent there."""

    def unroute(self, upstream: "Upstream") -> None:
        """Lets no further message be sent there, once a grace period has passed."""

    def takes(self, upstream: "Upstream") -> bool:
        """Whether who is to get its next response has room."""

    def watch_taker(self, upstream: "Upstream") -> bool:
        """Hastens the upstream when there is room for its next response; False if nothing will tell."""

    def kept_waiting(self, upstream: "Upstream", seconds: float) -> None:
        """Its responses have found no room for so long."""

    def upstream_has_space(self, upstream: "Upstream") -> None:
        """Its connection has space again."""

    def upstream_connected(self, upstream: "Upstream") -> None:
        """An attempt to connect succeeded."""

    def upstream_failed(self, upstream: "Upstream") -> None:
        """An attempt to connect failed; the upstream is closed."""

    def upstream_broken(self, upstream: "Upstream", malformed: str | None) -> None:
        """It was reset, timed out, or its backend sent what is no message."""

    def upstream_ended(self, upstream: "Upstream") -> None:
        """Its backend sent FIN."""

    def upstream_crashed(self, upstream: "Upstream") -> None:
        """A bug of ours: it cannot go on."""


class Upstream:
    """Owns its socket and its slot. Tells its owner of what happens to it."""

    __slots__ = (
        "_fin",
        "_preface",
        "_routed",
        "_services",
        "_sock",
        "_taken",
        "backend",
        "connected",
        "mapped",
        "owner",
        "place",
        "ref",
        "said",
        "state",
    )

    def __init__(self, owner: Owner, backend: Backend, ref: SlotRef, place: int = -1) -> None:
        self.owner = owner
        self.place = place  # in the route
        self.backend = backend
        self.state = State.ADMITTED
        self.connected = False
        self.mapped: MappedSocket | None = None
        self._services = owner.services
        self.ref = ref
        self._sock: socket.socket | None = None
        self._preface = owner.preface(backend)
        self.said = 0  # bytes that the backend has been told before all messages
        self._taken = 0
        self._routed = False
        self._fin = asyncio.Event()

    def __str__(self) -> str:
        return f"{self.owner} to {self.backend}"

    @property
    def guard(self) -> Guard:
        """Around everything that is done for it."""
        return Guard(self)

    @property
    def backlog(self) -> int:
        """Bytes on their way to the backend that wait in the kernel."""
        return self.mapped.backlog if self.mapped is not None and self._sock is not None else 0

    def progress(self) -> tuple[int, ...]:
        """Numbers that change while messages for the backend, or its answers, move."""
        if self.mapped is None or self._sock is None:
            return ()
        return (self.mapped.consumed_bytes, self.mapped.acknowledged)

    @property
    def serves(self) -> bool:
        """Whether it is among those that new messages may go to, with or without room."""
        return self._routed and self.backend.serving

    @property
    def has_room(self) -> bool:
        """Whether it may be sent a message now."""
        return self._routed and self.mapped is not None and self.mapped.has_room

    def connect(self) -> None:
        """Starts to connect; the client hears of the result, perhaps at once."""
        timeouts = self.owner.timeouts
        code = errno.EIO
        sock: socket.socket | None = None
        try:
            sock = socket.socket(
                self.backend.config.address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
            )
            sockets.prepare(
                sock,
                max_message=self.owner.framing.max_message,
                half_message=timeouts.half_message,
                unacknowledged=timeouts.unacknowledged,
                proven=True,
            )
            sockets.acknowledge_soon(sock)
            if self._services.congestion is not None:
                sockets.set_congestion(sock, self._services.congestion)
            code = sock.connect_ex(self.backend.sockaddr)
            if code in (0, errno.EINPROGRESS):
                self._services.poller.watch(sock.fileno(), self, CONNECTING)
        except OSError as error:
            code = error.errno or errno.EIO
        if sock is not None and code in (0, errno.EINPROGRESS):
            self._sock = sock
            self.backend.connections += 1
            return
        if sock is not None:
            sock.close()
        self._connect_failed(connect_failure(code))

    def adopt(self, sock: socket.socket, taken: int) -> None:
        """Takes over a connection that the backend has made, and from which so many bytes have been read.

        Raises:
            OSError: the kernel has no memory for it; the socket stays the caller's.
        """
        self._services.poller.watch(sock.fileno(), self)
        sockets.acknowledge_soon(sock)
        self._sock = sock
        self._taken = taken
        self.connected = True
        self.backend.connections += 1

    def give_up(self) -> None:
        """Ends the attempt to connect if it still lasts."""
        if self.state is State.ADMITTED and not self.connected:
            self._connect_failed("timeout")

    def splice(self) -> bool:
        """Maps the socket and adds it to the route; False if that cannot be.

        The backend is gone already, or the kernel has no memory, which counts as a failure to connect.
        """
        assert self._sock is not None
        try:
            self.mapped = self.owner.map_upstream(self, self._sock)
        except PeerGoneError:
            return False
        except OSError as error:
            if error.errno not in NO_MEMORY:
                raise
            _log.warning("%s: not connected: %s", self, error)
            self.backend.failed("no_memory")
            return False
        self.mapped.taken = self._taken
        self.state = step(self.state, Event.INSERTED)
        self.owner.route(self)
        self._routed = True
        self.owner.upstream_has_space(self)
        return True

    def unsplice(self) -> socket.socket:
        """Gives the connected socket away, out of the map; the upstream is closed then."""
        assert self._sock is not None
        sock, self._sock = self._sock, None
        self._leave(sock)
        if self.mapped is not None:
            self._services.plane.remove(self.mapped)
        else:
            self._services.plane.release(self.ref)
        return sock

    def leave_route(self) -> None:
        """No further message is sent here, once a grace period has passed."""
        if self._routed:
            self._routed = False
            self.owner.unroute(self)

    async def settle(self) -> None:
        """Returns when all that the backend sent before its FIN is on its way to who waits for it."""
        mapped = self.mapped
        if mapped is None:
            return
        await until(lambda: self._closed or mapped.undecided <= _FIN or bool(mapped.paused))
        if mapped.paused and not self._closed:
            self._services.pauses.discard(self)
            await takeover.forward(
                self._services,
                mapped,
                self.owner.framing,
                Direction.RESPONSE,
                room=lambda _: self.may_resume(),
                ended=lambda: self._closed,
            )

    @property
    def _closed(self) -> bool:
        return self.state is State.CLOSED

    @property
    def at_rest(self) -> bool:
        """Whether closing it now loses nothing: all is answered, and nothing more is to come."""
        return (
            self.mapped is not None
            and self.state is State.SPLICED
            and self.owner.framing.responses is Responses.ONE
            and self.mapped.at_rest
        )

    async def finish(self) -> None:
        """Ends in good order after the client's FIN: the rest is sent, then FIN, then the answers come."""
        mapped, sock = self.mapped, self._sock
        if mapped is None or sock is None:
            return
        if self.state is State.SPLICED:
            self.state = step(self.state, Event.ENDING)
        await until(lambda: self._closed or mapped.backlog == 0)
        if self.state is not State.CLOSED:
            faults.send_fin(sock)
            await self._fin.wait()
            await self.settle()
            # A backend that closed with data on its way answers with RST: only then is it known what it had.
            await until(lambda: self._closed or mapped.delivered or mapped.dead)

    def close(self, reason: str = "backend_closed", *, reset: bool = False) -> None:
        """Takes the socket out of the map and closes it, whatever state it is in.

        Requests without response that have not certainly arrived are counted as lost for the reason; those
        with a response are up to the caller.
        """
        if self.state is State.CLOSED:
            return
        if self.mapped is not None:
            self._services.losses.add(reason, self.mapped.undelivered_quiet)
        self._fin.set()
        sock, self._sock = self._sock, None
        if sock is not None and reset:
            faults.reset_on_close(sock)
        self._leave(sock)
        if self.mapped is not None:
            self._services.plane.close_socket(self.mapped)
        else:
            self._services.plane.release(self.ref)
            if sock is not None:  # it was tried, and did not fail at once
                sock.close()

    def _leave(self, sock: socket.socket | None) -> None:
        """Nobody but the maps knows the socket from here on."""
        self.leave_route()
        self.state = State.CLOSED
        if sock is not None:
            self._services.pauses.discard(self)
            self._services.poller.forget(sock.fileno())
            self.backend.connections -= 1
        self._services.quiescence.reclaim_soon()

    def on_events(self, mask: int) -> None:
        """Events of the socket, from the poller."""
        assert self._sock is not None
        if self.mapped is None:
            self._connecting(mask)
            return
        if mask & select.EPOLLOUT:
            self._services.poller.change(self._sock.fileno(), STATE)
            self.owner.upstream_has_space(self)
        if mask & _BROKEN and (code := faults.take_error(self.mapped)):
            self.owner.upstream_broken(self, faults.malformed(self._sock, code))
        elif mask & faults.PEER_ENDED:
            if not self._fin.is_set():
                self._fin.set()
                self.owner.upstream_ended(self)
        elif self.mapped.paused:
            self._services.pauses.add(self)

    # While its responses wait for a client to read

    def may_resume(self) -> bool:
        """Whether the client would take a response now."""
        return self.owner.takes(self)

    def resume(self) -> None:
        """Lets the programs look at the responses again."""
        assert self.mapped is not None
        try:
            self._services.plane.resume(self.mapped)
        except PeerGoneError:
            return  # its FIN, or RST, is on the way to us as an event
        except OSError as error:
            _log.warning("%s: cannot go on yet: %s", self, error)
            self._services.pauses.add(self)

    def waited(self, seconds: float) -> None:
        """Tells the owner."""
        self.owner.kept_waiting(self, seconds)

    def due_in(self) -> float | None:
        """Nobody knows when a client reads."""
        return None

    def await_space(self) -> bool:
        """Asks for an event when the client's connection has space."""
        return self.owner.watch_taker(self)

    # While requests wait for the backend to read

    def watch_space(self) -> bool:
        """Tells the owner when the connection has space; False if there is no connection."""
        if not self._routed or self._sock is None:
            return False
        self._services.poller.change(self._sock.fileno(), SPACE)
        return True

    def _connecting(self, mask: int) -> None:
        assert self._sock is not None
        if mask & _BROKEN:
            code = faults.connect_error(self._sock)
            self._connect_failed(connect_failure(code) if code else "closed")
        elif mask & select.EPOLLOUT and not self.connected and self._introduce(self._sock):
            # What is watched stays as it is until something happens, which never does to most.
            self.connected = True
            self.backend.connected()
            self.owner.upstream_connected(self)

    def _introduce(self, sock: socket.socket) -> bool:
        """Says what the backend is told first; False if that is not done yet, or never will be.

        An attempt that finds no memory is told by the poller when there is some.
        """
        try:
            while self.said < len(self._preface):
                self.said += sock.send(self._preface[self.said :], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            self._connect_failed(connect_failure(error.errno or errno.EIO))
            return False
        return True

    def _connect_failed(self, reason: str) -> None:
        self.close()
        self.backend.failed(reason)
        self.owner.upstream_failed(self)

    def crashed(self) -> None:
        """A bug of ours ends it."""
        self.owner.upstream_crashed(self)
