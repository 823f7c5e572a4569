"""Pools: made whole or not at all, started, given new settings, and closed when nobody uses them."""

import asyncio
import logging
import socket
from dataclasses import replace

from lb import abi, config
from lb.framing import Framing
from lb.ranges import TableFullError
from lb.server.bundle import Bundle
from lb.server.context import Listening, Pool, Services
from lb.server.framings import Framings
from lb.server.members import Members
from lb.server.waiting import until
from lb.server.workers import Workers

_log = logging.getLogger(__name__)

_BALANCE = {
    config.Balance.ROUND_ROBIN: abi.Balance.ROUND_ROBIN,
    config.Balance.LEAST_OUTSTANDING: abi.Balance.LEAST_OUTSTANDING,
    config.Balance.RANDOM: abi.Balance.RANDOM,
    config.Balance.HASH: abi.Balance.HASH,
}


class Pools:
    """Makes pools and ends them."""

    def __init__(self, services: Services, framings: Framings) -> None:
        self._services = services
        self._framings = framings
        self._published: dict[Bundle, Framing] = {}
        self._requests: dict[Bundle, asyncio.Task[None]] = {}

    def build(self, settings: config.Pool) -> Pool:
        """A pool that does nothing yet.

        Raises:
            TableFullError: the tables have no room for it.
        """
        plane = self._services.plane
        shared = settings.connections is config.Connections.SHARED
        route = plane.new_shared_route() if shared else None
        index = None
        try:
            index = plane.publish_pool(_BALANCE[settings.balance], settings.max_in_flight, route=route)
            pool = Pool(settings, index, route)
            Members(pool, settings.backends, self._services)
        except TableFullError:
            self._withdraw(index, route)
            raise
        return pool

    def discard(self, pool: Pool) -> None:
        """Ends a pool that was never started."""
        pool.members.discard()
        self._withdraw(pool.index, pool.route)

    def bundle(self, pool: Pool, listening: Listening) -> None:
        """Gives a pool whose clients share their upstreams what carries them, for its first listener.

        Raises:
            TableFullError: the tables have no room for it.
        """
        if pool.route is None or pool.bundle is not None:
            return
        self._framings.acquire(listening.published)
        policy = replace(
            listening.policy,
            pool=pool.index,
            batch=pool.config.batch,
            route=pool.route,
            hashed=False,
            rules=0,
        )
        pool.bundle = Bundle(pool, self._services, policy)
        self._published[pool.bundle] = listening.published

    def unbundle(self, pool: Pool) -> None:
        """The same backwards, before it has started, or when it has ended."""
        bundle, pool.bundle = pool.bundle, None
        if bundle is not None:
            self._framings.release(self._published.pop(bundle))

    @staticmethod
    def accept(pool: Pool, sock: socket.socket) -> None:
        """Starts to accept workers."""
        assert pool.config.workers is not None
        pool.workers = Workers(pool, pool.config.workers, sock)
        pool.workers.open()

    def start_bundle(self, pool: Pool) -> None:
        """Connects what carries the messages of all clients, if it is not yet."""
        bundle = pool.bundle
        if bundle is None or bundle in self._requests:
            return
        self._requests[bundle] = self._services.serve(f"requests of {bundle}", bundle.run())
        bundle.start()

    async def close(self, pool: Pool) -> None:
        """Ends a pool that no listener uses; returns when nobody refers to it any more."""
        if pool.workers is not None:
            pool.workers.close()
        pool.members.close(f"pool {pool.config.name} goes")
        bundle = pool.bundle
        if bundle is not None:
            await bundle.dissolve()
        await until(lambda: not pool.leaving)
        if bundle is not None:
            task = self._requests.pop(bundle, None)
            if task is not None:
                task.cancel()
        await self._services.quiescence.wait()
        self.unbundle(pool)
        self._withdraw(pool.index, pool.route)
        _log.info("pool %s is gone", pool.config.name)

    def _withdraw(self, index: int | None, route: int | None) -> None:
        plane = self._services.plane
        if index is not None:
            plane.withdraw_pool(index)
        if route is not None:
            plane.release_shared_route(route)
