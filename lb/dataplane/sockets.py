"""Socket options of mapped sockets, and what TCP says about them.

Three options are set before a socket enters the sockmap, because the strparser reads them then:

* ``SO_RCVBUF``: it is the largest message that the strparser accepts, and autotuning would move it. Close
  to the limit a message can stall in a window that cannot hold it, hence the factor of four.
* ``SO_RCVTIMEO``: how long the strparser waits for the rest of a message; without it, for ever.
* ``TCP_NODELAY``: redirected messages are small sends, which Nagle's algorithm would hold back.

Two more are for peers that are gone without a word. Nobody but the kernel writes to a mapped socket, so only
TCP can find out:

* ``TCP_USER_TIMEOUT``: how long data may wait to be acknowledged, or a window stay shut.
* ``SO_KEEPALIVE``: asks a peer to which nothing is sent. How many questions may go unanswered follows from
  ``TCP_USER_TIMEOUT``, and not from ``TCP_KEEPCNT`` (``tcp_keepalive_timer()`` in ``net/ipv4/tcp_timer.c``).

Accepted sockets inherit all of them from their listener.
"""

import errno
import fcntl
import functools
import math
import socket
import struct
import termios
from contextlib import suppress
from typing import NamedTuple

from lb.dataplane.errors import MachineError

_SO_RCVBUFFORCE = 33
_SO_COOKIE = 57
_TIMEVAL = struct.Struct("@ll")
_COOKIE_SIZE = 8
_INT = struct.Struct("@i")
# struct tcp_info of include/uapi/linux/tcp.h: tcpi_state; tcpi_bytes_acked, tcpi_bytes_received.
_TCP_INFO_STATE = struct.Struct("=B")
_TCP_INFO_BYTES = struct.Struct("=120xQQ")
_SMALLEST_BUFFER = 256 * 1024
_MESSAGES_IN_BUFFER = 4
_TCP_DELACK_MAX_US = 46
_DELAYS = (2_000, 4_000, 8_000, 10_000, 20_000)  # two ticks of 1000, 500, 250, 200, 100 a second
_LONGEST_NAME = 16  # of a congestion control algorithm, with its zero
_HOUR = 3600.0  # a connection with ourselves needs no watching
_QUESTIONS = 4  # of keepalive, at most: one lost segment is no dead peer

# What :func:`written` is before anybody writes: a SYN counts where we have connected, nothing where we have
# accepted (tcp_snd_una_update() in net/ipv4/tcp_input.c).
WRITTEN_BY_CONNECTING = 1
WRITTEN_BY_ACCEPTING = 0

TCP_ESTABLISHED = 1
TCP_CLOSE = 7


def prepare(
    sock: socket.socket, *, max_message: int, half_message: float, unacknowledged: float, proven: bool = False
) -> None:
    """Sets the options that a mapped socket, or the listener that it comes from, needs.

    Args:
        sock: a TCP socket, not connected yet.
        max_message: bytes.
        half_message: seconds that the rest of a message may take.
        unacknowledged: seconds after which a peer that acknowledges nothing is dead: ETIMEDOUT, or what ICMP
            said meanwhile. With nothing to acknowledge it is found by keepalive, which counts in whole
            seconds, two or more.
        proven: :func:`require_buffer` has shown that the receive buffer can be had without privilege.

    Raises:
        MachineError: the receive buffer that ``max_message`` needs is not allowed.
    """
    if proven:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _receive_buffer(max_message))
    else:
        _fix_receive_buffer(sock, max_message)
    for level, option, value in _options(half_message, unacknowledged):
        sock.setsockopt(level, option, value)


@functools.lru_cache
def _options(half_message: float, unacknowledged: float) -> tuple[tuple[int, int, int | bytes], ...]:
    seconds = int(half_message)
    silence, interval = _keepalive(unacknowledged)
    return (
        (socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(seconds, int((half_message - seconds) * 1e6))),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(unacknowledged * 1000)),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, silence),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    )


def require_buffer(max_message: int) -> None:
    """Makes sure that sockets like those of upstreams can receive messages of ``max_message`` bytes.

    To be asked without privilege, as upstreams are made.

    Raises:
        MachineError: the receive buffer that they need is not allowed.
    """
    with socket.socket() as sock:
        _fix_receive_buffer(sock, max_message)


def require_congestion(name: str) -> None:
    """Makes sure that sockets can have a congestion control algorithm.

    To be asked without privilege, as upstreams are made.

    Raises:
        MachineError: the machine does not have it, or does not allow it.
    """
    with socket.socket() as sock:
        try:
            set_congestion(sock, name)
        except FileNotFoundError as error:
            raise MachineError(
                f"this machine has no congestion control algorithm {name}",
                f"run `modprobe tcp_{name}`, or set tcp.congestion to one of those that"
                " `sysctl net.ipv4.tcp_available_congestion_control` names",
            ) from error
        except PermissionError as error:
            raise MachineError(
                f"this machine does not allow everybody the congestion control algorithm {name}",
                "add it to net.ipv4.tcp_allowed_congestion_control (in a container: of the host), or remove"
                " tcp.congestion",
            ) from error


