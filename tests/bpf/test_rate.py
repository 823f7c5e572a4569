"""Rates: as many messages as are allowed and no more, on any processor."""

import os
import threading
import time
from dataclasses import replace

import pytest

from lb.abi import Counter, Pause
from lb.dataplane import Policy
from tests.bpf.rig import Backend, Client, Rig, expect, message, prefixed, receive, until, until_equal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LISTENER, ADDRESS = 1, 2
SLOW = 1  # a second: what a test sends is over long before many come


class Measured:
    """How many messages a rate allows while a test runs."""

    def __init__(self, rig: Rig, number: int, per_second: int, burst: int, *, deny: bool = False) -> None:
        self._rate, self._burst = per_second, burst
        rig.plane.rates.set(number, messages_per_second=per_second, burst=burst, deny=deny)
        self._since = time.monotonic()

    def check(self, messages: int) -> None:
        """Not fewer than the burst, not more than the rate allows."""
        elapsed = time.monotonic() - self._since
        assert self._burst <= messages <= self._burst + self._rate * elapsed + 1


def limited(rig: Rig, backend: Backend, *, policy: Policy | None = None, address_rate: int = 0) -> Client:
    policy = policy or rig.policy()
    return rig.client(replace(policy, rate=LISTENER), backend, address_rate=address_rate)


def arrived(client: Client) -> int:
    return client.upstreams[0].redirected_bytes // len(message(0))


def wait_for_a_token(rig: Rig, number: int = LISTENER) -> None:
    until(lambda: rig.plane.rates.ready_at(number) <= rig.plane.rates.now())


def test_a_batch_is_cut_where_the_tokens_end_and_the_rest_waits(rig: Rig) -> None:
    client = limited(rig, rig.backend())
    measured = Measured(rig, LISTENER, SLOW, 10)
    client.far.sendall(prefixed(range(60)))

    until_equal(lambda: client.mapped.paused, Pause.PAUSED_RATE)

    measured.check(arrived(client))
    assert rig.counted(Counter.PAUSES_RATE) == 1
    assert rig.counted(Counter.DROPPED_RATE_LIMITED) == 0
    expect(client.upstreams[0].far, prefixed(range(10)))


def test_all_arrive_in_the_end_and_never_faster(rig: Rig) -> None:
    client = limited(rig, rig.backend())
    measured = Measured(rig, LISTENER, 50, 5)
    client.far.sendall(prefixed(range(40)))
    pauses = 0
    while arrived(client) < 40:
        if client.mapped.paused:
            pauses += 1
            wait_for_a_token(rig)
            rig.resume(client)
        measured.check(arrived(client))
    expect(client.upstreams[0].far, prefixed(range(40)))
    assert pauses >= 3


def test_what_is_not_needed_is_given_back(rig: Rig) -> None:
    """Each message alone: the parser takes all that is there, and needs one."""
    client = limited(rig, rig.backend())
    measured = Measured(rig, LISTENER, SLOW, 10)
    for number in range(60):
        if client.mapped.paused:
            break
        client.far.sendall(message(number))
        until(lambda sent=number + 1: arrived(client) == sent or bool(client.mapped.paused))  # type: ignore[misc]
    assert client.mapped.paused is Pause.PAUSED_RATE
    measured.check(arrived(client))


def test_an_idle_bucket_holds_its_burst_and_no_more(rig: Rig) -> None:
    client = limited(rig, rig.backend())
    Measured(rig, LISTENER, 1_000_000, 3)
    client.far.sendall(message(0))
    receive(client.upstreams[0].far, len(message(0)))
    # It was full again long ago; from here on it is slow.
    rate = rig.plane.rates._rates[LISTENER]
    rate.interval, rate.burst = 10**9, 3 * 10**9
    since = time.monotonic()
    client.far.sendall(prefixed(range(20)))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_RATE)
    assert 3 <= arrived(client) - 1 <= 3 + (time.monotonic() - since) + 1


def test_over_a_rate_that_denies_messages_are_dropped_and_counted(rig: Rig) -> None:
    backend = rig.backend()
    client = limited(rig, backend)
    measured = Measured(rig, LISTENER, SLOW, 10, deny=True)

    client.far.sendall(prefixed(range(60)))

    until_equal(lambda: client.mapped.consumed_bytes, len(prefixed(range(60))))
    assert client.mapped.paused is Pause.RUNNING
    measured.check(arrived(client))
    assert rig.counted(Counter.DROPPED_RATE_LIMITED) == 60 - arrived(client)
    assert client.mapped.outstanding == backend.outstanding == backend.requests == arrived(client)
    assert sum(map(len, rig.outstanding(client).values())) == arrived(client)
    upstream = client.upstreams[0].far
    expect(upstream, prefixed(range(10)))
    upstream.sendall(message(0))
    expect(client.far, message(0))


