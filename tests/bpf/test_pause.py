"""Sources that stand still because there is no room, and go on: nothing is lost, doubled, or unbounded.

What the kernel has to do for this, and no documentation promises: an error of the parser leaves the message
in TCP's receive queue; a socket that leaves the map of the programs keeps what waits for it in another map;
and a pending EAGAIN is a full buffer to whoever sends. Each is a test here.
"""

import contextlib
import errno
import os
import random
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from lb import abi
from lb.abi import Counter, Pause
from lb.dataplane import PeerGoneError, Policy, sockets
from tests.bpf.rig import (
    CLOSE,
    CLOSE_WAIT,
    FIFO,
    PREFIXED,
    Client,
    End,
    Rig,
    expect,
    message,
    prefixed,
    receive,
    reset,
    take,
    until,
    until_equal,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

BUDGET = 32 * 1024
SPACE = select.EPOLLOUT | select.EPOLLET
SIZE = 1000


def tight(rig: Rig, budget: int = BUDGET, batch: int = 4) -> Policy:
    return replace(rig.policy(batch=batch), budget=budget)


def narrow(end: End) -> None:
    """Let TCP itself hold little, so that the rest waits in front of it."""
    end.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    end.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)


def pour(sock: socket.socket, waiting: memoryview) -> memoryview:
    """Send as much as the kernel takes at once; what is left."""
    with contextlib.suppress(BlockingIOError):
        waiting = waiting[os.write(sock.fileno(), waiting) :]  # send() would wait for room
    return waiting


def sip(sock: socket.socket, most: int) -> bytes:
    """What has come; nothing if nothing has."""
    try:
        return os.read(sock.fileno(), most)
    except BlockingIOError:
        return b""


def pour_until_full(rig: Rig, source: End, target: End, data: bytes | memoryview) -> memoryview:
    """Send until nothing moves any more: the target has its budget, the source stands; what is left."""
    waiting = memoryview(data)

    def full() -> bool:
        nonlocal waiting
        before = len(waiting)
        waiting = pour(source.far, waiting)
        if source.mapped.paused and target.mapped.has_room:
            rig.resume(source)
        return len(waiting) == before and bool(source.mapped.paused) and not target.mapped.has_room

    until(full)
    return waiting


def drink(rig: Rig, source: End, target: End, left: memoryview, size: int) -> bytes:
    """Read `size` bytes at the target, sending what is left, and resuming where there is room."""
    got = bytearray()
    while len(got) < size:
        left = pour(source.far, left)
        readable, _, _ = select.select([target.far], [], [], 0.01)
        if readable:
            got += sip(target.far, 1 << 16)
        if source.mapped.paused and target.mapped.has_room:
            rig.resume(source)
    return bytes(got)


def numbered(count: int, size: int = SIZE) -> bytes:
    return b"".join(message(number, size) for number in range(count))


# --- the budget -------------------------------------------------------------------------------------------


def test_a_backend_that_does_not_read_stops_its_client(rig: Rig) -> None:
    client = rig.client(tight(rig), rig.backend())
    upstream = client.upstreams[0]
    narrow(upstream)
    sent = numbered(6000)

    left = pour_until_full(rig, client, upstream, sent)

    assert left, "the client was never slowed down"
    assert BUDGET // 2 < upstream.mapped.backlog < BUDGET + 4 * SIZE
    assert client.mapped.paused is Pause.PAUSED_FULL
    assert client.mapped.consumed_bytes == upstream.redirected_bytes
    assert drink(rig, client, upstream, left, len(sent)) == sent
    assert rig.counted(Counter.PAUSES_FULL) > 1
    assert client.mapped.consumed_bytes == upstream.redirected_bytes == len(sent)


def test_a_client_that_does_not_read_stops_its_backend(rig: Rig) -> None:
    client = rig.client(tight(rig), rig.backend())
    upstream = client.upstreams[0]
    narrow(client)
    asked = prefixed(range(3000))
    assert drink(rig, client, upstream, memoryview(asked), len(asked)) == asked
    answers = numbered(3000)

    left = pour_until_full(rig, upstream, client, answers)

    assert BUDGET // 2 < client.mapped.backlog < BUDGET + 4 * SIZE
    assert drink(rig, upstream, client, left, len(answers)) == answers
    assert client.mapped.outstanding == 0


