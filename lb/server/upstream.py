"""A connection to a backend that carries the messages of one client."""

import asyncio
import errno
import logging
import select
import socket
from typing import TYPE_CHECKING

from lb.backends import Backend, connect_failure
from lb.dataplane import NO_MEMORY, MappedSocket, PeerGoneError, sockets
from lb.framing import Direction
from lb.server import faults, takeover
from lb.server.guard import Guard
from lb.server.poller import CONNECTING, SPACE, STATE
from lb.server.waiting import until
from lb.session import Event, State, step
from lb.slots import SlotRef

if TYPE_CHECKING:
    from lb.server.client import Client

_log = logging.getLogger(__name__)

_BROKEN = select.EPOLLERR | select.EPOLLHUP
_FIN = 1  # counts as a byte received


class Upstream:
    """Owns its socket and its slot. Tells its client of what happens to it."""

    __slots__ = (
        "_fin",
        "_place",
        "_services",
        "_sock",
        "backend",
        "client",
        "connected",
        "guard",
        "mapped",
        "ref",
        "state",
    )

    def __init__(self, client: "Client", backend: Backend, ref: SlotRef) -> None:
        self.client = client
        self.backend = backend
        self.state = State.ADMITTED
        self.connected = False
        self.mapped: MappedSocket | None = None
        self.guard = Guard(self.__str__, self._crashed)
        self._services = client.listening.services
        self.ref = ref
        self._sock: socket.socket | None = None
        self._place: int | None = None
        self._fin = asyncio.Event()

    def __str__(self) -> str:
        return f"{self.client} to {self.backend}"

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
        return self._place is not None and self.backend.usable

    @property
    def has_room(self) -> bool:
        """Whether it may be sent a message now."""
        return self._place is not None and self.mapped is not None and self.mapped.has_room

    def connect(self) -> None:
        """Starts to connect; the client hears of the result, perhaps at once."""
        address = self.backend.config.address
        listening = self.client.listening
        code = errno.EIO
        sock: socket.socket | None = None
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sockets.prepare(
                sock,
                max_message=listening.max_message,
                half_message=listening.timeouts.half_message,
                unacknowledged=listening.timeouts.unacknowledged,
            )
            code = sock.connect_ex(address.sockaddr)
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

    def give_up(self) -> None:
        """Ends the attempt to connect if it still lasts."""
        if self.state is State.ADMITTED and not self.connected:
            self._connect_failed("timeout")

    def splice(self) -> bool:
        """Maps the socket and adds it to the client's route; False if that cannot be.

        The backend is gone already, or the kernel has no memory, which counts as a failure to connect.
        """
        assert self._sock is not None
        plane = self._services.plane
        listening = self.client.listening
        try:
            self.mapped = plane.insert_upstream(
                self.ref,
                self._sock,
                listening.policy,
                client=self.client.ref,
                backend=self.backend.index,
                traffic=listening.traffic[self.backend.index],
            )
        except PeerGoneError:
            return False
        except OSError as error:
            if error.errno not in NO_MEMORY:
                raise
            _log.warning("%s: not connected: %s", self, error)
            self.backend.failed("no_memory")
            return False
        self.state = step(self.state, Event.INSERTED)
        self._place = plane.route(self.client.ref, self.ref, self.backend.index)
        self._services.pauses.hasten(self.client)
        return True

    def unsplice(self) -> socket.socket:
        """Gives the connected socket away, out of the map; the upstream is closed then."""
        assert self._sock is not None
        sock, self._sock = self._sock, None
        self._services.poller.forget(sock.fileno())
        self.backend.connections -= 1
        self._leave_map()
        return sock

    def leave_route(self) -> None:
        """No further message of the client is sent here, once a grace period has passed."""
        if self._place is not None:
            self._services.plane.unroute(self.client.ref, self._place)
            self._place = None

    async def settle(self) -> None:
        """Returns when all that the backend sent before its FIN is on its way to the client."""
        mapped = self.mapped
        if mapped is None:
            return
        await until(lambda: self._closed or mapped.undecided <= _FIN or bool(mapped.paused))
        if mapped.paused and not self._closed:
            self._services.pauses.discard(self)
            await takeover.forward(
                self._services,
                mapped,
                self.client.listening.config.framing,
                Direction.RESPONSE,
                room=self.may_resume,
                ended=lambda: self._closed,
            )

    @property
    def _closed(self) -> bool:
        return self.state is State.CLOSED

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
        if sock is None:  # it was never tried, or failed at once
            self._leave_map()
            return
        if reset:
            faults.reset_on_close(sock)
        self._services.pauses.discard(self)
        self._services.poller.forget(sock.fileno())
        self.backend.connections -= 1
        self._leave_map()
        sock.close()

    def _leave_map(self) -> None:
        self.leave_route()
        self.state = State.CLOSED
        if self.mapped is not None:
            self._services.plane.remove(self.mapped)
        else:
            self._services.plane.release(self.ref)
        self._services.quiescence.reclaim_soon()

    def on_events(self, mask: int) -> None:
        """Events of the socket, from the poller."""
        assert self._sock is not None
        if self.mapped is None:
            self._connecting(mask)
            return
        if mask & select.EPOLLOUT:
            self._services.poller.change(self._sock.fileno(), STATE)
            self._services.pauses.hasten(self.client)
        if mask & _BROKEN and (code := faults.take_error(self.mapped)):
            self.client.upstream_broken(self, faults.malformed(self._sock, code))
        elif mask & faults.PEER_ENDED:
            if not self._fin.is_set():
                self._fin.set()
                self.client.upstream_ended(self)
        elif self.mapped.paused:
            self._services.pauses.add(self)

    # While its responses wait for the client to read

    def may_resume(self) -> bool:
        """Whether the client would take a response now."""
        mapped = self.client.mapped
        return mapped is None or self.client.state is State.CLOSED or mapped.has_room

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
        """A client may take its time."""

    def await_space(self) -> bool:
        """Asks for an event when the client's connection has space."""
        return self.client.watch_space()

    # While requests wait for the backend to read

    def watch_space(self) -> bool:
        """Hastens the client when the connection has space; False if there is no connection."""
        if self._place is None or self._sock is None:
            return False
        self._services.poller.change(self._sock.fileno(), SPACE)
        return True

    def _connecting(self, mask: int) -> None:
        assert self._sock is not None
        code = faults.connect_error(self._sock)
        if code:
            self._connect_failed(connect_failure(code))
        elif mask & _BROKEN:
            self._connect_failed("closed")
        elif mask & select.EPOLLOUT and not self.connected:
            self._services.poller.change(self._sock.fileno(), STATE)
            self.connected = True
            self.backend.connected()
            self.client.upstream_connected(self)

    def _connect_failed(self, reason: str) -> None:
        self.close()
        self.backend.failed(reason)
        self.client.upstream_failed(self)

    def _crashed(self) -> None:
        self.client.fail("bug")
