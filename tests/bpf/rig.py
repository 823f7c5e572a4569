"""Clients and backends on loopback around a data plane, without an event loop.

Every connection has two ends here: `far` is the peer's, `near` the one that is mapped.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from lb import abi
from lb.dataplane import DataPlane, FlightTable, MappedSocket, Policy, sockets
from lb.framing import PRESETS, Endian, Field, Framing, Length, Match, Ordering, Responses
from lb.slots import SlotRef

LIMIT = 20.0  # seconds for what takes milliseconds on an idle machine
LARGEST = 256 * 1024

PREFIXED = replace(PRESETS["length-prefixed"], max_message=LARGEST)
FIFO = replace(PREFIXED, name="fifo", ordering=Ordering.FIFO)
# A response reaches its client although nobody asked.
MANY = replace(PREFIXED, name="many", responses=Responses.MANY)
WITHOUT_ID = replace(PREFIXED, name="without-id", id=None)
# Every declaration that there is, in six bytes: magic, flags, length of what follows, id.
MARKED = Framing(
    name="marked",
    length=Length(Field(2, 2), 0xFFFF, adjust=4),
    id=Field(4, 2, Endian.LITTLE),
    magic=Match(Field(0, 1), 0xFF, 0xAB),
    response=Match(Field(1, 1), 0x80, 0x80),
    no_response=Match(Field(1, 1), 0x40, 0x40),
    min_message=6,
    max_message=1000,
)
MARKED_FIFO = replace(MARKED, name="marked-fifo", ordering=Ordering.FIFO)
# A quiet request may be answered all the same.
MARKED_ANY = replace(MARKED_FIFO, name="marked-any", responses=Responses.ANY)
# The id stands behind a counted string.
COUNTED = Framing(
    name="counted",
    length=Length(Field(0, 4), 0xFFFFFFFF, adjust=4),
    id=Field(0, 4),
    id_after=Field(4, 4),
    min_message=12,
    max_message=LARGEST,
)
RESPONSE, QUIET = 0x80, 0x40

CLOSE, CLOSE_WAIT = 7, 8  # TCP states: include/net/tcp_states.h


def message(number: int, size: int = 16) -> bytes:
    """A message of PREFIXED and the like, of `size` bytes in all."""
    head = struct.pack(">II", size - 4, number)
    body = (number.to_bytes(4, "big") * (size // 4))[: size - len(head)]
    return head + body


def prefixed(numbers: Sequence[int]) -> bytes:
    """Messages of PREFIXED and the like."""
    return b"".join(map(message, numbers))


def marked(number: int, flags: int = 0, *, magic: int = 0xAB) -> bytes:
    """A message of MARKED."""
    return struct.pack(">BBH", magic, flags, 6) + number.to_bytes(2, "little") + b"body"


def counted(number: int, string: bytes, body: bytes = b"body") -> bytes:
    """A message of COUNTED."""
    data = struct.pack(">I", len(string)) + string + struct.pack(">I", number) + body
    return struct.pack(">I", len(data)) + data


def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; looks at it again and again."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.0005)


def until_equal(look: Callable[[], object], wanted: object) -> None:
    """Return when `look` gives what is wanted."""
    deadline = time.monotonic() + LIMIT
    while (seen := look()) != wanted:
        assert time.monotonic() < deadline, f"{seen!r} did not become {wanted!r}"
        time.sleep(0.0005)


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes."""
    got = bytearray()
    while len(got) < size:
        data = sock.recv(size - len(got))
        assert data, f"the stream ended after {len(got)} of {size} bytes"
        got += data
    return bytes(got)


def expect(sock: socket.socket, data: bytes) -> None:
    """The next bytes are these."""
    assert receive(sock, len(data)) == data


