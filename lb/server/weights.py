"""What each backend of a pool gets: who serves, and the weights that the programs see.

A change of one backend can concern all: when too little of a level is up, the next level serves too
(:func:`lb.balance.last_level`). Clients are connected to the backends that serve, and to no others. One that
joins is added to the clients that are there; one whose level is not needed any more gets no new messages at
once, answers what is outstanding, and then its connections end (:mod:`lb.server.dismissal`). So it is with
one that the operator takes out (:meth:`lb.backends.Backend.administer`).

With ``slow_start`` a backend that was down, or taken out, gets its weight step by step
(:func:`lb.balance.warmth`), by a timer that runs until it has all of it, or is down again. What is up when
the process starts has it at once.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from lb import balance
from lb.backends import Backend, Health
from lb.events import event
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
        self.slow_start = slow_start
        self._publish = publish
        self._timers: dict[Backend, Timer] = {}

    def start(self, backend: Backend) -> None:
        """A backend is up that was down. Publishing its first weight is the caller's."""
        if self.slow_start:
            self._step(backend, self._clock.time())

    def stop(self, backend: Backend) -> None:
        """A backend is down."""
        timer = self._timers.pop(backend, None)
        if timer is not None:
            timer.cancel()
        backend.warmth = 1

    def _step(self, backend: Backend, since: float) -> None:
        elapsed = self._clock.time() - since
        backend.warmth = balance.warmth(elapsed, self.slow_start)
        if backend.warmth < 1:
            pause = self.slow_start / balance.RAMP_STEPS
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
        for backend in pool.backends:
            backend.on_change.append(self.changed)
        self._settle()

    def add(self, backend: Backend) -> None:
        """One more backend has come into the pool; it starts slowly like one that was down."""
        backend.on_change.append(self.changed)
        backend.serving = False  # so far
        self._ramps.start(backend)
        self.settle()

    def remove(self, backend: Backend) -> None:
        """A backend has left the pool."""
        backend.on_change.remove(self.changed)
        self._out.discard(backend)
        self._ramps.stop(backend)
        backend.serving = False
        self._publish(backend)
        self.settle()

    def set_slow_start(self, seconds: float) -> None:
        """For those that start from here on."""
        self._ramps.slow_start = seconds

    def changed(self, backend: Backend) -> None:
        """What is known of a backend, or its weight, is not what it was."""
        if not backend.usable:
            self._out.add(backend)
            self._ramps.stop(backend)
        elif backend in self._out:
            self._out.remove(backend)
            self._ramps.start(backend)
        self._pool.members.reweigh(backend)
        self.settle(backend)

    def settle(self, by: Backend | None = None) -> None:
        """Finds out who serves, and tells the programs and the clients; ``by``: who has changed."""
        before = {backend for backend in self._pool.backends if backend.serving}
        self._settle()
        for other in self._pool.backends:
            if other.serving and (other not in before or (other is by and other.health is Health.UP)):
                self._services.spawn(f"welcome {other}", self._welcome(other))
            elif other.dismissed and (other in before or other is by):
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
                extra=event("level", pool=pool.config.name, priority=last),
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
