"""Outstanding requests with ids: in the few places of their upstream, and in the table for all of them."""

import os
import random

import pytest

from lb.abi import NEAR, NEAR_WAYS, Counter
from tests.bpf.rig import Client, Rig, expect, message, prefixed, receive, until_equal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Ids that fall into the first set of their upstream, more than it has room for.
CROWD = [0, 5, 10, 15, 17, 20, 27, 30]


def far(rig: Rig, client: Client) -> int:
    """Requests of the client that are in the table for all."""
    upstreams = client.upstreams
    return sum(rig.plane.requests.far(upstream.ref) for upstream in upstreams)


@pytest.mark.parametrize(
    "numbers",
    [
        list(range(200)),
        [number << 4 for number in range(200)],
        [number << 24 for number in range(200)],
        random.Random(1).sample(range(1 << 32), 200),
    ],
    ids=["count up", "step 16", "step 2^24", "random"],
)
def test_more_than_an_upstream_has_places_for(rig: Rig, numbers: list[int]) -> None:
    """Each is known, in whatever order the responses come, and a second response as one."""
    client = rig.client(rig.policy(), rig.backend())
    upstream = client.upstreams[0]
    client.far.sendall(prefixed(numbers))
    receive(upstream.far, len(prefixed(numbers)))
    (known,) = rig.outstanding(client).values()
    assert sorted(known) == sorted(numbers)
    assert len(numbers) - NEAR <= far(rig, client) < len(numbers)
    assert upstream.mapped.ambiguous == 0

    answers = random.Random(2).sample(numbers, len(numbers))
    for number in answers:
        upstream.far.sendall(message(number) * 2)
        expect(client.far, message(number))

    until_equal(lambda: rig.counted(Counter.DROPPED_UNSOLICITED), len(numbers))
    assert client.mapped.outstanding == upstream.mapped.outstanding == 0
    assert far(rig, client) == 0
    assert rig.outstanding(client) == {upstream.ref: []}
    assert sum(rig.plane.counters.durations(upstream.backend.index).buckets) == len(numbers)


def test_an_upstreams_places_are_enough_for_ids_that_count_up(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend())
    for start in range(0, 4 * NEAR, NEAR):
        numbers = range(start, start + NEAR)
        client.far.sendall(prefixed(numbers))
        receive(client.upstreams[0].far, len(prefixed(numbers)))
        assert far(rig, client) == 0
        client.upstreams[0].far.sendall(prefixed(numbers))
        expect(client.far, prefixed(numbers))


def test_an_id_that_is_outstanding_elsewhere_is_not_entered_again(rig: Rig) -> None:
    """Its set has room by then, but the first of the two is in the table for all."""
    client = rig.client(rig.policy(), rig.backend())
    upstream = client.upstreams[0]
    client.far.sendall(prefixed(CROWD))
    receive(upstream.far, len(prefixed(CROWD)))
    assert far(rig, client) == len(CROWD) - NEAR_WAYS
    near = CROWD[:NEAR_WAYS]
    upstream.far.sendall(prefixed(near))
    expect(client.far, prefixed(near))
    twice = CROWD[-1]

    client.far.sendall(message(twice))

    expect(upstream.far, message(twice))
    assert upstream.mapped.ambiguous == 1
    upstream.far.sendall(message(twice) * 3)
    expect(client.far, message(twice) * 2)
    until_equal(lambda: rig.counted(Counter.DROPPED_UNSOLICITED), 1)
    assert upstream.mapped.ambiguous == 0
    assert far(rig, client) == len(CROWD) - NEAR_WAYS - 1


def test_what_a_dead_upstream_leaves_in_the_table_is_forgotten(rig: Rig) -> None:
    client = rig.client(rig.policy(), rig.backend(), rig.backend())
    first, second = client.upstreams
    client.cut(second)
    client.far.sendall(prefixed(CROWD))
    receive(first.far, len(prefixed(CROWD)))
    requests = rig.plane.requests
    (retired,) = requests.left_behind([first.ref, second.ref])
    assert retired == first.ref

    requests.forget(retired, requests.outstanding([retired])[retired])

    assert rig.outstanding(client)[first.ref] == CROWD[:NEAR_WAYS][::-1]


def test_the_next_life_of_a_slot_has_no_requests(rig: Rig) -> None:
    policy, backend = rig.policy(), rig.backend()
    client = rig.client(policy, backend)
    dead = client.upstreams[0]
    client.far.sendall(prefixed(range(NEAR)))
    receive(dead.far, len(prefixed(range(NEAR))))
    client.remove()
    dead.remove()
    rig.reclaim()

    other = rig.client(policy, backend)
    while other.upstreams[0].ref.number != dead.ref.number:
        other = rig.client(policy, backend)

    other.far.sendall(message(NEAR + 1))
    expect(other.upstreams[0].far, message(NEAR + 1))
    assert rig.outstanding(other) == {other.upstreams[0].ref: [NEAR + 1]}
    other.upstreams[0].far.sendall(prefixed(range(NEAR)) + message(NEAR + 1))
    expect(other.far, message(NEAR + 1))
    assert rig.counted(Counter.DROPPED_UNSOLICITED) == NEAR