def test_the_kernel_tells_when_a_full_destination_has_space(rig: Rig) -> None:
    """So one that does not read need not be looked at again and again."""
    client = rig.client(tight(rig), rig.backend())
    upstream = client.upstreams[0]
    narrow(upstream)
    client.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    sent = numbered(6000)
    left = memoryview(sent)
    got = bytearray()

    with select.epoll() as poll:
        poll.register(upstream.near, SPACE)
        while poll.poll(0.05):  # the kernel may have been behind
            left = pour_until_full(rig, client, upstream, left)
            poll.modify(upstream.near, SPACE)

        def told() -> bool:
            got.extend(sip(upstream.far, 1 << 14))
            return bool(poll.poll(0))

        until(told)
    assert bytes(got) + drink(rig, client, upstream, left, len(sent) - len(got)) == sent


def test_a_message_that_has_begun_goes_on_whatever_waits(rig: Rig) -> None:
    """Its source could not be paused without losing what has come; the budget is exceeded by it, once."""
    client = rig.client(tight(rig), rig.backend())
    upstream = client.upstreams[0]
    narrow(upstream)
    whole = message(100, 2 * BUDGET)
    client.far.sendall(whole[:4000])
    until_equal(lambda: client.mapped.undecided, 4000)
    other = rig.client(tight(rig))
    rig.plane.route(other.ref, upstream.ref, upstream.backend.index)
    pour_until_full(rig, other, upstream, numbered(3000))
    before = upstream.redirected_bytes

    client.far.sendall(whole[4000:] + message(101))

    until_equal(lambda: client.mapped.paused, Pause.PAUSED_FULL)
    assert upstream.redirected_bytes == before + len(whole)
    assert client.mapped.undecided == len(message(101))


def test_messages_go_where_there_is_room(rig: Rig) -> None:
    client = rig.client(tight(rig), rig.backend(), rig.backend())
    full, roomy = client.upstreams
    narrow(full)
    client.cut(roomy)
    sent = numbered(3000)
    left = pour_until_full(rig, client, full, sent)
    before = full.redirected_bytes
    rig.plane._slots[full.ref.number].budget = 0  # whatever its TCP still takes
    roomy.place = rig.plane.route(client.ref, roomy.ref, roomy.backend.index)

    rig.resume(client)

    assert drink(rig, client, roomy, left, len(sent) - before) == sent[before:]
    assert full.redirected_bytes == before


def test_fifo_waits_for_the_one_that_answers(rig: Rig) -> None:
    policy = replace(rig.policy(FIFO, batch=4), budget=BUDGET)
    client = rig.client(policy, rig.backend(), rig.backend())
    for upstream in client.upstreams:
        narrow(upstream)

    pour(client.far, memoryview(numbered(1000)))

    until_equal(lambda: client.mapped.paused, Pause.PAUSED_FULL)
    used, unused = sorted(client.upstreams, key=lambda upstream: -upstream.redirected_bytes)
    assert rig.plane.bound_to(client.mapped) == used.ref.number
    assert unused.redirected_bytes == 0


def test_a_backend_gets_no_more_than_max_outstanding(rig: Rig) -> None:
    backend = rig.backend()
    rig.plane.set_max_outstanding(backend.index, 5)
    client = rig.client(rig.policy(), backend)
    upstream = client.upstreams[0].far
    client.far.sendall(prefixed(range(12)))

    expect(upstream, prefixed(range(5)))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_LIMIT)
    assert backend.outstanding == 5
    assert not rig.plane.accepts(backend.index)
    upstream.sendall(prefixed(range(2)))
    expect(client.far, prefixed(range(2)))
    assert rig.plane.accepts(backend.index)
    rig.resume(client)
    expect(upstream, prefixed(range(5, 7)))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_LIMIT)
    assert rig.counted(Counter.PAUSES_LIMIT) == 2


