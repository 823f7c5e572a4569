"""Accepting connections, also on the day when there are no descriptors."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from lb import config
from lb.dataplane import MachineError, sockets

_log = logging.getLogger(__name__)

_BATCH = 64  # then others get their turn
_BACKLOG = 4096  # the kernel lowers it to net.core.somaxconn
_PAUSE = 0.1
# Resources that come back by themselves when connections end.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
# Connections that failed before they were accepted (accept(2)).
_STILLBORN = {
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOPROTOOPT,
    errno.ENONET,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EINTR,
}


def bind(address: config.Address, max_message: int, timeouts: config.Timeouts) -> socket.socket:
    """Binds a socket, with the options that accepted ones inherit; it does not listen yet.

    Args:
        address: where.
        max_message: bytes.
        timeouts: those of the pool.

    Raises:
        OSError: the address cannot be had.
        lb.dataplane.MachineError: see :func:`lb.dataplane.sockets.prepare`.
    """
    sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            # [::]:53 beside 0.0.0.0:53 would be the same port twice, and a client have two addresses.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        prepare(sock, max_message, timeouts)
        sock.bind(address.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def explain_bind(error: OSError, address: str) -> MachineError:
    """An address that cannot be bound, with what to do about it."""
    remedies = {
        errno.EADDRINUSE: f"find who listens there with `ss -ltnp`, or choose another address than {address}",
        errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE when the balancer starts",
        errno.EADDRNOTAVAIL: "use an address of this machine (`ip address`)",
    }
    return MachineError(
        f"cannot listen on {address}: {error.strerror}", remedies.get(error.errno or 0, "see `man 2 bind`")
    )


def prepare(sock: socket.socket, max_message: int, timeouts: config.Timeouts) -> None:
    """Sets the options that accepted sockets inherit, also of one that listens already; see :func:`bind`."""
    sockets.prepare(
        sock,
        max_message=max_message,
        half_message=timeouts.half_message,
        unacknowledged=timeouts.unacknowledged,
    )


class Acceptor:
    """Owns a listening socket; hands on each connection, with the address of its peer."""

    def __init__(
        self, name: str, sock: socket.socket, admit: Callable[[socket.socket, tuple[str, int]], None]
    ) -> None:
        self._name = name
        self._sock = sock
        self._admit = admit
        self._loop: asyncio.AbstractEventLoop | None = None  # while it is open
        self._exhausted = False
        host, port = sock.getsockname()[:2]
        # Where it listens (or did, after close()), with the port that the kernel chose for port 0.
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts to accept."""
        self._sock.listen(_BACKLOG)
        self._loop = loop
        loop.add_reader(self._sock.fileno(), self._accept_batch)

    def close(self) -> None:
        """Stops to accept; what was accepted stays."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def prepare(self, max_message: int, timeouts: config.Timeouts) -> None:
        """Gives those who connect from here on other options."""
        prepare(self._sock, max_message, timeouts)

    def set_congestion(self, name: str) -> None:
        """Gives those who connect from here on a congestion control algorithm."""
        try:
            sockets.set_congestion(self._sock, name)
        except OSError as error:  # it was there a moment ago
            _log.warning("%s: congestion control %s: %s", self._name, name, error.strerror)

    def give_away(self) -> socket.socket:
        """Stops to accept, and gives the socket away: who connects meanwhile waits in its queue."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.remove_reader(self._sock.fileno())
        return self._sock

    def _accept_batch(self) -> None:
        for _ in range(_BATCH):
            try:
                sock, (host, port, *_) = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                    return
                if error.errno not in _STILLBORN:
                    raise
                continue
            self._exhausted = False
            self._admit(sock, (host, port))

    def _pause(self, error: OSError) -> None:
        """Stops to accept for a moment; those who wait stay in the kernel's queue."""
        if not self._exhausted:
            self._exhausted = True
            _log.warning("%s: accept: %s; trying again", self._name, error.strerror)
        assert self._loop is not None
        self._loop.remove_reader(self._sock.fileno())
        self._loop.call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        if self._loop is not None:
            self._loop.add_reader(self._sock.fileno(), self._accept_batch)
