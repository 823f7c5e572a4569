"""Where the verdict sends the messages of real sockets: each test is one fact that the product leans on."""

import errno
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lb import abi
from lb.abi import Balance, Counter, Pause
from lb.framing import Framing, Responses
from tests.bpf.rig import (
    CLOSE,
    CLOSE_WAIT,
    COUNTED,
    FIFO,
    MARKED,
    MARKED_ANY,
    MARKED_FIFO,
    PREFIXED,
    QUIET,
    RESPONSE,
    WITHOUT_ID,
    Rig,
    counted,
    error_of,
    expect,
    kill,
    marked,
    message,
    one_cpu,
    prefixed,
    receive,
    reset,
    take,
    until_equal,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


# --- generations ------------------------------------------------------------------------------------------


def test_a_reference_to_an_earlier_life_of_an_upstreams_slot_is_not_followed(rig: Rig) -> None:
    policy = rig.policy()
    client = rig.client(policy, rig.backend())
    upstream = client.upstreams[0]
    upstream.remove()
    rig.reclaim()
    stranger = rig.stranger(policy, upstream.ref)

    client.far.sendall(message(1))

    client.expect_paused(Pause.PAUSED_NO_UPSTREAM, message(1))
    assert stranger.redirected_bytes == 0


def test_a_response_to_an_earlier_life_of_a_clients_slot_is_dropped(rig: Rig) -> None:
    policy = rig.policy()
    client = rig.client(policy, rig.backend())
    upstream = client.upstreams[0]
    client.far.sendall(message(1) + message(2))
    expect(upstream.far, message(1) + message(2))
    client.remove()
    rig.reclaim()
    stranger = rig.stranger(policy, client.ref)

    upstream.far.sendall(message(1) + message(2))

    until_equal(lambda: rig.counted(Counter.DROPPED_CLIENT_GONE), 2)
    assert stranger.redirected_bytes == 0


def test_a_source_whose_slot_moved_on_is_cut_off(rig: Rig) -> None:
    """Between the two steps of a removal the socket still runs the programs."""
    client = rig.client(rig.policy(), rig.backend())
    rig.plane._slots[client.ref.number].generation += 1

    client.far.sendall(message(1))

    assert error_of(client.near) == errno.ENOENT
    assert client.upstreams[0].redirected_bytes == 0


def test_a_response_before_its_client_is_mapped_is_dropped(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend(), mapped=False)

    client.upstreams[0].far.sendall(message(1))

    until_equal(lambda: rig.counted(Counter.DROPPED_UNSOLICITED), 1)


def test_an_upstream_that_left_the_route_gets_nothing(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend(), rig.backend())
    client.cut(client.upstreams[0])

    client.far.sendall(prefixed(range(10)))

    take(client, [], range(10))


# --- destinations that died -------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", Balance, ids=lambda balance: balance.name)
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_dead_upstream_is_skipped(rig: Rig, how: str, balance: Balance) -> None:
    client = rig.client(rig.policy(balance=balance, batch=1), *(rig.backend() for _ in range(3)))
    for place in (0, 2):
        kill(client, place, how)

    client.far.sendall(prefixed(range(20)))

    expect(client.upstreams[1].far, prefixed(range(20)))
    assert client.upstreams[0].redirected_bytes == client.upstreams[2].redirected_bytes == 0
    assert client.mapped.paused is Pause.RUNNING


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_without_a_live_upstream_messages_wait_at_their_source(rig: Rig, how: str) -> None:
    client = rig.client(rig.policy(batch=2), rig.backend(), rig.backend())
    for place in (0, 1):
        kill(client, place, how)
    sent = prefixed(range(5)) + message(5, 30_000)

    client.far.sendall(sent + message(6)[:7])

    client.expect_paused(Pause.PAUSED_NO_UPSTREAM, sent, message(6)[:7])
    assert client.mapped.consumed_bytes == 0


def test_without_any_upstream_messages_wait_at_their_source(rig: Rig) -> None:
    client = rig.client(rig.policy())

    client.far.sendall(message(1))

    client.expect_paused(Pause.PAUSED_NO_UPSTREAM, message(1))
    assert rig.counted(Counter.PAUSES_NO_UPSTREAM) == 1


def test_a_message_whose_last_upstream_died_while_it_came_in_is_passed(rig: Rig) -> None:
    """It is too late to pause; user space hears of it, and ends the client."""
    client = rig.client(rig.policy(), rig.backend())
    whole = message(1, 30_000)
    client.far.sendall(whole[:9000])
    until_equal(lambda: client.mapped.undecided, 9000)
    kill(client, 0, "RST")

    client.far.sendall(whole[9000:])

    expect(client.near, whole)
    assert client.mapped.passed_messages == rig.counted(Counter.PASSED_NO_UPSTREAM) == 1


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_response_to_a_dead_client(rig: Rig, how: str) -> None:
    """A client that closed its side only still gets its answer; one that is gone loses it, counted."""
    client = rig.client(rig.policy(), rig.backend())
    upstream = client.upstreams[0]
    client.far.sendall(message(1))
    expect(upstream.far, message(1))
    if how == "FIN":
        client.far.shutdown(socket.SHUT_WR)
        until_equal(lambda: client.tcp_state, CLOSE_WAIT)
    else:
        reset(client.far)
        until_equal(lambda: client.tcp_state, CLOSE)

    upstream.far.sendall(message(1))

    if how == "FIN":
        expect(client.far, message(1))
    else:
        until_equal(lambda: rig.counted(Counter.DROPPED_CLIENT_GONE), 1)


# --- who gets a message -----------------------------------------------------------------------------------


def test_round_robin_gives_exact_shares(rig: Rig) -> None:
    backends = [rig.backend(weight) for weight in (1, 2, 3)]
    client = rig.client(rig.policy(batch=1), *backends)

    with one_cpu():
        client.far.sendall(prefixed(range(60)))

    until_equal(lambda: [backend.requests for backend in backends], [10, 20, 30])
    for upstream, count in zip(client.upstreams, (10, 20, 30), strict=True):
        receive(upstream.far, count * len(message(0)))


def test_round_robin_is_fair_over_all_clients_of_a_pool(rig: Rig) -> None:
    """Each client alone would start with the first backend."""
    backends = [rig.backend() for _ in range(4)]
    policy = rig.policy()
    clients = [rig.client(policy, *backends) for _ in range(12)]

    with one_cpu():
        for client in clients:
            client.far.sendall(message(1))

    until_equal(lambda: [backend.requests for backend in backends], [3, 3, 3, 3])


def test_round_robin_charges_for_every_message_of_a_batch(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend(), rig.backend())

    with one_cpu():
        client.far.sendall(prefixed(range(3)))
        expect(client.upstreams[0].far, prefixed(range(3)))
        for number in range(3, 6):
            client.far.sendall(message(number))
            expect(client.upstreams[1].far, message(number))


def test_round_robin_starves_nobody_by_long_runs(rig: Rig) -> None:
    """A run longer than LB_LAG puts all others as far behind as any can be: they take turns all the same."""
    backends = [rig.backend() for _ in range(4)]
    client = rig.client(rig.policy(FIFO), *backends)
    numbers = prefixed(range(300))

    with one_cpu():
        for run in range(12):
            client.far.sendall(numbers)
            turn = client.upstreams[run % 4].far
            expect(turn, numbers)
            turn.sendall(numbers)
            expect(client.far, numbers)

    assert [backend.requests for backend in backends] == [900] * 4


def test_round_robin_forgets_the_turns_that_another_pool_counted_for_a_number(rig: Rig) -> None:
    """Numbers of backends are reused, and what a pool has counted is far ahead of a younger pool."""
    used, fresh = rig.backend(), rig.backend()
    before = rig.client(rig.policy(PREFIXED, batch=1), used)
    client = rig.client(rig.policy(PREFIXED, batch=1), used, fresh)
    with one_cpu():
        for _ in range(10):
            before.far.sendall(prefixed(range(100)))
            expect(before.upstreams[0].far, prefixed(range(100)))
        client.far.sendall(prefixed(range(100)))
        until_equal(lambda: used.requests + fresh.requests, 1100)
    assert 45 <= used.requests - 1000 <= 55


def test_a_backend_that_comes_late_gets_a_lead_and_not_everything(rig: Rig) -> None:
    """Its lead is LB_LAG, 64 messages at weight 1; then the turns alternate."""
    old, new = rig.backend(), rig.backend()
    policy = rig.policy(batch=1)
    client = rig.client(policy, old)
    with one_cpu():
        client.far.sendall(prefixed(range(300)))
        take(client, range(300))
        client.upstreams.append(rig.upstream(client, policy, new))

        client.far.sendall(prefixed(range(200)))

    until_equal(lambda: old.requests + new.requests, 500)
    assert abs(new.requests - (64 + (200 - 64) // 2)) <= 2


def test_least_outstanding_prefers_who_answered(rig: Rig) -> None:
    backends = [rig.backend(), rig.backend(), rig.backend()]
    client = rig.client(rig.policy(balance=Balance.LEAST_OUTSTANDING), *backends)
    for number in range(3):
        client.far.sendall(message(number))
        until_equal(lambda: sum(backend.outstanding for backend in backends), number + 1)
    assert [backend.outstanding for backend in backends] == [1, 1, 1]
    asked = [receive(upstream.far, len(message(0))) for upstream in client.upstreams]

    for number, place in enumerate((1, 2, 0, 1), 10):
        client.upstreams[place].far.sendall(asked[place])
        expect(client.far, asked[place])
        asked[place] = message(number)
        client.far.sendall(message(number))
        expect(client.upstreams[place].far, message(number))


def test_least_outstanding_counts_what_other_clients_wait_for(rig: Rig) -> None:
    busy, idle = rig.backend(), rig.backend()
    policy = rig.policy(balance=Balance.LEAST_OUTSTANDING)
    first = rig.client(policy, busy)
    first.far.sendall(prefixed(range(5)))
    take(first, range(5))
    second = rig.client(policy, busy, idle)

    for number in range(5):
        second.far.sendall(message(number))
        expect(second.upstreams[1].far, message(number))


def test_least_outstanding_forgets_what_was_written_off(rig: Rig) -> None:
    restarted, busy = rig.backend(), rig.backend()
    policy = rig.policy(balance=Balance.LEAST_OUTSTANDING)
    first, second = rig.client(policy, restarted), rig.client(policy, busy)
    first.far.sendall(prefixed(range(5)))
    take(first, range(5))
    second.far.sendall(message(0))
    take(second, [0])
    first.upstreams[0].remove()
    rig.reclaim()

    client = rig.client(policy, restarted, busy)
    client.far.sendall(message(1))

    take(client, [1], [])


def test_least_outstanding_respects_weights(rig: Rig) -> None:
    backends = [rig.backend(weight) for weight in (1, 3)]
    client = rig.client(rig.policy(balance=Balance.LEAST_OUTSTANDING, batch=1), *backends)

    client.far.sendall(prefixed(range(40)))

    until_equal(lambda: [backend.outstanding for backend in backends], [10, 30])


def test_random_keeps_to_the_weights(rig: Rig) -> None:
    total, share = 2000, 0.75
    backends = [rig.backend(1), rig.backend(3)]
    client = rig.client(rig.policy(balance=Balance.RANDOM, batch=1), *backends)

    client.far.sendall(prefixed(range(total)))

    until_equal(lambda: sum(backend.requests for backend in backends), total)
    six_sigma = 6 * (total * share * (1 - share)) ** 0.5
    assert abs(backends[1].requests - total * share) < six_sigma
    for upstream in client.upstreams:
        receive(upstream.far, upstream.backend.requests * len(message(0)))


@pytest.mark.parametrize("balance", Balance, ids=lambda balance: balance.name)
def test_a_backend_of_weight_0_gets_nothing(rig: Rig, balance: Balance) -> None:
    client = rig.client(rig.policy(balance=balance, batch=1), rig.backend(0), rig.backend())

    client.far.sendall(prefixed(range(50)))

    take(client, [], range(50))


def test_a_weight_that_changes_holds_from_the_next_message_on(rig: Rig) -> None:
    backends = [rig.backend(), rig.backend()]
    client = rig.client(rig.policy(batch=1), *backends)
    for places in ([0], [1], [0]):
        for backend in backends:
            rig.plane.set_weight(backend.index, int(backends.index(backend) in places))
        client.far.sendall(message(places[0]))
        expect(client.upstreams[places[0]].far, message(places[0]))


@pytest.mark.parametrize(
    ("batch", "first", "second"),
    [
        (1, [0, 2, 4, 6], [1, 3, 5, 7]),
        (3, [0, 1, 2, 6, 7], [3, 4, 5]),
        (64, range(8), []),
    ],
)
def test_no_more_messages_than_the_batch_travel_together(
    rig: Rig, batch: int, first: Sequence[int], second: Sequence[int]
) -> None:
    client = rig.client(rig.policy(batch=batch), rig.backend(), rig.backend())

    with one_cpu():
        client.far.sendall(prefixed(range(8)))

    take(client, first, second)


def test_many_upstreams(rig: Rig) -> None:
    backends = [rig.backend() for _ in range(abi.MAX_UPSTREAMS)]
    client = rig.client(rig.policy(batch=1), *backends)
    with pytest.raises(RuntimeError, match="more upstreams"):
        rig.plane.route(client.ref, client.upstreams[0].ref, 0)

    with one_cpu():
        client.far.sendall(prefixed(range(3 * abi.MAX_UPSTREAMS)))

    until_equal(lambda: {backend.requests for backend in backends}, {3})


# --- fifo -------------------------------------------------------------------------------------------------


def test_fifo_stays_with_one_upstream_while_something_is_outstanding(rig: Rig) -> None:
    client = rig.client(rig.policy(FIFO, batch=1), rig.backend(), rig.backend())
    first, second = (upstream.far for upstream in client.upstreams)
    with one_cpu():
        client.far.sendall(prefixed(range(3)))
        expect(first, prefixed(range(3)))
        first.sendall(message(0) + message(1))
        expect(client.far, message(0) + message(1))
        client.far.sendall(message(3))
        expect(first, message(3))
        assert client.mapped.outstanding == 2
        first.sendall(message(2) + message(3))
        expect(client.far, message(2) + message(3))
        assert client.mapped.outstanding == 0

        client.far.sendall(message(4))

        expect(second, message(4))


@pytest.mark.parametrize("how", ["FIN", "RST", "unrouted"])
def test_fifo_waits_rather_than_change_while_something_is_outstanding(rig: Rig, how: str) -> None:
    client = rig.client(rig.policy(FIFO), rig.backend(), rig.backend())
    client.far.sendall(message(0))
    expect(client.upstreams[0].far, message(0))
    if how == "unrouted":
        client.cut(client.upstreams[0])
    else:
        kill(client, 0, how)

    client.far.sendall(message(1))

    client.expect_paused(Pause.PAUSED_NO_UPSTREAM, message(1))
    assert client.upstreams[1].redirected_bytes == 0


def test_fifo_leaves_a_backend_of_weight_0_when_it_is_owed_nothing(rig: Rig) -> None:
    leaving = rig.backend()
    client = rig.client(rig.policy(FIFO, batch=1), leaving, rig.backend())
    first, second = (upstream.far for upstream in client.upstreams)
    with one_cpu():
        client.far.sendall(message(0))
        expect(first, message(0))
        # One that has begun cannot wait, and goes where the answers are in order.
        client.far.sendall(message(1)[:3])
        until_equal(lambda: client.mapped.undecided, 3)
        rig.plane.set_weight(leaving.index, 0)
        client.far.sendall(message(1)[3:] + message(2))
        expect(first, message(1))
        until_equal(lambda: client.mapped.paused, Pause.PAUSED_ORDER)
        assert rig.counted(Counter.PAUSES_ORDER) == 1
        first.sendall(message(0) + message(1))
        expect(client.far, message(0) + message(1))
        rig.resume(client)
        expect(second, message(2))


def test_fifo_stays_with_a_backend_of_weight_0_that_may_still_answer_quiet_requests(rig: Rig) -> None:
    """To wait for these would be to wait for ever."""
    leaving = rig.backend()
    client = rig.client(rig.policy(MARKED_ANY, batch=1), leaving, rig.backend())
    first, second = (upstream.far for upstream in client.upstreams)
    with one_cpu():
        client.far.sendall(marked(1, QUIET))
        expect(first, marked(1, QUIET))
        rig.plane.set_weight(leaving.index, 0)
        client.far.sendall(marked(2))
        expect(first, marked(2))
        first.sendall(marked(2, RESPONSE))
        expect(client.far, marked(2, RESPONSE))
        client.far.sendall(marked(3))
        expect(second, marked(3))


def test_fifo_drops_what_nobody_asked_for(rig: Rig) -> None:
    client = rig.client(rig.policy(FIFO), rig.backend())
    upstream = client.upstreams[0].far

    upstream.sendall(message(8) + message(9))

    until_equal(lambda: rig.counted(Counter.DROPPED_UNSOLICITED), 2)
    client.far.sendall(message(1))
    expect(upstream, message(1))
    upstream.sendall(message(1))
    expect(client.far, message(1))  # and nothing before it


# --- what is outstanding ----------------------------------------------------------------------------------


def test_a_quiet_request_is_not_outstanding(rig: Rig) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(MARKED), backend)
    sent = marked(1, QUIET) + marked(2) + marked(3, QUIET)

    client.far.sendall(sent)

    expect(client.upstreams[0].far, sent)
    assert backend.requests == 3
    assert client.mapped.outstanding == client.upstreams[0].mapped.outstanding == backend.outstanding == 1
    client.upstreams[0].far.sendall(marked(2, RESPONSE))
    expect(client.far, marked(2, RESPONSE))
    assert client.mapped.outstanding == client.upstreams[0].mapped.outstanding == backend.outstanding == 0


def test_after_a_quiet_request_fifo_may_change_its_upstream(rig: Rig) -> None:
    client = rig.client(rig.policy(MARKED_FIFO, batch=1), rig.backend(), rig.backend())
    with one_cpu():
        client.far.sendall(marked(1, QUIET) + marked(2, QUIET))

    expect(client.upstreams[0].far, marked(1, QUIET))
    expect(client.upstreams[1].far, marked(2, QUIET))


@pytest.mark.parametrize("cut", [0, 3, 7])
def test_after_a_quiet_request_that_may_be_answered_fifo_stays_until_a_later_one_is(
    rig: Rig, cut: int
) -> None:
    client = rig.client(rig.policy(MARKED_ANY, batch=1), rig.backend(), rig.backend())
    first, second = (upstream.far for upstream in client.upstreams)
    asked = marked(1, QUIET) + marked(1, QUIET) + marked(1)
    with one_cpu():
        client.far.sendall(asked[:cut])
        until_equal(lambda: client.mapped.undecided, cut)
        client.far.sendall(asked[cut:])
        expect(first, asked)
        assert client.mapped.outstanding == 1
        # One id for all: what is answered first is not what is outstanding.
        first.sendall(marked(1, RESPONSE | QUIET))
        expect(client.far, marked(1, RESPONSE | QUIET))
        assert client.mapped.outstanding == 1
        client.far.sendall(marked(2, QUIET) + marked(3))
        expect(first, marked(2, QUIET) + marked(3))
        first.sendall(marked(1, RESPONSE) + marked(3, RESPONSE))
        expect(client.far, marked(1, RESPONSE) + marked(3, RESPONSE))
        assert client.mapped.outstanding == 0

        client.far.sendall(marked(4))

        expect(second, marked(4))


def test_the_answer_to_a_quiet_request_reaches_its_client_though_nothing_is_outstanding(rig: Rig) -> None:
    client = rig.client(rig.policy(MARKED_ANY), rig.backend())
    upstream = client.upstreams[0]
    client.far.sendall(marked(1, QUIET))
    expect(upstream.far, marked(1, QUIET))
    assert client.mapped.outstanding == 0
    answer = marked(1, RESPONSE | QUIET)

    for piece in (answer[:7], answer[7:] + answer):
        upstream.far.sendall(piece)
        until_equal(lambda: upstream.mapped.undecided, 7 if len(piece) == 7 else 0)

    expect(client.far, 2 * answer)
    assert client.mapped.outstanding == upstream.mapped.outstanding == 0
    assert rig.counted(Counter.DROPPED_UNSOLICITED) == 0


@pytest.mark.parametrize("how", ["FIN", "RST", "unrouted"])
def test_a_quiet_request_does_not_bind_a_client_to_an_upstream_that_is_gone(rig: Rig, how: str) -> None:
    client = rig.client(rig.policy(MARKED_ANY), rig.backend(), rig.backend())
    client.far.sendall(marked(1, QUIET))
    expect(client.upstreams[0].far, marked(1, QUIET))
    if how == "unrouted":
        client.cut(client.upstreams[0])
    else:
        kill(client, 0, how)

    client.far.sendall(marked(2))

    until_equal(lambda: client.mapped.paused, Pause.PAUSED_NO_UPSTREAM)
    rig.resume(client)
    expect(client.upstreams[1].far, marked(2))
    assert client.mapped.outstanding == 1


@pytest.mark.parametrize("size", [0, 40, 48, 100, 3000])
def test_an_id_behind_a_string_is_found_wherever_it_stands(rig: Rig, size: int) -> None:
    client = rig.client(rig.policy(COUNTED), rig.backend())
    upstream = client.upstreams[0]
    asked = [counted(number, bytes(size)) for number in (7, 8, 9)]
    cuts = [5, 8 + size // 2, 8 + size, 11 + size, 12 + size, 16 + size, len(asked[0]) + 9 + size]
    sent = b"".join(asked)
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        client.far.sendall(sent[start:end])
        until_equal(lambda: client.mapped.undecided, end % len(asked[0]))

    expect(upstream.far, sent)
    assert client.mapped.outstanding == upstream.mapped.outstanding == 3
    assert upstream.mapped.ambiguous == 0
    # One that nobody waits for, and one twice, are known by their ids.
    upstream.far.sendall(asked[1] + counted(6, bytes(size)) + asked[1] + asked[2])
    expect(client.far, asked[1] + asked[2])
    until_equal(lambda: rig.counted(Counter.DROPPED_UNSOLICITED), 2)
    assert client.mapped.outstanding == 1


@pytest.mark.parametrize("count", [5, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_an_id_behind_the_end_of_its_message_is_malformed(rig: Rig, count: int) -> None:
    client = rig.client(rig.policy(COUNTED), rig.backend())
    good, bad = counted(7, b"good"), bytearray(counted(8, b""))
    bad[4:8] = count.to_bytes(4, "big")

    client.far.sendall(good + bad)

    expect(client.upstreams[0].far, good)
    assert error_of(client.near) == errno.EBADMSG


def test_what_is_no_response_is_dropped(rig: Rig) -> None:
    client = rig.client(rig.policy(MARKED), rig.backend())
    upstream = client.upstreams[0].far
    client.far.sendall(marked(1) + marked(2))
    expect(upstream, marked(1) + marked(2))

    upstream.sendall(marked(1, RESPONSE) + marked(8) + marked(9) + marked(2, RESPONSE))

    expect(client.far, marked(1, RESPONSE) + marked(2, RESPONSE))
    assert rig.counted(Counter.DROPPED_UNSOLICITED) == 2
    assert client.mapped.outstanding == 0


def test_a_request_with_several_responses_is_outstanding_until_the_first(rig: Rig) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(replace(MARKED, responses=Responses.MANY)), backend)
    upstream = client.upstreams[0].far
    client.far.sendall(marked(1))
    expect(upstream, marked(1))

    for _ in range(2):
        upstream.sendall(marked(1, RESPONSE) * 2)
        expect(client.far, marked(1, RESPONSE) * 2)
        assert client.mapped.outstanding == backend.outstanding == 0
    client.far.sendall(marked(2))
    expect(upstream, marked(2))
    assert client.mapped.outstanding == backend.outstanding == 1


def test_of_several_responses_to_one_request_the_first_is_delivered(rig: Rig) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(MARKED), backend)
    upstream = client.upstreams[0].far
    client.far.sendall(marked(1) + marked(2))
    expect(upstream, marked(1) + marked(2))

    upstream.sendall(marked(1, RESPONSE) * 3 + marked(7, RESPONSE) + marked(2, RESPONSE))

    expect(client.far, marked(1, RESPONSE) + marked(2, RESPONSE))
    assert rig.counted(Counter.DROPPED_UNSOLICITED) == 3
    assert client.mapped.outstanding == backend.outstanding == 0


def test_requests_that_share_an_id_are_counted(rig: Rig) -> None:
    """Which is which nobody can say; how many are outstanding is known."""
    backend = rig.backend()
    client = rig.client(rig.policy(), backend)
    upstream = client.upstreams[0]
    client.far.sendall(message(1) * 3)
    expect(upstream.far, message(1) * 3)
    assert upstream.mapped.ambiguous == 2

    upstream.far.sendall(message(1) * 4)

    expect(client.far, message(1) * 3)
    until_equal(lambda: rig.counted(Counter.DROPPED_UNSOLICITED), 1)
    assert upstream.mapped.ambiguous == upstream.mapped.outstanding == backend.outstanding == 0


def test_a_response_that_comes_in_pieces_is_awaited_like_any(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    upstream = client.upstreams[0]
    client.far.sendall(message(1))
    expect(upstream.far, message(1))
    whole = message(1, 30_000)

    for number in (1, 2):
        upstream.far.sendall(whole[:9000])
        until_equal(lambda: upstream.mapped.undecided, 9000)
        upstream.far.sendall(whole[9000:])
        until_equal(lambda: upstream.mapped.consumed_bytes, number * len(whole))

    expect(client.far, whole)
    assert rig.counted(Counter.DROPPED_UNSOLICITED) == 1


def test_what_is_outstanding_on_a_removed_upstream_is_written_off(rig: Rig) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(), backend)
    upstream = client.upstreams[0]
    client.far.sendall(prefixed(range(3)))
    take(client, range(3))
    upstream.far.sendall(message(1))
    expect(client.far, message(1))
    assert backend.outstanding == 2

    upstream.remove()

    assert backend.outstanding == 2  # a program may be counting still
    rig.reclaim()
    assert backend.outstanding == 0
    rig.plane.release(rig.plane.reserve())
    rig.reclaim()
    assert backend.outstanding == 0


def test_a_slot_whose_next_socket_never_came_is_not_written_off_again(rig: Rig) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(), backend)
    client.far.sendall(message(1))
    take(client, [1])
    client.upstreams[0].remove()
    rig.reclaim()

    while (ref := rig.plane.reserve()).number != client.upstreams[0].ref.number:
        rig.plane.release(ref)
    rig.plane.release(ref)
    rig.reclaim()

    assert backend.outstanding == 0


# --- how long messages took -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["same", "reverse"])
@pytest.mark.parametrize("framing", [PREFIXED, WITHOUT_ID, FIFO], ids=lambda framing: framing.name)
def test_each_response_is_timed(rig: Rig, framing: Framing, order: str) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(framing), backend)
    upstream = client.upstreams[0].far
    rounds, depth = 3, abi.MARKS
    start = time.monotonic()
    for turn in range(rounds):
        numbers = range(turn * depth, (turn + 1) * depth)
        client.far.sendall(prefixed(numbers))
        expect(upstream, prefixed(numbers))
        answers = prefixed(numbers if order == "same" else numbers[::-1])
        upstream.sendall(answers)
        expect(client.far, answers)
    elapsed = time.monotonic() - start

    durations = rig.plane.counters.durations(backend.index)

    assert sum(durations.buckets) == rounds * depth
    assert 0 < durations.sum < rounds * depth * elapsed


@pytest.mark.parametrize(
    ("framing", "answers"), [(PREFIXED, 0), (WITHOUT_ID, 1)], ids=lambda value: getattr(value, "name", None)
)
def test_an_answer_is_told_by_its_id_or_else_by_its_order(rig: Rig, framing: Framing, answers: int) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(framing), backend)
    client.far.sendall(message(1))
    expect(client.upstreams[0].far, message(1))

    client.upstreams[0].far.sendall(message(2))

    until_equal(lambda: client.upstreams[0].mapped.consumed_bytes, len(message(2)))
    assert backend.outstanding == 1 - answers
    assert sum(rig.plane.counters.durations(backend.index).buckets) == answers


