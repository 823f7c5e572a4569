"""Does this very kernel do what the balancer leans on?

Versions say little, because vendors and distributions backport both features and bugs. So every start sends
messages through the loaded programs over loopback pairs of its own, and refuses to serve when one check
fails. Each check names the kernel behaviour that it needs.
"""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from lb import abi
from lb.dataplane import sockets
from lb.dataplane.errors import MachineError
from lb.dataplane.flights import FlightTable, table_size
from lb.dataplane.loader import Sizes
from lb.dataplane.mapped import MappedSocket
from lb.dataplane.plane import DataPlane, Policy
from lb.framing import PRESETS

# Seconds that any step may take: a machine that is busy is no reason to refuse to start.
_LIMIT = 10.0
_BUDGET = 64 * 1024
_PRESSURE, _PRESSED = 2000, 4000  # messages and the size of each: more than the buffers of both connections
_MANY = 64  # messages: more than what the checks before may have charged one backend
_IN_FLIGHT = 8
_FRAMING = PRESETS["length-prefixed"]


@dataclass(frozen=True, slots=True)
class Check:
    """A result: ``problem`` is None for success."""

    name: str
    problem: str | None


class _FailedError(Exception):
    pass


def message(number: int, body: bytes = b"self-test") -> bytes:
    """A message of the framing ``length-prefixed``."""
    return struct.pack(">II", 4 + len(body), number) + body


class _Sharing(NamedTuple):
    """What clients need that share an upstream."""

    route: int
    table: FlightTable


class _Pairs:
    """A client and a backend, each joined to the data plane by a loopback connection."""

    def __init__(
        self,
        plane: DataPlane,
        policy: Policy,
        sharing: _Sharing,
        backends: list[int],
        traffic: int,
        stack: ExitStack,
    ) -> None:
        self.plane = plane
        self._policy = policy
        self._sharing = sharing
        self._traffic = traffic
        self._stack = stack
        self.client, self._near = _pair(stack)
        self.client_ref = plane.reserve()
        self._mapped_client: MappedSocket | None = None
        self.upstreams: list[MappedSocket] = []
        stack.callback(self._remove)
        self.backend = self._connect(backends[0])
        self._spare = backends[1]

    def connect_second(self) -> None:
        """Gives the client another backend."""
        self._connect(self._spare)

    def _connect(self, backend: int) -> socket.socket:
        far, near = _pair(self._stack)
        ref = self.plane.reserve()
        upstream = self.plane.insert_upstream(
            ref, near, self._policy, client=self.client_ref, backend=backend, traffic=self._traffic
        )
        self._stack.callback(self.plane.remove, upstream)
        self.upstreams.append(upstream)
        self.plane.route(self.client_ref, ref, backend)
        return far

    def share(self) -> tuple[socket.socket, list[socket.socket]]:
        """A backend with one connection, and two clients that share it."""
        plane, (route, table) = self.plane, self._sharing
        policy = replace(self._policy, route=route, traffic=self._traffic)
        backend, near = _pair(self._stack)
        ref = plane.reserve()
        upstream = plane.insert_shared(ref, near, policy, backend=self._spare, traffic=0, table=table)
        self._stack.callback(plane.remove, upstream)
        plane.route_shared(route, 0, ref, self._spare)
        self._stack.callback(plane.unroute_shared, route, 0)
        clients = []
        for _ in range(2):
            client, near = _pair(self._stack)
            mapped = plane.insert_client(plane.reserve(), near, policy)
            self._stack.callback(plane.remove, mapped)
            clients.append(client)
        return backend, clients

    def insert_client(self) -> MappedSocket:
        self._mapped_client = self.plane.insert_client(self.client_ref, self._near, self._policy)
        return self._mapped_client

    def resume(self, mapped: MappedSocket) -> None:
        """Ends a pause."""
        self.plane.canary.send()
        _wait_for(self.plane.canary.back)
        self.plane.resume(mapped)

    def _remove(self) -> None:
        if self._mapped_client is not None:
            self.plane.remove(self._mapped_client)
        else:
            self.plane.release(self.client_ref)


