"""Sockets in and out of the kernel: the only place that knows the order.

Into the map: the slot's fields, then its generation (from then on it is somebody), then the cookie, then the
sockmap (from then on messages flow), then the kick that releases what had arrived before.
Out of the map: the generation (nobody new refers to it), the sockmap, the cookie; the number is free again,
and its counts are final, only after a grace period, because a running program may have compared the
generation before.

The programs and this module write the same arrays through shared memory, each its own fields. A whole value
is written only while no program can know the slot.
"""

import errno
import socket
from dataclasses import dataclass

from lb import abi
from lb.dataplane import sockets
from lb.dataplane.counters import Counters
from lb.dataplane.encode import encode
from lb.framing import Framing
from lb.libbpf import ArrayMap, ArrayOfMaps, HashMap, Object, SockMap
from lb.slots import SlotRef, SlotTable


class PeerGoneError(Exception):
    """The socket is not ESTABLISHED any more, so the sockmap does not take it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How the messages of a socket are framed and sent on: indices of what was published."""

    framing: int
    pool: int
    batch: int


class MappedSocket:
    """A socket in the sockmap. The owner of the socket keeps it; nobody reads or writes it meanwhile.

    Its numbers are the kernel's, live.
    """

    __slots__ = ("_sent_before", "_slot", "_sock", "cookie", "ref")

    def __init__(self, ref: SlotRef, sock: socket.socket, slot: abi.Slot, cookie: int) -> None:
        self.ref = ref
        self.cookie = cookie
        self._slot = slot
        self._sock = sock
        self._sent_before = sockets.progress(sock).written

    @property
    def outstanding(self) -> int:
        """Requests whose response has not come. For a client: from it; for an upstream: to it."""
        # Read in this order, an answer that comes in between makes it too large, never negative.
        answered = self._slot.answered
        return self._slot.sent - answered

    @property
    def consumed_bytes(self) -> int:
        """Bytes from this socket that got a verdict."""
        return self._slot.consumed_bytes

    @property
    def passed_messages(self) -> int:
        """Messages from this socket that the verdict left to user space."""
        return self._slot.passed_messages

    @property
    def passed_bytes(self) -> int:
        """Bytes from this socket that the verdict left to user space."""
        return self._slot.passed_bytes

    @property
    def backlog(self) -> int:
        """Bytes that were redirected to this socket and are not in its TCP send queue yet."""
        redirected = self._slot.redirected_bytes
        return max(0, redirected - (sockets.progress(self._sock).written - self._sent_before))

    @property
    def delivered(self) -> bool:
        """Whether the peer has acknowledged all that is in the TCP send queue, our FIN included."""
        return sockets.progress(self._sock).unacknowledged == 0

    @property
    def undecided(self) -> int:
        """Bytes that arrived on this socket and got no verdict: at rest, an incomplete message.

        A FIN of the peer counts as a byte.
        """
        received = sockets.progress(self._sock).received
        return max(0, received - self._slot.consumed_bytes)

    def hold(self) -> None:
        """Makes the verdict leave every further message of this client on its socket."""
        self._slot.hold = 1