def test_an_address_has_its_own_part_of_the_listeners(rig: Rig) -> None:
    """What the address does not get is left to others."""
    backend, policy = rig.backend(), rig.policy()
    greedy = limited(rig, backend, policy=policy, address_rate=ADDRESS)
    other = limited(rig, backend, policy=policy)
    whole = Measured(rig, LISTENER, SLOW, 12)
    part = Measured(rig, ADDRESS, SLOW, 5)
    for client in (greedy, other):
        client.far.sendall(prefixed(range(60)))
        until_equal(lambda client=client: client.mapped.paused, Pause.PAUSED_RATE)  # type: ignore[misc]

    part.check(arrived(greedy))
    whole.check(arrived(greedy) + arrived(other))


def test_the_rate_that_is_exceeded_decides_what_happens(rig: Rig) -> None:
    client = limited(rig, rig.backend(), address_rate=ADDRESS)
    Measured(rig, LISTENER, SLOW, 50)
    part = Measured(rig, ADDRESS, SLOW, 5, deny=True)
    client.far.sendall(prefixed(range(30)))
    until_equal(lambda: client.mapped.consumed_bytes, len(prefixed(range(30))))
    part.check(arrived(client))
    assert rig.counted(Counter.DROPPED_RATE_LIMITED) == 30 - arrived(client)


def test_a_message_that_has_begun_overdraws_by_one(rig: Rig) -> None:
    policy = rig.policy()
    slow, fast = (limited(rig, rig.backend(), policy=policy) for _ in range(2))
    measured = Measured(rig, LISTENER, SLOW, 4)
    whole = message(7, 2000)
    slow.far.sendall(whole[:1000])
    until_equal(lambda: slow.mapped.undecided, 1000)
    fast.far.sendall(prefixed(range(30)))
    until_equal(lambda: fast.mapped.paused, Pause.PAUSED_RATE)
    measured.check(arrived(fast))  # what has begun is not charged yet
    before = rig.plane.rates.ready_at(LISTENER)

    slow.far.sendall(whole[1000:] + message(8))

    expect(slow.upstreams[0].far, whole)
    until_equal(lambda: slow.mapped.paused, Pause.PAUSED_RATE)
    assert rig.plane.rates.ready_at(LISTENER) >= before + 10**9
    assert slow.mapped.undecided == len(message(8))


def test_a_message_that_comes_in_pieces_is_denied_as_a_whole(rig: Rig) -> None:
    client = limited(rig, rig.backend())
    Measured(rig, LISTENER, 1, 1, deny=True)
    rig.plane.rates._rates[LISTENER].interval *= 1000  # none comes for a quarter of an hour
    rig.plane.rates._rates[LISTENER].burst *= 1000
    client.far.sendall(message(0))
    expect(client.upstreams[0].far, message(0))
    denied = message(1, 3000)
    for start in (0, 2, 1500):  # in the header, in the middle
        end = {0: 2, 2: 1500, 1500: 3000}[start]
        client.far.sendall(denied[start:end])
        if end < len(denied):
            until_equal(lambda: client.mapped.undecided, end)

    until_equal(lambda: rig.counted(Counter.DROPPED_RATE_LIMITED), 1)
    assert arrived(client) == 1
    assert client.mapped.passed_messages == 0
    rig.plane.rates.set(LISTENER, messages_per_second=1000, burst=10, deny=True)
    client.far.sendall(message(2))
    expect(client.upstreams[0].far, message(2))


def test_a_rate_is_exact_on_all_processors_at_once(rig: Rig) -> None:
    """Twice as many messages as tokens, one by one, from a thread for each processor."""
    burst, senders = 2000, 4
    backend, policy = rig.backend(), rig.policy()
    clients = [limited(rig, backend, policy=policy) for _ in range(senders)]
    measured = Measured(rig, LISTENER, SLOW, burst, deny=True)
    cpus = sorted(os.sched_getaffinity(0))
    start = threading.Barrier(senders)

    def send(number: int) -> None:
        os.sched_setaffinity(0, {cpus[number % len(cpus)]})
        start.wait()
        for sequence in range(2 * burst // senders):
            clients[number].far.sendall(message(sequence))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = 2 * burst * len(message(0))
    until_equal(lambda: sum(client.mapped.consumed_bytes for client in clients), sent)

    passed = sum(map(arrived, clients))
    measured.check(passed)
    assert passed + rig.counted(Counter.DROPPED_RATE_LIMITED) == 2 * burst


def test_without_a_rate_nothing_is_limited(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    Measured(rig, LISTENER, SLOW, 1)
    client.far.sendall(prefixed(range(200)))
    expect(client.upstreams[0].far, prefixed(range(200)))