def test_a_backend_that_takes_no_new_messages_is_no_reason_to_go_on(rig: Rig) -> None:
    """Its upstream lives and has room; to resume for its sake would be to resume for ever."""
    backend = rig.backend()
    client = rig.client(rig.policy(), backend)
    rig.plane.set_weight(backend.index, 0)

    client.far.sendall(message(1))

    until_equal(lambda: client.mapped.paused, Pause.PAUSED_NO_UPSTREAM)
    assert client.upstreams[0].mapped.has_room
    assert not rig.plane.accepts(backend.index)
    assert rig.plane.accepts(backend.index, bound=True)
    rig.plane.set_weight(backend.index, 1)
    assert rig.plane.accepts(backend.index)


# --- what the kernel does ---------------------------------------------------------------------------------


def stop_and_go(rig: Rig, client: Client) -> None:
    """Pause a client that has a message waiting, and let it go on."""
    client.mapped.hold()
    client.far.sendall(message(7))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_HELD)
    rig.plane._slots[client.ref.number].hold = 0
    rig.resume(client)


def test_a_paused_socket_keeps_what_waits_for_it(rig: Rig) -> None:
    """It leaves the map of the programs, and stays in the one of destinations."""
    client = rig.client(replace(rig.policy(), budget=1 << 30), rig.backend())
    upstream = client.upstreams[0]
    narrow(client)
    asked = prefixed(range(500))
    client.far.sendall(asked)
    receive(upstream.far, len(asked))
    answers = numbered(500)
    upstream.far.sendall(answers)
    until_equal(lambda: client.redirected_bytes, len(answers))
    assert client.mapped.backlog > len(answers) // 2

    stop_and_go(rig, client)

    expect(upstream.far, message(7))
    expect(client.far, answers)


def test_a_sender_takes_the_error_of_a_pause_for_a_full_buffer(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    upstream = client.upstreams[0]
    client.far.sendall(message(1) + message(2))
    receive(upstream.far, 2 * len(message(1)))
    client.mapped.hold()
    client.far.sendall(message(3))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_HELD)

    upstream.far.sendall(message(1))

    expect(client.far, message(1))
    assert client.near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # the sender has taken it
    upstream.far.sendall(message(2))
    expect(client.far, message(2))


def test_a_send_of_no_bytes_clears_the_error_of_a_pause(rig: Rig) -> None:
    client = rig.client(rig.policy())
    client.far.sendall(message(1))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_NO_UPSTREAM)
    poll = select.poll()
    poll.register(client.near, 0)
    assert poll.poll(0), "a pause wakes whoever watches the socket"

    sockets.clear_pause(client.near)

    assert not poll.poll(0)
    assert client.near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_the_canary_comes_back_again_and_again(rig: Rig) -> None:
    for _ in range(100):
        rig.plane.canary.send()
        until(rig.plane.canary.back)


def test_a_source_that_is_paused_again_and_again_in_both_directions(rig: Rig) -> None:
    """The budget is a few messages: each side stops the other all the time. Every byte is checked."""
    source = random.Random(5)
    client = rig.client(tight(rig, budget=2000), rig.backend())
    upstream = client.upstreams[0]
    narrow(client)
    narrow(upstream)
    sent = b"".join(message(number, source.choice([16, 100, 1000, 9000])) for number in range(150))
    to_send, to_answer = memoryview(sent), bytearray()
    heard, answered = bytearray(), bytearray()
    pairs: tuple[tuple[End, End], ...] = ((client, upstream), (upstream, client))

    def step() -> bool:
        nonlocal to_send
        to_send = pour(client.far, to_send)
        data = sip(upstream.far, source.choice([100, 5000, 50_000]))
        heard.extend(data)
        to_answer.extend(data)
        if to_answer:
            with contextlib.suppress(BlockingIOError):
                del to_answer[: os.write(upstream.far.fileno(), to_answer)]
        answered.extend(sip(client.far, source.choice([100, 5000, 50_000])))
        for end, target in pairs:
            if end.mapped.paused and target.mapped.has_room:
                rig.resume(end)
        return len(answered) >= len(sent)

    until(step)

    assert heard == sent
    assert answered == sent
    assert rig.counted(Counter.PAUSES_FULL) > 20


