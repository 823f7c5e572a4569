"""Messages that are denied: each is answered by its own refusal, which no user space sees.

What the kernel has to do for this: a redirect of a message to the socket that it came from, while responses
for the same socket come in.
"""

import contextlib
import os
import socket
import threading
from collections import Counter as Multiset
from collections.abc import Iterable
from dataclasses import replace

import pytest

from lb.abi import Counter, Pause
from lb.dataplane import Policy, PostChannel
from lb.framing import PRESETS, Direction, Framer, refusal
from tests.bpf.rig import Backend, Client, Rig, expect, message, receive, until, until_equal
from tests.bpf.test_hash import BY_NAME, Pool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

DNS = PRESETS["dns"]
LISTENER = 1
A, SOA, IXFR, AXFR, ANY = 1, 6, 251, 252, 255
NAME = b"\7example\4test\0"
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
NOTIFY = 4 << 3
RD, CD, QR, RA, REFUSED = 0x01, 0x10, 0x80, 0x80, 5


def query(
    number: int, kind: int = A, *, name: bytes = NAME, flags: bytes = b"\1\0", rest: bytes = b""
) -> bytes:
    """A DNS query with one question."""
    head = number.to_bytes(2, "big") + flags + b"\0\1\0\0\0\0" + (b"\0\1" if rest else b"\0\0")
    body = head + name + kind.to_bytes(2, "big") + b"\0\1" + rest
    return len(body).to_bytes(2, "big") + body


def queries(numbers: Iterable[int], kind: int = A) -> bytes:
    return b"".join(query(number, kind) for number in numbers)


def answer(asked: bytes) -> bytes:
    """A backend's response."""
    return asked[:4] + bytes([asked[4] | QR]) + asked[5:]


def refused(asked: bytes) -> bytes:
    """The refusal of one query, or of several."""
    framer = Framer(DNS, Direction.REQUEST)
    replies = [refusal(DNS, asked.data) for asked in framer.feed(asked)]
    assert not framer.pending
    return b"".join(reply for reply in replies if reply is not None)


def deny(rig: Rig, number: int = LISTENER) -> None:
    """From now on, all of it: the next token comes in a quarter of an hour."""
    rig.plane.rates.set(number, messages_per_second=1, burst=1, deny=True)
    rate = rig.plane.rates._rates[number]
    rate.interval = rate.burst = 10**12
    rate.full = rig.plane.rates.now() + 10**12


def denied(rig: Rig, backend: Backend | None = None, *, policy: Policy | None = None) -> Client:
    """A client all of whose messages are denied."""
    deny(rig)
    policy = replace(policy or rig.policy(DNS), rate=LISTENER)
    return rig.client(policy, *([backend or rig.backend()] if policy.route is None else []))


def test_a_refusal_is_the_query_with_other_flags(rig: Rig) -> None:
    client = denied(rig)
    for asked, flags in (
        (query(7), bytes([QR | RD, RA | REFUSED])),
        (query(8, flags=bytes([NOTIFY | 0x04 | 0x02, 0x7F])), bytes([QR | NOTIFY, RA | CD | REFUSED])),
        (query(9, rest=OPT, flags=b"\0\0"), bytes([QR, RA | REFUSED])),
    ):
        client.far.sendall(asked)
        expect(client.far, asked[:4] + flags + asked[6:])
        assert asked[:4] + flags + asked[6:] == refused(asked)
    assert client.upstreams[0].redirected_bytes == 0


@pytest.mark.parametrize("count", [1, 2, 64, 500])
def test_every_denied_message_is_refused_in_its_order(rig: Rig, count: int) -> None:
    backend = rig.backend()
    client = denied(rig, backend)
    sent = b"".join(query(n, name=bytes([n % 60 + 1]) + b"n" * (n % 60 + 1) + b"\0") for n in range(count))

    client.far.sendall(sent)

    expect(client.far, refused(sent))
    assert client.redirected_bytes == len(sent)
    assert rig.counted(Counter.REFUSALS) == rig.counted(Counter.DROPPED_RATE_LIMITED) == count
    assert client.mapped.outstanding == backend.outstanding == backend.requests == 0
    assert not any(rig.outstanding(client).values())
    until_equal(lambda: client.mapped.backlog, 0)