def acknowledge_soon(sock: socket.socket) -> None:
    """Shortens how long an acknowledgement may be delayed, from 40 ms to two ticks of the kernel's clock.

    A backend that leaves Nagle's algorithm on sends its second response when the first is acknowledged, and
    an upstream often has nothing to send meanwhile. Before Linux 6.15 the delay cannot be shortened.
    """
    delay = _shortest_delay()
    if delay is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_DELACK_MAX_US, delay)


@functools.cache
def _shortest_delay() -> int | None:
    """Microseconds that the kernel accepts; None if it knows no such option."""
    with socket.socket() as sock:
        for delay in _DELAYS:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_DELACK_MAX_US, delay)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    break
            else:
                return delay
    return None


def set_congestion(sock: socket.socket, name: str) -> None:
    """Chooses the congestion control algorithm of a socket, or of those that it will accept.

    Raises:
        OSError: it is not there, or not allowed.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def default_congestion() -> str:
    """The congestion control algorithm that new sockets get."""
    with socket.socket() as sock:
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _LONGEST_NAME)
    return name.split(b"\0")[0].decode()


def _receive_buffer(max_message: int) -> int:
    return max(_SMALLEST_BUFFER, _MESSAGES_IN_BUFFER * max_message) // 2  # the kernel doubles it


def _fix_receive_buffer(sock: socket.socket, max_message: int) -> None:
    wanted = _receive_buffer(max_message)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, wanted)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
    got = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    if got < _MESSAGES_IN_BUFFER * max_message:
        raise MachineError(
            f"the receive buffer of a socket is limited to {got} bytes, but messages of {max_message} bytes"
            f" need {_MESSAGES_IN_BUFFER * max_message}",
            f"run `sysctl -w net.core.rmem_max={wanted}`, or set max_message to at most"
            f" {got // _MESSAGES_IN_BUFFER} bytes",
        )


def _keepalive(unacknowledged: float) -> tuple[int, int]:
    """Seconds of silence before the first question, and seconds between questions.

    As many questions as fit in add up to ``unacknowledged`` in whole seconds, at least half of it silence; a
    question and its answer take a second each.
    """
    whole = max(2, math.ceil(unacknowledged))
    interval = max(1, whole // (2 * _QUESTIONS))
    silence = max(whole // 2, whole - _QUESTIONS * interval)
    return silence, interval


def loopback_pair(max_message: int) -> tuple[socket.socket, socket.socket]:
    """A connection of the process with itself; neither end blocks, the second is prepared for the maps."""
    with socket.socket() as listener:
        prepare(listener, max_message=max_message, half_message=0.0, unacknowledged=_HOUR)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        far = socket.create_connection(listener.getsockname())
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.setblocking(False)
        while True:
            near, peer = listener.accept()
            near.setblocking(False)
            if peer == far.getsockname():
                return far, near
            near.close()  # somebody else's


def largest_message(rmem_max: int) -> int:
    """The largest message that a process without privilege can receive, for a ``net.core.rmem_max``."""
    return 2 * rmem_max // _MESSAGES_IN_BUFFER


def cookie(sock: socket.socket) -> bytes:
    """The kernel's number of the socket, never used twice, in the byte order of the machine."""
    return sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE_SIZE)


def release_early_data(sock: socket.socket) -> None:
    """Lets the strparser see what arrived before the insertion; otherwise it waits for the next segment."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def clear_pause(sock: socket.socket) -> None:
    """Clears the EAGAIN that a pause left pending on a mapped socket.

    ``SO_ERROR`` is read without the socket's lock: a sender that has seen the error, and finds it gone when
    it fetches it, makes EPIPE of it, which ends the socket as a destination for good. A send of no bytes
    fetches it under the lock (``tcp_sendmsg_locked()`` in net/ipv4/tcp.c). Another error than EAGAIN stays
    known by the TCP state.
    """
    with suppress(OSError):
        sock.send(b"", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def tcp_state(sock: socket.socket) -> int:
    """The TCP state, 1 for ESTABLISHED."""
    value: int = _TCP_INFO_STATE.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))[0]
    return value


class Progress(NamedTuple):
    """Bytes that TCP has seen on a connection, in its life."""

    acknowledged: int  # by the peer
    received: int  # in order; a FIN counts as one


def progress(sock: socket.socket) -> Progress:
    """How far both directions of the connection have come."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES.size)
    return Progress._make(_TCP_INFO_BYTES.unpack(info))


def unacknowledged(sock: socket.socket) -> int:
    """Bytes in the send queue, on their way or not; our FIN counts as one."""
    value: int = _INT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))[0]
    return value


def written(sock: socket.socket) -> int:
    """Bytes that TCP has taken into the send queue in the connection's life.

    May lag behind for an instant while acknowledgements arrive; it never runs ahead.
    """
    acknowledged = progress(sock).acknowledged
    return acknowledged + unacknowledged(sock)
