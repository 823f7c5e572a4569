"""The backends of a pool: they come and leave while it serves.

A backend that comes (:meth:`Members.add`) gets numbers for what the programs know of it, and upstreams from
the clients that are there. One that leaves (:meth:`Members.remove`) gets no new message at once; what is
outstanding is answered, or lost and told after ``timeouts.drain``; then its connections end.

Its numbers are given to another backend only when nobody can mean the old one any more: its connections have
ended, their slots are reclaimed, nothing is outstanding there, and every program that ran meanwhile has ended
(:mod:`lb.server.quiescence`). Until then it is one of ``Pool.leaving``.

A hashed pool's table is made anew whenever who is in it, or a weight, has changed: in a thread, because that
takes a tenth of a second. Meanwhile the keys of one that has left are served like those of one that is down.
It follows weights that the operator changes, but not to 0: like one that is down (docs/adr/0008), a backend
that gets nothing for a while keeps its places, and gets its keys back.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from lb import abi, config, maglev, proxy
from lb.backends import Backend
from lb.events import event
from lb.health import Ejections, Monitor
from lb.ranges import Ranges, TableFullError
from lb.server import dismissal
from lb.server.context import Listening, Pool, Services
from lb.server.names import Names
from lb.server.waiting import until
from lb.server.weights import Weights

_log = logging.getLogger(__name__)

# Without health_check, one success brings a backend back and three failures in a row take it out.
PASSIVE = config.HealthCheck(rise=1, fall=3)
# Members of a pool with shared connections, those that leave among them: rows of counters for each listener.
SHARED_SEATS = 2 * abi.MAX_UPSTREAMS
# Clients that are told of something, before the loop does something else.
_BATCH = 64


class Members:
    """Who is in one pool. Sets ``pool.members``."""

    def __init__(self, pool: Pool, backends: Sequence[config.Backend], services: Services) -> None:
        """Raises :class:`TableFullError`, and has given everything back then."""
        self._pool = pool
        self._services = services
        self._shared = pool.route is not None
        self._seats = Ranges(f"members of pool {pool.config.name}", _seats(pool.config))
        self._at: dict[int, Backend] = {}  # by seat
        self._seat_of: dict[Backend, int] = {}
        self._shares: dict[Backend, int] = {}  # weights by which the table is made
        self._monitors: dict[Backend, asyncio.Task[None]] = {}
        self._ejections = _ejections(pool.config.ejection, services)
        self._ejecting: asyncio.Task[None] | None = None
        self._hashing: asyncio.Task[None] | None = None
        self._stale = False
        pool.members = self
        try:
            for configured in backends:
                pool.backends.append(self.reserve(configured))
            if pool.config.hash is not None:
                pool.table = self._translate(maglev.table(backends), pool.backends)
                services.plane.hashing.publish(pool.index, pool.config.hash, self._indices(), pool.table)
        except TableFullError:
            self.discard()
            raise
        self.weights = Weights(pool, services)
        self.names = Names(pool, services)

    def start(self) -> None:
        """Tries the backends from here on."""
        for backend in self._pool.backends:
            self._monitor(backend)
        self.names.follow(self._pool.config.names, self._pool.config.resolve)
        settings = self._pool.config.ejection
        if self._ejections is not None and settings is not None and settings.error_responses:
            self._ejecting = self._services.serve(
                f"ejections of {self._pool.config.name}", self._ejections.run()
            )

    def seat(self, backend: Backend) -> int:
        """The number of a member in its pool, 0 and up; where clients hash, the one in the table."""
        return self._seat_of[backend]

    def row(self, backend: Backend) -> int:
        """Where clients share: what is added to a listener's rows of counters for a member."""
        return self._pool.index * SHARED_SEATS + self._seat_of[backend]

    def at(self, seat: int) -> Backend | None:
        """Who has a number, perhaps on the way out."""
        return self._at.get(seat)

    # Backends

    def add(self, configured: config.Backend, *, dial: bool = True) -> Backend:
        """A backend comes: clients that are there, and those to come, have their share answered by it.

        Args:
            configured: its name is nobody's in the pool; that of one that leaves may be used again.
            dial: it is connected to, and tried; a worker connects by itself.

        Raises:
            TableFullError: the tables have no room for it now. Nothing has changed.
        """
        backend = self.reserve(configured)
        self.admit(backend, dial=dial)
        return backend

    def reserve(self, configured: config.Backend) -> Backend:
        """Numbers for a backend to come: :meth:`admit` or :meth:`cancel` it.

        Raises:
            TableFullError: the tables have no room for it now.
        """
        pool, plane = self._pool, self._services.plane
        index = plane.publish_backend(0, pool.index)
        backend = Backend(pool.config.name, configured, pool.config.health_check or PASSIVE, index)
        plane.set_max_outstanding(index, configured.max_outstanding)
        try:
            seat = self._seats.acquire()
        except TableFullError:
            plane.withdraw_backend(index)
            raise
        self._at[seat] = backend
        self._seat_of[backend] = seat
        self._shares[backend] = backend.weight
        plane.hashing.join(index, seat if pool.config.hash is not None else 0)
        try:
            for listening in pool.listenings:
                self._enter_row(listening, backend)
        except TableFullError:
            self.cancel(backend)
            raise
        if self._ejections is not None:
            self._ejections.add(backend)
        return backend

    def admit(self, backend: Backend, *, dial: bool = True) -> None:
        """The second half of :meth:`add`; cannot fail."""
        self._pool.backends.append(backend)
        self.weights.add(backend)
        self._rehash()
        if dial:
            about = event("member", pool=backend.pool, backend=backend.name, change="comes")
            _log.info("backend %s at %s has come", backend, backend.config.address, extra=about)
            self._start(backend)

    def cancel(self, backend: Backend) -> None:
        """One that was reserved does not come, or one that has left is forgotten. Nobody refers to it."""
        self._give_back(backend)

    def close(self, reason: str) -> None:
        """All leave, and none comes any more."""
        self.names.follow((), self._pool.config.resolve)
        for backend in list(self._pool.backends):
            self.remove(backend, reason)
        if self._ejecting is not None:
            self._ejecting.cancel()

    def discard(self) -> None:
        """Gives back everything of a pool that has never served."""
        for backend in list(self._seat_of):
            self._give_back(backend)

    def reconfigure(self, settings: config.Pool) -> None:
        """New settings of the pool; backends that come, leave or change are told apart from them."""
        pool = self._pool
        before, pool.config = pool.config, settings
        if (before.names, before.resolve) != (settings.names, settings.resolve):
            self.names.follow(settings.names, settings.resolve)
        if before.slow_start != settings.slow_start:
            self.weights.set_slow_start(settings.slow_start)
        if before.panic_threshold != settings.panic_threshold:
            self.weights.settle()
        checks = [(each.health_check, each.timeouts.connect) for each in (before, settings)]
        if checks[0] != checks[1]:
            for backend, monitor in list(self._monitors.items()):
                monitor.cancel()
                backend.recheck(settings.health_check or PASSIVE)
                self._monitor(backend)

    def change(self, backend: Backend, configured: config.Backend) -> None:
        """New settings of a member; its address stays."""
        backend.config = configured
        self._services.plane.set_max_outstanding(backend.index, configured.max_outstanding)
        if self._shares[backend] != backend.weight:
            self._shares[backend] = backend.weight  # 0 too: it is the file that says so
            self._rehash()
        self.weights.changed(backend)

    def remove(self, backend: Backend, reason: str) -> None:
        """A backend leaves: nothing new goes there; the rest happens by itself, and takes its time.

        ``reason``: for the log.
        """
        pool = self._pool
        if backend not in pool.backends:
            return
        pool.backends.remove(backend)
        pool.leaving.append(backend)
        monitor = self._monitors.pop(backend, None)
        if monitor is not None:
            monitor.cancel()
        if self._ejections is not None:
            self._ejections.remove(backend)
        self.weights.remove(backend)
        self._rehash()
        about = event("member", pool=backend.pool, backend=backend.name, change="leaves")
        _log.info("backend %s leaves: %s", backend, reason, extra=about)
        self._services.spawn(f"farewell of {backend}", self._leave(backend))

    def reweigh(self, backend: Backend) -> None:
        """Lets the table follow an operator's weight, but not to 0."""
        if backend.weight not in (0, self._shares[backend]):
            self._shares[backend] = backend.weight
            self._rehash()

    def _rehash(self) -> None:
        if self._pool.config.hash is None:
            return
        self._stale = True
        if self._hashing is None:
            self._hashing = self._services.spawn(f"table of {self._pool.config.name}", self._make_table())

    def _start(self, backend: Backend) -> None:
        self._monitor(backend)
        if self._pool.bundle is not None:
            self._pool.bundle.seat(backend)

    def _monitor(self, backend: Backend) -> None:
        settings = self._pool.config
        monitor = Monitor(backend, settings.health_check, settings.timeouts.connect, _preface(settings))
        self._monitors[backend] = self._services.serve(f"monitor of {backend}", monitor.run())

    async def _leave(self, backend: Backend) -> None:
        pool, services = self._pool, self._services
        await services.quiescence.wait()  # programs that still saw its weight have ended
        if pool.bundle is not None:
            await pool.bundle.remove_backend(backend)
        else:
            for count, client in enumerate(list(pool.clients), 1):
                client.run("farewell", dismissal.part(client, backend))
                if count % _BATCH == 0:
                    await asyncio.sleep(0)
        if self._hashing is not None:
            await asyncio.wait([self._hashing])

        def unused() -> bool:
            return backend.connections == 0 and services.plane.outstanding(backend.index) == 0

        while True:
            await until(unused)
            await services.quiescence.wait()  # slots are reclaimed, and programs that knew them have ended
            if unused():
                break
        self._give_back(backend)
        pool.leaving.remove(backend)
        _log.info("backend %s has left", backend)

    def _give_back(self, backend: Backend) -> None:
        """Frees its numbers. Nobody refers to them."""
        for listening in self._pool.listenings:
            self._leave_row(listening, backend)
        self._services.plane.hashing.part(backend.index)
        self._services.plane.withdraw_backend(backend.index)
        seat = self._seat_of.pop(backend)
        del self._at[seat], self._shares[backend]
        self._seats.release(seat)

    # Listeners, whose messages are counted for each backend apart

    def join(self, listening: Listening) -> None:
        """A listener sends its clients here from now on.

        Raises:
            TableFullError: there are not enough rows to count its messages. Nothing has changed.
        """
        pool = self._pool
        if self._shared and listening.rows is None:
            _take_rows(listening)
        try:
            for backend in self._seat_of:
                self._enter_row(listening, backend)
        except TableFullError:
            for backend in self._seat_of:
                self._leave_row(listening, backend)
            self._release_rows(listening)
            raise
        pool.listenings.append(listening)

    def part(self, listening: Listening) -> None:
        """A listener is gone: it has no clients, and no program counts for it any more."""
        for backend in self._seat_of:
            self._leave_row(listening, backend)
        self._pool.listenings.remove(listening)
        self._release_rows(listening)

    def _release_rows(self, listening: Listening) -> None:
        """Those that it has side by side, when it has left its last pool."""
        if listening.rows is not None and not any(listening in pool.listenings for pool in listening.pools):
            self._services.plane.counters.release_traffic_rows(*listening.rows)
            listening.rows = None

    def _enter_row(self, listening: Listening, backend: Backend) -> None:
        if self._shared:
            row = (listening.policy.traffic + self.row(backend)) % (1 << 32)
        else:
            row = self._services.plane.counters.new_traffic_rows()
        listening.traffic[backend.index] = row

    def _leave_row(self, listening: Listening, backend: Backend) -> None:
        row = listening.traffic.pop(backend.index, None)
        if row is None:
            return
        counters, departed = self._services.plane.counters, self._services.departed
        counted = counters.traffic(row)
        departed.all += counted.requests + counted.responses
        relayed = listening.relayed.pop(backend, None)
        if relayed is not None:
            departed.all += relayed.requests + relayed.responses
            departed.relayed += relayed.requests + relayed.responses
        if self._shared:
            counters.clear_traffic(row)
        else:
            counters.release_traffic_rows(row)

    # Hashing

    def _indices(self) -> list[int | None]:
        seats = ((seat, self._at.get(seat)) for seat in range(self._seats.size))
        return [None if backend is None else backend.index for _, backend in seats]

    def _translate(self, table: bytes, backends: Sequence[Backend]) -> bytes:
        """From places of a list to numbers of members."""
        seats = bytes(self._seat_of[backend] for backend in backends)
        return table.translate(seats.ljust(256, b"\0"))

    async def _make_table(self) -> None:
        """Makes it beside the loop. Keys move place by place."""
        pool = self._pool
        while self._stale:
            self._stale = False
            backends = list(pool.backends)
            shares = [maglev.Share(backend.name, self._shares[backend]) for backend in backends]
            table = await asyncio.to_thread(maglev.table, shares)
            pool.table = self._translate(table, backends)
            self._services.plane.hashing.replace(pool.index, self._indices(), pool.table)
        self._hashing = None


def _take_rows(listening: Listening) -> None:
    """Rows for all shared pools that a listener reaches, with the numbers in between.

    Programs add what the client and what the upstream have, and whoever the client is, an upstream has the
    same. Sums are modulo 2**32.
    """
    numbers = [pool.index for pool in listening.pools]
    count = (max(numbers) - min(numbers) + 1) * SHARED_SEATS
    first = listening.services.plane.counters.new_traffic_rows(count)
    listening.rows = (first, count)
    listening.policy = replace(listening.policy, traffic=(first - min(numbers) * SHARED_SEATS) % (1 << 32))


def _preface(settings: config.Pool) -> bytes:
    """What a check says first: that it comes from the balancer itself."""
    version = settings.send_proxy
    return b"" if version is None else proxy.build(version, None)


def _ejections(settings: config.Ejection | None, services: Services) -> Ejections | None:
    if settings is None:
        return None
    return Ejections(settings, services.loop, lambda backend: services.plane.answers(backend.index))


def _seats(pool: config.Pool) -> int:
    if pool.hash is not None:
        return abi.MAX_UPSTREAMS
    return SHARED_SEATS if pool.connections is config.Connections.SHARED else abi.MAX_BACKENDS
