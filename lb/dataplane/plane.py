"""Sockets in and out of the kernel: the only place that knows the order.

A socket is in two maps: in ``lb_socks`` messages can be sent to it, in ``lb_sources`` the programs run for
what it receives. What waits for a socket stays as long as it is in ``lb_socks``, so it can leave and enter
``lb_sources`` in between.

Into the maps: the slot's fields, then its generation (from then on it is somebody), then the cookie, then
``lb_socks``, then ``lb_sources`` (from then on messages flow), then the kick that releases what had arrived
before.
Out of the maps: the generation (nobody new refers to it), then both maps, which the socket leaves when it is
closed (``sock_map_close()`` in net/core/sock_map.c). The number is free again, and its counts are final, only
after a grace period, because a running program may have compared the generation before; the cookie goes then,
with those of all others that have ended meanwhile.

A *paused* source: the parser found no room and stopped the strparser in front of a message
(``bpf/lb.bpf.c``). Nothing is lost: the bytes wait in TCP's receive queue. :meth:`DataPlane.resume` takes the
socket out of ``lb_sources`` and puts it in again, which gives it a new strparser. The old one must be idle by
then: its work may still stand in the kernel's queue, and memory that is queued must not be initialised anew.
That queue is one for the whole machine and served in order, so when data of the
:class:`~lb.dataplane.canary.Canary`, sent after the pause, has come through, everything that was queued
before has too.

The programs and this module write the same arrays through shared memory, each its own fields. A whole value
is written only while no program can know the slot.
"""

import errno
import socket
from dataclasses import dataclass

from lb import abi
from lb.dataplane import sockets
from lb.dataplane.answers import Answers
from lb.dataplane.canary import Canary
from lb.dataplane.counters import Counters
from lb.dataplane.encode import encode
from lb.dataplane.flights import FlightTable, table_size
from lb.dataplane.hashing import Hashing
from lb.dataplane.mapped import MappedSocket
from lb.dataplane.post import PostChannel
from lb.dataplane.rates import Rates
from lb.dataplane.requests import Requests
from lb.dataplane.rules import Decision, Rules, address_words
from lb.dataplane.taps import Taps
from lb.framing import Framing, Ordering
from lb.libbpf import ArrayMap, ArrayOfMaps, HashMap, Object, SockMap
from lb.ranges import Ranges
from lb.routing import key_hash
from lb.slots import SlotRef, SlotTable

# Those of the canary and the post channel, behind the slots of connections.
OWN_SLOTS = 2


class PeerGoneError(Exception):
    """The socket is not ESTABLISHED any more, so the sockmap does not take it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How the messages of a socket are framed and sent on: indices of what was published."""

    framing: int
    pool: int
    batch: int
    budget: int = 1 << 20  # bytes that may wait for the socket before its senders are paused
    route: int | None = None  # of the client, if it shares its upstreams
    traffic: int = 0  # the client's part of the row of the traffic counters
    rate: int = 0  # of a client: number of the listener's rate, 0 for none
    hashed: bool = False  # a client's message may be for a pool that is hashed
    rules: int = 0  # of a client: number of the listener's rules, 0 for none
    listener: int = 0  # of a client: whose taps see its messages, 0 for none's

    @property
    def routed(self) -> bool:
        """Whether a client's messages are looked into."""
        return self.hashed or self.rules > 0


def _check_stands(slot: abi.Slot) -> None:
    """Only a source that stands in front of a message may be moved: one that has begun would be lost."""
    assert slot.paused, "the source is not paused"
    assert not slot.started, "a message has begun"


