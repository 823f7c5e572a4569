"""Accepting clients."""

import errno
import logging
import socket

from lb import config
from lb.dataplane import sockets
from lb.server import faults
from lb.server.client import Client
from lb.server.context import Listening
from lb.slots import SlotsExhaustedError

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


def bind(listener: config.Listener, timeouts: config.Timeouts) -> socket.socket:
    """Binds a listener's socket, with the options that its clients inherit; it does not listen yet.

    Args:
        listener: where, and for which messages.
        timeouts: those of its pool.

    Raises:
        OSError: the address cannot be had.
        lb.dataplane.MachineError: see :func:`lb.dataplane.sockets.prepare`.
    """
    sock = socket.socket(listener.address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            # [::]:53 beside 0.0.0.0:53 would be the same port twice, and a client have two addresses.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sockets.prepare(
            sock,
            max_message=listener.framing.max_message,
            half_message=timeouts.half_message,
            unacknowledged=timeouts.unacknowledged,
        )
        sock.bind(listener.address.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


class Listener:
    """Owns a listening socket; hands each connection to a :class:`Client`."""

    def __init__(self, listening: Listening, sock: socket.socket) -> None:
        self._listening = listening
        self._sock = sock
        self._loop = listening.services.loop
        self._open = False
        self._exhausted = False
        host, port = sock.getsockname()[:2]
        # Where it listens (or did, after close()), with the port that the kernel chose for port 0.
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def open(self) -> None:
        """Starts to accept."""
        self._sock.listen(_BACKLOG)
        self._open = True
        self._loop.add_reader(self._sock.fileno(), self._accept_batch)

    def close(self) -> None:
        """Stops to accept; clients stay."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

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

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        listening = self._listening
        listening.accepted += 1
        reason = listening.over_limit(peer[0])
        if reason is not None:
            self._refuse(sock, reason)
            return
        try:
            ref = listening.services.plane.reserve()
        except SlotsExhaustedError:
            self._refuse(sock, "max_connections")
            return
        sock.setblocking(False)
        client = Client(listening, sock, peer, ref)
        with client.guard:
            client.start()

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        """Turns a client away with RST."""
        self._listening.refused[reason] += 1
        faults.reset_on_close(sock)
        sock.close()

    def _pause(self, error: OSError) -> None:
        """Stops to accept for a moment; those who wait stay in the kernel's queue."""
        if not self._exhausted:
            self._exhausted = True
            _log.warning("listener %s: accept: %s; trying again", self._listening.config.name, error.strerror)
        self._loop.remove_reader(self._sock.fileno())
        self._loop.call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        if self._open:
            self._loop.add_reader(self._sock.fileno(), self._accept_batch)
