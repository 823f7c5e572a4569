"""Places of a route that have no upstream yet."""

import pytest

from lb.abi import Balance, Counter, Pause
from tests.bpf.rig import Backend, Client, Rig, Upstream, expect, message, one_cpu, prefixed, until_equal


def fill(rig: Rig, client: Client, backend: Backend, place: int) -> Upstream:
    """Connect what was vacant, as user space does."""
    rig.plane.fill(client.ref, place)
    upstream = rig.upstream(client, rig.policy(), backend)
    assert upstream.place == place
    return upstream


@pytest.mark.parametrize(
    "balance", [each for each in Balance if each is not Balance.HASH], ids=lambda each: each.name
)
def test_a_message_waits_for_its_upstream_and_goes_there(rig: Rig, balance: Balance) -> None:
    """Although the turn of others has come meanwhile."""
    client = rig.client(rig.policy(balance=balance))
    backends = [rig.backend() for _ in range(3)]
    places = [rig.plane.vacate(client.ref, backend.index) for backend in backends]

    client.far.sendall(message(1))

    until_equal(lambda: client.mapped.paused, Pause.PAUSED_CONNECT)
    assert rig.counted(Counter.PAUSES_CONNECT) == 1
    chosen = places.index(rig.plane.wanted(client.mapped).bit_length() - 1)
    assert rig.plane.wanted(client.mapped) == 1 << places[chosen]
    other = rig.client(rig.policy(), backends[chosen])
    other.far.sendall(prefixed(range(64)))
    expect(other.upstreams[0].far, prefixed(range(64)))
    upstream = fill(rig, client, backends[chosen], places[chosen])
    rig.resume(client)
    expect(upstream.far, message(1))
    assert client.mapped.paused is Pause.RUNNING
    assert client.mapped._slot.vacant == 2


def test_each_of_those_that_come_at_once_takes_a_turn(rig: Rig) -> None:
    """Not all of them want the same, although nothing has been sent to it yet."""
    policy = rig.policy()
    backends = [rig.backend() for _ in range(3)]
    wanted = []
    with one_cpu():
        for _ in range(3):
            client = rig.client(policy)
            for backend in backends:
                rig.plane.vacate(client.ref, backend.index)
            client.far.sendall(message(1))
            until_equal(lambda: client.mapped.paused, Pause.PAUSED_CONNECT)  # noqa: B023
            wanted.append(rig.plane.wanted(client.mapped))
    assert sorted(wanted) == [1, 2, 4]


def test_what_cannot_be_connected_to_is_passed_over(rig: Rig) -> None:
    client = rig.client(rig.policy())
    backends = [rig.backend() for _ in range(2)]
    places = [rig.plane.vacate(client.ref, backend.index) for backend in backends]
    client.far.sendall(message(1))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_CONNECT)
    first = places.index(rig.plane.wanted(client.mapped).bit_length() - 1)

    rig.plane.fill(client.ref, places[first])
    rig.resume(client)

    until_equal(lambda: rig.counted(Counter.PAUSES_CONNECT), 2)
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_CONNECT)
    assert rig.plane.wanted(client.mapped) == 1 << places[1 - first]
    rig.plane.fill(client.ref, places[1 - first])
    rig.resume(client)
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_NO_UPSTREAM)


def test_a_backend_at_its_limit_is_not_connected_to(rig: Rig) -> None:
    backend = rig.backend()
    rig.plane.set_max_outstanding(backend.index, 1)
    other = rig.client(rig.policy(), backend)
    other.far.sendall(message(1))
    expect(other.upstreams[0].far, message(1))
    client = rig.client(rig.policy())
    rig.plane.vacate(client.ref, backend.index)

    client.far.sendall(message(2))

    until_equal(lambda: client.mapped.paused, Pause.PAUSED_LIMIT)
    assert rig.counted(Counter.PAUSES_CONNECT) == 0


def test_a_message_that_has_begun_goes_to_who_is_connected(rig: Rig) -> None:
    """It is another one's turn by then, but to that there is no connection."""
    backends = [rig.backend() for _ in range(2)]
    client = rig.client(rig.policy(balance=Balance.LEAST_OUTSTANDING), backends[0])
    data = message(1, 30_000)
    client.far.sendall(data[:100])
    until_equal(lambda: client.mapped._slot.started, 1)
    rig.plane.vacate(client.ref, backends[1].index)
    other = rig.client(rig.policy(), backends[0])
    other.far.sendall(prefixed(range(64)))
    expect(other.upstreams[0].far, prefixed(range(64)))

    client.far.sendall(data[100:])

    expect(client.upstreams[0].far, data)
    client.far.sendall(message(2))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_CONNECT)
