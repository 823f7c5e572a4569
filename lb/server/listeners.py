"""Listeners: made whole or not at all, given new settings, and retired when nobody may connect any more."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lb import abi, config
from lb.dataplane import Policy
from lb.dataplane.rules import Range
from lb.framing import Framing
from lb.ranges import TableFullError
from lb.server.context import Listening, Pool, Services
from lb.server.framings import Framings
from lb.server.waiting import until

_log = logging.getLogger(__name__)

# Clients looked at, before the loop does something else.
_SWEEP_BATCH = 64


class Listenings:
    """Makes what the clients of a listener share, and ends it."""

    def __init__(self, services: Services, framings: Framings) -> None:
        self._services = services
        self._framings = framings
        self._sweeps: dict[Listening, asyncio.Task[None]] = {}

    def build(
        self,
        settings: config.Listener,
        pools: tuple[Pool, ...],
        budget: int,
        tap: int,
        tests: Sequence[abi.Test],
    ) -> Listening:
        """A listener without clients.

        Args:
            settings: of it.
            pools: that its messages may go to, its own first.
            budget: bytes that may wait for one of its clients.
            tap: the number by which taps know it.
            tests: that its rules are made of.

        Raises:
            TableFullError: the tables have no room for it.
        """
        services = self._services
        published = _looked_at(settings.framing, pools)
        framing = self._framings.acquire(published)
        rate = rules = 0
        joined: list[tuple[Pool, Listening]] = []
        try:
            if settings.limits.rate is not None:
                rate = services.buckets.new(settings.limits.rate)
            self.require_addresses(settings)
            if tests:
                rules = services.plane.rules.publish(tests)
            listening = Listening(
                config=settings,
                pools=pools,
                published=published,
                policy=Policy(
                    framing,
                    pools[0].index,
                    pools[0].config.batch,
                    budget,
                    route=pools[0].route,
                    rate=rate,
                    hashed=any(pool.config.hash is not None for pool in pools),
                    rules=rules,
                    listener=tap,
                ),
                services=services,
            )
            for pool in pools:
                pool.members.join(listening)
                joined.append((pool, listening))
        except TableFullError:
            for pool, its in joined:
                pool.members.part(its)
            if rules:
                services.plane.rules.withdraw(rules)
            if rate:
                services.buckets.release(rate)
            self._framings.release(published)
            raise
        return listening

    def discard(self, listening: Listening) -> None:
        """Ends one that has no clients, and whose programs have ended."""
        for pool in listening.pools:
            pool.members.part(listening)
        if listening.policy.rules:
            self._services.plane.rules.withdraw(listening.policy.rules)
        if listening.policy.rate:
            self._services.buckets.release(listening.policy.rate)
        self._framings.release(listening.published)

    def start(self, listening: Listening) -> None:
        """Looks for idle clients from here on, by what its timeout is now."""
        name = f"idle sweep of {listening.config.name}"
        before = self._sweeps.pop(listening, None)
        if before is not None:
            before.cancel()
        self._sweeps[listening] = self._services.serve(name, self._sweep(listening))

    def change(self, listening: Listening, settings: config.Listener, rate: int) -> None:
        """New settings for one that goes on, for clients that are there too.

        ``rate``: the number of its rate, 0 for none.
        """
        before, listening.config = listening.config, settings
        old, new = before.limits, settings.limits
        if old.idle != new.idle:
            self.start(listening)
        if (old.rate, old.rate_per_address) == (new.rate, new.rate_per_address):
            return
        buckets = self._services.buckets
        number = listening.policy.rate
        listening.policy = replace(listening.policy, rate=rate)
        if rate and rate == number and new.rate is not None:
            buckets.change(rate, new.rate)
        clients = list(listening.clients)
        for client in clients:
            buckets.leave(client.throttle)
        for client in clients:
            client.throttle = buckets.join(settings, rate, client.address)
            if client.mapped is not None:
                client.mapped.set_rates(rate, client.throttle.address_rate)
                self._services.pauses.hasten(client)
        if number and number != rate:
            self._services.spawn(f"rate of {settings.name}", self._release(number))

    async def _release(self, number: int) -> None:
        await self._services.quiescence.wait()
        self._services.buckets.release(number)

    def switch(self, listening: Listening, to: Range) -> None:
        """Lets its messages follow other rules, in one step."""
        rules = self._services.plane.rules
        old = rules.switch(listening.policy.rules, to)
        self._services.spawn(f"rules of {listening.config.name}", self._free(old))

    async def _free(self, old: Range) -> None:
        await self._services.quiescence.wait()
        self._services.plane.rules.free(old)

    def require_addresses(self, settings: config.Listener) -> None:
        """Raises :class:`TableFullError` if addresses are to have rates, and there is no room for them."""
        plane = self._services.plane
        if settings.limits.rate_per_address is not None and plane.rates.size <= 2 * plane.slots.size:
            raise TableFullError("rates", plane.rates.size)

    async def retire(self, listening: Listening) -> None:
        """Returns when its clients have left, and nobody refers to it any more.

        They go on as they are for the drain timeout of their pool; who is there then is drained.
        """
        name, drain = listening.config.name, listening.timeouts.drain

        def empty() -> bool:
            return not listening.clients and not listening.introductions

        try:
            async with asyncio.timeout(drain):
                await until(empty)
        except TimeoutError:
            _log.info("listener %s: draining the %d clients of before", name, len(listening.clients))
            for client in list(listening.clients):
                with client.guard:
                    client.shut_down()
            for introduction in list(listening.introductions):
                introduction.close()
            await until(empty)
        self._sweeps.pop(listening).cancel()
        await self._services.quiescence.wait()
        self.discard(listening)

    async def _sweep(self, listening: Listening) -> None:
        """Closes clients that sent nothing for the idle timeout, give or take a quarter of it."""
        loop = asyncio.get_running_loop()
        while True:
            idle = listening.idle
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
