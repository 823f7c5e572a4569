"""Messages that are hashed: the programs find the same key as the reference, and follow the same table."""

import os
import struct
import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lb import abi, maglev
from lb.abi import Pause
from lb.dataplane import Policy
from lb.framing import Endian, Framing
from lb.routing import MAX_KEY, Hash, Key, KeyKind, key_hash
from tests.bpf.rig import FIFO, PREFIXED, Backend, Client, Rig, expect, kill, until, until_equal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

BY_ID = Key(KeyKind.FIELD, 4, 4)
BY_STRING = Key(KeyKind.STRING, 8, 2)
BY_LITTLE_STRING = Key(KeyKind.STRING, 9, 1, Endian.LITTLE)
BY_NAME = Key(KeyKind.DNS_NAME)
BY_ADDRESS = Key(KeyKind.CLIENT_ADDRESS)
FIRST = 1 << 32


@dataclass(frozen=True)
class Named:
    """What a table is made of."""

    name: str
    weight: int


class Pool:
    """A hashed pool and a client of it."""

    def __init__(
        self,
        rig: Rig,
        key: Key,
        *,
        weights: tuple[int, ...] = (1, 1, 1),
        max_load: float | None = None,
        framing: Framing = PREFIXED,
        policy: Policy | None = None,
    ) -> None:
        self.key = key
        self.rig = rig
        index = rig.plane.publish_pool(abi.Balance.HASH) if policy is None else policy.pool
        self.backends = [rig.backend(weight) for weight in weights]
        self.table = maglev.table([Named(f"b{number}", weight) for number, weight in enumerate(weights)])
        rig.plane.hashing.publish(
            index, Hash(key, max_load), [backend.index for backend in self.backends], self.table
        )
        if policy is None:
            policy = Policy(rig.plane.publish_framing(framing), index, abi.MAX_BATCH)
        self.policy = replace(policy, hashed=True)

    def client(self, *backends: Backend, address: bytes = b"") -> Client:
        own = self.backends if self.policy.route is None else ()
        client = self.rig.client(self.policy, *(backends or own), mapped=False)
        client.map(self.policy, address=address)
        return client

    def place(self, data: bytes, address: bytes = b"") -> int:
        return maglev.place(key_hash(self.key.of(data, address)))

    def owner(self, data: bytes, address: bytes = b"") -> int:
        return self.table[self.place(data, address)]

    def order(self, data: bytes) -> list[int]:
        """All members in the order in which the message would try them."""
        return list(dict.fromkeys(self.table[place] for place in maglev.walk(self.place(data))))


def body(number: int, content: bytes) -> bytes:
    """A message of PREFIXED."""
    return struct.pack(">II", 4 + len(content), number) + content


def query(*labels: bytes, number: int = 1) -> bytes:
    """Of DNS as far as it matters: its fields stand where those of PREFIXED do not, its length is patched."""
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return body(number, b"\0" * 6 + name + b"\0\1\0\1")


def counts(client: Client) -> list[int]:
    return [upstream.redirected_bytes for upstream in client.upstreams]


def decide(client: Client, data: bytes) -> int:
    """The decision of the programs for a message that they get, in the pool's table a place."""
    before = client.mapped.consumed_bytes
    client.far.sendall(data)
    until_equal(lambda: client.mapped.consumed_bytes, before + len(data))
    return client.plane._routing[client.ref.number].decision & 0xFFFFFF


@pytest.mark.parametrize("key", [BY_ID, BY_STRING, BY_LITTLE_STRING, BY_NAME, Key(KeyKind.FIELD, 10, 200)])
def test_a_key_is_the_references(rig: Rig, key: Key) -> None:
    """Any bytes: keys that the message cuts short, lengths that lie, names without an end."""
    pool = Pool(rig, key, weights=(1,))
    client = pool.client()

    labels = st.lists(st.binary(min_size=1, max_size=63), max_size=6).map(
        lambda labels: b"\0" * 6 + b"".join(bytes([len(label)]) + label for label in labels) + b"\0tail"
    )
    strings = st.binary(max_size=300).map(lambda text: struct.pack(">H", len(text)) + text + b"more")

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(max_size=300) | labels | strings)
    @example(b"")
    @example(b"\0" * 6 + b"\3WwW\7Example\3oRg\0")
    @example(b"\0" * 6 + b"\x3f" * 400)
    @example(struct.pack(">H", 0xFFFF) + bytes(range(256)) * 2)
    def check(content: bytes) -> None:
        data = body(7, content)
        assert decide(client, data) == pool.place(data)

    check()


def test_names_are_the_same_in_any_case(rig: Rig) -> None:
    pool = Pool(rig, BY_NAME)
    client = pool.client()

    places = {
        decide(client, query(*name.split(b".")))
        for name in (b"www.example.org", b"WWW.EXAMPLE.ORG", b"wWw.eXaMpLe.oRg")
    }

    assert places == {pool.place(query(b"www", b"example", b"org"))}
    assert decide(client, query(b"ww", b"w.example", b"org")) not in places
    assert decide(client, query(b"@[`{", b"org")) != decide(client, query(b"`{`{", b"org"))


