"""Sockets go into the map and out of it, and what their numbers mean meanwhile."""

import os
import socket

import pytest

from lb.abi import Pause
from lb.dataplane import PeerGoneError, sockets
from tests.bpf.rig import (
    CLOSE,
    CLOSE_WAIT,
    MANY,
    Client,
    Rig,
    expect,
    message,
    prefixed,
    receive,
    reset,
    until,
    until_equal,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


# --- into the map and out of it ---------------------------------------------------------------------------


def leftovers(rig: Rig, client: Client) -> tuple[int, bool]:
    """Generation of the slot; whether the socket's cookie is known."""
    return rig.plane._slots[client.ref.number].generation, knows(rig, sockets.cookie(client.near))


def knows(rig: Rig, cookie: bytes) -> bool:
    """Whether the programs would find the socket."""
    try:
        rig.plane._conns.lookup(cookie)
    except FileNotFoundError:
        return False
    return True


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_socket_whose_peer_is_gone_is_refused_and_leaves_nothing_behind(rig: Rig, how: str) -> None:
    policy = rig.policy()
    client = rig.client(policy, rig.backend(), mapped=False)
    if how == "FIN":
        client.far.shutdown(socket.SHUT_WR)
    else:
        reset(client.far)
    until_equal(lambda: client.tcp_state, CLOSE_WAIT if how == "FIN" else CLOSE)

    with pytest.raises(PeerGoneError) as refused:
        client.map(policy)

    assert isinstance(refused.value.__cause__, OSError)
    assert leftovers(rig, client) == (0, False)
    client.far, client.near = rig.connect()  # the slot is still ours, and as good as before
    client.map(policy)
    client.far.sendall(message(1))
    expect(client.upstreams[0].far, message(1))
    assert leftovers(rig, client) == (client.ref.generation, True)


def test_a_slot_that_is_taken_refuses_another_socket_and_keeps_its_own(rig: Rig) -> None:
    policy = rig.policy()
    client = rig.client(policy, rig.backend())
    _, other = rig.connect()

    with pytest.raises(FileExistsError):
        rig.plane._socks.insert(client.ref.number, other.fileno())

    client.far.sendall(message(1))
    expect(client.upstreams[0].far, message(1))


@pytest.mark.parametrize("gone", [False, True], ids=["alive", "reset"])
def test_a_removed_socket_leaves_nothing_behind_and_is_an_ordinary_one(rig: Rig, gone: bool) -> None:
    client = rig.client(rig.policy(), rig.backend())
    client.far.sendall(message(1))
    expect(client.upstreams[0].far, message(1))
    if gone:
        reset(client.far)
        until_equal(lambda: client.tcp_state, CLOSE)

    client.remove()

    assert leftovers(rig, client) == (0, False)
    with pytest.raises(OSError, match="bpf_map_delete_elem"):
        rig.plane._socks.remove(client.ref.number)
    if not gone:
        client.far.sendall(message(2))
        expect(client.near, message(2))


@pytest.mark.parametrize("gone", [False, True], ids=["alive", "reset"])
def test_a_socket_that_is_closed_leaves_both_maps_at_once_and_is_forgotten_with_its_slot(
    rig: Rig, gone: bool
) -> None:
    policy = rig.policy()
    client = rig.client(policy, rig.backend())
    cookie = sockets.cookie(client.near)
    client.far.sendall(message(1))
    expect(client.upstreams[0].far, message(1))
    if gone:
        reset(client.far)
        until_equal(lambda: client.tcp_state, CLOSE)

    client.close()

    assert rig.plane._slots[client.ref.number].generation == 0
    for sockmap in (rig.plane._socks, rig.plane._sources):
        with pytest.raises(OSError, match="bpf_map_delete_elem"):
            sockmap.remove(client.ref.number)
    rig.reclaim()
    assert not knows(rig, cookie)
    stranger = rig.stranger(policy, client.ref)
    rig.reclaim()
    rig.upstream(stranger, policy, rig.backend())
    stranger.far.sendall(message(2))
    until_equal(lambda: stranger.mapped.consumed_bytes, len(message(2)))
    if not gone:
        assert client.far.recv(1) == b""


def test_a_slot_is_reused_with_another_generation_and_clean_numbers(rig: Rig) -> None:
    policy = rig.policy()
    client = rig.client(policy)
    client.far.sendall(prefixed(range(5)))
    client.expect_paused(Pause.PAUSED_NO_UPSTREAM, prefixed(range(5)))
    client.remove()
    rig.reclaim()

    stranger = rig.stranger(policy, client.ref)

    assert stranger.ref.number == client.ref.number
    assert stranger.ref.generation != client.ref.generation
    assert (stranger.mapped.paused, stranger.mapped.consumed_bytes) == (Pause.RUNNING, 0)


# --- numbers --------------------------------------------------------------------------------------------


def test_undecided_is_an_incomplete_message_and_then_the_fin(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    assert client.mapped.undecided == 0
    client.far.sendall(message(1) + message(2)[:9])
    expect(client.upstreams[0].far, message(1))
    assert client.mapped.undecided == 9
    assert client.mapped.consumed_bytes == len(message(1))

    client.far.sendall(message(2)[9:])
    until_equal(lambda: client.mapped.undecided, 0)
    client.far.shutdown(socket.SHUT_WR)

    until_equal(lambda: client.mapped.undecided, 1)


def test_backlog_and_delivered_follow_a_destination_that_does_not_read(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    upstream = client.upstreams[0]
    upstream.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    assert (upstream.mapped.backlog, upstream.mapped.delivered) == (0, True)
    sent = b"".join(message(number, 64_000) for number in range(16))

    client.far.sendall(sent)

    until_equal(lambda: upstream.redirected_bytes, len(sent))
    assert 0 < upstream.mapped.backlog < len(sent)
    until(lambda: not upstream.mapped.delivered)  # at first all may have arrived
    assert receive(upstream.far, len(sent)) == sent
    until_equal(lambda: upstream.mapped.backlog, 0)
    until(lambda: upstream.mapped.delivered)
    assert sockets.written(upstream.near) == len(sent)


def test_what_tcp_counts_as_written_when_nobody_has_written(rig: Rig) -> None:
    for host in ("127.0.0.1", "::1"):
        far, near = rig.connect(host)

        assert sockets.written(far) == sockets.WRITTEN_BY_CONNECTING
        assert sockets.written(near) == sockets.WRITTEN_BY_ACCEPTING


def test_all_is_answered_when_no_message_and_no_answer_is_on_its_way(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    upstream = client.upstreams[0]
    client.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    until(lambda: client.mapped.all_answered)
    asked = b"".join(message(number) for number in range(16))
    answers = b"".join(message(number, 64_000) for number in range(16))

    client.far.sendall(asked)
    expect(upstream.far, asked)
    assert not client.mapped.all_answered  # the answer is to come
    client.far.sendall(message(2)[:9])
    upstream.far.sendall(answers)
    until_equal(lambda: client.mapped.outstanding, 0)
    assert client.mapped.backlog
    assert not client.mapped.all_answered  # it waits, and half a message
    assert receive(client.far, len(answers)) == answers
    until_equal(lambda: client.mapped.backlog, 0)
    assert not client.mapped.all_answered  # the half
    client.far.sendall(message(2)[9:])
    expect(upstream.far, message(2))
    upstream.far.sendall(message(2))
    expect(client.far, message(2))
    client.far.shutdown(socket.SHUT_WR)

    until(lambda: client.mapped.all_answered)


def test_backlog_leaves_out_what_was_written_before_the_insertion(rig: Rig) -> None:
    policy = rig.policy(MANY)
    client = rig.client(policy, rig.backend(), mapped=False)
    client.near.sendall(b"greeting" * 1000)
    client.map(policy)
    receive(client.far, 8000)
    until(lambda: client.mapped.delivered)

    client.upstreams[0].far.sendall(message(1))

    expect(client.far, message(1))
    assert client.mapped.backlog == 0
    assert client.redirected_bytes == len(message(1))


def test_delivered_includes_our_fin(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    client.near.shutdown(socket.SHUT_WR)

    assert client.far.recv(1) == b""
    until(lambda: client.mapped.delivered)
