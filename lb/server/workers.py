"""Workers: backends that connect to the balancer, from behind NAT perhaps, and leave by closing.

A connection is a worker's from the moment it is accepted. It may say in one first line who it is,

    worker NAME weight N

and where both have a default: the address that it comes from, and 1. Workers of one name are one backend with
several connections. A line has to be there at once; a worker whose protocol lets it speak first, and whose
first message begins with ``worker``, has to send one.

A worker that closes its side gets nothing new; what it has sent is delivered, and what it owes is told to
those who wait, like that of any backend. When its last connection has ended it is forgotten.
"""

import asyncio
import logging
import re
import socket
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address

from lb import config
from lb.backends import MOST_WEIGHT, Backend
from lb.config.scalars import is_name
from lb.ranges import TableFullError
from lb.server import faults
from lb.server.accepting import Acceptor
from lb.server.bundle import Bundle
from lb.server.context import Pool, Services

_log = logging.getLogger(__name__)

_GREETING = b"worker "
_LONGEST = 128  # bytes of the line
_PATTERN = re.compile(r"worker (\S+)(?: weight (\d{1,3}))?\r?\n", re.ASCII)
_MOMENT = 0.1  # seconds that the first bytes of a line may take
_LOOK = 0.005


class GreetingError(Exception):
    """What a worker says of itself cannot be used."""


class Workers:
    """Accepts the workers of one pool."""

    def __init__(
        self,
        pool: Pool,
        settings: config.Workers,
        sock: socket.socket,
    ) -> None:
        self.refused: Counter[str] = Counter(dict.fromkeys(("not_allowed", "max_workers", "bad_greeting"), 0))
        self._pool = pool
        self._settings = settings
        self._known: dict[str, Backend] = {}
        self._acceptor = Acceptor(f"workers of {pool.config.name}", sock, self._admit)

    @property
    def address(self) -> str:
        """Where workers connect to."""
        return self._acceptor.address

    @property
    def _services(self) -> Services:
        return self._bundle.services

    @property
    def _bundle(self) -> Bundle:
        assert self._pool.bundle is not None
        return self._pool.bundle

    def open(self) -> None:
        """Starts to accept."""
        self._acceptor.open(self._services.loop)

    def close(self) -> None:
        """Stops to accept; workers stay."""
        self._acceptor.close()

    def give_away(self) -> socket.socket:
        """Stops to accept; those of another pool go on with the socket."""
        return self._acceptor.give_away()

    def set_congestion(self, name: str) -> None:
        """Workers to come get a congestion control algorithm."""
        self._acceptor.set_congestion(name)

    def reconfigure(self, settings: config.Workers) -> None:
        """New settings, for workers to come; the address stays."""
        self._settings = settings

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        if not config.within(self._settings.allow, peer[0]):
            _log.warning("pool %s: a worker from %s is not allowed", self._pool.config.name, peer[0])
            self._refuse(sock, "not_allowed")
            return
        sock.setblocking(False)
        self._services.spawn(f"greeting of {peer}", self._greet(sock, peer))

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        self.refused[reason] += 1
        faults.reset_on_close(sock)
        sock.close()

    async def _greet(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        try:
            name, weight, taken = await _introduction(sock, peer[0])
            backend = self._backend(name, weight, peer)
        except (GreetingError, OSError) as error:
            _log.warning("pool %s: worker %s refused: %s", self._pool.config.name, peer, error)
            self._refuse(sock, "bad_greeting")
            return
        except BaseException:
            sock.close()
            raise
        if backend is None or not self._bundle.adopt(backend, sock, taken, lambda: self._left(backend)):
            self._refuse(sock, "max_workers")
            if backend is not None:
                self._left(backend)

    def _backend(self, name: str, weight: int, peer: tuple[str, int]) -> Backend | None:
        """The backend of this name; None if there is no room for one more."""
        known = self._known.get(name)
        if known is not None:
            if known.weight != weight:
                known.config = config.Backend(name, known.config.address, weight)
                self._pool.members.weights.changed(known)
            return known
        if any(backend.name == name for backend in self._pool.backends):
            raise GreetingError(f"{name!r} is the name of another backend")
        address = config.Address(ip_address(peer[0].partition("%")[0]), peer[1])
        try:
            backend = self._pool.members.add(config.Backend(name, address, weight), dial=False)
        except TableFullError:
            return None
        self._known[name] = backend
        backend.connected()
        return backend

    def _left(self, backend: Backend) -> None:
        """One connection less."""
        if backend.connections or self._known.get(backend.name) is not backend:
            return
        del self._known[backend.name]
        self._pool.members.remove(backend, "its last connection has ended")


async def _introduction(sock: socket.socket, host: str) -> tuple[str, int, int]:
    """Name, weight, and bytes read; takes the line, if there is one, and nothing behind it."""
    seen = b""
    async with asyncio.timeout(None) as limit:
        loop = asyncio.get_running_loop()
        limit.reschedule(loop.time() + 5.0)
        end = loop.time() + _MOMENT
        while True:
            with suppress(BlockingIOError):
                seen = sock.recv(_LONGEST, socket.MSG_PEEK)
                if not seen:
                    raise GreetingError("it has closed already")
            if seen and not seen.startswith(_GREETING[: len(seen)]):
                return host, 1, 0
            if b"\n" in seen:
                break
            if len(seen) == _LONGEST:
                raise GreetingError(f"its first line is longer than {_LONGEST} bytes")
            if not seen and loop.time() >= end:
                return host, 1, 0
            await asyncio.sleep(_LOOK)
    raw = sock.recv(seen.index(b"\n") + 1)
    line = raw.decode("ascii", "replace")
    match = _PATTERN.fullmatch(line)
    if match is None or not is_name(match[1]):
        raise GreetingError(f"{line.strip()!r} is not `worker NAME weight N`")
    weight = int(match[2] or 1)
    if weight > MOST_WEIGHT:
        raise GreetingError(f"its weight of {weight} is above {MOST_WEIGHT}")
    return match[1], weight, len(raw)
