"""The upstreams that all clients of a pool share.

Each has a place in the one route of the pool's clients, and a table of the requests that are outstanding
there (:mod:`lb.dataplane.flights`). They are connected at the start, and again when they end. The places of
one backend stand side by side. When it leaves the pool they are free for others at once; its upstreams end
when what they owe is answered.

When an upstream ends, its table says whose answers cannot come: each such client is told by an error reply
where the protocol has one, else by the reset of its connection. A request that gets no response in time is
given up, and its client told, but keeps its place: only the backend's late answer, or the end of the
connection, proves that the id can be used again. An upstream with many of these is replaced.

A client that does not read would make all others wait for it, because responses travel in the order in which
the backend sends them. So its own requests wait first, and if an upstream has to wait for it longer than
``timeouts.slow_client``, it is closed.
"""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from lb import abi
from lb.backends import Backend, backoff
from lb.config import Timeouts
from lb.dataplane import Flight, FlightTable, MappedSocket, Policy
from lb.framing import Framing, error_reply
from lb.ranges import Ranges, TableFullError
from lb.server.client import Client
from lb.server.context import Pool, Services
from lb.server.upstream import Upstream
from lb.server.waiting import patience, until
from lb.session import State
from lb.slots import SlotRef, SlotsExhaustedError

_log = logging.getLogger(__name__)

_LOOKS = 8  # at a table within the response timeout
_SLICE = 1024  # places looked at in one go
_HALF = 1 << 31