def test_a_duration_is_the_time_that_the_backend_took(rig: Rig) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(), backend)
    client.far.sendall(message(1))
    expect(client.upstreams[0].far, message(1))
    start = time.monotonic()
    while time.monotonic() < start + 0.02:
        pass
    client.upstreams[0].far.sendall(message(1))
    expect(client.far, message(1))

    assert rig.plane.counters.durations(backend.index).sum >= 0.02


def test_of_more_requests_than_marks_the_older_are_not_timed(rig: Rig) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(WITHOUT_ID), backend)
    numbers = range(2 * abi.MARKS)
    client.far.sendall(prefixed(numbers))
    expect(client.upstreams[0].far, prefixed(numbers))
    client.upstreams[0].far.sendall(prefixed(numbers))
    expect(client.far, prefixed(numbers))

    assert sum(rig.plane.counters.durations(backend.index).buckets) == abi.MARKS
    assert backend.outstanding == 0


# --- hold, and what is counted --------------------------------------------------------------------------


def test_messages_of_a_held_client_wait_and_its_answers_still_come(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    upstream = client.upstreams[0]
    client.far.sendall(message(1))
    expect(upstream.far, message(1))

    client.mapped.hold()

    client.far.sendall(message(2) + message(3))
    client.expect_paused(Pause.PAUSED_HELD, message(2), message(3))
    upstream.far.sendall(message(1))
    expect(client.far, message(1))
    assert upstream.redirected_bytes == len(message(1))


def test_traffic_is_counted_in_messages_and_bytes(rig: Rig) -> None:
    backend = rig.backend()
    client = rig.client(rig.policy(), backend)
    upstream = client.upstreams[0].far
    client.far.sendall(message(1, 100) + message(2, 200) + message(3, 9_999))
    expect(upstream, message(1, 100) + message(2, 200) + message(3, 9_999))
    upstream.sendall(message(1, 50) + message(2, 60))
    expect(client.far, message(1, 50) + message(2, 60))

    traffic = rig.plane.counters.traffic(backend.row)

    assert (traffic.requests, traffic.request_bytes) == (3, 10_299)
    assert (traffic.responses, traffic.response_bytes) == (2, 110)