def test_what_is_allowed_goes_on_and_the_rest_is_refused(rig: Rig) -> None:
    client = rig.client(replace(rig.policy(DNS), rate=LISTENER), rig.backend())
    rig.plane.rates.set(LISTENER, messages_per_second=1, burst=10, deny=True)
    client.far.sendall(queries(range(60)))
    until_equal(lambda: client.mapped.consumed_bytes, len(queries(range(60))))
    passed = client.upstreams[0].redirected_bytes // len(query(0))
    assert passed >= 10
    upstream = client.upstreams[0].far
    expect(upstream, queries(range(passed)))
    upstream.sendall(b"".join(answer(query(number)) for number in range(passed)))

    got = Framer(DNS, Direction.RESPONSE).feed(receive(client.far, len(queries(range(60)))))
    assert sorted(reply.id for reply in got if reply.id is not None) == list(range(60))
    assert Multiset(reply.data[5] & 0xF for reply in got) == {0: passed, REFUSED: 60 - passed}


def test_one_that_comes_in_pieces_is_refused_when_it_is_whole(rig: Rig) -> None:
    client = denied(rig)
    whole = query(7, name=b"\x3f" + b"n" * 63 + b"\0", rest=OPT)
    for end in range(1, len(whole)):
        client.far.sendall(whole[end - 1 : end])
        until_equal(lambda: client.mapped.undecided, end)
    client.far.sendall(whole[-1:])
    expect(client.far, refused(whole))


def test_one_that_is_larger_than_a_segment(rig: Rig) -> None:
    client = denied(rig)
    whole = query(7, rest=bytes(65_000))
    client.far.sendall(whole + query(8))
    expect(client.far, refused(whole + query(8)))


def test_refusals_and_responses_do_not_mix(rig: Rig) -> None:
    """Two sources for one socket at once: a backend that sends, and the client's own messages."""
    client = denied(rig)
    count, size = 2000, 3000
    upstream = client.upstreams[0].far
    response = answer(query(1, rest=bytes(size)))  # responses: many, so they need no request

    def send(sock: socket.socket, data: bytes) -> None:
        for _ in range(count):
            sock.sendall(data)

    threads = [
        threading.Thread(target=send, args=(upstream, response)),
        threading.Thread(target=send, args=(client.far, query(2))),
    ]
    for thread in threads:
        thread.start()
    framer, seen = Framer(DNS, Direction.RESPONSE), Multiset[bytes]()
    client.far.setblocking(False)

    def arrived() -> bool:
        with contextlib.suppress(BlockingIOError):
            seen.update(reply.data for reply in framer.feed(client.far.recv(1 << 16)))
        for end in (client, client.upstreams[0]):
            if end.mapped.paused and client.mapped.has_room:
                rig.resume(end)
        return seen.total() == 2 * count

    until(arrived)
    for thread in threads:
        thread.join()
    assert seen == {response: count, refused(query(2)): count}


def test_who_does_not_read_refusals_is_paused_and_loses_none(rig: Rig) -> None:
    client = denied(rig, policy=replace(rig.policy(DNS, batch=4), budget=16 * 1024))
    client.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    client.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    sent = [query(number, rest=bytes(1000)) for number in range(8000)]
    waiting = memoryview(b"".join(sent))
    client.far.setblocking(False)
    most = 0

    def pour() -> None:
        nonlocal waiting, most
        with contextlib.suppress(BlockingIOError):
            waiting = waiting[client.far.send(waiting) :]
        most = max(most, client.mapped.backlog)

    def stands() -> bool:
        pour()
        return client.mapped.paused is Pause.PAUSED_FULL

    until(stands)
    assert waiting  # or nothing was held back
    framer, got = Framer(DNS, Direction.RESPONSE), list[bytes]()

    def arrived() -> bool:
        pour()
        with contextlib.suppress(BlockingIOError):
            got.extend(reply.data for reply in framer.feed(client.far.recv(1 << 16)))
        if client.mapped.paused and client.mapped.has_room:
            rig.resume(client)
        return len(got) == len(sent)

    until(arrived)
    assert got == [refused(asked) for asked in sent]
    assert most <= 16 * 1024 + 4 * len(sent[0])
    assert rig.counted(Counter.REFUSALS) == rig.counted(Counter.DROPPED_RATE_LIMITED) == len(sent)


