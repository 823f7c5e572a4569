"""Trying a backend again and again.

Without ``health_check`` in its pool a backend is tried at the start and, once it is down, until it is up
again; in between the clients' own connections tell. With it, it is tried all the time: at ``interval``, and
at ``fast_interval`` while the results contradict what is known and are too few yet.
"""

import asyncio
import random
from collections.abc import Callable

from lb import config
from lb.backends import AdminState, Backend, Health, backoff
from lb.health.probes import probe


class Monitor:
    """Tries one backend by connections of its own, which begin with the preface."""

    def __init__(
        self,
        backend: Backend,
        check: config.HealthCheck | None,
        connect_timeout: float,
        preface: bytes = b"",
    ) -> None:
        self._backend = backend
        self._check = check
        self._timeout = connect_timeout if check is None else check.timeout
        self._ping = None if check is None else check.ping
        self._preface = preface
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Serves for ever; to be run as a task, which ends it by being cancelled."""
        self._backend.on_change.append(self._note)
        try:
            await self._try_for_ever()
        finally:
            self._backend.on_change.remove(self._note)

    def _note(self, backend: Backend) -> None:
        del backend
        self._changed.set()

    async def _try_for_ever(self) -> None:
        backend = self._backend
        attempt = 0
        while True:
            await self._until(lambda: backend.admin is not AdminState.MAINT)
            outcome = await probe(backend.config.address, self._timeout, self._ping, self._preface)
            backend.checked(outcome.failure, outcome.seconds, connected=outcome.connected)
            attempt = attempt + 1 if outcome.failure else 0
            if self._check is not None:
                stray = random.uniform(-1, 1)
                await asyncio.sleep(pause(self._check, backend.changing, outcome.seconds, stray))
            elif outcome.failure is None and not backend.down:
                await self._until(lambda: backend.health is not Health.UP)
            else:
                await asyncio.sleep(backoff(attempt))

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Returns when something has changed so that the condition holds."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def pause(check: config.HealthCheck, changing: bool, spent: float, stray: float) -> float:
    """Seconds from the end of a check, which took ``spent``, to the start of the next one.

    ``changing``: whether a change of state has begun; ``stray``: -1 for as early as ``jitter`` allows, 1 for
    as late.
    """
    interval = check.fast_interval if changing else check.interval
    return max(0.0, interval * (1 + stray * check.jitter / 100) - spent)
