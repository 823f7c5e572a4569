"""A client's session: its connection and its upstreams.

User space hears only of changes of state; between them the kernel carries the messages. What each change
means for the client, its upstreams and its messages stands in :mod:`lb.server.ending`.
"""

import asyncio
import itertools
import logging
import select
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from lb import abi
from lb.backends import Backend, backoff
from lb.dataplane import NO_MEMORY, MappedSocket, PeerGoneError
from lb.server import ending, faults
from lb.server.admission import Admission
from lb.server.context import Listening
from lb.server.guard import Guard
from lb.server.relay import relay
from lb.server.upstream import Upstream
from lb.session import Event, State, step
from lb.slots import SlotRef, SlotsExhaustedError

_log = logging.getLogger(__name__)

_BROKEN = select.EPOLLERR | select.EPOLLHUP
_numbers = itertools.count(1)


class Client:
    """Owns its socket, its slot and its upstreams."""

    __slots__ = (
        "_admission",
        "_attempts",
        "_peer",
        "activity",
        "address",
        "guard",
        "listening",
        "mapped",
        "number",
        "ref",
        "sock",
        "state",
        "upstreams",
    )

    def __init__(
        self, listening: Listening, sock: socket.socket, peer: tuple[str, int], ref: SlotRef
    ) -> None:
        self.listening = listening
        self.address = peer[0]
        self.number = next(_numbers)
        self.sock = sock
        self.ref = ref
        self.state = State.ADMITTED
        self.mapped: MappedSocket | None = None
        self.upstreams: dict[Backend, Upstream] = {}
        self.guard = Guard(self.__str__, lambda: self.fail("bug"))
        self.activity = (0, 0.0)  # of the idle sweep: bytes seen, and when that was new
        self._peer = peer
        self._admission = Admission(self)
        self._attempts: dict[Backend, int] = {}
        listening.clients.add(self)
        listening.pool.clients.add(self)

    def __str__(self) -> str:
        return f"client {self._peer} of {self.listening.config.name}"

    @property
    def seen_bytes(self) -> int:
        """A number that changes whenever the client sends a message."""
        return self.mapped.consumed_bytes if self.mapped is not None else 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes on their way to this client and to its upstreams that wait in the kernel."""
        if self.state is State.CLOSED or self.mapped is None:
            return 0
        return self.mapped.backlog + sum(upstream.backlog for upstream in self.upstreams.values())

    def start(self) -> None:
        """Connects to the client's share of the pool, then lets the messages flow."""
        self._admission.start()

    # Into the kernel

    def splice(self) -> None:
        """Maps the upstreams that are connected, then the client. From here on the kernel owns the bytes."""
        services = self.listening.services
        for upstream in self.connected_upstreams():
            if not upstream.splice():
                self.forget(upstream)
                upstream.close()
        if not self.connected_upstreams():
            self.refuse("no_backend")
            return
        try:
            self.mapped = services.plane.insert_client(self.ref, self.sock, self.listening.policy)
            services.poller.watch(self.sock.fileno(), self)
        except PeerGoneError:
            self._relay()
            return
        except OSError as error:
            if error.errno not in NO_MEMORY:
                raise
            _log.warning("%s: refused: %s", self, error)
            self.refuse("no_memory")
            return
        self.state = step(self.state, Event.INSERTED)

    def _relay(self) -> None:
        """The client closed its side before it could be mapped: what it sent is complete, and small."""
        self.state = step(self.state, Event.ENDING)
        connected = self.connected_upstreams()
        upstream = connected[self.number % len(connected)]
        sock = upstream.unsplice()
        self.close_upstreams()
        self.run("relay", self._relay_to(upstream.backend, sock))

    async def _relay_to(self, backend: Backend, sock: socket.socket) -> None:
        with sock:
            backend.connections += 1
            try:
                await relay(self.listening, backend, self.sock, sock)
            finally:
                backend.connections -= 1
        self.close(Event.ENDED)

    def refuse(self, reason: str) -> None:
        """Turns the client away before it was served."""
        self.listening.refused[reason] += 1
        self.fail(reason)

    # Upstreams come and go

    def connected_upstreams(self) -> list[Upstream]:
        """Those that are more than an attempt."""
        return [upstream for upstream in self.upstreams.values() if upstream.connected]

    def new_upstream(self, backend: Backend) -> Upstream | None:
        """An upstream that does not connect yet; None if the sockmap is full."""
        try:
            ref = self.listening.services.plane.reserve()
        except SlotsExhaustedError:
            return None
        upstream = self.upstreams[backend] = Upstream(self, backend, ref)
        return upstream

    def add_backend(self, backend: Backend) -> None:
        """A backend has come (back): the client's messages may go there too."""
        if (
            self.state is not State.SPLICED
            or not backend.usable
            or backend in self.upstreams
            or len(self.upstreams) >= abi.MAX_UPSTREAMS
        ):
            return
        upstream = self.new_upstream(backend)
        if upstream is not None:
            upstream.connect()
            self.later(self.listening.timeouts.connect, upstream.give_up)

    def upstream_connected(self, upstream: Upstream) -> None:
        """An attempt to connect succeeded."""
        if self.state is State.ADMITTED:
            self._admission.connected()
        elif self.state is not State.SPLICED:
            upstream.close()
        elif upstream.splice():
            self._attempts.pop(upstream.backend, None)
        else:
            upstream.close()
            self.replace(upstream)

    def upstream_failed(self, upstream: Upstream) -> None:
        """An attempt to connect failed; the upstream is closed."""
        if self.state is State.SPLICED:
            self.replace(upstream)
        else:
            self.forget(upstream)
            if self.state is State.ADMITTED:
                self._admission.failed()

    def upstream_broken(self, upstream: Upstream, malformed: str | None) -> None:
        """A mapped upstream was reset, timed out, or its backend sent what is no message."""
        upstream.leave_route()
        reason = "backend_reset"
        if malformed is not None:
            reason = "backend_malformed"
            self.listening.protocol_errors[f"backend_{malformed}"] += 1
            _log.warning("%s: closed: the backend sent a malformed message (%s)", upstream, malformed)
        self.run("lost upstream", ending.lose(self, upstream, reason))

    def upstream_ended(self, upstream: Upstream) -> None:
        """The backend of a mapped upstream sent FIN."""
        if upstream.state is State.SPLICED and self.state is not State.CLOSED:
            upstream.leave_route()
            self.run("ended upstream", ending.lose(self, upstream, "backend_closed"))

    def replace(self, upstream: Upstream) -> None:
        """Connects to the upstream's backend again."""
        self.forget(upstream)
        self.retry(upstream.backend)

    def retry(self, backend: Backend) -> None:
        """Connects to a backend in a moment, later each time that it fails."""
        attempt = self._attempts.get(backend, 0)
        self._attempts[backend] = attempt + 1
        self.later(backoff(attempt), lambda: self.add_backend(backend))

    def forget(self, upstream: Upstream) -> None:
        """Makes room for another upstream to the same backend."""
        if self.upstreams.get(upstream.backend) is upstream:
            del self.upstreams[upstream.backend]

    def close_upstreams(self) -> None:
        """Closes all of them; what waits for them in the kernel is lost."""
        upstreams = list(self.upstreams.values())
        self.upstreams.clear()
        for upstream in upstreams:
            upstream.close()

    # The client itself

    def on_events(self, mask: int) -> None:
        """Events of the socket, from the poller."""
        if mask & _BROKEN and (code := faults.take_error(self.sock)):
            reason = faults.malformed(self.sock, code)
            if reason is not None:
                self.listening.protocol_errors[reason] += 1
                _log.info("%s: closed: %s", self, reason)
            ending.abandon(self)
        elif self.state is not State.SPLICED:
            return
        elif mask & faults.PEER_ENDED:
            self._end("half-close", ending.after_peer(self))
        elif self.mapped is not None and self.mapped.passed_messages:
            _log.info("%s: closed: no backend for its messages", self)
            self.fail("no_backend")

    def shut_down(self) -> None:
        """Ends the session: nothing new is accepted, what is outstanding is answered."""
        if self.state is State.ADMITTED:
            self.fail(None)
        elif self.state is State.SPLICED:
            self._end("drain", ending.after_outstanding(self))

    def _end(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self.state = step(self.state, Event.ENDING)
        self.run(name, work)

    def fail(self, reason: str | None) -> None:
        """Closes everything now, with RST; what was passed or is outstanding is lost for this reason."""
        if self.state is State.CLOSED:
            return
        if reason is not None and self.mapped is not None:
            lost = self.mapped.passed_messages + self.mapped.outstanding
            self.listening.services.losses.add(reason, lost)
        self.close(Event.FAILED, reset=True)

    def close(self, event: Event, *, reset: bool = False) -> None:
        """Takes the socket out of the map and closes it, and all upstreams."""
        if self.state is State.CLOSED:
            return
        self.state = step(self.state, event)
        services = self.listening.services
        self._admission.cancel()
        self.close_upstreams()
        if self.mapped is None:
            services.plane.release(self.ref)
        else:
            services.poller.forget(self.sock.fileno())
            services.plane.remove(self.mapped)
        services.quiescence.reclaim_soon()
        if reset:
            faults.reset_on_close(self.sock)
        self.sock.close()
        self.listening.clients.discard(self)
        self.listening.pool.clients.discard(self)

    # Work that takes time

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs a task of this client's; a bug in it ends the client, not the process."""
        self.listening.services.spawn(f"{name} of {self}", self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        with self.guard:
            await work

    def later(self, delay: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        """Calls back after ``delay`` seconds, unless the client is closed then."""

        def run() -> None:
            if self.state is not State.CLOSED:
                with self.guard:
                    action()

        return self.listening.services.loop.call_later(delay, run)
