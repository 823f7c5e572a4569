"""Upstreams that are connected when a message needs them (``connect: on_demand``).

A client's route has a *vacant* place for each backend of its share that it has no connection to. The
programs choose among all places alike; when the choice falls on a vacant one the client is paused in front
of the message (``PAUSED_CONNECT``), that backend is connected to, and the client goes on: the message goes
there, whatever others have been sent meanwhile. A place whose backend cannot be connected to is withdrawn
until the next attempt is due (``Client.retry``), so the message goes elsewhere.

A message that has begun to come in cannot wait. So before one of which it cannot be said yet where it goes,
because the bytes that decide have not arrived, all vacant places are filled; and so are they, or one where
nothing in a message decides, before user space sends on what waits on a client that has closed its side, and
when the last upstream is lost while a message comes in.
"""

from typing import TYPE_CHECKING

from lb import abi, config
from lb.abi import Pause
from lb.backends import Backend
from lb.dataplane.rules import Decision
from lb.server import routing
from lb.session import State

if TYPE_CHECKING:
    from lb.server.client import Client


class Vacancies:
    """The vacant places of one client; those that are being filled are among them."""

    __slots__ = ("_client", "_places", "_prepared", "_since")

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._places: dict[Backend, int] = {}
        self._since: float | None = None  # nothing that a message waited for could be connected to
        self._prepared = False

    def __contains__(self, backend: Backend) -> bool:
        return backend in self._places

    def __len__(self) -> int:
        return len(self._places)

    def concern(self, backend: Backend) -> bool:
        """Whether a backend is connected to on demand."""
        pool = self._client.listening.pool_of(backend)
        return pool is not None and pool.config.connect is config.Connect.ON_DEMAND

    def offer(self, backend: Backend) -> None:
        """A message may be for a backend from here on."""
        if backend not in self._places:
            client = self._client
            self._places[backend] = client.services.plane.vacate(client.ref, backend.index)

    def take(self, backend: Backend) -> int | None:
        """The place of a backend that has been connected to; it is not vacant any more."""
        place = self._places.pop(backend, None)
        if place is not None:
            self._since = None
            self._client.services.plane.fill(self._client.ref, place)
        return place

    def withdraw(self, backend: Backend) -> None:
        """No message is for a backend any more, if it has a vacant place."""
        if (place := self._places.pop(backend, None)) is not None:
            self._client.services.plane.fill(self._client.ref, place)

    def clear(self) -> None:
        """The client ends."""
        if self._places:
            self._client.services.plane.fill(self._client.ref, *self._places.values())
            self._places.clear()

    @property
    def full(self) -> bool:
        """Whether the client's route has no room for one more, nor a place that could be given up."""
        upstreams = self._client.upstreams
        if len(upstreams) + sum(backend not in upstreams for backend in self._places) < abi.MAX_UPSTREAMS:
            return False
        for backend in self._places:
            if not backend.serving and backend not in upstreams:
                self.withdraw(backend)
                return False
        return True

    @property
    def serving(self) -> list[Backend]:
        """The backends of vacant places that messages may go to."""
        return [backend for backend in self._places if backend.serving]

    @property
    def filling(self) -> bool:
        """Whether an attempt to connect is still on its way."""
        return any(backend in self._client.upstreams for backend in self._places)

    def fill(self) -> None:
        """Connects to what the message at the client's head is for, and lets it go on then."""
        client = self._client
        assert client.mapped is not None
        if self._since is None:
            self._since = client.services.loop.time()
        for backend in self._wanted(client.services.plane.wanted(client.mapped)):
            self._connect(backend)
        self.settle()

    def settle(self) -> None:
        """An attempt to connect has ended: the client goes on if it waited for the last one."""
        client = self._client
        if client.state is not State.SPLICED or self.filling:
            return
        if client.mapped is not None and client.mapped.paused is Pause.PAUSED_CONNECT:
            client.services.pauses.release(client)

    def prepare(self) -> bool:
        """Makes ready for messages that user space sends; whether no attempt is on its way any more."""
        client = self._client
        if not self._places:
            return True
        assert client.mapped is not None
        if client.listening.policy.routed and not self._prepared:
            for backend in list(self._places):
                self._connect(backend)
        elif not self.filling and not self._served:
            wanted = self._wanted(client.services.plane.wanted(client.mapped))
            for backend in [backend for backend in wanted if backend.serving][:1] or self.serving[:1]:
                self._connect(backend)
        self._prepared = True
        return not self.filling

    def rescue(self) -> None:
        """An upstream is lost: a message that has begun to come in gets another one, if there is none."""
        client = self._client
        if client.mapped is not None and client.mapped.begun and not self.filling and not self._served:
            serving = self.serving
            for backend in serving if client.listening.policy.routed else serving[:1]:
                self._connect(backend)

    @property
    def _served(self) -> bool:
        return any(upstream.serves for upstream in self._client.upstreams.values())

    def accept(self, decision: Decision | None) -> bool:
        """Whether a message, on which that has been decided, may be for one of them."""
        client = self._client
        return any(
            backend not in client.upstreams
            and client.services.plane.accepts(backend.index)
            and routing.fits(client.listening, decision, backend)
            for backend in self._places
        )

    def serve(self, decision: Decision | None) -> bool:
        """The same, whether or not its backend is below its limit."""
        return any(
            backend.serving and routing.fits(self._client.listening, decision, backend)
            for backend in self._places
        )

    def waited(self) -> float:
        """Seconds since a message first waited for a connection, if there has been none since."""
        return 0.0 if self._since is None else self._client.services.loop.time() - self._since

    def start_anew(self) -> None:
        """The messages that waited have been given up."""
        self._since = None

    def _wanted(self, places: int) -> list[Backend]:
        return [backend for backend, place in self._places.items() if places >> place & 1]

    def _connect(self, backend: Backend) -> None:
        client = self._client
        if backend in client.upstreams:
            return
        if not backend.serving:  # it is offered again when it does
            self.withdraw(backend)
            return
        upstream = client.new_upstream(backend)
        if upstream is None:
            self.withdraw(backend)
            backend.failed("no_slot")
            client.retry(backend)
            return
        upstream.connect()
        client.later(client.timeouts.connect, upstream.give_up)
