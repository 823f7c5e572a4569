"""Backends by name: a pool has one at each address that a name has.

A name is looked up at the start, and again and again. An address that it has now becomes a backend, one that
it has no more leaves (:mod:`lb.server.members`). What the resolver cannot say changes nothing: the addresses
of the last good answer stay, also when the name is said not to exist any more.

Balancers that get the same answers have backends of the same names, of which tables of hashes are made; if
there are too many addresses, all take the same ones.
"""

import asyncio
import logging
import random
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from lb import config
from lb.backends import Backend, backoff
from lb.config import Family
from lb.ranges import TableFullError
from lb.server.context import Pool, Services
from lb.server.lookup import Answer, Host, Lookups, Result

_log = logging.getLogger(__name__)

_FAMILIES = {
    Family.AUTO: (socket.AF_INET, socket.AF_INET6),
    Family.BOTH: (socket.AF_INET, socket.AF_INET6),
    Family.IPV4: (socket.AF_INET,),
    Family.IPV6: (socket.AF_INET6,),
}
_SOONEST = 1.0  # seconds until a name without addresses, or one with too many, is looked at again
_START = 1.0  # seconds that the start waits for addresses


class Known:
    """Which addresses a name has, as far as its answers tell."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._good: dict[socket.AddressFamily, tuple[Host, ...]] = {}

    async def look(self, lookups: Lookups, host: str, limit: float) -> Result:
        """Asks for the address families that are wanted, and learns from the answers."""
        answers: dict[socket.AddressFamily, Answer] = {}
        for family in _FAMILIES[self._family]:
            answer = answers[family] = await lookups.ask(host, family, limit)
            if self._family is Family.AUTO and answer.result not in (Result.NO_NAME, Result.NO_ADDRESS):
                break
        return self.learn(answers)

    def learn(self, answers: Mapping[socket.AddressFamily, Answer]) -> Result:
        """Takes the answers of one look. Only one with an address says that others are gone.

        Returns the result in one word: what could not be told counts more than what could.
        """
        results = [answer.result for answer in answers.values()]
        if Result.FOUND in results:
            self._good |= {family: answer.hosts for family, answer in answers.items() if answer.certain}
        for answer in answers.values():
            if not answer.certain:
                return answer.result
        return Result.FOUND if Result.FOUND in results else results[0]

    @property
    def hosts(self) -> list[Host]:
        """In the same order for everybody who has heard the same."""
        v4, v6 = (self._good.get(family, ()) for family in (socket.AF_INET, socket.AF_INET6))
        return [*v4] if self._family is Family.AUTO and v4 else [*v4, *v6]


class Followed:
    """A name, and the backends of its pool that come from it."""

    def __init__(self, name: config.Name, resolve: config.Resolve) -> None:
        self.name = name
        self.resolve = resolve
        self.known = Known(resolve.family)
        self.backends: dict[Host, Backend] = {}
        self.lookups: Counter[str] = Counter(dict.fromkeys((result.value for result in Result), 0))
        self.result: Result | None = None  # of the last look
        self.looked = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Names:
    """Follows the names of one pool."""

    def __init__(self, pool: Pool, services: Services) -> None:
        self.followed: list[Followed] = []
        self._pool = pool
        self._services = services

    async def looked(self) -> None:
        """Returns when all names have been looked up once, or after a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_START):
                for followed in self.followed:
                    await followed.looked.wait()

    def follow(self, names: Sequence[config.Name], resolve: config.Resolve) -> None:
        """Follows these names from here on, and no others.

        One that has another host keeps the addresses of the last one until it has been found.
        """
        before = {followed.name.name: followed for followed in self.followed}
        self.followed = [self._take_over(name, resolve, before.pop(name.name, None)) for name in names]
        for followed in before.values():
            self._drop(followed, "its name is not configured any more")

    def obstacles(self) -> Iterator[str]:
        """Names without addresses, and why."""
        for followed in self.followed:
            if not followed.backends:
                why = "not looked up yet" if followed.result is None else followed.result.value
                yield f"{followed.name.target.host}: {why.replace('_', ' ')}"

    def _take_over(self, name: config.Name, resolve: config.Resolve, before: Followed | None) -> Followed:
        if before is not None and (before.name, before.resolve) == (name, resolve):
            return before
        followed = Followed(name, resolve)
        if before is not None:
            followed.lookups = before.lookups
            if (before.name.target.host, before.resolve.family) == (name.target.host, resolve.family):
                followed.known, followed.result = before.known, before.result
            if before.name.target.port == name.target.port:
                followed.backends, before.backends = before.backends, {}
                for host, backend in followed.backends.items():
                    self._pool.members.change(backend, name.at(host))
            self._drop(before, f"its port is {name.target.port} now")
            self._apply(followed)
        title = f"addresses of {self._pool.config.name}/{name.name}"
        followed.task = self._services.serve(title, self._follow(followed))
        return followed

    def _drop(self, followed: Followed, why: str) -> None:
        assert followed.task is not None
        followed.task.cancel()
        for backend in followed.backends.values():
            self._pool.members.remove(backend, why)

    async def _follow(self, followed: Followed) -> None:
        """Serves for ever; to be run as a task."""
        attempt = 0
        while True:
            await self._look(followed)
            complete = self._apply(followed)
            followed.looked.set()
            interval = followed.resolve.interval * random.uniform(0.9, 1.1)
            if complete and followed.backends:
                attempt = 0
            else:
                attempt += 1
                interval = min(interval, backoff(attempt, shortest=_SOONEST, longest=interval))
            await asyncio.sleep(interval)

    async def _look(self, followed: Followed) -> None:
        host = followed.name.target.host
        result = await followed.known.look(self._services.lookups, host, followed.resolve.timeout)
        followed.lookups[result.value] += 1
        before, followed.result = followed.result, result
        if result is before:
            return
        hosts = len(followed.known.hosts)
        if result is not Result.FOUND:
            stay = f"; its {hosts} addresses stay" if hosts else ""
            _log.warning(
                "pool %s: %s: %s%s", self._pool.config.name, host, result.value.replace("_", " "), stay
            )
        elif before is not None:
            _log.info("pool %s: %s is found again, addresses: %d", self._pool.config.name, host, hosts)

    def _apply(self, followed: Followed) -> bool:
        """Lets the backends follow what is known; False if there was no room for all of them.

        New ones come before others leave, so that clients have somewhere to go.
        """
        members, name = self._pool.members, followed.name
        hosts = followed.known.hosts
        if not hosts:
            return True
        wanted = hosts[: followed.resolve.max_addresses]
        new = [host for host in wanted if host not in followed.backends]
        gone = [host for host in followed.backends if host not in wanted]
        if (new or gone) and len(wanted) < len(hosts):
            text = "pool %s: %s has %d addresses; the first %d are used (resolve.max_addresses)"
            _log.warning(text, self._pool.config.name, name.target.host, len(hosts), len(wanted))
        complete = True
        for host in new:
            try:
                followed.backends[host] = members.add(name.at(host))
            except TableFullError as error:
                _log.warning("pool %s: no room for %s yet: %s", self._pool.config.name, host, error)
                complete = False
        for host in gone:
            members.remove(
                followed.backends.pop(host), f"{name.target.host} does not have this address any more"
            )
        return complete
