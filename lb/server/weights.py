"""What each backend of a pool gets: who serves, and the weights that the programs see.

A change of one backend can concern all: when too little of a level is up, the next level serves too
(:func:`lb.balance.last_level`). Clients are connected to the backends that serve, and to no others. One that
joins is added to the clients that are there; one whose level is not needed any more gets no new messages at
once, answers what is outstanding, and then its connections end (:mod:`lb.server.dismissal`). So it is with
one that the operator takes out (:meth:`lb.backends.Backend.administer`).

With ``slow_start`` a backend that was down, or taken out, gets its weight step by step
(:func:`lb.balance.warmth`), by a timer that runs until it has all of it, or is down again. What is up when
the process starts has it at once.

The table of a hashed pool follows weights that the operator changes, but not to 0: like one that is down
(docs/adr/0008), a backend that gets nothing for a while keeps its places, and gets its keys back.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from lb import balance, maglev
from lb.backends import Backend, Health
from lb.server import dismissal
from lb.server.context import Pool, Services

_log = logging.getLogger(__name__)

# Clients that hear of a backend, before the loop does something else.
_BATCH = 64


class Clock(Protocol):
    """Of an event loop, what ramps need."""

    def time(self) -> float:
        """Seconds."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> "Timer":
        """Calls back after so many seconds."""


class Timer(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """It does not come."""


class Ramps:
    """The backends of a pool that start slowly."""

    def __init__(self, clock: Clock, slow_start: float, publish: Callable[[Backend], None]) -> None:
        self._clock = clock
        self._slow_start = slow_start
        self._publish = publish
        self._timers: dict[Backend, Timer] = {}

    def start(self, backend: Backend) -> None:
        """A backend is up that was down. Publishing its first weight is the caller's."""
        if self._slow_start:
            self._step(backend, self._clock.time())

    def stop(self, backend: Backend) -> None:
        """A backend is down."""
        timer = self._timers.pop(backend, None)
        if timer is not None:
            timer.cancel()
        backend.warmth = 1

    def _step(self, backend: Backend, since: float) -> None:
        elapsed = self._clock.time() - since
        backend.warmth = balance.warmth(elapsed, self._slow_start)
        if backend.warmth < 1:
            pause = self._slow_start / balance.RAMP_STEPS
            self._timers[backend] = self._clock.call_later(pause, lambda: self._go_on(backend, since))
        else:
            self._timers.pop(backend, None)

    def _go_on(self, backend: Backend, since: float) -> None:
        self._step(backend, since)
        self._publish(backend)


class Weights:
    """Keeps the weights of one pool up to date."""

    def __init__(self, pool: Pool, services: Services) -> None:
        self._pool = pool
        self._services = services
        self._last = 0
        self._out: set[Backend] = set()
        self._ramps = Ramps(services.loop, pool.config.slow_start, self._publish)
        self._places = {backend: backend.weight for backend in pool.backends}  # by which the table is made
        self._tabulating = False
        for backend in pool.backends:
            backend.on_change.append(self.changed)
        self._settle()

    def add(self, backend: Backend) -> None:
        """One more backend has come into the pool."""
        backend.on_change.append(self.changed)
        self._settle()

    def remove(self, backend: Backend) -> None:
        """A backend has left the pool."""
        self._ramps.stop(backend)
        backend.serving = False
        self._publish(backend)
        self._settle()

    def changed(self, backend: Backend) -> None:
        """What is known of a backend, or its weight, is not what it was."""
        before = {backend for backend in self._pool.backends if backend.serving}
        if not backend.usable:
            self._out.add(backend)
            self._ramps.stop(backend)
        elif backend in self._out:
            self._out.remove(backend)
            self._ramps.start(backend)
        self._settle()
        self._tabulate(backend)
        for other in self._pool.backends:
            if other.serving and (other not in before or (other is backend and other.health is Health.UP)):
                self._services.spawn(f"welcome {other}", self._welcome(other))
            elif other.dismissed and (other in before or other is backend):
                self._services.spawn(f"farewell of {other}", self._farewell(other))

    def _settle(self) -> None:
        """Finds out who serves, and tells the programs."""
        pool = self._pool
        last = balance.last_level(pool.backends, pool.config.panic_threshold)
        if last != self._last:
            _log.log(
                logging.WARNING if last > self._last else logging.INFO,
                "pool %s: backends up to priority %d serve (before: %d)",
                pool.config.name,
                last,
                self._last,
            )
            self._last = last
        for backend in pool.backends:
            backend.serving = backend.usable and backend.priority <= last
            self._publish(backend)

    def _publish(self, backend: Backend) -> None:
        self._services.plane.set_weight(backend.index, backend.effective_weight)

    async def _welcome(self, backend: Backend) -> None:
        """Gives the clients that are there an upstream to a backend that has joined."""
        if self._pool.bundle is not None:
            self._pool.bundle.add_backend(backend)
            return
        for count, client in enumerate(list(self._pool.clients), 1):
            with client.guard:
                client.add_backend(backend)
            if count % _BATCH == 0:
                await asyncio.sleep(0)

    async def _farewell(self, backend: Backend) -> None:
        """Ends the upstreams of a backend that is not needed any more, each when it owes nothing."""
        await self._services.quiescence.wait()  # programs that still saw its weight have ended
        if self._pool.bundle is not None:
            self._pool.bundle.dismiss_backend(backend)
            return
        for count, client in enumerate(list(self._pool.clients), 1):
            upstream = client.upstreams.get(backend)
            if upstream is not None:
                client.run("farewell", dismissal.dismiss(client, upstream))
            if count % _BATCH == 0:
                await asyncio.sleep(0)

    def _tabulate(self, backend: Backend) -> None:
        """Lets the table of a hashed pool follow a weight that has changed."""
        if self._pool.config.hash is None or backend.weight in (0, self._places[backend]):
            return
        self._places[backend] = backend.weight
        if not self._tabulating:
            self._tabulating = True
            self._services.spawn(f"table of {self._pool.config.name}", self._make_table())

    async def _make_table(self) -> None:
        """Makes it beside the loop: it takes a tenth of a second. Keys move place by place."""
        pool = self._pool
        made: list[int] = []
        while made != (weights := list(self._places.values())):
            made = weights
            shares = [
                maglev.Share(backend.name, weight) for backend, weight in zip(self._places, made, strict=True)
            ]
            pool.table = await asyncio.to_thread(maglev.table, shares)
        self._services.plane.hashing.replace(pool.index, pool.table)
        self._tabulating = False