def error_of(sock: socket.socket) -> int:
    """The error that a socket comes to have, as SO_ERROR gives it."""
    poll = select.poll()
    poll.register(sock, 0)
    assert poll.poll(LIMIT * 1000), "no error came"
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextmanager
def one_cpu() -> Iterator[None]:
    """Run on one CPU: so do the programs, which run where a segment is sent. Turns are counted per CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class End:
    """One connection of the balancer's."""

    def __init__(self, plane: DataPlane, far: socket.socket, near: socket.socket, ref: SlotRef) -> None:
        self.plane, self.far, self.near, self.ref = plane, far, near, ref
        self._mapped: MappedSocket | None = None

    @property
    def mapped(self) -> MappedSocket:
        assert self._mapped is not None, "not in the map"
        return self._mapped

    @property
    def redirected_bytes(self) -> int:
        """Bytes that any program has sent here."""
        return self.mapped._slot.redirected_bytes

    @property
    def tcp_state(self) -> int:
        return sockets.tcp_state(self.near)

    def remove(self) -> None:
        """Take it out of the map, if it is there."""
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            self.plane.remove(mapped)

    def close(self) -> None:
        """Close it, in the map as it is."""
        self.plane.close_socket(self.mapped)
        self._mapped = None


class Upstream(End):
    """A connection to a backend; `far` is the backend."""

    def __init__(
        self, plane: DataPlane, far: socket.socket, near: socket.socket, ref: SlotRef, backend: "Backend"
    ) -> None:
        super().__init__(plane, far, near, ref)
        self.backend = backend
        self.place = -1

    def map(self, policy: Policy, client: SlotRef) -> None:
        self._mapped = self.plane.insert_upstream(
            self.ref, self.near, policy, client=client, backend=self.backend.index, traffic=self.backend.row
        )


class Shared(End):
    """A connection to a backend that carries the messages of many clients; `far` is the backend."""

    def __init__(
        self, plane: DataPlane, far: socket.socket, near: socket.socket, ref: SlotRef, table: FlightTable
    ) -> None:
        super().__init__(plane, far, near, ref)
        self.table = table

    def map(self, policy: Policy, backend: "Backend") -> None:
        self._mapped = self.plane.insert_shared(
            self.ref, self.near, policy, backend=backend.index, traffic=0, table=self.table
        )


class Client(End):
    """A client's connection; `far` is the client."""

    upstreams: list[Upstream]

    def map(self, policy: Policy, address_rate: int = 0, *, address: bytes = b"") -> MappedSocket:
        self._mapped = self.plane.insert_client(
            self.ref, self.near, policy, address=address, address_rate=address_rate
        )
        return self._mapped

    def expect_paused(self, why: abi.Pause, *messages: bytes) -> None:
        """It stands still in front of these messages, and nothing else has arrived."""
        until_equal(lambda: self.mapped.paused, why)
        until_equal(lambda: self.mapped.undecided, len(b"".join(messages)))
        self.plane.take_over(self.mapped)
        expect(self.near, b"".join(messages))

    def cut(self, upstream: Upstream) -> None:
        """Take an upstream out of the client's route."""
        self.plane.unroute(self.ref, upstream.place)


class Backend:
    """A backend as the programs know it."""

    def __init__(self, plane: DataPlane, weight: int, pool: int = 0) -> None:
        self._plane = plane
        self.index = plane.publish_backend(weight, pool)
        self.row = plane.counters.new_traffic_rows()

    @property
    def requests(self) -> int:
        return self._plane.counters.traffic(self.row).requests

    @property
    def outstanding(self) -> int:
        return self._plane.outstanding(self.index)


