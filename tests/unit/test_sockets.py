"""Options of sockets that are to be mapped, as the kernel has them."""

import math
import socket
from contextlib import closing

import pytest

from lb.dataplane import sockets


def option(sock: socket.socket, level: int, name: int) -> int:
    return sock.getsockopt(level, name)


def keepalive(sock: socket.socket) -> tuple[int, int]:
    """Silence and interval; fails where the kernel asks no questions."""
    assert option(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    silence = option(sock, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    return silence, option(sock, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_an_accepted_socket_has_the_options_of_its_listener(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as listener:
        sockets.prepare(listener, max_message=1000, half_message=2.5, unacknowledged=16.5)
        listener.bind((host, 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2]), closing(listener.accept()[0]) as accepted:
            assert option(accepted, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 16_500
            assert keepalive(accepted) == (9, 2)
            assert option(accepted, socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert option(accepted, socket.SOL_SOCKET, socket.SO_RCVBUF) == 256 * 1024


@pytest.mark.parametrize("unacknowledged", [0.5, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 17, 60, 899.999, 900])
def test_keepalive_finds_a_silent_peer_in_the_same_time(unacknowledged: float) -> None:
    """In whole seconds, of which half at least are silence."""
    with socket.socket() as sock:
        sockets.prepare(sock, max_message=1000, half_message=1, unacknowledged=unacknowledged)
        silence, interval = keepalive(sock)

    # It is dead when a question is unanswered and TCP_USER_TIMEOUT is over, as is seen when the next is due.
    questions = max(1, math.ceil((unacknowledged - silence) / interval))
    found = silence + questions * interval
    assert found - 1 < max(2, unacknowledged) <= found
    assert found / 2 - 1 < silence
    assert 1 <= questions <= 4