def test_a_message_goes_where_the_table_says(rig: Rig) -> None:
    pool = Pool(rig, BY_ID, weights=(1, 2, 3))
    client = pool.client()
    wanted = [0, 0, 0]
    for number in range(300):
        data = body(number, b"x" * 8)
        wanted[pool.owner(data)] += len(data)
        client.far.sendall(data)
        expect(client.upstreams[pool.owner(data)].far, data)
    assert counts(client) == wanted
    assert min(wanted) > 0


def test_all_messages_of_a_client_go_where_its_address_does(rig: Rig) -> None:
    pool = Pool(rig, BY_ADDRESS)
    owners = set()
    for number in range(8):
        address = bytes([10, 0, 0, number])
        client = pool.client(address=address)
        owner = pool.owner(b"", address)
        owners.add(owner)
        sent = b"".join(body(number, b"any") for number in range(20))
        client.far.sendall(sent)
        expect(client.upstreams[owner].far, sent)
        assert sum(counts(client)) == len(sent)
    assert len(owners) > 1


def test_a_batch_ends_where_a_message_goes_elsewhere(rig: Rig) -> None:
    """Each message reaches its own backend although all come in one segment, in their order."""
    pool = Pool(rig, BY_ID)
    client = pool.client()
    messages = [body(number, b"x" * 8) for number in range(64)]

    client.far.sendall(b"".join(messages))

    for member, upstream in enumerate(client.upstreams):
        expect(upstream.far, b"".join(data for data in messages if pool.owner(data) == member))


def test_keys_of_a_backend_that_is_not_there_go_to_the_next_places(rig: Rig) -> None:
    """Not connected, dead, or down: the same others get them, one for each key, and nobody else's move."""
    pool = Pool(rig, BY_ID, weights=(1, 1, 1, 1))
    without = pool.client(*pool.backends[1:])
    dead = pool.client()
    kill(dead, 0, "RST")
    down = pool.client()
    messages = [body(number, b"x" * 8) for number in range(64)]
    fallbacks = {pool.order(data)[1] for data in messages if pool.owner(data) == 0}
    assert len(fallbacks) == 3
    rig.plane.set_weight(pool.backends[0].index, 0)

    for client, missing in ((without, 1), (dead, 0), (down, 0)):
        client.far.sendall(b"".join(messages))
        for upstream in client.upstreams[1 - missing :]:
            member = pool.backends.index(upstream.backend)
            expect(
                upstream.far,
                b"".join(data for data in messages if next(m for m in pool.order(data) if m) == member),
            )


