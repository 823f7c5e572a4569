"""How long a mapped socket's acknowledgements wait, and who waits for them."""

import os
import platform
import socket
import time

import pytest

from lb.dataplane import sockets
from tests.bpf.rig import Rig, expect, message, receive

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

_LINUX = tuple(int(part) for part in platform.release().split(".")[:2])
_ROUNDS = 25
_ATO = 0.040  # seconds that an acknowledgement waits at least: TCP_ATO_MIN


def test_a_backend_with_nagles_algorithm_is_not_kept_waiting(rig: Rig) -> None:
    """Its second small response waits until the first is acknowledged."""
    client = rig.client(rig.policy(), rig.backend())
    upstream = client.upstreams[0]
    upstream.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)

    def best() -> float:
        """The quickest of some rounds: no load of other programs makes one quicker."""
        return min(_round(number) for number in range(_ROUNDS))

    def _round(number: int) -> float:
        asked = message(2 * number), message(2 * number + 1)
        client.far.sendall(b"".join(asked))
        receive(upstream.far, len(b"".join(asked)))
        start = time.monotonic()
        for answer in asked:
            upstream.far.sendall(answer)
        expect(client.far, b"".join(asked))
        return time.monotonic() - start

    best()  # a new connection acknowledges at once for a while
    assert best() >= 0.9 * _ATO
    sockets.acknowledge_soon(upstream.near)
    assert (best() < 0.75 * _ATO) == (_LINUX >= (6, 15)), "TCP_DELACK_MAX_US came then"
