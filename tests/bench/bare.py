# ruff: noqa: T201
"""The least that a proxy in a sockmap can do: how fast this kernel would let a balancer be.

    python -m tests.bench.bare --object FILE --listen ADDRESS:PORT BACKEND...       as root

Each client gets a connection to each backend, and bare.bpf.c sends the whole messages that are there to the
next one in turn, up to 64 at once; what a backend answers goes to its client. The sockets have the balancer's
options. That is all: no accounting, no pauses, no checks.

A yardstick for the benchmark, not a balancer. It loses data whenever anything goes wrong: the kernel's memory
grows with a client that does not read, and when one side closes, the others are closed at once, with what was
on its way. It prints its address when it serves, and ends with SIGTERM.
"""

import argparse
import contextlib
import select
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.dataplane.sockets import cookie, prepare, release_early_data
from lb.framing import PRESETS
from lb.libbpf import AttachType, HashMap, Object, SockMap

_TARGETS = 8  # BARE_TARGETS of bare.bpf.c
_ROUTE = struct.Struct(f"=II{_TARGETS}I")
_BACKLOG = 4096
_PATIENCE = 10.0  # seconds for a backend to accept
_ENDS = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Session:
    """A client, its upstreams, and their slots; the client's comes first in both."""

    sockets: tuple[socket.socket, ...]
    slots: tuple[int, ...]
    cookies: tuple[bytes, ...]


class _Proxy:
    """It owns the sockets of its clients and backends."""

    def __init__(self, loaded: Object, backends: Sequence[Address]) -> None:
        self._socks = loaded.map("bare_socks", SockMap)
        self._routes = loaded.map("bare_routes", HashMap)
        self._backends = backends
        # First in, first out: a slot rests before somebody else has it.
        self._free = deque(range(self._socks.max_entries))
        self._sessions: dict[int, _Session] = {}
        self._epoll = select.epoll()

    def run(self, listener: socket.socket) -> None:
        """Serves for ever."""
        self._epoll.register(listener, select.EPOLLIN)
        while True:
            ready = [fd for fd, _ in self._epoll.poll()]
            # A new client may get the descriptor of one that ended: it comes last.
            for fd in ready:
                if fd in self._sessions:  # perhaps another one of its sockets was first
                    self._end(self._sessions[fd])
            if listener.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._admit(listener.accept()[0])

    def _admit(self, client: socket.socket) -> None:
        if len(self._free) <= len(self._backends):
            print("bare: a client was turned away: no slots are left", file=sys.stderr)
            client.close()
            return
        sockets = [client]
        try:
            for backend in self._backends:
                upstream = _tcp_socket()
                sockets.append(upstream)
                upstream.settimeout(_PATIENCE)
                upstream.connect(backend)
        except OSError as error:
            print(f"bare: a client was turned away: {error}", file=sys.stderr)
            for sock in sockets:
                sock.close()
            return
        slots = tuple(self._free.popleft() for _ in sockets)
        session = _Session(tuple(sockets), slots, tuple(map(cookie, sockets)))
        self._sessions.update(dict.fromkeys((sock.fileno() for sock in sockets), session))
        self._map(session)

    def _map(self, session: _Session) -> None:
        client, *upstreams = session.slots
        self._routes.update(session.cookies[0], _route(upstreams))
        for number in session.cookies[1:]:
            self._routes.update(number, _route([client]))
        try:
            # The client is last: then there is somebody for its messages.
            for sock, slot in reversed(list(zip(session.sockets, session.slots, strict=True))):
                self._epoll.register(sock, _ENDS)
                self._socks.insert(slot, sock.fileno())
        except OSError:  # closed already
            self._end(session)
            return
        release_early_data(session.sockets[0])

    def _end(self, session: _Session) -> None:
        for sock, number in zip(session.sockets, session.cookies, strict=True):
            del self._sessions[sock.fileno()]
            sock.close()  # which empties its slot, and ends its place in the epoll
            self._routes.delete(number)
        self._free.extend(session.slots)


def _route(targets: Sequence[int]) -> bytes:
    return _ROUTE.pack(len(targets), 0, *targets, *(0,) * (_TARGETS - len(targets)))


def _tcp_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    prepare(sock, max_message=PRESETS["length-prefixed"].max_message, half_message=30.0, unacknowledged=30.0)
    return sock


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    """Serves until a signal ends it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.bare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--object", type=Path, required=True, help="what clang has made of bare.bpf.c")
    parser.add_argument("--listen", type=_address, required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--connections", type=int, default=4096, help="clients and upstreams together")
    parser.add_argument("backends", type=_address, nargs="+", metavar="BACKEND")
    options = parser.parse_args()
    if len(options.backends) > _TARGETS:
        parser.error(f"{len(options.backends)} backends are too many: {_TARGETS} fit")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(Object.open(options.object))
        for name in ("bare_socks", "bare_routes"):
            opened.set_max_entries(name, options.connections)
        loaded = stack.enter_context(opened.load())
        socks = loaded.map("bare_socks", SockMap)
        loaded.program("bare_parser").attach_sockmap(socks, AttachType.SK_SKB_STREAM_PARSER)
        loaded.program("bare_verdict").attach_sockmap(socks, AttachType.SK_SKB_STREAM_VERDICT)
        listener = stack.enter_context(_tcp_socket())
        listener.bind(options.listen)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        host, port = listener.getsockname()
        print(f"{host}:{port}", flush=True)
        _Proxy(loaded, options.backends).run(listener)


if __name__ == "__main__":
    main()
