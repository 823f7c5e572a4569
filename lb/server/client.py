"""A client's session: its connection, its upstreams, and the order in which they end.

Theory. The client's socket enters the sockmap once its upstreams are there, so that its first message has
somewhere to go. From then on user space hears only of changes of state:

* The client sends FIN: what it sent before gets its verdict, each upstream's backlog runs empty, FIN goes on
  to each backend, their answers come until they end too, and the client gets its FIN last.
* The client is reset, or what it sends is malformed: its own connection ends at once; what it had sent in
  whole messages before still reaches the backends. Their answers are dropped and counted by the verdict.
* A backend ends or is reset: if requests were outstanding there, their answers can never come, and closing
  the client's connection (RST) is how it is told. If none were, the upstream is replaced.
* The verdict passes a message because no upstream lives: the client is told in the same way.
"""

import asyncio
import itertools
import logging
import select
import socket
from collections.abc import Coroutine
from typing import Any

from lb import abi, balance
from lb.backends import Backend, backoff
from lb.dataplane import MappedSocket, PeerGoneError
from lb.server import faults
from lb.server.context import Listening
from lb.server.guard import Guard
from lb.server.relay import relay
from lb.server.upstream import Upstream
from lb.server.waiting import until
from lb.session import Event, State, step
from lb.slots import SlotRef, SlotsExhaustedError

_log = logging.getLogger(__name__)

_BROKEN = select.EPOLLERR | select.EPOLLHUP
_FIN = 1
# Once one upstream is there, how long the client's first message waits for the others.
_STRAGGLERS = 0.1
_numbers = itertools.count(1)