def test_a_backend_with_more_than_its_share_outstanding_is_passed_over(rig: Rig) -> None:
    pool = Pool(rig, BY_ID, max_load=1.25)
    client = pool.client()
    data = body(1, b"x" * 8)
    first, second, third = pool.order(data)
    expected = [0, 0, 0]
    for number in range(12):
        # The bound is 1.25 times the mean of what is outstanding with this message, rounded up.
        bound = -(-5 * (number + 1) // 12)
        member = next(member for member in (first, second, third) if expected[member] < bound)
        expected[member] += 1
        same_key = struct.pack(">II", 4 + 8 + number, 1) + b"x" * (8 + number)
        client.far.sendall(same_key)
        expect(client.upstreams[member].far, same_key)
    assert [backend.outstanding for backend in pool.backends] == expected
    assert expected[first] > expected[third] > 0


def test_without_a_bound_a_key_stays_whatever_is_outstanding(rig: Rig) -> None:
    pool = Pool(rig, BY_ID)
    client = pool.client()
    data = body(1, b"x" * 8)
    for _ in range(20):
        client.far.sendall(data)
        expect(client.upstreams[pool.owner(data)].far, data)
    assert pool.backends[pool.owner(data)].outstanding == 20


@pytest.mark.parametrize("cut", [5, 8, 9, 12, 20])
def test_a_key_that_has_not_arrived_is_waited_for(rig: Rig, cut: int) -> None:
    pool = Pool(rig, BY_STRING)
    client = pool.client()
    for number in range(6):
        data = body(1, struct.pack(">H", 14) + b"key %10d" % number + b"and the rest of it")
        before = client.mapped.consumed_bytes
        client.far.sendall(data[:cut])
        until_equal(lambda: client.mapped.undecided, cut)
        assert client.mapped.consumed_bytes == before
        client.far.sendall(data[cut:])
        expect(client.upstreams[pool.owner(data)].far, data)


def test_one_of_the_connections_of_a_keys_backend_is_used_where_clients_share_them(rig: Rig) -> None:
    """The one with the fewest requests; when all have as many as they may, the key goes elsewhere."""
    policy = rig.share(max_in_flight=2, batch=1)
    pool = Pool(rig, BY_ID, weights=(1, 1), policy=policy)
    shared = [rig.shared(pool.policy, pool.backends[place // 2], place) for place in range(4)]
    clients = [pool.client() for _ in range(5)]
    data = body(1, b"x" * 8)
    owner = pool.owner(data)
    for client in clients:
        client.far.sendall(data)
        until_equal(lambda client=client: client.mapped.consumed_bytes, len(data))  # type: ignore[misc]
    mine, others = (shared[2 * member : 2 * member + 2] for member in (owner, 1 - owner))
    assert [upstream.mapped.outstanding for upstream in mine] == [2, 2]
    assert sum(upstream.mapped.outstanding for upstream in others) == 1


def test_messages_for_several_backends_are_told_apart_where_clients_share_them(rig: Rig) -> None:
    pool = Pool(rig, BY_ID, weights=(1, 1), policy=rig.share())
    shared = [rig.shared(pool.policy, backend, place) for place, backend in enumerate(pool.backends)]
    client = pool.client()
    messages = [body(number, b"x" * 8) for number in range(20)]
    client.far.sendall(b"".join(messages))
    wanted = [sum(pool.owner(data) == member for data in messages) for member in range(2)]
    until_equal(lambda: [upstream.mapped.outstanding for upstream in shared], wanted)
    assert min(wanted) > 0


def test_a_rate_charges_a_message_once_although_its_key_comes_in_pieces(rig: Rig) -> None:
    pool = Pool(rig, BY_STRING)
    pool.policy = replace(pool.policy, rate=1)
    rig.plane.rates.set(1, messages_per_second=1, burst=5, deny=False)
    since = time.monotonic()
    client = pool.client()
    passed = 0
    while passed < 30:
        data = body(1, struct.pack(">H", 14) + b"key %10d" % passed)
        client.far.sendall(data[:9])
        until(lambda: bool(client.mapped.paused) or client.mapped.undecided == 9)
        if client.mapped.paused:
            break
        client.far.sendall(data[9:])
        expect(client.upstreams[pool.owner(data)].far, data)
        passed += 1
    assert client.mapped.paused is Pause.PAUSED_RATE
    assert 5 <= passed <= 5 + (time.monotonic() - since) + 1


def test_a_batch_that_a_key_ends_gives_its_tokens_back(rig: Rig) -> None:
    pool = Pool(rig, BY_ID)
    pool.policy = replace(pool.policy, rate=1)
    rig.plane.rates.set(1, messages_per_second=1, burst=40, deny=False)
    client = pool.client()
    messages = [body(number, b"x" * 8) for number in range(40)]
    client.far.sendall(b"".join(messages))
    until_equal(lambda: sum(counts(client)), sum(map(len, messages)))
    assert client.mapped.paused is Pause.RUNNING


def other_key(pool: Pool, data: bytes) -> bytes:
    """A message of another backend."""
    return next(
        other for number in range(1000) if pool.owner(other := body(number, b"x" * 8)) != pool.owner(data)
    )


def test_fifo_waits_until_nothing_is_outstanding_elsewhere(rig: Rig) -> None:
    pool = Pool(rig, BY_ID, framing=FIFO)
    client = pool.client()
    data = body(1, b"x" * 8)
    other = other_key(pool, data)
    owner = client.upstreams[pool.owner(data)].far

    client.far.sendall(data + data + other)

    expect(owner, data + data)
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_ORDER)
    owner.sendall(data + data)
    expect(client.far, data + data)
    rig.resume(client)
    expect(client.upstreams[pool.owner(other)].far, other)


def test_fifo_waits_in_front_of_a_message_whose_key_has_not_arrived(rig: Rig) -> None:
    pool = Pool(rig, BY_ID, framing=FIFO)
    client = pool.client()
    data = body(1, b"x" * 8)
    other = other_key(pool, data)
    owner = client.upstreams[pool.owner(data)].far
    client.far.sendall(data)
    expect(owner, data)

    client.far.sendall(other[:6])

    until_equal(lambda: client.mapped.paused, Pause.PAUSED_ORDER)
    owner.sendall(data)
    expect(client.far, data)
    client.far.sendall(other[6:])
    rig.resume(client)
    expect(client.upstreams[pool.owner(other)].far, other)


def test_more_hashed_pools_than_the_maps_were_loaded_for(rig: Rig) -> None:
    for _ in range(4):
        Pool(rig, BY_ID, weights=(1,))
    with pytest.raises(RuntimeError, match="hashed pools"):
        rig.plane.hashing.publish(0, Hash(BY_ID), [0], bytes(maglev.PLACES))


def test_the_longest_key_is_that_of_the_header() -> None:
    assert MAX_KEY == abi.MAX_KEY
    assert replace(BY_ID, width=MAX_KEY).of(bytes(400)) == bytes(MAX_KEY)
