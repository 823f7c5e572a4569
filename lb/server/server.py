"""Listeners, pools and their clients, from the first to the last."""

import asyncio
import logging
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lb import abi, config
from lb.backends import Backend
from lb.dataplane import DataPlane, Policy, Traffic
from lb.dataplane.rules import encode, to_pool
from lb.events import event
from lb.framing import Framing
from lb.server import routing
from lb.server.bundle import Bundle, bundles
from lb.server.bursts import Bursts, Count
from lb.server.client import Client
from lb.server.context import Departed, Listening, Losses, Pool, Services
from lb.server.inquest import Inquest
from lb.server.listener import Listener
from lb.server.lookup import Lookups
from lb.server.members import Members
from lb.server.pauses import Pauses
from lb.server.poller import Poller
from lb.server.poster import Poster
from lb.server.quiescence import Quiescence
from lb.server.rates import Buckets
from lb.server.tapping import Tapping
from lb.server.waiting import until
from lb.server.workers import Workers

_log = logging.getLogger(__name__)

_BALANCE = {
    config.Balance.ROUND_ROBIN: abi.Balance.ROUND_ROBIN,
    config.Balance.LEAST_OUTSTANDING: abi.Balance.LEAST_OUTSTANDING,
    config.Balance.RANDOM: abi.Balance.RANDOM,
    config.Balance.HASH: abi.Balance.HASH,
}
# Clients looked at, before the loop does something else.
_SWEEP_BATCH = 64


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
        self.pools: list[Pool] = []
        self.listenings: list[Listening] = []
        self.listeners: list[Listener] = []
        self.losses = Losses()
        self.tapping = Tapping(plane.taps, self)
        self.leaving = False  # it is going to end, and says so, but still serves whoever comes
        self.draining = False
        self.started = asyncio.Event()
        self._services: Services
        self._settings = settings
        self._bound = bound
        self._bound_workers = workers

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
        shared = sum(bundle.backlog for bundle in bundles(self.pools))
        return shared + sum(client.buffered_bytes for client in self._clients())

    @property
    def departed(self) -> Departed:
        """What was counted between listeners and backends that are not there any more."""
        return self._services.departed

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
                        self._services = Services(
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
                        self._services.serving.update(serving)
                        self._build()
                        for pool in self.pools:
                            pool.members.start()
                            if pool.workers is not None:
                                pool.workers.open()
                        await asyncio.gather(*(pool.members.names.looked() for pool in self.pools))
                        for listener in self.listeners:
                            listener.open()
                        self.started.set()
                        await stop.wait()
                        await self._leave()
                        limit.reschedule(loop.time() + self._drain_limit())
                        await self._drain()
                        for bundle in bundles(self.pools):
                            await bundle.drain()
                except TimeoutError:
                    _log.warning("not drained within %g s", self._drain_limit(), extra=event("process"))
                for task in list(self._services.serving):
                    task.cancel()
        finally:
            self.tapping.close()
            self._close_doors()
            for client in self._clients():
                client.fail("shutdown")
            for bundle in bundles(self.pools):
                bundle.close()
            poller.close()

    def _close_doors(self) -> None:
        """Nobody new comes in, neither clients nor workers."""
        for listener in self.listeners:
            listener.close()
        for pool in self.pools:
            if pool.workers is not None:
                pool.workers.close()

    def _clients(self) -> list[Client]:
        return [client for listening in self.listenings for client in listening.clients]

    def _drain_limit(self) -> float:
        return max(pool.config.timeouts.drain for pool in self.pools)

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
        await until(lambda: not any(listening.clients for listening in self.listenings))

    def _build(self) -> None:
        """Publishes everything to the kernel."""
        services = self._services
        framings: dict[Framing, int] = {}
        pools: dict[str, Pool] = {}
        for settings in self._settings.pools:
            pool = pools[settings.name] = self._build_pool(settings)
            self.pools.append(pool)
        for listener, sock in zip(self._settings.listeners, self._bound, strict=True):
            reached = tuple(pools[name] for name in listener.pools)
            pool = reached[0]
            framing = _looked_at(listener.framing, reached)
            if framing not in framings:
                framings[framing] = self.plane.publish_framing(framing)
            listening = Listening(
                config=listener,
                pools=reached,
                policy=Policy(
                    framings[framing],
                    pool.index,
                    pool.config.batch,
                    self._settings.runtime.buffer_budget,
                    route=pool.route,
                    rate=services.buckets.new(listener.limits.rate) if listener.limits.rate else 0,
                    hashed=any(pool.config.hash is not None for pool in reached),
                    rules=self._publish_rules(listener, pools),
                    listener=self.plane.taps.new_listener(),
                ),
                services=services,
            )
            for its in reached:
                its.members.join(listening)
            self.listenings.append(listening)
            self.listeners.append(Listener(listening, sock))
            services.serve(f"idle sweep of {listener.name}", self._sweep(listening))
        for pool in self.pools:
            if pool.route is not None and pool.listenings:
                pool.bundle = Bundle(pool, services, self._shared_policy(pool, pool.listenings[0].policy))
                services.serve(f"requests of {pool.bundle}", pool.bundle.run())

    def _build_pool(self, settings: config.Pool) -> Pool:
        shared = settings.connections is config.Connections.SHARED
        route = self.plane.new_shared_route() if shared else None
        index = self.plane.publish_pool(_BALANCE[settings.balance], settings.max_in_flight, route=route)
        pool = Pool(settings, index, route)
        Members(pool, settings.backends, self._services)
        sock = self._bound_workers.get(settings.name)
        if settings.workers is not None and sock is not None:
            pool.workers = Workers(pool, settings.workers, sock)
        return pool

    def _publish_rules(self, listener: config.Listener, pools: Mapping[str, Pool]) -> int:
        """The number of a listener's rules, 0 if it has none."""
        if not listener.rules:
            return 0
        default = to_pool(pools[listener.pool].index)
        return self.plane.rules.publish(encode(listener.rules, routing.decisions(pools), default))

    def _shared_policy(self, pool: Pool, policy: Policy) -> Policy:
        """That of the shared upstreams of a pool; the one given is of any listener."""
        return replace(
            policy, pool=pool.index, batch=pool.config.batch, route=pool.route, hashed=False, rules=0
        )

    async def _sweep(self, listening: Listening) -> None:
        """Closes clients that sent nothing for the idle timeout, give or take a quarter of it."""
        idle = listening.idle
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(idle / 4)
            for count, client in enumerate(list(listening.clients), 1):
                seen, since = client.activity
                if (now_seen := client.seen_bytes) != seen or since == 0.0:
                    client.activity = (now_seen, loop.time())
                elif loop.time() - since >= idle:
                    with client.guard:
                        client.shut_down()
                if count % _SWEEP_BATCH == 0:
                    await asyncio.sleep(0)


def _looked_at(framing: Framing, reached: Iterable[Pool]) -> Framing:
    """The framing as the programs need it: error responses are looked for where they count."""
    ejections = [pool.config.ejection for pool in reached]
    if any(ejection is not None and ejection.error_responses for ejection in ejections):
        return framing
    return replace(framing, response_error=None)