class Rig:
    """Makes all of it, and takes it down."""

    def __init__(self, plane: DataPlane, stack: ExitStack) -> None:
        self.plane = plane
        self._stack = stack

    def outstanding(self, client: Client) -> dict[SlotRef, list[int]]:
        """The ids of the requests on each upstream of a client."""
        return self.plane.requests.outstanding([upstream.ref for upstream in client.upstreams])

    def policy(
        self,
        framing: Framing = PREFIXED,
        balance: abi.Balance = abi.Balance.ROUND_ROBIN,
        batch: int = abi.MAX_BATCH,
    ) -> Policy:
        return Policy(self.plane.publish_framing(framing), self.plane.publish_pool(balance), batch)

    def backend(self, weight: int = 1, pool: int = 0) -> Backend:
        return Backend(self.plane, weight, pool)

    def connect(
        self, host: str = "127.0.0.1", *, half_message: float = 2 * LIMIT, unacknowledged: float = 2 * LIMIT
    ) -> tuple[socket.socket, socket.socket]:
        """A connection: its far end, and its near end ready for the map."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as listener:
            sockets.prepare(
                listener,
                max_message=LARGEST,
                half_message=half_message,
                unacknowledged=unacknowledged,
            )
            listener.bind((host, 0))
            listener.listen()
            far = self._stack.enter_context(
                socket.create_connection(listener.getsockname()[:2], LIMIT)  # and a limit for each read
            )
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            near = self._stack.enter_context(listener.accept()[0])
        near.settimeout(LIMIT)
        return far, near

    def upstream(self, client: Client, policy: Policy, backend: Backend) -> Upstream:
        """A mapped upstream of a client, in its route."""
        upstream = Upstream(self.plane, *self.connect(), self.plane.reserve(), backend)
        self._stack.callback(upstream.remove)
        upstream.map(policy, client.ref)
        upstream.place = self.plane.route(client.ref, upstream.ref, backend.index)
        return upstream

    def client(
        self,
        policy: Policy,
        *backends: Backend,
        mapped: bool = True,
        host: str = "127.0.0.1",
        half_message: float = 2 * LIMIT,
        address_rate: int = 0,
    ) -> Client:
        """A client with an upstream to each backend."""
        far, near = self.connect(host, half_message=half_message)
        client = Client(self.plane, far, near, self.plane.reserve())
        self._stack.callback(client.remove)
        client.upstreams = [self.upstream(client, policy, backend) for backend in backends]
        if mapped:
            client.map(policy, address_rate)
        return client

    def share(self, framing: Framing = PREFIXED, *, max_in_flight: int = 32, batch: int = 64) -> Policy:
        """A policy whose clients share their upstreams."""
        route = self.plane.new_shared_route()
        return Policy(
            self.plane.publish_framing(framing),
            self.plane.publish_pool(abi.Balance.LEAST_OUTSTANDING, max_in_flight, route=route),
            batch,
            route=route,
            traffic=0,
        )

    def shared(self, policy: Policy, backend: Backend, place: int = 0, *, max_in_flight: int = 32) -> Shared:
        """A mapped upstream in the route that clients share."""
        assert policy.route is not None
        table = self.plane.new_flight_table(max_in_flight)
        upstream = Shared(self.plane, *self.connect(), self.plane.reserve(), table)
        self._stack.callback(upstream.remove)
        upstream.map(policy, backend)
        self.plane.route_shared(policy.route, place, upstream.ref, backend.index)
        return upstream

    def stranger(self, policy: Policy, slot: SlotRef) -> Client:
        """A client in the next life of a slot that came free."""
        far, near = self.connect()
        while (ref := self.plane.reserve()).number != slot.number:
            self.plane.release(ref)
        stranger = Client(self.plane, far, near, ref)
        self._stack.callback(stranger.remove)
        stranger.map(policy)
        return stranger

    def reclaim(self) -> None:
        """Make the slots of removed sockets free."""
        retired = self.plane.slots.take_retired()
        self.plane.wait_for_programs()
        self.plane.reclaim(retired)

    def resume(self, end: End) -> None:
        """End the pause of a source."""
        self.plane.canary.send()
        until(self.plane.canary.back)
        self.plane.resume(end.mapped)

    def counted(self, counter: abi.Counter) -> int:
        return self.plane.counters.messages(counter)


def take(client: Client, *shares: Sequence[int]) -> None:
    """Each upstream of the client gets these messages, in this order, and no others."""
    for upstream, numbers in zip(client.upstreams, shares, strict=True):
        expect(upstream.far, prefixed(numbers))
    for upstream, numbers in zip(client.upstreams, shares, strict=True):
        assert upstream.redirected_bytes == len(prefixed(numbers))


def kill(client: Client, place: int, how: str) -> None:
    """The backend of an upstream closes its connection."""
    upstream = client.upstreams[place]
    if how == "FIN":
        upstream.far.shutdown(socket.SHUT_WR)
        until_equal(lambda: upstream.tcp_state, CLOSE_WAIT)
    else:
        reset(upstream.far)
        until_equal(lambda: upstream.tcp_state, CLOSE)
