"""Taps: what the programs show of messages, and that they show nothing when nobody looks."""

import os
import select
import time
from dataclasses import replace

import pytest

from lb import abi
from lb.abi import Fate
from lb.dataplane import Answer, NoTapError, Policy, Sample
from lb.framing import Framing
from lb.libbpf import Map
from tests.bpf.rig import (
    COUNTED,
    FIFO,
    MARKED,
    PREFIXED,
    QUIET,
    WITHOUT_ID,
    Client,
    Rig,
    counted,
    expect,
    marked,
    message,
    prefixed,
    receive,
    until,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PLENTY = 1000  # samples a second


def tapped(rig: Rig, policy: Policy) -> Policy:
    """The policy of a listener of its own."""
    return replace(policy, listener=rig.plane.taps.new_listener())


def samples(rig: Rig, count: int) -> list[Sample]:
    """So many samples; answers are not expected."""
    found: list[Sample | Answer] = []

    def enough() -> bool:
        found.extend(rig.plane.taps.read())
        return len(found) >= count

    until(enough)
    assert len(found) == count
    return [record for record in found if isinstance(record, Sample)]


def the_answer(rig: Rig) -> Answer:
    found: list[Sample | Answer] = []

    def came() -> bool:
        found.extend(rig.plane.taps.read())
        return bool(found)

    until(came)
    (answer,) = found
    assert isinstance(answer, Answer)
    return answer


def nothing(rig: Rig) -> bool:
    return not rig.plane.taps.read()


def endpoint(client: Client) -> str:
    host, port = client.far.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@pytest.mark.parametrize("framing", [PREFIXED, FIFO, WITHOUT_ID], ids=lambda framing: framing.name)
def test_a_request_and_its_answer(rig: Rig, framing: Framing) -> None:
    policy = tapped(rig, rig.policy(framing))
    backend = rig.backend()
    client = rig.client(policy, backend)
    place, life = rig.plane.taps.open(policy.listener, PLENTY)
    before = rig.plane.taps.now()
    asked = message(7, 200)
    client.far.sendall(asked)
    expect(client.upstreams[0].far, asked)
    (sample,) = samples(rig, 1)
    assert before < sample.time < rig.plane.taps.now()
    assert (sample.place, sample.life) == (place, life)
    assert sample.client == endpoint(client)
    assert sample.backend == backend.index
    assert (sample.length, sample.batch, sample.fate) == (200, 1, Fate.AWAITED)
    assert sample.shown == asked[: abi.SAMPLE]
    client.upstreams[0].far.sendall(message(7))
    expect(client.far, message(7))
    answer = the_answer(rig)
    assert answer.number == sample.number
    assert sample.time < answer.time < rig.plane.taps.now()


def test_an_id_behind_a_string(rig: Rig) -> None:
    policy = tapped(rig, rig.policy(COUNTED))
    client = rig.client(policy, rig.backend())
    rig.plane.taps.open(policy.listener, PLENTY)
    asked = counted(9, b"name" * 30)
    client.far.sendall(asked)
    expect(client.upstreams[0].far, asked)
    (sample,) = samples(rig, 1)
    client.upstreams[0].far.sendall(asked)
    expect(client.far, asked)
    assert the_answer(rig).number == sample.number


def test_a_request_that_comes_in_pieces(rig: Rig) -> None:
    policy = tapped(rig, rig.policy())
    client = rig.client(policy, rig.backend())
    rig.plane.taps.open(policy.listener, PLENTY)
    asked = message(7, 100_000)
    client.far.sendall(asked[:10])
    until(lambda: client.mapped._slot.started == 1)
    client.far.sendall(asked[10:])
    expect(client.upstreams[0].far, asked)
    (sample,) = samples(rig, 1)
    assert (sample.length, sample.fate) == (100_000, Fate.AWAITED)
    assert sample.shown == asked[: abi.SAMPLE]
    client.upstreams[0].far.sendall(message(7))
    expect(client.far, message(7))
    assert the_answer(rig).number == sample.number


def test_an_answer_to_another_request(rig: Rig) -> None:
    policy = tapped(rig, rig.policy())
    client = rig.client(policy, rig.backend())
    client.far.sendall(message(1))
    expect(client.upstreams[0].far, message(1))
    rig.plane.taps.open(policy.listener, PLENTY)
    client.far.sendall(message(2))
    expect(client.upstreams[0].far, message(2))
    (sample,) = samples(rig, 1)
    client.upstreams[0].far.sendall(message(1))
    expect(client.far, message(1))
    assert nothing(rig)
    client.upstreams[0].far.sendall(message(2))
    expect(client.far, message(2))
    assert the_answer(rig).number == sample.number


def test_the_first_of_a_batch(rig: Rig) -> None:
    policy = tapped(rig, rig.policy())
    client = rig.client(policy, rig.backend())
    rig.plane.taps.open(policy.listener, PLENTY)
    client.far.sendall(prefixed(range(5)))
    expect(client.upstreams[0].far, prefixed(range(5)))
    (sample,) = samples(rig, 1)
    assert (sample.length, sample.batch, sample.shown) == (16, 5, message(0))
    client.upstreams[0].far.sendall(prefixed(range(4, -1, -1)))
    expect(client.far, prefixed(range(4, -1, -1)))
    assert the_answer(rig).number == sample.number


def test_by_order_one_at_a_time_is_timed(rig: Rig) -> None:
    """An upstream remembers one request that was sampled, and the next one when it is answered."""
    policy = tapped(rig, rig.policy(WITHOUT_ID))
    client = rig.client(policy, rig.backend())
    upstream = client.upstreams[0].far
    rig.plane.taps.open(policy.listener, PLENTY)
    fates = []
    for number in range(3):
        client.far.sendall(message(number))
        expect(upstream, message(number))
        (sample,) = samples(rig, 1)
        fates.append(sample.fate)
    assert fates == [Fate.AWAITED, Fate.UNTIMED, Fate.UNTIMED]
    upstream.sendall(prefixed(range(3)))
    expect(client.far, prefixed(range(3)))
    the_answer(rig)
    client.far.sendall(message(4))
    expect(upstream, message(4))
    assert samples(rig, 1)[0].fate is Fate.AWAITED
    upstream.sendall(message(4))
    expect(client.far, message(4))
    the_answer(rig)


def test_on_a_shared_connection_with_the_clients_own_id(rig: Rig) -> None:
    policy = tapped(rig, rig.share())
    backend = rig.backend()
    upstream = rig.shared(policy, backend)
    clients = [rig.client(policy) for _ in range(2)]
    rig.plane.taps.open(policy.listener, PLENTY)
    for client in clients:
        client.far.sendall(message(7))
    asked = [receive(upstream.far, 16) for _ in clients]
    seen = samples(rig, 2)
    assert {sample.client for sample in seen} == {endpoint(client) for client in clients}
    assert {sample.shown for sample in seen} == {message(7)}
    assert {sample.backend for sample in seen} == {backend.index}
    upstream.far.sendall(b"".join(asked))
    for client in clients:
        expect(client.far, message(7))
    answers = rig.plane.taps.read()
    assert {record.number for record in answers} == {sample.number for sample in seen}


def test_quiet_requests_have_no_answer(rig: Rig) -> None:
    policy = tapped(rig, rig.policy(MARKED))
    client = rig.client(policy, rig.backend())
    rig.plane.taps.open(policy.listener, PLENTY)
    client.far.sendall(marked(1, QUIET))
    expect(client.upstreams[0].far, marked(1, QUIET))
    assert samples(rig, 1)[0].fate is Fate.QUIET


def test_denied_messages_are_seen(rig: Rig) -> None:
    rig.plane.rates.set(1, messages_per_second=1, burst=1, deny=True)
    policy = replace(tapped(rig, rig.policy(batch=1)), rate=1)
    client = rig.client(policy, rig.backend())
    rig.plane.taps.open(policy.listener, PLENTY)
    client.far.sendall(prefixed(range(2)))
    expect(client.upstreams[0].far, message(0))
    sent, denied = samples(rig, 2)
    assert (sent.fate, sent.shown) == (Fate.AWAITED, message(0))
    assert (denied.fate, denied.backend, denied.shown) == (Fate.DENIED, None, message(1))


def test_ipv6(rig: Rig) -> None:
    policy = tapped(rig, rig.policy())
    client = rig.client(policy, rig.backend(), host="::1")
    rig.plane.taps.open(policy.listener, PLENTY)
    client.far.sendall(message(1))
    expect(client.upstreams[0].far, message(1))
    assert samples(rig, 1)[0].client == endpoint(client)


def test_nobody_looks(rig: Rig) -> None:
    """At this listener, and then at any."""
    policy, other = tapped(rig, rig.policy()), tapped(rig, rig.policy())
    client = rig.client(policy, rig.backend())
    place, _ = rig.plane.taps.open(other.listener, PLENTY)
    for number in range(2):
        client.far.sendall(message(number))
        expect(client.upstreams[0].far, message(number))
        assert nothing(rig)
        if number == 0:
            assert rig.plane.taps.shut(place) == 0
    assert rig.plane.taps._taps.samples == 0


def test_a_closed_tap_shows_nothing_more(rig: Rig) -> None:
    policy = tapped(rig, rig.policy())
    client = rig.client(policy, rig.backend())
    place, life = rig.plane.taps.open(policy.listener, PLENTY)
    client.far.sendall(message(1))
    expect(client.upstreams[0].far, message(1))
    samples(rig, 1)
    rig.plane.taps.shut(place)
    client.far.sendall(message(2))
    expect(client.upstreams[0].far, message(2))
    assert nothing(rig)
    again, next_life = rig.plane.taps.open(policy.listener, PLENTY)
    assert again == place
    assert next_life != life
    client.far.sendall(message(3))
    expect(client.upstreams[0].far, message(3))
    assert samples(rig, 1)[0].life == next_life


def test_taps_share_a_listener(rig: Rig) -> None:
    """A message is shown to one; who has seen one lets the other have the next."""
    policy = tapped(rig, rig.policy())
    client = rig.client(policy, rig.backend())
    places = [rig.plane.taps.open(policy.listener, 1)[0] for _ in range(2)]
    for number in range(3):
        client.far.sendall(message(number))
        expect(client.upstreams[0].far, message(number))
    assert [sample.place for sample in samples(rig, 2)] == places


def test_as_many_as_there_are_places(rig: Rig) -> None:
    listener = rig.plane.taps.new_listener()
    places = [rig.plane.taps.open(listener, PLENTY)[0] for _ in range(abi.MAX_TAPS)]
    assert places == list(range(abi.MAX_TAPS))
    with pytest.raises(NoTapError):
        rig.plane.taps.open(listener, PLENTY)
    rig.plane.taps.shut(2)
    assert rig.plane.taps.open(listener, PLENTY)[0] == 2


def test_the_rate_is_kept_in_the_kernel(rig: Rig) -> None:
    policy = tapped(rig, rig.policy(batch=1))
    client = rig.client(policy, rig.backend())
    rate = 40
    began = time.monotonic()
    rig.plane.taps.open(policy.listener, rate)
    seen = []
    while (elapsed := time.monotonic() - began) < 0.5:
        client.far.sendall(prefixed(range(50)))
        expect(client.upstreams[0].far, prefixed(range(50)))
        seen += samples_so_far(rig)
    elapsed = time.monotonic() - began
    assert rate // 4 <= len(seen) <= rate // 4 + rate * elapsed + 1
    assert len(seen) > rate // 4 + 5, "the bucket fills again"


def samples_so_far(rig: Rig) -> list[Sample]:
    return [record for record in rig.plane.taps.read() if isinstance(record, Sample)]


def test_what_finds_no_room_is_counted(rig: Rig) -> None:
    """And the messages go all the same."""
    policy = tapped(rig, rig.policy(batch=1))
    client = rig.client(policy, rig.backend())
    place, _ = rig.plane.taps.open(policy.listener, 1_000_000_000)
    count = rig.plane._object.map("lb_samples", Map).max_entries // 128
    for start in range(0, count, 50):
        numbers = range(start, start + 50)
        client.far.sendall(prefixed(numbers))
        expect(client.upstreams[0].far, prefixed(numbers))
    sent = -(-count // 50) * 50
    seen = samples_so_far(rig)
    assert len(seen) + rig.plane.taps.shut(place) == sent
    assert len(seen) < sent


def test_the_descriptor_says_when(rig: Rig) -> None:
    policy = tapped(rig, rig.policy())
    client = rig.client(policy, rig.backend())
    rig.plane.taps.open(policy.listener, PLENTY)
    poll = select.poll()
    poll.register(rig.plane.taps.fileno(), select.POLLIN)
    assert not poll.poll(0)
    client.far.sendall(message(1))
    assert poll.poll(20_000)
    samples(rig, 1)
    assert not poll.poll(0)