def test_over_a_rate_of_a_protocol_without_refusal_nothing_comes_back(rig: Rig) -> None:
    client = denied(rig, policy=rig.policy())
    client.far.sendall(message(1) + message(2))
    until_equal(lambda: rig.counted(Counter.DROPPED_RATE_LIMITED), 2)
    assert rig.counted(Counter.REFUSALS) == 0
    assert client.redirected_bytes == 0


def test_a_client_that_is_gone_is_refused_nothing(rig: Rig) -> None:
    client = denied(rig)
    client.far.sendall(query(1))
    expect(client.far, refused(query(1)))
    rig.plane._socks.remove(client.ref.number)
    client.far.sendall(query(2))
    until_equal(lambda: rig.counted(Counter.DROPPED_RATE_LIMITED), 2)
    assert rig.counted(Counter.REFUSALS) == 1


def test_what_user_space_has_taken_over_is_refused_too(rig: Rig) -> None:
    client = denied(rig)
    channel = rig.plane.post
    channel.sock.setblocking(True)
    channel.sock.sendall(PostChannel.forward(client.ref, query(5)))
    expect(client.far, refused(query(5)))
    assert rig.counted(Counter.FORWARDED) == rig.counted(Counter.REFUSALS) == 1


class TestTransfers:
    """On connections that clients share: a second response to one request could reach a stranger."""

    def shared(self, rig: Rig) -> tuple[Client, socket.socket]:
        policy = rig.share(DNS)
        upstream = rig.shared(policy, rig.backend())
        return rig.client(policy), upstream.far

    @pytest.mark.parametrize("kind", [AXFR, IXFR])
    def test_one_is_refused_wherever_it_stands_in_a_batch(self, rig: Rig, kind: int) -> None:
        client, backend = self.shared(rig)
        for place in range(5):
            sent = [query(number, kind if number == place else A) for number in range(5)]
            client.far.sendall(b"".join(sent))
            expect(client.far, refused(sent[place]))
            asked = Framer(DNS, Direction.REQUEST).feed(receive(backend, 4 * len(sent[0])))
            backend.sendall(b"".join(answer(one.data) for one in asked))
            expect(client.far, b"".join(answer(one) for one in sent if one != sent[place]))
            assert rig.counted(Counter.DROPPED_TRANSFER) == rig.counted(Counter.REFUSALS) == place + 1
        assert client.mapped.outstanding == 0

    def test_several_one_after_the_other(self, rig: Rig) -> None:
        client, backend = self.shared(rig)
        client.far.sendall(queries(range(50), AXFR) + query(50))
        expect(client.far, refused(queries(range(50), AXFR)))
        assert len(receive(backend, len(query(50)))) == len(query(50))

    @pytest.mark.parametrize("kind", [A, SOA, IXFR - 1, AXFR + 1, ANY, AXFR << 8, AXFR + 256])
    def test_others_go_on(self, rig: Rig, kind: int) -> None:
        client, backend = self.shared(rig)
        for number, name in enumerate((NAME, b"\0", b"\1x\0", (b"\x3f" + b"n" * 63) * 3 + b"\0")):
            asked = query(number, kind, name=name, rest=AXFR.to_bytes(2, "big") * 8)
            client.far.sendall(asked)
            assert receive(backend, len(asked))[4:] == asked[4:]
        assert rig.counted(Counter.DROPPED_TRANSFER) == 0

    @pytest.mark.parametrize(
        "name",
        [b"\0", b"\1x\0", NAME, (b"\x3f" + b"n" * 63) * 3 + b"\0", b"\1\2" * 126 + b"\0", b"\1x\xc0\x00"],
    )
    def test_any_name(self, rig: Rig, name: bytes) -> None:
        client, _ = self.shared(rig)
        for rest in (b"", OPT):
            asked = query(1, AXFR, name=name, rest=rest)
            client.far.sendall(asked)
            expect(client.far, refused(asked))

    @pytest.mark.parametrize("kind", [AXFR, A])
    def test_one_that_comes_byte_by_byte(self, rig: Rig, kind: int) -> None:
        client, backend = self.shared(rig)
        whole = query(7, kind)
        for end in range(1, len(whole)):
            client.far.sendall(whole[end - 1 : end])
            until_equal(lambda: client.mapped.undecided, end)
        client.far.sendall(whole[-1:])
        if kind == AXFR:
            expect(client.far, refused(whole))
        else:
            assert receive(backend, len(whole))[4:] == whole[4:]
        client.far.sendall(query(8))
        receive(backend, len(query(8)))

    def test_one_that_is_cut_anywhere(self, rig: Rig) -> None:
        client, backend = self.shared(rig)
        whole = query(7, AXFR, rest=OPT)
        for cut in range(1, len(whole)):
            before = client.mapped.consumed_bytes
            client.far.sendall(whole[:cut])
            until_equal(lambda: client.mapped.undecided, cut)
            client.far.sendall(whole[cut:] + query(cut))
            expect(client.far, refused(whole))
            backend.sendall(answer(receive(backend, len(query(cut)))))
            expect(client.far, answer(query(cut)))
            assert client.mapped.consumed_bytes == before + len(whole + query(cut))

    @pytest.mark.parametrize("length", range(12, 12 + 2 + 4))
    def test_a_question_that_ends_too_early_is_the_backends_business(self, rig: Rig, length: int) -> None:
        client, backend = self.shared(rig)
        body = (query(3, AXFR, name=b"\1x\0")[2:])[:length]
        asked = length.to_bytes(2, "big") + body
        client.far.sendall(asked)
        assert receive(backend, len(asked))[4:] == asked[4:]

    def test_no_rate_is_charged_for_one(self, rig: Rig) -> None:
        policy = replace(rig.share(DNS), rate=LISTENER)
        upstream = rig.shared(policy, rig.backend())
        client = rig.client(policy)
        rig.plane.rates.set(LISTENER, messages_per_second=1, burst=1, deny=True)
        before = rig.plane.rates.ready_at(LISTENER)
        client.far.sendall(query(1, AXFR))
        expect(client.far, refused(query(1, AXFR)))
        assert rig.plane.rates.ready_at(LISTENER) == before
        client.far.sendall(query(2) + query(3, AXFR))
        receive(upstream.far, len(query(2)))
        expect(client.far, refused(query(3, AXFR)))
        assert rig.counted(Counter.DROPPED_RATE_LIMITED) == 0

    def test_over_a_rate_others_are_refused_on_shared_connections_too(self, rig: Rig) -> None:
        policy = rig.share(DNS)
        rig.shared(policy, rig.backend())
        client = denied(rig, policy=policy)
        sent = queries(range(10)) + query(10, AXFR) + queries(range(11, 20))
        client.far.sendall(sent)
        expect(client.far, refused(sent))
        assert rig.counted(Counter.DROPPED_RATE_LIMITED) == 19
        assert rig.counted(Counter.DROPPED_TRANSFER) == 1
        assert client.mapped.outstanding == 0

    def test_one_is_refused_where_messages_are_hashed_too(self, rig: Rig) -> None:
        """Both look at the question; neighbours may go to different backends."""
        pool = Pool(rig, BY_NAME, weights=(1, 1), policy=rig.share(DNS))
        upstreams = [rig.shared(pool.policy, backend, place) for place, backend in enumerate(pool.backends)]
        client = pool.client()
        sent = [query(n, AXFR if n % 3 == 2 else A, name=b"\2%02d\0" % n) for n in range(24)]
        transfers = [asked for asked in sent if asked[-3] == AXFR]
        client.far.sendall(b"".join(sent))
        expect(client.far, refused(b"".join(transfers)))
        wanted = [sum(pool.owner(asked) == n for asked in sent if asked not in transfers) for n in range(2)]
        until_equal(lambda: [upstream.mapped.outstanding for upstream in upstreams], wanted)
        assert min(wanted) > 0
        assert rig.counted(Counter.DROPPED_TRANSFER) == len(transfers)

    def test_connections_of_a_clients_own_carry_them(self, rig: Rig) -> None:
        client = rig.client(rig.policy(DNS), rig.backend())
        client.far.sendall(query(1, AXFR))
        upstream = client.upstreams[0].far
        expect(upstream, query(1, AXFR))
        upstream.sendall(answer(query(1, AXFR)) * 100)
        expect(client.far, answer(query(1, AXFR)) * 100)
