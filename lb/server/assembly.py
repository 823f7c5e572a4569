"""What serves now, and what served before and still has clients."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from lb import config
from lb.server.context import Listening, Pool, Services
from lb.server.framings import Framings
from lb.server.listener import Listener
from lb.server.listeners import Listenings
from lb.server.pools import Pools
from lb.server.waiting import until


@dataclass(slots=True)
class Assembly:
    """The parts of a server, in the order of the configuration that they follow."""

    services: Services
    settings: config.Config
    framings: Framings = field(init=False)
    making_pools: Pools = field(init=False)
    making_listenings: Listenings = field(init=False)
    pools: list[Pool] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)
    retired: list[Listening] = field(default_factory=list)  # nobody can connect there any more
    closing: list[Pool] = field(default_factory=list)  # only such listeners use them

    def __post_init__(self) -> None:
        self.framings = Framings(self.services.plane)
        self.making_pools = Pools(self.services, self.framings)
        self.making_listenings = Listenings(self.services, self.framings)

    def pool(self, name: str) -> Pool:
        """One that serves."""
        return next(pool for pool in self.pools if pool.config.name == name)

    def listener(self, name: str) -> Listener:
        """One that accepts."""
        return next(each for each in self.listeners if each.listening.config.name == name)

    def all_pools(self) -> Iterator[Pool]:
        """Those that close too."""
        yield from self.pools
        yield from self.closing

    def all_listenings(self) -> Iterator[Listening]:
        """Those that are retired too."""
        yield from (listener.listening for listener in self.listeners)
        yield from self.retired

    # Ends; nothing of it can fail

    def retire(self, listener: Listener, *, keep: bool = False) -> socket.socket | None:
        """Nobody connects to a listener any more; its clients go on for a while.

        ``keep``: gives its socket.
        """
        sock = listener.give_away() if keep else None
        if sock is None:
            listener.close()
        self.listeners.remove(listener)
        self.retired.append(listener.listening)
        name = f"end of listener {listener.listening.config.name}"
        self.services.spawn(name, self._retire(listener.listening))
        return sock

    async def _retire(self, listening: Listening) -> None:
        await self.making_listenings.retire(listening)
        self.retired.remove(listening)

    def close_pool(self, pool: Pool, *, keep: bool = False) -> socket.socket | None:
        """A pool ends when its last listener has; ``keep``: gives the socket that its workers connect to."""
        sock = None
        if pool.workers is not None:
            sock = pool.workers.give_away() if keep else None
            if sock is None:
                pool.workers.close()
        self.pools.remove(pool)
        self.closing.append(pool)
        self.services.spawn(f"end of pool {pool.config.name}", self._close_pool(pool))
        return sock

    async def _close_pool(self, pool: Pool) -> None:
        await until(lambda: not pool.listenings)
        await self.making_pools.close(pool)
        self.closing.remove(pool)