class DataPlane:
    """The loaded programs and their maps. Needs no privilege; knows no event loop.

    For one thread, but for :meth:`wait_for_programs`.
    """

    def __init__(self, loaded: Object, connections: int) -> None:
        self._object = loaded
        self._socks = loaded.map("lb_socks", SockMap)
        self._conns = loaded.map("lb_conns", HashMap)
        self._framings = loaded.map("lb_framings", ArrayMap)
        self._pools = loaded.map("lb_pools", ArrayMap)
        self._slots = loaded.map("lb_slots", ArrayMap).view(abi.Slot)
        self._routes = loaded.map("lb_routes", ArrayMap).view(abi.Route)
        self._backends = loaded.map("lb_backends", ArrayMap).view(abi.Backend)
        self._marks = loaded.map("lb_marks", ArrayMap)
        self._grace = loaded.map("lb_grace", ArrayOfMaps)
        self._grace_inner = loaded.map("lb_grace_inner", ArrayMap)
        self._no_marks = bytes(abi.Marks())
        self._blank = abi.Slot()
        self._published: dict[str, int] = {"framings": 0, "pools": 0, "backends": 0}
        self.slots = SlotTable(connections)
        self.counters = Counters(loaded)

    def close(self) -> None:
        """Gives the maps back; sockets that are still mapped must have been removed before."""
        self._object.close()

    def wait_for_programs(self) -> None:
        """Returns when every program that ran at the time of the call has ended.

        What was changed before the call - a generation, a route, ``hold`` - no program sees otherwise any
        more, and what such a program sent on stands in the destination's queue. Blocks for an RCU grace
        period, usually 10 to 30 ms. The one method that another thread may call meanwhile; one at a time.
        """
        self._grace.insert(0, self._grace_inner)

    # What listeners and pools are made of

    def publish_framing(self, framing: Framing) -> int:
        """Makes a framing known to the programs; returns its index."""
        index = self._next("framings", self._framings.max_entries)
        self._framings.update(index, bytes(encode(framing)))
        return index

    def publish_pool(self, balance: abi.Balance) -> int:
        """Makes a pool known to the programs; returns its index."""
        index = self._next("pools", self._pools.max_entries)
        self._pools.update(index, bytes(abi.Pool(balance=balance)))
        return index

    def publish_backend(self, weight: int) -> int:
        """Makes a backend known to the programs; returns its index."""
        index = self._next("backends", len(self._backends))
        self.set_weight(index, weight)
        return index

    def set_weight(self, backend: int, weight: int) -> None:
        """Changes a backend's share of new messages; 0: none."""
        entry = self._backends[backend]
        entry.stride = abi.STRIDE // weight if weight else 0
        entry.weight = weight

    def outstanding(self, backend: int) -> int:
        """Requests to a backend whose response has not come."""
        entry = self._backends[backend]
        done = entry.answered + entry.written_off
        return entry.sent - done

    def _next(self, kind: str, limit: int) -> int:
        index = self._published[kind]
        if index >= limit:
            raise RuntimeError(f"the maps were loaded for {limit} {kind}")
        self._published[kind] = index + 1
        return index

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

    def insert_client(self, ref: SlotRef, sock: socket.socket, policy: Policy) -> MappedSocket:
        """Maps a client's socket into its reserved slot: its messages flow from here on.

        Raises:
            PeerGoneError: the client has closed its side already. The slot stays reserved.
            OSError: the kernel refuses, with one of :data:`~lb.dataplane.errors.NO_MEMORY` if it has none.
                The slot stays reserved, and nobody refers to it.
        """
        slot = self._blank_slot(ref, abi.Role.CLIENT, policy)
        return self._insert(ref, slot, sock)

    def insert_upstream(
        self,
        ref: SlotRef,
        sock: socket.socket,
        policy: Policy,
        *,
        client: SlotRef,
        backend: int,
        traffic: int,
    ) -> MappedSocket:
        """Maps an upstream's socket into its reserved slot; what it says goes to ``client``.

        Args:
            ref: the slot.
            sock: connected, options set by :func:`lb.dataplane.sockets.prepare`.
            policy: that of its listener and pool.
            client: the slot of the client that it belongs to.
            backend: index of the backend.
            traffic: row of the traffic counters.

        Raises:
            PeerGoneError: the backend has closed already. The slot stays reserved.
            OSError: as for :meth:`insert_client`.
        """
        slot = self._blank_slot(ref, abi.Role.UPSTREAM, policy)
        slot.backend = backend
        slot.traffic = traffic
        slot.client = client.number
        slot.client_generation = client.generation
        self._marks.update(ref.number, self._no_marks)
        return self._insert(ref, slot, sock)

    def _blank_slot(self, ref: SlotRef, role: abi.Role, policy: Policy) -> abi.Slot:
        self._slots[ref.number] = self._blank
        slot = self._slots[ref.number]
        slot.role = role
        slot.framing = policy.framing
        slot.pool = policy.pool
        slot.batch = policy.batch
        return slot

    def _insert(self, ref: SlotRef, slot: abi.Slot, sock: socket.socket) -> MappedSocket:
        cookie = sockets.cookie(sock)
        key = cookie.to_bytes(8, "little")
        mapped = MappedSocket(ref, sock, slot, cookie)
        slot.generation = ref.generation
        try:
            self._conns.update(key, abi.conn(ref.number, ref.generation))
            try:
                self._socks.insert(ref.number, sock.fileno())
            except OSError:
                self._conns.delete(key)
                raise
        except OSError as error:
            slot.generation = 0
            if error.errno == errno.EOPNOTSUPP:
                raise PeerGoneError from error
            raise
        sockets.release_early_data(sock)
        return mapped

    def remove(self, mapped: MappedSocket) -> None:
        """Takes a socket out of the map, before its owner closes it. What waits for it in the kernel is lost.

        The slot is retired; :meth:`reclaim` makes it free.
        """
        number = mapped.ref.number
        self._slots[number].generation = 0
        try:
            self._socks.remove(number)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):  # the kernel took it out when TCP closed it
                raise
        self._conns.delete(mapped.cookie.to_bytes(8, "little"))
        self.slots.retire(mapped.ref)

    def reclaim(self, retired: list[SlotRef]) -> None:
        """Makes slots free, and writes off what is outstanding on upstreams that were there.

        Args:
            retired: from :meth:`SlotTable.take_retired`, before a :meth:`wait_for_programs`: a program that
                compared the generation earlier may still send to such a slot, and count what it sends.
        """
        for ref in retired:
            slot = self._slots[ref.number]
            if slot.role == abi.Role.UPSTREAM:
                self._backends[slot.backend].written_off += slot.sent - slot.answered
            slot.role = abi.Role.FREE  # the next life may end without a socket: nothing is written off twice
        self.slots.reclaim(retired)

    # Routes

    def route(self, client: SlotRef, upstream: SlotRef, backend: int) -> int:
        """Adds an upstream to those that a client's messages may go to; returns its place.

        Raises:
            RuntimeError: the client has :data:`lb.abi.MAX_UPSTREAMS` already.
        """
        entries = self._routes[client.number].upstreams
        for place in range(abi.MAX_UPSTREAMS):
            entry = entries[place]
            if entry.generation == 0:
                entry.slot = upstream.number
                entry.backend = backend
                entry.generation = upstream.generation
                return place
        raise RuntimeError("more upstreams than a client can have")

    def unroute(self, client: SlotRef, place: int) -> None:
        """Removes an upstream from a client's route. A program that runs right now may still use it once."""
        self._routes[client.number].upstreams[place].generation = 0