# --- peers that end meanwhile -----------------------------------------------------------------------------


def paused(rig: Rig) -> Client:
    client = rig.client(rig.policy())
    client.far.sendall(prefixed(range(3)))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_NO_UPSTREAM)
    return client


def test_one_that_sent_fin_cannot_go_on_and_is_read_like_any_socket(rig: Rig) -> None:
    client = paused(rig)
    client.far.sendall(message(3))
    client.far.shutdown(socket.SHUT_WR)
    until_equal(lambda: client.tcp_state, CLOSE_WAIT)

    with pytest.raises(PeerGoneError):
        rig.resume(client)

    assert client.mapped.paused is Pause.PAUSED_NO_UPSTREAM
    rig.plane.take_over(client.mapped)
    expect(client.near, prefixed(range(4)))
    assert client.near.recv(1) == b""


def test_one_that_was_reset_cannot_go_on(rig: Rig) -> None:
    client = paused(rig)
    reset(client.far)
    until_equal(lambda: client.tcp_state, CLOSE)

    with pytest.raises(PeerGoneError):
        rig.resume(client)


def test_a_lack_of_memory_leaves_it_paused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    client = paused(rig)

    def fail(_slot: int, _fd: int) -> None:
        raise OSError(errno.ENOMEM, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(rig.plane._sources, "insert", fail)
        with pytest.raises(OSError, match="injected"):
            rig.plane.resume(client.mapped)
    assert client.mapped.paused is Pause.PAUSED_NO_UPSTREAM
    upstream = rig.upstream(client, rig.policy(), rig.backend())

    rig.resume(client)

    expect(upstream.far, prefixed(range(3)))


# --- the post channel -------------------------------------------------------------------------------------


def post(rig: Rig, *posted: bytes) -> None:
    for data in posted:
        waiting = memoryview(data)
        while waiting:
            waiting = pour(rig.plane.post.sock, waiting)


def test_a_reply_stands_behind_what_waits_for_the_client_and_stays_whole(rig: Rig) -> None:
    client = rig.client(replace(rig.policy(), budget=1 << 30), rig.backend())
    upstream = client.upstreams[0]
    narrow(client)
    asked = prefixed(range(300))
    client.far.sendall(asked)
    receive(upstream.far, len(asked))
    channel = rig.plane.post
    for number in range(100):
        upstream.far.sendall(b"".join(message(3 * number + place, SIZE) for place in range(3)))
        post(rig, channel.reply(client.ref, message(1000 + number, 5000)))

    got: list[int] = []
    until_equal(lambda: rig.counted(Counter.REPLIES), 100)
    while len(got) < 400:
        (length,) = struct.unpack(">I", receive(client.far, 4))
        rest = receive(client.far, length)
        number = int.from_bytes(rest[:4], "big")
        assert struct.pack(">I", length) + rest == message(number, length + 4)
        got.append(number)

    assert [number for number in got if number < 1000] == list(range(300))
    assert [number for number in got if number >= 1000] == list(range(1000, 1100))


def test_what_is_forwarded_counts_as_its_sources(rig: Rig) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(), backend)
    upstream = client.upstreams[0]
    client.mapped.hold()
    client.far.sendall(message(1))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_HELD)
    rig.plane.take_over(client.mapped)
    expect(client.near, message(1))

    post(rig, rig.plane.post.forward(client.ref, message(1)))

    expect(upstream.far, message(1))
    until_equal(lambda: client.mapped.consumed_bytes, len(message(1)))
    assert client.mapped.outstanding == upstream.mapped.outstanding == backend.outstanding == 1
    assert rig.outstanding(client) == {upstream.ref: [1]}
    upstream.far.sendall(message(1) * 2)
    expect(client.far, message(1))
    until_equal(lambda: rig.counted(Counter.DROPPED_UNSOLICITED), 1)
    assert rig.counted(Counter.FORWARDED) == 1
    assert rig.outstanding(client) == {upstream.ref: []}


