"""A connection to a backend that carries the messages of one client."""

import asyncio
import errno
import logging
import select
import socket
from typing import TYPE_CHECKING

from lb.backends import Backend, connect_failure
from lb.dataplane import NO_MEMORY, MappedSocket, PeerGoneError, sockets
from lb.server import faults
from lb.server.guard import Guard
from lb.server.poller import CONNECTING, STATE
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
        "_ref",
        "_services",
        "_sock",
        "backend",
        "client",
        "connected",
        "guard",
        "mapped",
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
        self._ref = ref
        self._sock: socket.socket | None = None
        self._place: int | None = None
        self._fin = asyncio.Event()

    def __str__(self) -> str:
        return f"{self.client} to {self.backend}"

    @property
    def backlog(self) -> int:
        """Bytes on their way to the backend that wait in the kernel."""
        return self.mapped.backlog if self.mapped is not None and self._sock is not None else 0

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
                self._ref,
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
        self._place = plane.route(self.client.ref, self._ref, self.backend.index)
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
        """Returns when all that the backend sent before its FIN has got a verdict."""
        mapped = self.mapped
        if mapped is not None:
            await until(lambda: self.state is State.CLOSED or mapped.undecided <= _FIN)

    async def finish(self) -> None:
        """Ends in good order after the client's FIN: the rest is sent, then FIN, then the answers come."""
        mapped, sock = self.mapped, self._sock
        if mapped is None or sock is None:
            return
        if self.state is State.SPLICED:
            self.state = step(self.state, Event.ENDING)
        await until(lambda: self.state is State.CLOSED or mapped.backlog == 0)
        if self.state is not State.CLOSED:
            faults.send_fin(sock)
            await self._fin.wait()
            await self.settle()

    def close(self, *, reset: bool = False) -> None:
        """Takes the socket out of the map and closes it, whatever state it is in."""
        if self.state is State.CLOSED:
            return
        self._fin.set()
        sock, self._sock = self._sock, None
        if sock is None:  # it was never tried, or failed at once
            self._leave_map()
            return
        if reset:
            faults.reset_on_close(sock)
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
            self._services.plane.release(self._ref)
        self._services.quiescence.reclaim_soon()

    def on_events(self, mask: int) -> None:
        """Events of the socket, from the poller."""
        assert self._sock is not None
        if self.mapped is None:
            self._connecting(mask)
        elif mask & _BROKEN and (code := faults.take_error(self._sock)):
            self.client.upstream_broken(self, faults.malformed(self._sock, code))
        elif mask & faults.PEER_ENDED and not self._fin.is_set():
            self._fin.set()
            self.client.upstream_ended(self)

    def _connecting(self, mask: int) -> None:
        assert self._sock is not None
        code = faults.take_error(self._sock)
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
