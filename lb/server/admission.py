"""From accept to splice.

A client enters the sockmap once its upstreams are there, so that its first message has somewhere to go; it
waits for none of those that are connected on demand (:mod:`lb.server.vacancies`). It does not wait for all of
the others for ever: when one is connected, the rest get a moment more; those that come still later join a
client that is already served. When none can be connected to, it is tried again, for as long as messages may
wait for a backend (``timeouts.queue``), unless all backends are known to be down.
"""

import asyncio
from typing import TYPE_CHECKING

from lb import abi, balance
from lb.backends import Backend, backoff
from lb.session import State

if TYPE_CHECKING:
    from lb.server.client import Client

# Seconds that the first message waits for the others once one upstream is connected: longer than a
# handshake between neighbouring sites, shorter than people notice.
_STRAGGLERS = 0.1


class Admission:
    """Connects a client's upstreams and decides when it is spliced."""

    __slots__ = ("_attempt", "_client", "_since", "_timer")

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._timer: asyncio.TimerHandle | None = None
        self._since = client.listening.services.loop.time()
        self._attempt = 0

    def start(self) -> None:
        """Starts to connect to the client's share of the backends that are not known to be down."""
        client = self._client
        if client.bundle is not None:
            self._start_shared()
            return
        chosen = self.choose()
        if not chosen:
            client.refuse("no_backend")
            return
        upstreams = []
        for backend in chosen:
            if client.vacancies.concern(backend):
                client.vacancies.offer(backend)
                continue
            upstream = client.new_upstream(backend)
            if upstream is None:
                client.refuse("max_connections")
                return
            upstreams.append(upstream)
        if not upstreams:
            client.splice()
            return
        self._wait(client.listening.timeouts.connect)
        for upstream in upstreams:
            if client.state is State.ADMITTED:
                upstream.connect()

    def _start_shared(self) -> None:
        """Others connect to the backends, or those connect to us."""
        client = self._client
        for pool in client.listening.pools:
            # Its messages wait for a worker, if there is none.
            if pool.workers is not None or any(it.serving and it.weight for it in pool.backends):
                client.splice()
                return
        client.refuse("no_backend")

    def connected(self) -> None:
        """One more upstream is connected."""
        connected = len(self._client.connected_upstreams())
        if connected == len(self._client.upstreams):
            self._finish()
        elif connected == 1:
            self._wait(_STRAGGLERS)

    def failed(self) -> None:
        """One upstream less."""
        upstreams = list(self._client.upstreams.values())
        if not upstreams and not self._client.vacancies:
            self._try_again()
        elif self._client.connected_upstreams() == upstreams:
            self._finish()

    def _try_again(self) -> None:
        """No attempt succeeded: once more in a moment, as long as messages may wait for a backend."""
        client = self._client
        waited = client.listening.services.loop.time() - self._since
        if not self.choose() or waited >= client.listening.timeouts.queue:
            client.refuse("no_backend")
            return
        self.cancel()
        self._timer = client.later(backoff(self._attempt), self.start)
        self._attempt += 1

    def cancel(self) -> None:
        """Nothing more happens by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        self.cancel()
        self._timer = self._client.later(seconds, self._time_out)

    def _time_out(self) -> None:
        client = self._client
        late = [upstream for upstream in client.upstreams.values() if not upstream.connected]
        if client.connected_upstreams():
            self._finish()
            for upstream in late:
                client.later(client.listening.timeouts.connect, upstream.give_up)
            return
        for upstream in late:
            upstream.give_up()

    def _finish(self) -> None:
        self.cancel()
        client = self._client
        client.splice()
        if client.state is State.SPLICED:
            for backend in self.choose():
                # It failed, or came up, since the start.
                if backend not in client.upstreams and backend not in client.vacancies:
                    client.retry(backend)

    def choose(self) -> list[Backend]:
        """The client's share of the backends that serve, of all pools that its messages may go to."""
        client = self._client
        pools = client.listening.pools
        serving = [backend for pool in pools for backend in pool.backends if backend.serving]
        return balance.subset(serving, client.number, abi.MAX_UPSTREAMS)