def _pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A connection over loopback; the second end is prepared for the sockmap."""
    with socket.socket() as listener:
        sockets.prepare(listener, max_message=64 * 1024, half_message=_LIMIT, unacknowledged=_LIMIT)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        far = stack.enter_context(socket.create_connection(listener.getsockname(), _LIMIT))
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near, _ = listener.accept()
    near.setblocking(False)
    return far, stack.enter_context(near)


def _receive(sock: socket.socket, size: int) -> bytes:
    got = b""
    try:
        while len(got) < size and (data := sock.recv(size - len(got))):
            got += data
    except TimeoutError:
        raise _FailedError(f"{len(got)} of {size} bytes arrived within {_LIMIT:g} s") from None
    return got


def _expect(sock: socket.socket, wanted: bytes) -> None:
    got = _receive(sock, len(wanted))
    if got != wanted:
        raise _FailedError(f"{len(got)} of {len(wanted)} bytes arrived, or other ones")


def _echo(pairs: _Pairs, *parts: bytes) -> None:
    """Sends the parts one by one; expects them at the backend, then back at the client."""
    for part in parts:
        pairs.client.sendall(part)
    _expect(pairs.backend, b"".join(parts))
    pairs.backend.sendall(b"".join(parts))
    _expect(pairs.client, b"".join(parts))


def _two_in_one_segment(pairs: _Pairs) -> None:
    pairs.insert_client()
    _echo(pairs, message(1) + message(2))


def _early_data(pairs: _Pairs) -> None:
    pairs.client.sendall(message(1) + message(2))
    pairs.insert_client()
    _expect(pairs.backend, message(1) + message(2))
    _echo(pairs, message(3))


def _across_segments(pairs: _Pairs) -> None:
    mapped = pairs.insert_client()
    long = message(1, bytes(range(256)) * 128)
    pairs.client.sendall(long[:5000])
    _wait_for(lambda: mapped.undecided == 5000)
    pairs.client.sendall(long[5000:])
    _expect(pairs.backend, long)


def _byte_by_byte(pairs: _Pairs) -> None:
    mapped = pairs.insert_client()
    whole = message(1)
    for count, byte in enumerate(whole[:-1], 1):
        pairs.client.sendall(bytes([byte]))
        _wait_for(lambda count=count: mapped.undecided == count)  # type: ignore[misc]
    pairs.client.sendall(whole[-1:])
    _expect(pairs.backend, whole)


def _back_pressure(pairs: _Pairs) -> None:
    """A backend that does not read stops its client; when it reads, everything arrives, and once."""
    mapped = pairs.insert_client()
    upstream = pairs.upstreams[0]
    sent = b"".join(message(number, bytes(_PRESSED)) for number in range(_PRESSURE))
    waiting = memoryview(sent)
    pairs.client.setblocking(False)
    pairs.backend.setblocking(False)

    def step() -> None:
        nonlocal waiting
        with suppress(BlockingIOError):
            waiting = waiting[pairs.client.send(waiting) :]

    def paused() -> bool:
        step()
        return mapped.paused is abi.Pause.PAUSED_FULL

    _wait_for(paused)
    got = bytearray()

    def arrived() -> bool:
        step()
        with suppress(BlockingIOError):
            got.extend(pairs.backend.recv(_PRESSURE * _PRESSED))
        if mapped.paused and upstream.has_room:
            pairs.resume(mapped)
        return len(got) >= len(sent)

    _wait_for(arrived)
    if got != sent:
        raise _FailedError("other bytes than were sent")


def _post(pairs: _Pairs) -> None:
    """What user space has to say to a mapped socket."""
    pairs.insert_client()
    channel = pairs.plane.post
    channel.sock.setblocking(True)
    try:
        channel.sock.sendall(channel.reply(pairs.client_ref, message(1)))
    finally:
        channel.sock.setblocking(False)
    _expect(pairs.client, message(1))


def _share(pairs: _Pairs) -> None:
    """Two clients use the same ids on one connection; the answers come in another order."""
    backend, clients = pairs.share()
    for who, client in enumerate(clients):
        client.sendall(b"".join(message(number, b"%d" % who) for number in range(2)))
    size = len(message(0, b"?"))
    asked = [_receive(backend, size) for _ in range(4)]
    if len({data[4:8] for data in asked}) < len(asked):
        raise _FailedError("two requests have one id")
    backend.sendall(b"".join(reversed(asked)))
    for who, client in enumerate(clients):
        _expect(client, message(1, b"%d" % who) + message(0, b"%d" % who))


def _spread(pairs: _Pairs) -> None:
    """Turns are kept for each CPU, so only that both get some is certain."""
    pairs.connect_second()
    mapped = pairs.insert_client()
    sent = b"".join(message(number) for number in range(_MANY))
    for start in range(0, len(sent), len(message(0))):
        pairs.client.sendall(sent[start : start + len(message(0))])
        _wait_for(lambda start=start: mapped.consumed_bytes > start)  # type: ignore[misc]
    if not all(upstream.outstanding for upstream in pairs.upstreams):
        raise _FailedError("one of two backends got every message")


def _wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + _LIMIT
    while not condition():
        if time.monotonic() > limit:
            raise _FailedError(f"what was sent did not reach the programs within {_LIMIT:g} s")
        time.sleep(0.0005)


_CHECKS: tuple[tuple[str, Callable[[_Pairs], None]], ...] = (
    ("two messages in one segment", _two_in_one_segment),
    ("data that arrived before the insertion", _early_data),
    ("a message across segments", _across_segments),
    ("a header that comes byte by byte", _byte_by_byte),
    ("messages that take turns", _spread),
    ("a backend that does not read", _back_pressure),
    ("a message of the balancer's own", _post),
    ("two clients that share a connection", _share),
)
# What a self-test adds to the sizes of the maps.
SLOTS = 20
FRAMINGS = POOLS = ROWS = 1
BACKENDS = 2
ROUTES = 1
FLIGHTS = table_size(_IN_FLIGHT)
SIZES = Sizes(
    SLOTS,
    FRAMINGS,
    BACKENDS,
    ROWS,
    max_message=_FRAMING.max_message,
    shared_routes=ROUTES,
    flights=FLIGHTS,
)


def run(plane: DataPlane) -> Iterator[Check]:
    """Runs the checks one after the other; blocks, for seconds if a check fails. Needs no privilege."""
    backends = [plane.publish_backend(1) for _ in range(BACKENDS)]
    traffic = plane.counters.new_traffic_rows()
    pool = plane.publish_pool(abi.Balance.ROUND_ROBIN, _IN_FLIGHT)
    policy = Policy(plane.publish_framing(_FRAMING), pool, abi.MAX_BATCH, _BUDGET)
    sharing = _Sharing(plane.new_shared_route(), plane.new_flight_table(_IN_FLIGHT))
    for name, check in _CHECKS:
        problem = None
        try:
            with _pairs(plane, policy, sharing, backends, traffic) as pairs:
                check(pairs)
        except _FailedError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.strerror} ({error.filename or 'socket'})"
        yield Check(name, problem)
    plane.counters.start()
    plane.release_flight_table(sharing.table)
    plane.release_shared_route(sharing.route)
    plane.withdraw_framing(policy.framing)
    plane.counters.release_traffic_rows(traffic)
    # Not the pool and its backends: whoever had their numbers would begin with the turns counted here.


@contextmanager
def _pairs(
    plane: DataPlane, policy: Policy, sharing: _Sharing, backends: list[int], traffic: int
) -> Iterator[_Pairs]:
    with ExitStack() as stack:
        yield _Pairs(plane, policy, sharing, backends, traffic, stack)
    retired = plane.slots.take_retired()
    plane.wait_for_programs()
    for upstream, requests in plane.requests.outstanding(retired).items():
        plane.requests.forget(upstream, requests)
    plane.reclaim(retired)


def require(plane: DataPlane) -> None:
    """Raises :class:`MachineError` with the first check that fails."""
    for check in run(plane):
        if check.problem is not None:
            raise MachineError(
                f"the self-test failed: {check.name}: {check.problem}",
                "see `sockmap-lb doctor`; this kernel's sockmap cannot be trusted, use a newer kernel",
            )
