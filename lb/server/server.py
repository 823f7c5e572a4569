"""Listeners, pools and their clients, from the first to the last."""

import asyncio
import logging
import socket
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lb import abi, config
from lb.backends import Backend
from lb.config.changes import difference
from lb.dataplane import DataPlane, Traffic
from lb.events import event
from lb.server.assembly import Assembly
from lb.server.bundle import bundles
from lb.server.bursts import Bursts, Count
from lb.server.client import Client
from lb.server.context import Departed, Listening, Losses, Pool, Services
from lb.server.inquest import Inquest
from lb.server.listener import Listener
from lb.server.lookup import Lookups
from lb.server.pauses import Pauses
from lb.server.plan import Plan
from lb.server.poller import Poller
from lb.server.poster import Poster
from lb.server.quiescence import Quiescence
from lb.server.rates import Buckets
from lb.server.tapping import Tapping
from lb.server.waiting import until

_log = logging.getLogger(__name__)


class Server:
    """Serves a configuration with a loaded data plane. Lives inside :meth:`run`."""

    def __init__(
        self,
        settings: config.Config,
        plane: DataPlane,
        bound: Sequence[socket.socket],
        workers: Mapping[str, socket.socket],
    ) -> None:
        """Takes over the bound sockets: one for each listener, in order, and of pools that accept workers."""
        self.plane = plane
        self.losses = Losses()
        self.tapping = Tapping(plane.taps, self)
        self.leaving = False  # it is going to end, and says so, but still serves whoever comes
        self.draining = False
        self.started = asyncio.Event()
        self.assembly: Assembly
        self._settings = settings
        names = [listener.name for listener in settings.listeners]
        self._bound = dict(zip(names, bound, strict=True))
        self._bound_workers = workers

    @property
    def settings(self) -> config.Config:
        """The configuration that it serves now."""
        return self.assembly.settings

    @property
    def pools(self) -> list[Pool]:
        """Those of the configuration."""
        return self.assembly.pools

    @property
    def listeners(self) -> list[Listener]:
        """Those of the configuration."""
        return self.assembly.listeners

    @property
    def listenings(self) -> list[Listening]:
        """What the clients of each listener share."""
        return [listener.listening for listener in self.assembly.listeners]

    @property
    def serves(self) -> bool:
        """Whether it has started and does not end yet."""
        return self.started.is_set() and not self.leaving and not self.draining

    @property
    def state(self) -> str:
        """In a word."""
        if self.draining:
            return "draining"
        if self.leaving:
            return "leaving"
        return "serving" if self.started.is_set() else "starting"

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs work of which the server waits for the end."""
        self.assembly.services.spawn(name, work)

    # What can be asked

    def traffic(self, listening: Listening, backend: Backend) -> Traffic:
        """Messages between a listener and a backend, whoever carried them."""
        row = self.plane.counters.traffic(listening.traffic[backend.index])
        relayed = listening.relayed.get(backend)
        if relayed is None:
            return row
        return Traffic(
            row.requests + relayed.requests,
            row.responses + relayed.responses,
            row.request_bytes + relayed.request_bytes,
            row.response_bytes + relayed.response_bytes,
        )

    def dropped_messages(self) -> dict[str, int]:
        """Messages that were not delivered, by reason, whether the kernel or user space knows."""
        counts = {
            name.removeprefix("DROPPED_").lower(): self.plane.counters.messages(counter)
            for name, counter in abi.Counter.__members__.items()
            if name.startswith("DROPPED_")
        }
        for reason, messages in self.losses.dropped.items():
            counts[reason] = counts.get(reason, 0) + messages
        return counts

    def _bursts(self) -> dict[Count, int]:
        """What happens to clients and messages that may be many."""
        counts = {Count("dropped", "", reason): number for reason, number in self.dropped_messages().items()}
        for listening in self.listenings:
            name = listening.config.name
            for kind, found in (("refused", listening.refused), ("malformed", listening.protocol_errors)):
                counts.update((Count(kind, name, reason), number) for reason, number in found.items())
        return counts

    def refusals(self) -> int:
        """Messages among those that were answered by the protocol's refusal."""
        return self.plane.counters.messages(abi.Counter.REFUSALS) + self.losses.refused

    def buffered_bytes(self) -> int:
        """Bytes that were redirected to sockets and are not in their send queues yet."""
        shared = sum(bundle.backlog for bundle in bundles(self.assembly.all_pools()))
        return shared + sum(client.buffered_bytes for client in self._clients())

    def departing(self) -> Iterator[tuple[Listening, Backend]]:
        """Listeners and backends between which messages still go, but that no metric names any more."""
        for listening in self.assembly.all_listenings():
            retired = listening in self.assembly.retired
            for pool in listening.pools:
                for backend in (*pool.leaving, *(pool.backends if retired else ())):
                    yield listening, backend

    def client_count(self, listener: str) -> int:
        """Clients of a listener; those that came before it was replaced are among them."""
        listenings = self.assembly.all_listenings()
        return sum(len(each.clients) for each in listenings if each.config.name == listener)

    @property
    def departed(self) -> Departed:
        """What was counted between listeners and backends that are not there any more."""
        return self.assembly.services.departed

    # The life of the server

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until ``stop`` is set, then drains, at most for the longest drain timeout of a pool."""
        loop = asyncio.get_running_loop()
        poller = Poller(loop)
        quiescence = Quiescence(self.plane)
        pauses = Pauses(self.plane)
        inquest = Inquest(self.plane)
        poster = Poster(self.plane.post)
        try:
            async with asyncio.TaskGroup() as background:
                serving = [
                    background.create_task(quiescence.run(), name="quiescence"),
                    background.create_task(pauses.run(), name="pauses"),
                    background.create_task(inquest.run(), name="inquest"),
                    background.create_task(Bursts(self._bursts).run(), name="bursts"),
                ]
                try:
                    async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as connections:
                        services = Services(
                            loop,
                            self.plane,
                            poller,
                            quiescence,
                            pauses,
                            inquest,
                            poster,
                            Buckets(self.plane.rates),
                            connections,
                            background,
                            self.losses,
                            Lookups(loop),
                        )
                        services.serving.update(serving)
                        await self._begin(services)
                        self.started.set()
                        await stop.wait()
                        await self._leave()
                        limit.reschedule(loop.time() + self._drain_limit())
                        await self._drain()
                        for bundle in bundles(self.assembly.all_pools()):
                            await bundle.drain()
                except TimeoutError:
                    _log.warning("not drained within %g s", self._drain_limit(), extra=event("process"))
                for task in list(self.assembly.services.serving):
                    task.cancel()
        finally:
            self.tapping.close()
            self._close_doors()
            for client in self._clients():
                client.fail("shutdown")
            for bundle in bundles(self.assembly.all_pools()):
                bundle.close()
            poller.close()

    async def _begin(self, services: Services) -> None:
        """From nothing to the first configuration."""
        nothing = replace(self._settings, listeners=(), pools=())
        self.assembly = Assembly(services, nothing)
        plan = Plan(
            self.assembly,
            self._settings,
            difference(nothing, self._settings),
            bound=self._bound,
            bound_workers=self._bound_workers,
        )
        plan.prepare()
        await plan.look_up()
        plan.commit()

    def _close_doors(self) -> None:
        """Nobody new comes in, neither clients nor workers."""
        for listener in self.listeners:
            listener.close()
        for pool in self.pools:
            if pool.workers is not None:
                pool.workers.close()

    def _clients(self) -> list[Client]:
        return [client for listening in self.assembly.all_listenings() for client in listening.clients]

    def _drain_limit(self) -> float:
        return max(pool.config.timeouts.drain for pool in self.assembly.all_pools())

    async def _leave(self) -> None:
        """Gives those who send clients here time to see that it is not ready any more."""
        self.leaving = True
        delay = self._settings.runtime.shutdown_delay
        if delay:
            _log.info("not ready; listeners close in %g s", delay, extra=event("process"))
            await asyncio.sleep(delay)

    async def _drain(self) -> None:
        self.draining = True
        self._close_doors()
        clients = self._clients()
        _log.info("draining %d clients", len(clients), extra=event("process"))
        for client in clients:
            with client.guard:
                client.shut_down()
        await until(lambda: not any(listening.clients for listening in self.assembly.all_listenings()))