class Client:
    """Owns its socket, its slot and its upstreams."""

    __slots__ = (
        "_attempts",
        "_connecting",
        "_ending",
        "_peer",
        "_sock",
        "_timer",
        "activity",
        "guard",
        "listening",
        "mapped",
        "number",
        "ref",
        "state",
        "upstreams",
    )

    def __init__(self, listening: Listening, sock: socket.socket, peer: object, ref: SlotRef) -> None:
        self.listening = listening
        self.number = next(_numbers)
        self.ref = ref
        self.state = State.ADMITTED
        self.upstreams: dict[Backend, Upstream] = {}
        self.guard = Guard(self.__str__, lambda: self.fail("bug"))
        self.activity = (0, 0.0)  # of the idle sweep: bytes seen, and when that was new
        self._sock = sock
        self._peer = peer
        self.mapped: MappedSocket | None = None
        self._connecting: set[Upstream] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._attempts: dict[Backend, int] = {}
        self._ending = False
        listening.clients.add(self)
        listening.pool.clients.add(self)

    def __str__(self) -> str:
        return f"client {self._peer} of {self.listening.config.name}"

    # Admission

    def start(self) -> None:
        """Connects to the client's share of the pool; it is spliced when that is done."""
        usable = [backend for backend in self.listening.pool.backends if backend.usable]
        chosen = balance.subset(usable, self.number, abi.MAX_UPSTREAMS)
        for backend in chosen:
            if not self._add_upstream(backend):
                self._refuse("max_connections")
                return
        if not chosen:
            self._refuse("no_backend")
            return
        self._timer = self._later(self.listening.timeouts.connect, self._connect_timeout)
        for upstream in list(self._connecting):
            if self.state is State.ADMITTED:
                upstream.connect()

    def _add_upstream(self, backend: Backend) -> bool:
        try:
            ref = self.listening.services.plane.reserve()
        except SlotsExhaustedError:
            return False
        upstream = Upstream(self, backend, ref)
        self.upstreams[backend] = upstream
        self._connecting.add(upstream)
        return True

    def upstream_connected(self, upstream: Upstream) -> None:
        """An attempt to connect succeeded."""
        self._connecting.discard(upstream)
        self._attempts.pop(upstream.backend, None)
        if self.state is State.SPLICED:
            if not upstream.splice():
                upstream.close()
                self._replace(upstream)
        elif not self._connecting:
            self._splice()
        else:
            self._rearm(_STRAGGLERS)

    def upstream_failed(self, upstream: Upstream) -> None:
        """An attempt to connect failed; the upstream is closed."""
        self._connecting.discard(upstream)
        if self.state is State.SPLICED:
            self._replace(upstream)
            return
        self._forget(upstream)
        if self.state is State.ADMITTED and not self._connecting:
            self._splice()

    def _connect_timeout(self) -> None:
        """Those who did not connect in time are left out, or may come later when others are there."""
        connected = any(upstream not in self._connecting for upstream in self.upstreams.values())
        if self.state is State.ADMITTED and connected:
            self._splice()
            return
        for upstream in list(self._connecting):
            upstream.give_up("timeout")

    def _splice(self) -> None:
        """Maps the upstreams, then the client. From here on the kernel owns the bytes."""
        if self._timer is not None:
            self._timer.cancel()
        services = self.listening.services
        for upstream in [u for u in self.upstreams.values() if u not in self._connecting]:
            if not upstream.splice():
                upstream.close()
                self._forget(upstream)
        if len(self.upstreams) == len(self._connecting):
            self._refuse("no_backend")
            return
        try:
            self.mapped = services.plane.insert_client(self.ref, self._sock, self.listening.policy)
        except PeerGoneError:
            self._relay()
            return
        self.state = step(self.state, Event.INSERTED)
        services.poller.watch(self._sock.fileno(), self)
        if self._connecting:
            self._timer = self._later(self.listening.timeouts.connect, self._connect_timeout)

    def _relay(self) -> None:
        """The client closed its side before it could be mapped: what it sent is complete, and small."""
        self.state = step(self.state, Event.ENDING)
        connected = [u for u in self.upstreams.values() if u not in self._connecting]
        upstream = connected[self.number % len(connected)]
        sock = upstream.unsplice()
        for other in list(self.upstreams.values()):
            other.close()
        self.upstreams.clear()
        self._connecting.clear()
        self._run("relay", self._relay_to(upstream.backend, sock))

    async def _relay_to(self, backend: Backend, sock: socket.socket) -> None:
        with sock:
            backend.connections += 1
            try:
                await relay(self.listening, backend, self._sock, sock)
            finally:
                backend.connections -= 1
        self._close(Event.ENDED)

    def _refuse(self, reason: str) -> None:
        self.listening.refused[reason] += 1
        self.fail(None)

    # The kernel carries the messages

    def on_events(self, mask: int) -> None:
        """Events of the socket, from the poller."""
        if mask & _BROKEN and (code := faults.take_error(self._sock)):
            self._broken(code)
        elif mask & faults.PEER_ENDED:
            self._end("half-close", self._end_after_peer())
        elif self.mapped is not None and self.mapped.passed_bytes and not self._ending:
            self.fail("no_backend")

    def _broken(self, code: int) -> None:
        reason = faults.malformed(self._sock, code)
        if reason is not None:
            self.listening.protocol_errors[reason] += 1
            _log.info("%s: closed: %s", self, reason)
        self._abandon()

    def add_backend(self, backend: Backend) -> None:
        """A backend has come (back): the client's messages may go there too."""
        if (
            self.state is State.SPLICED
            and not self._ending
            and backend.usable
            and backend not in self.upstreams
            and len(self.upstreams) < abi.MAX_UPSTREAMS
            and self._add_upstream(backend)
        ):
            upstream = self.upstreams[backend]
            upstream.connect()
            if upstream in self._connecting:
                self._later(self.listening.timeouts.connect, lambda: self._too_late(upstream))

    def _too_late(self, upstream: Upstream) -> None:
        if upstream in self._connecting:
            upstream.give_up("timeout")

    def _replace(self, upstream: Upstream) -> None:
        """Connects to the backend again, later each time that it fails."""
        self._forget(upstream)
        backend = upstream.backend
        attempt = self._attempts.get(backend, 0)
        self._attempts[backend] = attempt + 1
        self._later(backoff(attempt), lambda: self.add_backend(backend))

    def _forget(self, upstream: Upstream) -> None:
        if self.upstreams.get(upstream.backend) is upstream:
            del self.upstreams[upstream.backend]

    def upstream_broken(self, upstream: Upstream, malformed: str | None) -> None:
        """A mapped upstream was reset, timed out, or its backend sent what is no message."""
        upstream.leave_route()
        if malformed is not None:
            self.listening.protocol_errors[f"backend_{malformed}"] += 1
            _log.warning("%s: closed: the backend sent a malformed message (%s)", upstream, malformed)
        self._run(
            "lost upstream", self._lose(upstream, "backend_malformed" if malformed else "backend_reset")
        )

    def upstream_ended(self, upstream: Upstream) -> None:
        """The backend of a mapped upstream sent FIN."""
        if self.state is State.SPLICED and not self._ending:
            upstream.leave_route()
            self._run("ended upstream", self._lose(upstream, "backend_closed"))

    async def _lose(self, upstream: Upstream, reason: str) -> None:
        """Finds out whether anything was lost with an upstream that left the route."""
        mapped = upstream.mapped
        assert mapped is not None
        await self.listening.services.quiescence.wait()
        if reason == "backend_closed":
            await upstream.settle()
        lost = mapped.outstanding
        upstream.close()
        if self.state is State.SPLICED and not lost:
            self._replace(upstream)
            return
        self.listening.services.losses.add(reason, lost)
        if lost and self.state is not State.CLOSED:
            _log.info("%s: closed: %d messages were outstanding there (%s)", upstream, lost, reason)
            self.fail(None)

    @property
    def buffered_bytes(self) -> int:
        """Bytes on their way to this client and to its upstreams that wait in the kernel."""
        ends: list[Client | Upstream] = [self, *self.upstreams.values()]
        return sum(
            end.mapped.backlog for end in ends if end.mapped is not None and end.state is not State.CLOSED
        )

    # The end

    def shut_down(self) -> None:
        """Ends the session: nothing new is accepted, what is outstanding is answered."""
        if self.state is State.ADMITTED:
            self.fail(None)
        elif self.state is State.SPLICED:
            self._end("drain", self._end_after_outstanding())

    def seen_bytes(self) -> int:
        """A number that changes whenever the client sends a message."""
        return self.mapped.consumed_bytes if self.mapped is not None else 0

    def _end(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        if self._ending or self.state is not State.SPLICED:
            work.close()
            return
        self._ending = True
        self.state = step(self.state, Event.ENDING)
        self._run(name, work)

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self.listening.services.spawn(f"{name} of {self}", self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        with self.guard:
            await work

    async def _end_after_peer(self) -> None:
        mapped = self.mapped
        assert mapped is not None
        try:
            async with asyncio.timeout(self.listening.timeouts.drain):
                # An incomplete last message ends this wait too: the strparser gives it up with an error.
                await until(lambda: self.state is State.CLOSED or mapped.undecided <= _FIN)
                await self._finish_upstreams()
                await until(lambda: self.state is State.CLOSED or mapped.backlog == 0)
        except TimeoutError:
            self._drain_timed_out()
            return
        if self.state is not State.CLOSED:
            # Backends that ended without an answer: the client must not take that for a good end.
            lost = mapped.outstanding
            self.listening.services.losses.add("backend_closed", lost)
            self._close(Event.FAILED if lost else Event.ENDED, reset=lost > 0)

    async def _end_after_outstanding(self) -> None:
        mapped = self.mapped
        assert mapped is not None
        mapped.hold()
        try:
            async with asyncio.timeout(self.listening.timeouts.drain):
                await self.listening.services.quiescence.wait()
                await until(lambda: self.state is State.CLOSED or mapped.outstanding == 0)
                await until(lambda: self.state is State.CLOSED or mapped.backlog == 0)
                if self.state is not State.CLOSED:
                    faults.send_fin(self._sock)
                await until(lambda: self.state is State.CLOSED or mapped.delivered)
        except TimeoutError:
            self._drain_timed_out()
            return
        self._close(Event.ENDED)

    async def _finish_upstreams(self) -> None:
        async with asyncio.TaskGroup() as group:
            for upstream in list(self.upstreams.values()):
                group.create_task(upstream.finish(), name=f"finish {upstream}")

    def _drain_timed_out(self) -> None:
        if self.state is not State.CLOSED:
            lost = self.mapped.outstanding if self.mapped is not None else 0
            self.listening.services.losses.add("drain_timeout", lost)
            _log.info("%s: closed: not drained in time, %d messages outstanding", self, lost)
            self.fail(None)

    def _abandon(self) -> None:
        """The client is gone. Whole messages that it sent before still reach the backends."""
        if self.state is State.CLOSED:
            return
        upstreams = list(self.upstreams.values())
        self.upstreams.clear()
        self._count_passed("client_gone")
        self._close(Event.FAILED, reset=True)
        for upstream in upstreams:
            if upstream.state is State.ADMITTED:
                upstream.close()
            else:
                upstream.leave_route()
                self._run("abandoned upstream", self._finish_abandoned(upstream))

    async def _finish_abandoned(self, upstream: Upstream) -> None:
        try:
            async with asyncio.timeout(self.listening.timeouts.drain):
                await upstream.finish()
        except TimeoutError:
            _log.info("%s: closed: not drained in time after its client had left", upstream)
        finally:
            upstream.close(reset=True)

    def fail(self, reason: str | None) -> None:
        """Closes everything now, with RST; messages that were passed are lost for this reason."""
        if self.state is State.CLOSED:
            return
        if reason is not None:
            self._count_passed(reason)
        self._close(Event.FAILED, reset=True)

    def _count_passed(self, reason: str) -> None:
        if self.mapped is not None:
            self.listening.services.losses.add(reason, self.mapped.passed_messages)

    def _close(self, event: Event, *, reset: bool = False) -> None:
        if self.state is State.CLOSED:
            return
        services = self.listening.services
        if self._timer is not None:
            self._timer.cancel()
        was_mapped = self.mapped is not None
        self.state = step(self.state, event)
        for upstream in list(self.upstreams.values()):
            upstream.close()
        self.upstreams.clear()
        self._connecting.clear()
        if reset:
            faults.reset_on_close(self._sock)
        if was_mapped:
            services.poller.forget(self._sock.fileno())
            assert self.mapped is not None
            services.plane.remove(self.mapped)
        else:
            services.plane.release(self.ref)
        self._sock.close()
        services.quiescence.reclaim_soon()
        self.listening.clients.discard(self)
        self.listening.pool.clients.discard(self)

    def _later(self, delay: float, action: Any) -> asyncio.TimerHandle:
        def run() -> None:
            if self.state is not State.CLOSED:
                with self.guard:
                    action()

        return self.listening.services.loop.call_later(delay, run)

    def _rearm(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._later(delay, self._connect_timeout)