@pytest.mark.parametrize("kind", ["forward", "reply"])
def test_what_is_posted_for_an_earlier_life_of_a_slot_is_dropped(rig: Rig, kind: str) -> None:
    policy = rig.policy()
    client = rig.client(policy, rig.backend())
    make: Callable[..., bytes] = getattr(rig.plane.post, kind)
    client.remove()
    rig.reclaim()
    stranger = rig.stranger(policy, client.ref)

    post(rig, make(client.ref, message(1)), rig.plane.post.reply(stranger.ref, message(2)))

    expect(stranger.far, message(2))  # and nothing before it
    assert rig.counted(Counter.DROPPED_CLIENT_GONE) == 1


# --- what was lost ----------------------------------------------------------------------------------------


def test_the_requests_that_a_dead_upstream_owes_are_known(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend(), rig.backend())
    first, second = client.upstreams
    client.cut(second)
    client.far.sendall(prefixed(range(5)))
    receive(first.far, len(prefixed(range(5))))
    first.far.sendall(message(2) + message(4))
    expect(client.far, message(2) + message(4))

    found = rig.outstanding(client)

    assert {ref: sorted(idents) for ref, idents in found.items()} == {first.ref: [0, 1, 3], second.ref: []}


def test_the_start_of_a_request_is_kept_where_the_protocol_has_an_error_reply(rig: Rig) -> None:
    from lb.framing import PRESETS

    client = rig.client(rig.policy(PRESETS["dns"]), rig.backend())

    def query(number: int, size: int) -> bytes:
        return struct.pack(">HH", 12 + size, number) + bytes(10) + bytes(range(256)) * 8

    queries = [query(number, 2048) for number in range(2)]
    short = struct.pack(">HH", 12, 9) + bytes(10)
    client.far.sendall(queries[0][:5])
    until_equal(lambda: client.mapped.undecided, 5)
    client.far.sendall(queries[0][5:] + queries[1] + short)
    receive(client.upstreams[0].far, len(queries[0] + queries[1] + short))

    ((upstream, idents),) = rig.outstanding(client).items()

    found = (rig.plane.requests.head(upstream, ident) for ident in idents)
    heads = sorted(head for head in found if head is not None)
    assert heads == sorted([queries[0][: abi.MAX_HEAD], queries[1][: abi.MAX_HEAD], short])


def test_quiet_requests_that_may_not_have_arrived_are_counted(rig: Rig) -> None:
    from tests.bpf.rig import MARKED, QUIET, marked

    client = rig.client(rig.policy(MARKED), rig.backend())
    upstream = client.upstreams[0]
    quiet = b"".join(marked(number, QUIET) for number in range(100))
    client.far.sendall(quiet)
    expect(upstream.far, quiet)
    until(lambda: upstream.mapped.delivered)
    assert upstream.mapped.undelivered_quiet == 0
    narrow(upstream)
    sent = b"".join(marked(number & 0xFFFF, QUIET) for number in range(20_000))
    client.far.sendall(sent)
    until_equal(lambda: upstream.redirected_bytes, len(quiet + sent))
    taken = len(receive(upstream.far, 5000)) // len(marked(0))

    reset(upstream.far)
    until_equal(lambda: upstream.tcp_state, CLOSE)

    lost = upstream.mapped.undelivered_quiet
    read = sockets.progress(upstream.near).acknowledged // len(marked(0)) - 100
    assert 20_000 - read - 1 <= lost <= 20_000
    assert read >= taken - 1


def test_the_rig_takes_what_it_sent(rig: Rig) -> None:
    """The helpers above prove something only if an undisturbed client is not paused."""
    client = rig.client(tight(rig), rig.backend())
    client.far.sendall(prefixed(range(10)))
    take(client, range(10))
    assert client.mapped.paused is Pause.RUNNING
    assert PREFIXED.max_message > BUDGET
