"""What the parser makes of the streams of real sockets: each test is one fact that the product leans on."""

import errno
import itertools
import os
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lb.dataplane import sockets
from lb.framing import Framing
from tests.bpf.rig import (
    LARGEST,
    LIMIT,
    MANY,
    MARKED,
    PREFIXED,
    RESPONSE,
    Rig,
    error_of,
    expect,
    marked,
    message,
    until,
    until_equal,
)

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


# --- where messages start and end -------------------------------------------------------------------------


def test_two_messages_in_one_segment(rig: Rig) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(), backend)

    client.far.sendall(message(1) + message(2))

    expect(client.upstreams[0].far, message(1) + message(2))
    assert backend.requests == 2


def test_an_answer_comes_back(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    backend = client.upstreams[0].far
    client.far.sendall(message(1) + message(2))
    expect(backend, message(1) + message(2))

    backend.sendall(message(2) + message(1))

    expect(client.far, message(2) + message(1))


def test_messages_that_came_before_the_insertion(rig: Rig) -> None:
    policy = rig.policy()
    client = rig.client(policy, rig.backend(), mapped=False)
    early = message(1) + message(2) + message(3)[:5]
    client.far.sendall(early)
    until_equal(lambda: sockets.progress(client.near).received, len(early))

    mapped = client.map(policy)

    expect(client.upstreams[0].far, message(1) + message(2))
    assert mapped.undecided == 5
    client.far.sendall(message(3)[5:] + message(4))
    expect(client.upstreams[0].far, message(3) + message(4))


def test_an_answer_that_came_before_the_insertion(rig: Rig) -> None:
    """The client waits for it: no further segment may be needed to set it free."""
    policy = rig.policy(MANY)
    client = rig.client(policy)
    far, near = rig.connect()
    far.sendall(message(1))
    until_equal(lambda: sockets.progress(near).received, len(message(1)))
    backend = rig.backend()

    mapped = rig.plane.insert_upstream(
        rig.plane.reserve(), near, policy, client=client.ref, backend=backend.index, traffic=backend.row
    )

    expect(client.far, message(1))
    rig.plane.remove(mapped)


def test_a_message_across_segments(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    whole = message(1, 40_000)
    for start in range(0, 40_000, 10_000):
        client.far.sendall(whole[start : start + 10_000])
        if start < 30_000:
            until_equal(lambda: client.mapped.undecided, start + 10_000)

    expect(client.upstreams[0].far, whole)


def test_messages_that_end_and_start_anywhere_in_a_segment(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    stream = b"".join(message(number, 8 + 37 * number) for number in range(100))
    for start, end in itertools.pairwise(range(0, len(stream) + 1009, 1009)):
        client.far.sendall(stream[start:end])

    expect(client.upstreams[0].far, stream)


def test_a_header_that_comes_byte_by_byte(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    whole = message(1)
    for count, byte in enumerate(whole[:-1], 1):
        client.far.sendall(bytes([byte]))
        until_equal(lambda: client.mapped.undecided, count)

    client.far.sendall(whole[-1:])

    expect(client.upstreams[0].far, whole)


def test_a_header_at_the_end_of_a_segment_that_comes_byte_by_byte(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    client.far.sendall(message(1) + message(2)[:1])
    expect(client.upstreams[0].far, message(1))
    for count, byte in enumerate(message(2)[1:-1], 2):
        client.far.sendall(bytes([byte]))
        until_equal(lambda: client.mapped.undecided, count)

    client.far.sendall(message(2)[-1:] + message(3))

    expect(client.upstreams[0].far, message(2) + message(3))


def test_the_largest_message(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())

    client.far.sendall(message(1, LARGEST) + message(2, LARGEST))

    expect(client.upstreams[0].far, message(1, LARGEST) + message(2, LARGEST))


def test_ipv6(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend(), host="::1")

    client.far.sendall(message(1) + message(2))
    expect(client.upstreams[0].far, message(1) + message(2))
    client.upstreams[0].far.sendall(message(1))
    expect(client.far, message(1))


# --- what is no message -----------------------------------------------------------------------------------


def oversize(framing: Framing) -> bytes:
    return struct.pack(">II", framing.max_message - 4 + 1, 0)


MALFORMED = {
    "oversize": (PREFIXED, oversize(PREFIXED), errno.EMSGSIZE),
    "too short": (PREFIXED, struct.pack(">II", 3, 0), errno.EBADMSG),
    "bad magic": (MARKED, marked(1, magic=0xAA), errno.EPROTO),
    "a response from a client": (MARKED, marked(1, RESPONSE), errno.EPROTOTYPE),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_no_message_ends_the_stream_with_its_reason(rig: Rig, kind: str) -> None:
    framing, bad, reason = MALFORMED[kind]
    good = message(7) if framing is PREFIXED else marked(7)
    policy = rig.policy(framing)
    client = rig.client(policy, rig.backend())
    upstream = client.upstreams[0]

    client.far.sendall(bad + good)

    assert error_of(client.near) == reason
    client.far.sendall(good)  # nobody reads it
    assert upstream.redirected_bytes == 0
    # The backend is served by the same upstream still, and has got nothing before this.
    other = rig.client(policy)
    rig.plane.route(other.ref, upstream.ref, upstream.backend.index)
    other.far.sendall(good)
    expect(upstream.far, good)
    assert upstream.redirected_bytes == len(good)


@pytest.mark.parametrize("kind", MALFORMED)
def test_messages_before_it_in_the_segment_are_delivered(rig: Rig, kind: str) -> None:
    framing, bad, reason = MALFORMED[kind]
    good = message(1) + message(2) if framing is PREFIXED else marked(1) + marked(2)
    client = rig.client(rig.policy(framing), rig.backend())

    client.far.sendall(good + bad)

    expect(client.upstreams[0].far, good)
    assert error_of(client.near) == reason
    assert client.upstreams[0].redirected_bytes == len(good)


def test_a_malformed_answer_ends_the_upstream(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    upstream = client.upstreams[0]
    client.far.sendall(message(1) + message(2))
    expect(upstream.far, message(1) + message(2))

    upstream.far.sendall(message(1) + oversize(PREFIXED))

    expect(client.far, message(1))
    assert error_of(upstream.near) == errno.EMSGSIZE
    assert upstream.mapped.outstanding == 1


@pytest.mark.parametrize("sent", [1, 8, 15])
@pytest.mark.parametrize("size", [16, 5000])
def test_half_a_message_times_out(rig: Rig, size: int, sent: int) -> None:
    client = rig.client(rig.policy(), rig.backend(), half_message=0.2)

    client.far.sendall(message(1, size)[:sent])

    assert error_of(client.near) == errno.ETIMEDOUT
    assert sockets.tcp_state(client.near) == sockets.TCP_ESTABLISHED
    assert client.mapped.undecided == sent


@pytest.mark.parametrize("sent", [1, 8, 15])
@pytest.mark.parametrize("size", [16, 24, 5000])
@pytest.mark.parametrize("first", [16, 5000])
def test_half_a_message_behind_a_whole_one_times_out(rig: Rig, first: int, size: int, sent: int) -> None:
    """The kernel alone would start no timer if both come in one segment and the first is as long."""
    client = rig.client(rig.policy(), rig.backend(), half_message=0.2)

    client.far.sendall(message(1, first) + message(2, size)[:sent])

    expect(client.upstreams[0].far, message(1, first))
    assert error_of(client.near) == errno.ETIMEDOUT
    assert client.mapped.undecided == sent


def test_half_a_message_that_came_before_the_insertion_times_out(rig: Rig) -> None:
    policy = rig.policy()
    client = rig.client(policy, rig.backend(), mapped=False, half_message=0.2)
    for part in (message(1), message(2)[:12]):
        client.far.sendall(part)
    until_equal(lambda: sockets.progress(client.near).received, 28)

    client.map(policy)

    expect(client.upstreams[0].far, message(1))
    assert error_of(client.near) == errno.ETIMEDOUT


def test_a_message_that_comes_in_time_stops_the_clock(rig: Rig) -> None:
    half_message = 1.0
    client = rig.client(rig.policy(), rig.backend(), half_message=half_message)
    client.far.sendall(message(1) + message(2)[:12])
    expect(client.upstreams[0].far, message(1))
    client.far.sendall(message(2)[12:])
    expect(client.upstreams[0].far, message(2))
    end = time.monotonic() + half_message + 0.2
    until(lambda: time.monotonic() > end)

    client.far.sendall(message(3))

    expect(client.upstreams[0].far, message(3))


# --- socket options ---------------------------------------------------------------------------------------


def test_an_accepted_socket_has_its_listeners_options(rig: Rig) -> None:
    _, near = rig.connect(half_message=1.5)

    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 4 * LARGEST
    timeout = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    assert struct.unpack("@ll", timeout) == (1, 500_000)
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.mark.parametrize("more", [0, 1])
def test_the_receive_buffer_limits_messages_whatever_the_framing_says(rig: Rig, more: int) -> None:
    """The limit is what getsockopt returns: twice what was set. Hence the factor in sockets.prepare."""
    policy = rig.policy(replace(PREFIXED, max_message=1 << 30))
    client = rig.client(policy, rig.backend(), mapped=False)
    client.near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    limit = client.near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert limit == 65_536
    client.map(policy)

    client.far.sendall(message(1, 20) + struct.pack(">II", limit + more - 4, 2))

    expect(client.upstreams[0].far, message(1, 20))
    if more:
        assert error_of(client.near) == errno.EMSGSIZE
    else:
        assert client.mapped.undecided == 8
        assert client.near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_a_message_larger_than_an_unprivileged_buffer_is_refused_with_the_remedy() -> None:
    code = """if True:
        import socket
        from pathlib import Path
        from lb.dataplane import MachineError, sockets
        from lb.libbpf import clear_capabilities
        clear_capabilities()
        rmem_max = int(Path("/proc/sys/net/core/rmem_max").read_bytes())
        largest = sockets.largest_message(rmem_max)
        with socket.socket() as sock:
            sockets.prepare(sock, max_message=largest, half_message=1, unacknowledged=1)
            try:
                sockets.prepare(sock, max_message=largest + 1, half_message=1, unacknowledged=1)
            except MachineError as error:
                assert f"set max_message to at most {largest} bytes" in error.remedy, error
            else:
                raise AssertionError("a buffer beyond net.core.rmem_max")
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=LIMIT)
