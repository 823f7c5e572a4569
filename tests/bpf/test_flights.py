"""Requests on shared upstreams: ids are exchanged on the way, and never used twice."""

import os
import struct
from dataclasses import replace
from select import select

import pytest

from lb.abi import Counter, Pause
from lb.dataplane import table_size
from lb.framing import Endian, Field, Framing
from lb.slots import SlotRef
from tests.bpf.rig import (
    MARKED,
    PREFIXED,
    QUIET,
    Rig,
    Shared,
    expect,
    marked,
    message,
    one_cpu,
    prefixed,
    receive,
    reset,
    until_equal,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def with_id(width: int, endian: Endian, offset: int = 6) -> Framing:
    """PREFIXED with another id."""
    return replace(PREFIXED, name=f"id-{width}-{endian}", id=Field(offset, width, endian), min_message=24)


def body(framing: Framing, number: int, text: bytes) -> bytes:
    """A message with an id of any shape; what is around the id says so."""
    assert framing.id is not None
    order = "big" if framing.id.endian is Endian.BIG else "little"
    head = b"<<" + number.to_bytes(framing.id.width, order) + b">>"  # type: ignore[arg-type]
    return struct.pack(">I", len(head) + 20) + head + text.ljust(20, b".")


def ids(framing: Framing, upstream: Shared, count: int, size: int) -> list[int]:
    """Those of the messages that the backend gets."""
    assert framing.id is not None
    return [framing.id.read(receive(upstream.far, size)) for _ in range(count)]


@pytest.mark.parametrize("endian", list(Endian))
@pytest.mark.parametrize("width", [2, 4, 8])
def test_ids_are_exchanged_and_nothing_else(rig: Rig, width: int, endian: Endian) -> None:
    framing = with_id(width, endian)
    policy = rig.share(framing)
    upstream = rig.shared(policy, rig.backend())
    clients = [rig.client(policy) for _ in range(3)]
    wanted = (1 << 8 * width) - 2
    size = len(body(framing, 0, b""))
    seen = []
    for who, client in enumerate(clients):
        client.far.sendall(b"".join(body(framing, wanted, b"%d %d" % (who, n)) for n in range(4)))
        for turn in range(4):
            got = receive(upstream.far, size)
            assert framing.id is not None
            seen.append(framing.id.read(got))
            assert got == body(framing, seen[-1], b"%d %d" % (who, turn))
    assert len(set(seen)) == 12

    upstream.far.sendall(b"".join(body(framing, ident, b"to %d" % ident) for ident in reversed(seen)))

    for who, client in enumerate(clients):
        mine = seen[4 * who : 4 * who + 4]
        for ident in reversed(mine):
            expect(client.far, body(framing, wanted, b"to %d" % ident))
    until_equal(lambda: [client.mapped.outstanding for client in clients], [0, 0, 0])
    assert upstream.mapped.outstanding == 0
    assert not list(upstream.table.taken())


def test_an_id_comes_again_only_after_all_others(rig: Rig) -> None:
    framing = with_id(2, Endian.BIG)
    policy = rig.share(framing, max_in_flight=32)
    upstream = rig.shared(policy, rig.backend())
    client = rig.client(policy)
    size = len(body(framing, 0, b""))
    seen = []
    for turn in range(300):
        client.far.sendall(body(framing, 5, b"%d" % turn))
        seen += ids(framing, upstream, 1, size)
        upstream.far.sendall(body(framing, seen[-1], b""))
        expect(client.far, body(framing, 5, b""))
    assert len(set(seen)) == 300, "a place that is used again has another id"


def test_the_limit_holds_and_what_is_over_waits(rig: Rig) -> None:
    policy = rig.share(max_in_flight=8)
    upstream = rig.shared(policy, rig.backend())
    clients = [rig.client(policy) for _ in range(3)]
    for client in clients:
        client.far.sendall(prefixed(range(6)))
    until_equal(lambda: upstream.mapped.outstanding, 8)
    until_equal(lambda: sum(client.mapped.paused is Pause.PAUSED_LIMIT for client in clients), 2)
    assert len(list(upstream.table.taken())) == 8

    answered = 0
    while answered < 18:
        for client in clients:
            if client.mapped.paused:
                rig.resume(client)  # it may pause again before the answers have made room
        if select([upstream.far], [], [], 0.01)[0]:
            for ident in ids(PREFIXED, upstream, 1, 16):
                upstream.far.sendall(message(ident))
                answered += 1
    for client in clients:
        got = [int.from_bytes(receive(client.far, 16)[4:8], "big") for _ in range(6)]
        assert sorted(got) == list(range(6))


def test_a_second_answer_and_an_unknown_id_reach_nobody(rig: Rig) -> None:
    policy = rig.share()
    upstream = rig.shared(policy, rig.backend())
    client = rig.client(policy)
    client.far.sendall(prefixed([1, 2]))
    first, second = ids(PREFIXED, upstream, 2, 16)

    upstream.far.sendall(message(first) + message(first) + message(first + 64) + message(second))

    assert receive(client.far, 32)[4:8] == (1).to_bytes(4, "big")
    until_equal(lambda: rig.counted(Counter.DROPPED_UNSOLICITED), 2)
    assert client.mapped.outstanding == 0
    assert rig.counted(Counter.DROPPED_LATE) == 0


def test_the_answer_to_a_request_that_was_given_up_is_late(rig: Rig) -> None:
    policy = rig.share()
    upstream = rig.shared(policy, rig.backend())
    client = rig.client(policy)
    client.far.sendall(prefixed([1, 2]))
    first, second = ids(PREFIXED, upstream, 2, 16)
    flights = {flight.id: flight for flight in upstream.table.taken()}
    assert {flight.client for flight in flights.values()} == {client.ref}
    upstream.table.give_up(flights[first])
    rig.plane.write_off(upstream.mapped, 1)
    client.mapped.write_off(1)
    assert [flight.id for flight in upstream.table.taken() if flight.given_up] == [first]

    upstream.far.sendall(message(first) + message(second))

    assert receive(client.far, 16)[4:8] == (2).to_bytes(4, "big")
    until_equal(lambda: rig.counted(Counter.DROPPED_LATE), 1)
    assert client.mapped.outstanding == upstream.mapped.outstanding == 0
    assert not upstream.table.holds(flights[first])


def test_answers_to_a_client_that_left_reach_no_stranger(rig: Rig) -> None:
    policy = rig.share()
    upstream = rig.shared(policy, rig.backend())
    leaving = rig.client(policy)
    leaving.far.sendall(prefixed([1, 2, 3]))
    asked = ids(PREFIXED, upstream, 3, 16)
    slot: SlotRef = leaving.ref
    leaving.remove()
    rig.reclaim()
    stranger = rig.stranger(policy, slot)
    stranger.far.sendall(message(9))
    mine = ids(PREFIXED, upstream, 1, 16)

    upstream.far.sendall(prefixed(asked) + prefixed(mine))

    assert receive(stranger.far, 16)[4:8] == (9).to_bytes(4, "big")
    until_equal(lambda: rig.counted(Counter.DROPPED_CLIENT_GONE), 3)
    assert not list(upstream.table.taken())


def test_quiet_requests_take_no_place(rig: Rig) -> None:
    policy = rig.share(MARKED)
    upstream = rig.shared(policy, rig.backend())
    client = rig.client(policy)

    client.far.sendall(marked(7, QUIET) + marked(8) + marked(9, QUIET))

    got = [receive(upstream.far, len(marked(0))) for _ in range(3)]
    assert got[0] == marked(7, QUIET)
    assert got[2] == marked(9, QUIET)
    assert len(list(upstream.table.taken())) == upstream.mapped.outstanding == 1


def test_least_loaded_connection_of_a_backend(rig: Rig) -> None:
    policy = rig.share(batch=1)
    backend = rig.backend()
    upstreams = [rig.shared(policy, backend, place) for place in range(3)]
    client = rig.client(policy)
    with one_cpu():
        for number in range(9):
            client.far.sendall(message(number))
            until_equal(lambda: client.mapped.outstanding, number + 1)
    assert [upstream.mapped.outstanding for upstream in upstreams] == [3, 3, 3]


def test_a_dead_connection_is_not_chosen(rig: Rig) -> None:
    policy = rig.share(batch=1)
    backend = rig.backend()
    dead, well = (rig.shared(policy, backend, place) for place in range(2))
    client = rig.client(policy)
    reset(dead.far)
    until_equal(lambda: dead.tcp_state, 7)

    client.far.sendall(prefixed(range(4)))

    assert len(ids(PREFIXED, well, 4, 16)) == 4


@pytest.mark.parametrize(("limit", "size"), [(1, 64), (32, 64), (33, 128), (1024, 2048), (16384, 32768)])
def test_a_table_has_twice_the_places(limit: int, size: int) -> None:
    assert table_size(limit) == size
