"""What an error on a mapped socket means.

The parser ends a malformed stream with an errno of its own choice (``enum lb_malformed`` in
``bpf/lb_framing.h``), the strparser one that stays incomplete with ETIMEDOUT; the socket is a black hole from
then on.
"""

import errno
import select
import socket

from lb.dataplane import MappedSocket, sockets

# The peer sent FIN; EPOLLHUP joins in when we did too.
PEER_ENDED = select.EPOLLRDHUP | select.EPOLLHUP

MALFORMED = {
    errno.EBADMSG: "too_short",
    errno.EMSGSIZE: "oversize",
    errno.EPROTO: "bad_magic",
    errno.EPROTOTYPE: "unexpected_response",
    errno.ETIMEDOUT: "half_message",
}


def take_error(mapped: MappedSocket) -> int:
    """The error that ended a mapped socket's stream, 0 for none; reading it clears it.

    A pause is no error, although it leaves one pending, which is not to be cleared here
    (:func:`sockets.clear_pause`).
    """
    if mapped.paused and sockets.tcp_state(mapped.sock) != sockets.TCP_CLOSE:
        return 0
    code = connect_error(mapped.sock)
    return 0 if code == errno.EAGAIN else code


def connect_error(sock: socket.socket) -> int:
    """How an attempt to connect has ended: 0 for success."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def malformed(sock: socket.socket, code: int) -> str | None:
    """What was wrong with the stream, as in the label of a metric, if that is what the error means."""
    if code == errno.ETIMEDOUT and sockets.tcp_state(sock) == sockets.TCP_CLOSE:
        return None  # the peer stopped to acknowledge; the strparser's time-out leaves the connection open
    return MALFORMED.get(code)


def send_fin(sock: socket.socket) -> None:
    """Closes our direction; the peer may have reset the connection already."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


def reset_on_close(sock: socket.socket) -> None:
    """Makes ``close`` send RST: the peer must not take a cut stream for a whole one."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
