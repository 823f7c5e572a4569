"""What each backend of a pool gets: who serves, and the weights that the programs see.

A change of one backend can concern all: when too little of a level is up, the next level serves too
(:func:`lb.balance.last_level`). Clients are connected to the backends that serve, and to no others. One that
joins is added to the clients that are there; one whose level is not needed any more gets no new messages at
once, answers what is outstanding, and then its connections end (:mod:`lb.server.dismissal`).
"""

import asyncio
import logging

from lb import balance
from lb.backends import Backend, Health
from lb.server import dismissal
from lb.server.context import Pool, Services

_log = logging.getLogger(__name__)

# Clients that hear of a backend, before the loop does something else.
_BATCH = 64


class Weights:
    """Keeps the weights of one pool up to date."""

    def __init__(self, pool: Pool, services: Services) -> None:
        self._pool = pool
        self._services = services
        self._last = 0
        for backend in pool.backends:
            backend.on_change.append(self._changed)
        self._settle()

    def _changed(self, backend: Backend) -> None:
        before = {backend for backend in self._pool.backends if backend.serving}
        self._settle()
        for other in self._pool.backends:
            if other.serving and (other not in before or (other is backend and other.health is Health.UP)):
                self._services.spawn(f"welcome {other}", self._welcome(other))
            elif other in before and other.usable and not other.serving:
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
        """Ends the upstreams of a backend whose level is not needed any more, each when it owes nothing."""
        await self._services.quiescence.wait()  # programs that still saw its weight have ended
        for count, client in enumerate(list(self._pool.clients), 1):
            upstream = client.upstreams.get(backend)
            if upstream is not None:
                client.run("farewell", dismissal.dismiss(client, upstream))
            if count % _BATCH == 0:
                await asyncio.sleep(0)