class DataPlane:
    """The loaded programs and their maps. Needs no privilege; knows no event loop.

    For one thread, but for :meth:`wait_for_programs`.
    """

    def __init__(self, loaded: Object, connections: int, max_message: int) -> None:
        """Takes over the loaded object; ``max_message`` is the largest of any framing, in bytes."""
        self._object = loaded
        self.max_message = max_message
        self._socks = loaded.map("lb_socks", SockMap)
        self._sources = loaded.map("lb_sources", SockMap)
        self._conns = loaded.map("lb_conns", HashMap)
        self._framings = loaded.map("lb_framings", ArrayMap)
        self._pools = loaded.map("lb_pools", ArrayMap)
        self._slots = loaded.map("lb_slots", ArrayMap).view(abi.Slot)
        self._routes = loaded.map("lb_routes", ArrayMap).view(abi.Route)
        self._flights = loaded.map("lb_flights", ArrayMap).view(abi.Flight)
        self._backends = loaded.map("lb_backends", ArrayMap).view(abi.Backend)
        self._marks = loaded.map("lb_marks", ArrayMap).view(abi.Marks)
        self._routing = loaded.map("lb_routing", ArrayMap).view(abi.Routing)
        self._grace = loaded.map("lb_grace", ArrayOfMaps)
        self._grace_inner = loaded.map("lb_grace_inner", ArrayMap)
        self._no_marks = abi.Marks()
        self._cookies: dict[int, bytes] = {}  # by slot, until it is free again
        self._blank = abi.Slot()
        self._in_order: set[int] = set()  # framings whose responses keep the order of the requests
        own = connections + OWN_SLOTS
        self._own_routes = own
        self.framings = Ranges("framings", self._framings.max_entries)
        self.pools = Ranges("pools", self._pools.max_entries)
        self.backends = Ranges("backends", len(self._backends))
        self.shared_routes = Ranges("pools with shared connections", len(self._routes) - own)
        self.flights = Ranges("requests on shared upstreams", len(self._flights))
        self.slots = SlotTable(connections)
        self.requests = Requests(loaded, self._slots, self._marks)
        self.counters = Counters(loaded)
        self.rates = Rates(loaded)
        self.hashing = Hashing(loaded)
        self.rules = Rules(loaded)
        self.taps = Taps(loaded)
        self.canary = Canary(self)
        self.post = PostChannel(self, max_message)

    def close(self) -> None:
        """Gives the maps back; sockets that are still mapped must have been removed before."""
        self.post.close()
        self.canary.close()
        self.taps.close()
        self._object.close()

    def wait_for_programs(self) -> None:
        """Returns when every program that ran at the time of the call has ended.

        What was changed before the call - a generation, a route, ``hold`` - no program sees otherwise any
        more, and what such a program sent on stands in the destination's queue. Blocks for an RCU grace
        period, usually 10 to 30 ms. The one method that another thread may call meanwhile; one at a time.
        """
        self._grace.insert(0, self._grace_inner)

    # What listeners and pools are made of. Everything can be withdrawn, once nobody refers to it and no
    # program can know it any more; its number is free then.

    def publish_framing(self, framing: Framing) -> int:
        """Makes a framing known to the programs; returns its index.

        Raises:
            TableFullError: the maps were not loaded for one more; so do the others.
        """
        index = self.framings.acquire()
        self._framings.update(index, bytes(encode(framing)))
        if framing.ordering is Ordering.FIFO:
            self._in_order.add(index)
        if framing.id is not None:
            self.requests.by_id.add(index)
        return index

    def withdraw_framing(self, index: int) -> None:
        """No slot refers to a framing any more."""
        self._in_order.discard(index)
        self.requests.by_id.discard(index)
        self.framings.release(index)

    def publish_pool(self, balance: abi.Balance, max_in_flight: int = 0, *, route: int | None = None) -> int:
        """Makes a pool known to the programs; returns its index.

        Args:
            balance: how messages spread.
            max_in_flight: requests that may be outstanding on one shared upstream.
            route: that its clients share.
        """
        index = self.pools.acquire()
        value = abi.Pool(balance=balance, max_in_flight=max_in_flight, route=route or 0)
        self._pools.update(index, bytes(value))
        return index

    def withdraw_pool(self, index: int) -> None:
        """No slot refers to a pool any more."""
        self.hashing.withdraw(index)
        self.pools.release(index)

    def new_shared_route(self) -> int:
        """A route for clients that share their upstreams."""
        return self._own_routes + self.shared_routes.acquire()

    def release_shared_route(self, route: int) -> None:
        """No client uses a route any more, and it is empty."""
        self.shared_routes.release(route - self._own_routes)

    def new_flight_table(self, max_in_flight: int) -> FlightTable:
        """A table for the requests of a shared upstream."""
        size = table_size(max_in_flight)
        return FlightTable(self._flights, self.flights.acquire(size), size)

    def release_flight_table(self, table: FlightTable) -> None:
        """No upstream has a table any more, and it is clear."""
        self.flights.release(table.first, table.size)

    def publish_backend(self, weight: float, pool: int = 0) -> int:
        """Makes a backend of a pool known to the programs; returns its index."""
        index = self.backends.acquire()
        self._backends[index].pool = pool
        self.set_max_outstanding(index, None)
        self.set_weight(index, weight)
        return index

    def withdraw_backend(self, index: int) -> None:
        """No slot and no route refers to a backend any more, and nothing is outstanding there."""
        self.set_weight(index, 0)
        self.counters.clear_durations(index)
        self.backends.release(index)

    def set_max_outstanding(self, backend: int, requests: int | None) -> None:
        """Limits the requests that may be outstanding on a backend; None: no limit."""
        self._backends[backend].max_outstanding = requests or 0

    def set_weight(self, backend: int, weight: float) -> None:
        """Changes a backend's share of new messages; 0: none. Kept in 1/256, and never rounded to 0."""
        entry = self._backends[backend]
        parts = max(1, round(weight * abi.WEIGHT)) if weight else 0
        entry.stride = abi.STRIDE * abi.WEIGHT // parts if parts else 0
        entry.weight = parts

    def accepts(self, backend: int, *, bound: bool = False) -> bool:
        """Whether the verdict would choose a backend: it has a weight, and is below its limit.

        A client that is ``bound`` to it (:meth:`bound_to`) does not choose: the weight says nothing then.
        """
        entry = self._backends[backend]
        below = not entry.max_outstanding or self.outstanding(backend) < entry.max_outstanding
        return below and (bound or entry.weight > 0)

    def outstanding(self, backend: int) -> int:
        """Requests to a backend whose response has not come."""
        entry = self._backends[backend]
        done = entry.answered + entry.written_off
        return entry.sent - done

    def answers(self, backend: int) -> Answers:
        """What a backend has answered so far."""
        entry = self._backends[backend]
        return Answers(entry.answered, entry.errors, entry.forgiven)

    # Sockets

    def reserve(self) -> SlotRef:
        """A slot for a socket to come.

        Raises:
            lb.slots.SlotsExhaustedError: all are in use.
        """
        return self.slots.acquire()

    def release(self, ref: SlotRef) -> None:
        """Gives back a reserved slot whose socket never came."""
        self.slots.retire(ref)

    def insert_client(
        self,
        ref: SlotRef,
        sock: socket.socket,
        policy: Policy,
        *,
        address: bytes = b"",
        address_rate: int = 0,
        written: int | None = None,
        vacant: int = 0,
    ) -> MappedSocket:
        """Maps a client's socket into its reserved slot: its messages flow from here on.

        Args:
            ref: the slot.
            sock: its socket.
            policy: that of its listener and pool.
            address: of the client, in network byte order.
            address_rate: number of its address's rate, 0 for none.
            written: what TCP counts as written to it so far (:func:`lb.dataplane.sockets.written`), if the
                caller knows: it need not be asked then.
            vacant: places of its route that were vacated (:meth:`vacate`).

        Raises:
            PeerGoneError: the client has closed its side already. The slot stays reserved.
            OSError: the kernel refuses, with one of :data:`~lb.dataplane.errors.NO_MEMORY` if it has none.
                The slot stays reserved, and nobody refers to it.
        """
        slot = self._blank_slot(ref, abi.Role.CLIENT, policy)
        slot.route = slot.to_route = ref.number if policy.route is None else policy.route
        slot.to_pool = policy.pool
        slot.traffic = policy.traffic
        slot.rate = policy.rate
        slot.listener = policy.listener
        slot.address_rate = address_rate
        slot.vacant = vacant
        if policy.routed:
            slot.routed = abi.Routed.HASH * policy.hashed | abi.Routed.RULES * (policy.rules > 0)
            routing = abi.Routing(hash=key_hash(address), rules=policy.rules)
            routing.address[:] = list(address_words(address))
            self._routing[ref.number] = routing
        return self._insert(ref, slot, sock, written)

    def insert_upstream(
        self,
        ref: SlotRef,
        sock: socket.socket,
        policy: Policy,
        *,
        client: SlotRef,
        backend: int,
        traffic: int,
        written: int | None = None,
    ) -> MappedSocket:
        """Maps an upstream's socket into its reserved slot; what it says goes to ``client``.

        Args:
            ref: the slot.
            sock: connected, options set by :func:`lb.dataplane.sockets.prepare`.
            policy: that of its listener and pool.
            client: the slot of the client that it belongs to.
            backend: index of the backend.
            traffic: row of the traffic counters.
            written: as for :meth:`insert_client`.

        Raises:
            PeerGoneError: the backend has closed already. The slot stays reserved.
            OSError: as for :meth:`insert_client`.
        """
        slot = self._blank_slot(ref, abi.Role.UPSTREAM, policy)
        slot.backend = backend
        slot.traffic = traffic
        slot.client = client.number
        slot.client_generation = client.generation
        self._marks[ref.number] = self._no_marks
        return self._insert(ref, slot, sock, written)

    def insert_shared(
        self,
        ref: SlotRef,
        sock: socket.socket,
        policy: Policy,
        *,
        backend: int,
        traffic: int,
        table: FlightTable,
    ) -> MappedSocket:
        """Maps the socket of an upstream that carries the messages of many clients.

        Args:
            ref: the slot.
            sock: connected, options set by :func:`lb.dataplane.sockets.prepare`.
            policy: that of its pool.
            backend: index of the backend.
            traffic: added to the client's row of the traffic counters.
            table: of its requests; clear.

        Raises:
            PeerGoneError: the backend has closed already. The slot stays reserved.
            OSError: as for :meth:`insert_client`.
        """
        slot = self._blank_slot(ref, abi.Role.SHARED, policy)
        slot.backend = backend
        slot.traffic = traffic
        slot.flights = table.first
        slot.flight_mask = table.size - 1
        return self._insert(ref, slot, sock)

    def _blank_slot(self, ref: SlotRef, role: abi.Role, policy: Policy) -> abi.Slot:
        self._slots[ref.number] = self._blank
        slot = self._slots[ref.number]
        slot.role = role
        slot.framing = policy.framing
        slot.pool = policy.pool
        slot.batch = policy.batch
        slot.budget = policy.budget
        return slot

    def _insert(
        self, ref: SlotRef, slot: abi.Slot, sock: socket.socket, written: int | None = None
    ) -> MappedSocket:
        cookie = sockets.cookie(sock)
        mapped = MappedSocket(ref, sock, slot, sockets.written(sock) if written is None else written)
        slot.generation = ref.generation
        try:
            self._conns.update(cookie, abi.conn(ref.number, ref.generation))
            try:
                self._socks.insert(ref.number, sock.fileno())
                self._sources.insert(ref.number, sock.fileno())
            except OSError:
                self._take_out(self._socks, ref.number)
                self._conns.delete(cookie)
                raise
        except OSError as error:
            slot.generation = 0
            if error.errno == errno.EOPNOTSUPP:
                raise PeerGoneError from error
            raise
        self._cookies[ref.number] = cookie
        sockets.release_early_data(sock)
        return mapped

    def insert_own(self, sock: socket.socket, role: abi.Role) -> MappedSocket:
        """Maps a socket of the balancer's own into one of the :data:`OWN_SLOTS`; nothing is sent to it."""
        ref = SlotRef(self.slots.size + role - abi.Role.POST, 1)
        slot = self._blank_slot(ref, role, Policy(framing=0, pool=0, batch=1))
        return self._insert(ref, slot, sock)

    # Sources that stand still

    def resume(self, mapped: MappedSocket) -> None:
        """Ends a pause: the programs look at the waiting bytes again, and may pause again.

        The canary must have come through since the pause (:meth:`Canary.send`).

        Raises:
            PeerGoneError: the peer has closed its side meanwhile. The source stays paused, and is to be taken
                over.
            OSError: the kernel refuses, ENOMEM for example. The source stays paused.
        """
        slot = self._slots[mapped.ref.number]
        _check_stands(slot)
        sockets.clear_pause(mapped.sock)
        self.leave_sources(mapped)
        pause, slot.paused = slot.paused, abi.Pause.RUNNING
        try:
            self.enter_sources(mapped)
        except (OSError, PeerGoneError):
            slot.paused = pause
            raise

    def take_over(self, mapped: MappedSocket) -> None:
        """Takes a paused source out of ``lb_sources``: its owner reads the socket like any other.

        What it reads goes on by the post channel. Messages are still sent to the socket.
        """
        slot = self._slots[mapped.ref.number]
        _check_stands(slot)
        sockets.clear_pause(mapped.sock)
        self.leave_sources(mapped)

    def leave_sources(self, mapped: MappedSocket) -> None:
        """The programs run no more for what the socket receives; a message that has begun to come is lost."""
        self._take_out(self._sources, mapped.ref.number)

    def enter_sources(self, mapped: MappedSocket) -> None:
        """The programs run again, and for what has arrived meanwhile.

        Raises:
            PeerGoneError: the peer has closed its side.
            OSError: the kernel refuses.
        """
        try:
            self._sources.insert(mapped.ref.number, mapped.sock.fileno())
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise PeerGoneError from error
            raise
        sockets.release_early_data(mapped.sock)

    def _take_out(self, sockmap: SockMap, number: int) -> None:
        try:
            sockmap.remove(number)
        except OSError as error:
            # It never was there, or the kernel took it out when TCP closed it.
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise

    def remove(self, mapped: MappedSocket) -> None:
        """Takes a socket out of the maps for its owner, who goes on with it. What waits for it is lost.

        The slot is retired; :meth:`reclaim` makes it free.
        """
        self.remove_own(mapped)
        self.slots.retire(mapped.ref)

    def remove_own(self, mapped: MappedSocket) -> None:
        """The same for a socket of :meth:`insert_own`."""
        number = mapped.ref.number
        self._slots[number].generation = 0
        self._take_out(self._sources, number)
        self._take_out(self._socks, number)
        self._conns.delete(self._cookies.pop(number))

    def close_socket(self, mapped: MappedSocket) -> None:
        """The same for a socket that is not needed any more: it is closed."""
        self._slots[mapped.ref.number].generation = 0
        mapped.sock.close()
        self.slots.retire(mapped.ref)

    def reclaim(self, retired: list[SlotRef]) -> None:
        """Makes slots free, and writes off what is outstanding on upstreams that were there.

        Args:
            retired: from :meth:`SlotTable.take_retired`, before a :meth:`wait_for_programs`: a program that
                compared the generation earlier may still send to such a slot, and count what it sends.
        """
        for ref in retired:
            slot = self._slots[ref.number]
            if slot.role in (abi.Role.UPSTREAM, abi.Role.SHARED):
                owed = slot.sent - slot.answered - slot.written_off
                self._backends[slot.backend].written_off += owed
            slot.role = abi.Role.FREE  # the next life may end without a socket: nothing is written off twice
        cookies = [self._cookies.pop(ref.number, None) for ref in retired]
        self._conns.delete_batch([cookie for cookie in cookies if cookie is not None])
        self.slots.reclaim(retired)

    # Routes

    def route(self, client: SlotRef, upstream: SlotRef, backend: int, place: int | None = None) -> int:
        """Adds an upstream to those that a client's messages may go to; returns its place.

        Args:
            client: its slot.
            upstream: the slot of the upstream.
            backend: whose upstream it is.
            place: one that was filled a moment ago (:meth:`fill`); None: whichever is free.

        Raises:
            RuntimeError: the client has :data:`lb.abi.MAX_UPSTREAMS` already.
        """
        return self._enter(client, place, upstream.number, upstream.generation, backend)

    def vacate(self, client: SlotRef, backend: int) -> int:
        """Adds a place for an upstream that is not there yet: a message for it pauses the client.

        Returns:
            The place. The pause is ``PAUSED_CONNECT``, and :meth:`wanted` says so then.

        Raises:
            RuntimeError: as for :meth:`route`.
        """
        place = self._enter(client, None, abi.VACANT, 1, backend)
        self._slots[client.number].vacant += 1  # before insert_client(): that sets it
        return place

    def fill(self, client: SlotRef, *places: int) -> None:
        """Ends vacant places: an upstream is there from now on, or nobody."""
        entries = self._routes[client.number].upstreams
        for place in places:
            entries[place].generation = 0
        self._slots[client.number].vacant -= len(places)

    def wanted(self, client: MappedSocket) -> int:
        """The vacant places, a bit for each, that the message in front of which a client is paused is for."""
        return self._slots[client.ref.number].wanted

    def _enter(self, client: SlotRef, place: int | None, number: int, generation: int, backend: int) -> int:
        entries = self._routes[client.number].upstreams
        for each in range(abi.MAX_UPSTREAMS) if place is None else (place,):
            entry = entries[each]
            if entry.generation == 0:
                entry.slot = number
                entry.backend = backend
                entry.member = self.hashing.member(backend)
                entry.generation = generation
                return each
        raise RuntimeError("more upstreams than a client can have")

    def route_shared(self, route: int, place: int, upstream: SlotRef, backend: int) -> None:
        """Puts an upstream into a place of a route that clients share."""
        entry = self._routes[route].upstreams[place]
        assert entry.generation == 0, "somebody is there"
        entry.slot = upstream.number
        entry.backend = backend
        entry.member = self.hashing.member(backend)
        entry.generation = upstream.generation

    def unroute_shared(self, route: int, place: int) -> None:
        """Takes an upstream out of its place. A program that runs right now may still use it once."""
        self._routes[route].upstreams[place].generation = 0

    def write_off(self, upstream: MappedSocket, requests: int) -> None:
        """That many of the requests on a shared upstream were given up: nobody waits for their responses."""
        slot = self._slots[upstream.ref.number]
        slot.written_off += requests
        self._backends[slot.backend].written_off += requests

    def bound_to(self, client: MappedSocket) -> int | None:
        """The slot of the only upstream that a client's next message may go to, if its order demands that."""
        slot = self._slots[client.ref.number]
        entry = self._routes[client.ref.number].upstreams[slot.chosen]
        # Of one that is gone nothing more comes, whatever its last request was.
        there = entry.generation and entry.slot != abi.VACANT
        if slot.framing not in self._in_order or not (client.outstanding or (slot.open and there)):
            return None
        return entry.slot

    def decision(self, client: MappedSocket) -> Decision | None:
        """What was decided on the message in front of which a client is paused; None if nothing was."""
        slot = self._slots[client.ref.number]
        if not slot.routed & abi.Routed.RULES:
            return None
        return Decision.of(self._routing[client.ref.number].decision)

    def unroute(self, client: SlotRef, place: int) -> None:
        """Removes an upstream from a client's route. A program that runs right now may still use it once."""
        self._routes[client.number].upstreams[place].generation = 0