class Bundle:
    """Connects and keeps the shared upstreams of one pool."""

    def __init__(self, pool: Pool, services: Services, policy: Policy) -> None:
        """The listeners of the pool speak the same framing; there is one."""
        self.services = services
        self.framing: Framing = pool.listenings[0].config.framing
        self.upstreams: dict[int, Upstream] = {}  # by place
        self._pool = pool
        self._policy = policy
        self._each = pool.config.connections_per_backend
        self._places = Ranges(f"connections of pool {pool.config.name}", abi.MAX_UPSTREAMS)
        self._first: dict[Backend, int] = {}  # of its places
        self._waiting: list[Backend] = []  # until there are places
        self._leaving: set[Upstream] = set()  # in no place any more
        self._departures: dict[Upstream, Callable[[], None]] = {}  # whom to tell that a worker has left
        self._tables: dict[Upstream, FlightTable] = {}
        self._attempts: Counter[int] = Counter()  # by place
        self._started = self._closing = False

    def __str__(self) -> str:
        return f"pool {self._pool.config.name}"

    @property
    def timeouts(self) -> Timeouts:
        """Those of the pool."""
        return self._pool.config.timeouts

    @property
    def backlog(self) -> int:
        """Bytes that wait in the kernel for the backends to read."""
        return sum(upstream.backlog for upstream in self._all())

    def has_room(self, backend: int | None = None) -> bool:
        """Whether one of the upstreams would take a message now; `backend`: the only index to look at."""
        plane = self.services.plane
        return any(
            upstream.has_room
            and backend in (None, upstream.backend.index)
            and upstream.mapped is not None
            and upstream.mapped.outstanding < self._pool.config.max_in_flight
            and plane.accepts(upstream.backend.index)
            for upstream in self.upstreams.values()
        )

    @property
    def usable_backends(self) -> list[Backend]:
        """Those that can be connected to; workers cannot."""
        return [backend for backend in self._first if backend.effective_weight]

    def _all(self) -> list[Upstream]:
        return [*self.upstreams.values(), *self._leaving]

    # Upstreams come and go

    def start(self) -> None:
        """Connects all upstreams."""
        self._started = True
        for backend in self._pool.backends:
            self.seat(backend)

    def seat(self, backend: Backend) -> None:
        """Gives a backend its places, as soon as there are some, and connects."""
        if not self._started or backend in self._first or backend in self._waiting:
            return
        try:
            self._first[backend] = self._places.acquire(self._each)
        except TableFullError:
            self._waiting.append(backend)
            return
        self.add_backend(backend)

    def add_backend(self, backend: Backend) -> None:
        """A backend has come (back). Nothing happens if it has no places: workers have none."""
        for place in self._places_of(backend):
            self._connect(place, backend)

    def _places_of(self, backend: Backend) -> range:
        first = self._first.get(backend)
        return range(0) if first is None else range(first, first + self._each)

    async def remove_backend(self, backend: Backend) -> None:
        """A backend has left the pool, and has no weight any more; returns when its upstreams are closed."""
        places = self._places_of(backend)
        if backend in self._waiting:
            self._waiting.remove(backend)
        self._first.pop(backend, None)
        mapped = []
        for place in places:
            self._attempts.pop(place, None)
            upstream = self.upstreams.pop(place, None)
            if upstream is None:
                continue
            if upstream.mapped is None:
                upstream.close()
                self._forget(upstream)
            else:
                self._leaving.add(upstream)
                upstream.leave_route()
                mapped.append(upstream)
        await self.services.quiescence.wait()  # nobody looks for them in these places any more
        if places:
            self._places.release(places[0], len(places))
            waiting, self._waiting = self._waiting, []
            for other in waiting:
                self.seat(other)
        async with asyncio.TaskGroup() as group:
            for upstream in mapped:
                group.create_task(_guarded(upstream, self._part(upstream)), name=f"farewell of {upstream}")

    async def _part(self, upstream: Upstream) -> None:
        mapped = upstream.mapped
        assert mapped is not None
        try:
            async with patience(self.timeouts.drain, upstream.progress):
                await until(lambda: upstream.state is State.CLOSED or mapped.outstanding == 0)
            await self._end(upstream)
        except TimeoutError:
            _log.info("%s: closed: not answered in time", upstream)
        await self._bury(upstream, "drain_timeout")

    def dismiss_backend(self, backend: Backend) -> None:
        """A backend is not needed any more: each of its upstreams ends when it owes nothing.

        Not those of workers, who would connect again, and be ready again. No program may still see that the
        backend had a weight.
        """
        for upstream in list(self.upstreams.values()):
            if upstream.backend is backend and upstream not in self._departures:
                self._run("farewell", upstream, self._dismiss(upstream))

    async def _dismiss(self, upstream: Upstream) -> None:
        mapped = upstream.mapped

        def ended() -> bool:
            return self._closing or upstream.state is not State.SPLICED or upstream.backend.serving

        if mapped is None:
            return  # an attempt, which is not repeated
        await until(lambda: ended() or mapped.outstanding == 0)
        if not ended():
            await self._end(upstream)
            await self._bury(upstream, "drain_timeout")

    def adopt(self, backend: Backend, sock: socket.socket, taken: int, left: Callable[[], None]) -> bool:
        """Takes over a connection that a worker has made, for all clients; False if there is no room.

        ``taken``: bytes that were read from it; ``left`` is called when it has ended. The socket stays the
        caller's if there is no room.
        """
        workers = self._pool.config.workers
        if self._closing or workers is None or len(self._departures) >= workers.most:
            return False
        with ExitStack() as undo:
            try:
                place = self._places.acquire()
                undo.callback(self._places.release, place)
                table = self._new_table()
                undo.callback(self.services.plane.release_flight_table, table)
                ref = self.services.plane.reserve()
                undo.callback(self.services.plane.release, ref)
            except (TableFullError, SlotsExhaustedError):
                return False
            upstream = Upstream(self, backend, ref, place)
            try:
                upstream.adopt(sock, taken)
            except OSError as error:
                _log.warning("%s: worker refused: %s", self, error)
                return False
            undo.pop_all()
        self._tables[upstream] = table
        self.upstreams[place] = upstream
        self._departures[upstream] = left
        self.upstream_connected(upstream)
        return True

    def _new_table(self) -> FlightTable:
        return self.services.plane.new_flight_table(self._pool.config.max_in_flight)

    def _connect(self, place: int, backend: Backend) -> None:
        """Unless it is connected, or the place is another backend's by now."""
        if (
            self._closing
            or place in self.upstreams
            or place not in self._places_of(backend)
            or not backend.serving
        ):
            return
        try:
            table = self._new_table()
            try:
                ref = self.services.plane.reserve()
            except SlotsExhaustedError:
                self.services.plane.release_flight_table(table)
                raise
        except (TableFullError, SlotsExhaustedError):
            backend.failed("no_slot")
            self._retry(place, backend)
            return
        upstream = self.upstreams[place] = Upstream(self, backend, ref, place)
        self._tables[upstream] = table
        upstream.connect()
        self._later(self.timeouts.connect, upstream.give_up)

    def _retry(self, place: int, backend: Backend) -> None:
        """Connects again in a moment, later each time that it fails."""
        attempt = self._attempts[place]
        self._attempts[place] = attempt + 1
        self._later(backoff(attempt), lambda: self._connect(place, backend))

    def upstream_connected(self, upstream: Upstream) -> None:
        """An attempt to connect succeeded."""
        if upstream.backend.dismissed and upstream not in self._departures:
            upstream.close()
            self._replace(upstream)
        elif upstream.splice():
            self._attempts.pop(upstream.place, None)
        else:
            upstream.close()
            self._replace(upstream)

    def upstream_failed(self, upstream: Upstream) -> None:
        """An attempt to connect failed; the upstream is closed."""
        self._replace(upstream)

    def upstream_broken(self, upstream: Upstream, malformed: str | None) -> None:
        """It was reset, timed out, or its backend sent what is no message."""
        reason = "backend_reset"
        if malformed is not None:
            reason = "backend_malformed"
            self._pool.listenings[0].protocol_errors[f"backend_{malformed}"] += 1
            _log.warning("%s: closed: the backend sent a malformed message (%s)", upstream, malformed)
        upstream.leave_route()
        self._run("lost upstream", upstream, self._lose(upstream, reason))

    def upstream_ended(self, upstream: Upstream) -> None:
        """Its backend sent FIN."""
        if upstream.state is State.SPLICED:
            upstream.leave_route()
            self._run("ended upstream", upstream, self._lose(upstream, "backend_closed"))

    def upstream_crashed(self, upstream: Upstream) -> None:
        """A bug of ours ends this connection."""
        if upstream.state is not State.CLOSED:
            upstream.leave_route()
            self.services.spawn(f"crashed {upstream}", self._bury(upstream, "bug"))

    def _replace(self, upstream: Upstream) -> None:
        """Forgets a closed upstream, and connects again if its place is still there."""
        left = self._departures.pop(upstream, None)
        self._forget(upstream)
        if self.upstreams.get(upstream.place) is upstream:
            del self.upstreams[upstream.place]
            if left is None:
                self._retry(upstream.place, upstream.backend)
            else:
                self._places.release(upstream.place)
        if left is not None:
            left()

    def _forget(self, upstream: Upstream) -> None:
        self._leaving.discard(upstream)
        table = self._tables.pop(upstream, None)
        if table is not None:
            self.services.plane.release_flight_table(table)

    async def _lose(self, upstream: Upstream, reason: str) -> None:
        await self.services.quiescence.wait()
        if reason == "backend_closed":
            try:
                async with patience(self.timeouts.drain, upstream.progress):
                    await upstream.settle()
            except TimeoutError:
                _log.info("%s: closed: its answers were not taken in time", upstream)
        await self._bury(upstream, reason)

    async def _bury(self, upstream: Upstream, reason: str) -> None:
        """Closes an upstream, tells all whose answers cannot come any more, and connects again."""
        if upstream.state is State.CLOSED:
            return
        upstream.close(reason)
        await self.services.quiescence.wait()  # no program frees a place any more
        table = self._tables[upstream]
        taken = list(table.taken())
        lost = [flight for flight in taken if not flight.given_up]
        if lost and reason.startswith("backend_"):
            upstream.backend.lost(reason.removeprefix("backend_"))
        if lost:
            _log.info("%s: %d requests were outstanding there (%s)", upstream, len(lost), reason)
        self._tell(upstream.ref, lost, reason)
        if self.framing.error_reply is not None:
            self.services.plane.requests.forget_heads(upstream.ref, [flight.id for flight in taken])
        table.clear()
        self._replace(upstream)

    def _tell(self, upstream: SlotRef, flights: Iterable[Flight], reason: str) -> None:
        """Tells the clients of requests that get no answer; those who left count as told."""
        by_client: dict[SlotRef, list[Flight]] = {}
        for flight in flights:
            by_client.setdefault(flight.client, []).append(flight)
        if not by_client:
            return
        clients = {client.ref: client for client in self._pool.clients}
        for ref, its in by_client.items():
            self.services.losses.add(reason, len(its))
            client = clients.get(ref)
            if client is not None:
                with client.guard:
                    self._tell_client(client, upstream, its, reason)

    def _tell_client(self, client: Client, upstream: SlotRef, flights: list[Flight], reason: str) -> None:
        assert client.mapped is not None
        replies = [self._error_reply(upstream, flight) for flight in flights]
        known = [reply for reply in replies if reply is not None]
        if len(known) == len(flights):
            client.mapped.write_off(len(flights))
            client.run("error replies", client.answer(known))
        else:
            _log.info("%s: closed: %d messages were outstanding (%s)", client, len(flights), reason)
            client.fail(reason)

    def _error_reply(self, upstream: SlotRef, flight: Flight) -> bytes | None:
        if self.framing.error_reply is None:
            return None
        head = self.services.plane.requests.head(upstream, flight.id)
        return None if head is None else error_reply(self.framing, head)

    # Requests that get no response in time

    async def run(self) -> None:
        """Gives up what gets no response in time; serves for ever, to be run as a task."""
        while True:
            limit = round(self.timeouts.response * 1e6)
            await asyncio.sleep(self.timeouts.response / _LOOKS)
            for upstream in self._all():
                if upstream.mapped is not None and upstream.mapped.outstanding:
                    with upstream.guard:
                        await self._give_up(upstream, upstream.mapped, limit)

    async def _give_up(self, upstream: Upstream, mapped: MappedSocket, limit: int) -> None:
        table = self._tables.get(upstream)
        if table is None:
            return
        given_up = 0
        for start in range(0, table.size, _SLICE):
            if upstream.state is State.CLOSED:
                return
            now = time.monotonic_ns() // 1000
            late = []
            for flight in table.taken(start, start + _SLICE):
                if flight.given_up:
                    given_up += 1
                elif limit <= (now - flight.time) % (1 << 32) < _HALF:
                    late.append(flight)
            if late:
                given_up += len(late)
                self._abandon(upstream, mapped, table, late)
            await asyncio.sleep(0)
        if given_up > self._pool.config.max_in_flight // 2 and upstream.state is State.SPLICED:
            _log.warning("%s: replaced: %d requests got no response", upstream, given_up)
            upstream.leave_route()
            self._run("replaced upstream", upstream, self._renew(upstream, mapped))

    def _abandon(
        self, upstream: Upstream, mapped: MappedSocket, table: FlightTable, late: list[Flight]
    ) -> None:
        for flight in late:
            table.give_up(flight)
        missed = [flight for flight in late if table.holds(flight)]
        self.services.plane.write_off(mapped, len(missed))
        upstream.backend.lost("response_timeout", len(missed))
        self._tell(upstream.ref, missed, "response_timeout")

    async def _renew(self, upstream: Upstream, mapped: MappedSocket) -> None:
        await self.services.quiescence.wait()
        try:
            async with asyncio.timeout(self.timeouts.response):
                await until(lambda: upstream.state is State.CLOSED or mapped.outstanding == 0)
        except TimeoutError:
            pass  # these are lost too, and told
        await self._bury(upstream, "response_timeout")

    # What the upstreams want of it

    def preface(self, backend: Backend) -> bytes:
        """Nothing: there is no one client to name."""
        del backend
        return b""

    def map_upstream(self, upstream: Upstream, sock: socket.socket) -> MappedSocket:
        """Puts the socket of an upstream into the maps."""
        return self.services.plane.insert_shared(
            upstream.ref,
            sock,
            self._policy,
            backend=upstream.backend.index,
            traffic=self._pool.members.row(upstream.backend),
            table=self._tables[upstream],
        )

    def route(self, upstream: Upstream) -> None:
        """Lets all clients' messages be sent there."""
        assert self._policy.route is not None
        self.services.plane.route_shared(
            self._policy.route, upstream.place, upstream.ref, upstream.backend.index
        )

    def unroute(self, upstream: Upstream) -> None:
        """Lets no further message be sent there, once a grace period has passed."""
        assert self._policy.route is not None
        self.services.plane.unroute_shared(self._policy.route, upstream.place)

    def upstream_has_space(self, upstream: Upstream) -> None:
        """Messages that wait may go on."""
        del upstream
        for client in self._pool.clients:
            self.services.pauses.hasten(client)

    def _taker(self, upstream: Upstream) -> Client | None:
        assert upstream.mapped is not None
        wanted = upstream.mapped.waits_for
        return next((client for client in self._pool.clients if client.ref == wanted), None)

    def takes(self, upstream: Upstream) -> bool:
        """Whether the client that is to get the next response has room."""
        client = self._taker(upstream)
        return client is None or client.takes(upstream)

    def watch_taker(self, upstream: Upstream) -> bool:
        """A client that is waited for is looked at again and again, until it is closed."""
        del upstream
        return False

    def kept_waiting(self, upstream: Upstream, seconds: float) -> None:
        """Others wait for a client that does not read: it is closed."""
        if seconds < self.timeouts.slow_client:
            return
        client = self._taker(upstream)
        if client is not None:
            _log.info("%s: closed: it does not read, and others wait", client)
            client.fail("slow_client")

    # The end

    async def dissolve(self) -> None:
        """Ends the connections of workers too, in good order; dialled ones end with their backends."""
        self._closing = True
        workers = list(self._departures)
        for upstream in workers:
            upstream.leave_route()
        await self.services.quiescence.wait()
        async with asyncio.TaskGroup() as group:
            for upstream in workers:
                group.create_task(_guarded(upstream, self._part(upstream)), name=f"farewell of {upstream}")

    async def drain(self) -> None:
        """Ends all connections in good order: what is on its way arrives."""
        self._closing = True
        async with asyncio.TaskGroup() as group:
            for upstream in self._all():
                group.create_task(self._finish(upstream), name=f"finish {upstream}")

    async def _finish(self, upstream: Upstream) -> None:
        try:
            await self._end(upstream)
        finally:
            upstream.close("drain_timeout", reset=True)

    async def _end(self, upstream: Upstream) -> None:
        upstream.leave_route()
        await self.services.quiescence.wait()
        try:
            async with patience(self.timeouts.drain, upstream.progress):
                await upstream.finish()
        except TimeoutError:
            _log.info("%s: closed: not drained in time", upstream)

    def close(self) -> None:
        """Closes what is still there."""
        self._closing = True
        for upstream in self._all():
            upstream.close("shutdown", reset=True)

    # Work that takes time

    def _run(self, name: str, upstream: Upstream, work: Coroutine[Any, Any, None]) -> None:
        self.services.spawn(f"{name} of {self}", _guarded(upstream, work))

    def _later(self, delay: float, action: Callable[[], None]) -> None:
        def run() -> None:
            if not self._closing:
                action()

        self.services.loop.call_later(delay, run)


async def _guarded(upstream: Upstream, work: Coroutine[Any, Any, None]) -> None:
    with upstream.guard:
        await work


def bundles(pools: Iterable[Pool]) -> Iterator[Bundle]:
    """Those of the pools that have one."""
    return (pool.bundle for pool in pools if pool.bundle is not None)
