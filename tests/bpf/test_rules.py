"""Rules in the programs: they decide as the reference does, and messages go where that says."""

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lb import abi, maglev, rules
from lb.abi import Counter, Pause
from lb.dataplane import Policy, PostChannel
from lb.dataplane.rules import DENY, MAX_TESTS, Decision, encode, to_pool
from lb.framing import Direction, Endian, Framer, Framing
from lb.ranges import TableFullError
from lb.routing import Hash, key_hash
from lb.rules import Action, Bytes, Client, Deny, Rule, Suffix, Target
from tests.bpf import rig as rigs
from tests.bpf.rig import COUNTED, FIFO, PREFIXED, Backend, Rig, Shared, counted, expect, until_equal
from tests.bpf.test_hash import BY_ID, Named, body
from tests.bpf.test_refuse import AXFR, DNS, answer, query, refused

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MAIN, OTHER = "main", "other"
QUIETLY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ADDRESSES = [ip_address(text).packed for text in ("10.1.2.3", "10.1.2.4", "192.0.2.1", "2001:db8::1", "::")]


def suffix(name: str) -> Suffix:
    return Suffix(b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")))


def rule(action: Action, *tests: rules.Test) -> Rule:
    """Each of the tests has to hold."""
    return Rule(tuple((test,) for test in tests), action)


def body_is(value: int, width: int = 4) -> Bytes:
    """A test of what stands behind the header of PREFIXED."""
    return rules.number(8, width, (1 << 8 * width) - 1, value)


class Listener:
    """Two pools and a listener with rules; names of backends are a, b, ..."""

    def __init__(
        self,
        rig: Rig,
        its: Sequence[Rule],
        *,
        framing: Framing = PREFIXED,
        backends: int = 1,
        balance: abi.Balance = abi.Balance.ROUND_ROBIN,
    ) -> None:
        self.rig = rig
        self.rules = list(its)
        self.pools = {name: rig.plane.publish_pool(balance) for name in (MAIN, OTHER)}
        self.backends = {
            name: [rig.backend(pool=pool) for _ in range(backends)] for name, pool in self.pools.items()
        }
        self.number = rig.plane.rules.publish(self.encode(its))
        self.policy = Policy(
            rig.plane.publish_framing(framing), self.pools[MAIN], abi.MAX_BATCH, rules=self.number
        )

    def decision(self, action: Action) -> int:
        if isinstance(action, Deny):
            return DENY
        assert isinstance(action, Target)
        pool = self.pools[action.pool]
        if action.backend is None:
            return to_pool(pool)
        return to_pool(pool, self.backends[action.pool]["ab".index(action.backend)].index)

    def encode(self, its: Sequence[Rule]) -> list[abi.Test]:
        return encode(its, self.decision, to_pool(self.pools[MAIN]))

    def client(self, address: bytes = b"") -> rigs.Client:
        """A client with an upstream to each backend, those of MAIN first."""
        client = self.rig.client(self.policy, *self.backends[MAIN], *self.backends[OTHER], mapped=False)
        client.map(self.policy, address=address)
        return client

    def wanted(self, data: bytes, address: bytes = b"") -> int:
        action = rules.decide(self.rules, data, address)
        return to_pool(self.pools[MAIN]) if action is None else self.decision(action)


def decided(client: rigs.Client, data: bytes) -> int:
    """What the programs decide on a message that they get."""
    before = client.mapped.consumed_bytes
    client.far.sendall(data)
    until_equal(lambda: client.mapped.consumed_bytes, before + len(data))
    return client.plane._routing[client.ref.number].decision


def in_pieces(client: rigs.Client, data: bytes, cut: int) -> int:
    """The same for one that arrives in two parts."""
    before = client.mapped.consumed_bytes
    client.far.sendall(data[:cut])
    until_equal(lambda: client.mapped.undecided, cut)
    client.far.sendall(data[cut:])
    until_equal(lambda: client.mapped.consumed_bytes, before + len(data))
    return client.plane._routing[client.ref.number].decision


# --- the same decisions as the reference ----------------------------------------------------------------

few = st.integers(0, 3)
few_bytes = st.binary(min_size=1, max_size=20).map(lambda data: bytes(byte & 1 for byte in data))
labels = st.lists(st.sampled_from([b"a", b"b", b"EXAMPLE", b"example", b"x\7example", b"org"]), max_size=4)


def masked(offset: int, mask: bytes, value: bytes) -> Bytes:
    """Any mask, and what of the value is inside."""
    size = min(len(mask), len(value))
    return Bytes(
        offset, mask[:size], bytes(one & other for one, other in zip(value[:size], mask[:size], strict=True))
    )


tests = st.one_of(
    st.builds(masked, st.integers(4, 30), st.binary(min_size=1, max_size=20), few_bytes),
    st.builds(rules.prefix, st.integers(8, 24), few_bytes),
    st.builds(
        rules.number, st.sampled_from([8, 9, 12]), st.just(2), st.sampled_from([1, 3, 0xFFFF]), st.just(1)
    ),
    labels.filter(bool).map(lambda found: suffix(b".".join(found).decode().lower())),
    st.sampled_from(["10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "2001:db8::/32", "::/0", "::/128"]).map(
        lambda text: Client(ip_network(text))
    ),
)
actions = st.sampled_from([Deny(), Target(MAIN), Target(OTHER), Target(OTHER, "a"), Target(MAIN, "a")])
some_rules = st.lists(
    st.builds(
        Rule,
        st.lists(st.lists(tests, min_size=1, max_size=4).map(tuple), max_size=3).map(tuple),
        actions,
    ),
    max_size=8,
)
# Of PREFIXED; where a DNS message has its name, they have one too.
contents = st.one_of(
    few_bytes,
    st.binary(max_size=300),
    labels.map(lambda found: b"\0" * 6 + b"".join(bytes([len(one)]) + one for one in found) + b"\0\0\1\0\1"),
    labels.map(lambda found: b"\0" * 6 + b"".join(bytes([len(one)]) + one for one in found) + b"\xc0\x0c"),
    st.integers(1, 63).map(lambda size: b"\0" * 6 + (bytes([size]) + b"a" * size) * (253 // size) + b"\0"),
)


@pytest.mark.parametrize("address", [*ADDRESSES, b""])
def test_any_rules_decide_on_any_message_as_the_reference(rig: Rig, address: bytes) -> None:
    listener = Listener(rig, [])
    client = listener.client(address)

    @QUIETLY
    @given(some_rules, st.lists(st.tuples(contents, st.integers(0, 300)), min_size=1, max_size=4))
    @example([rule(Deny(), suffix("example.org"))], [(b"\0" * 6 + b"\x0fx\7example\3org\0" * 2, 1)])
    @example([rule(Target(OTHER), suffix("org"))], [(b"\0" * 6 + b"\3oRg\0", 1)])
    @example([rule(Deny(), rules.number(8, 8, (1 << 64) - 1, 5))], [(bytes(7) + b"\5", 20), (bytes(7), 3)])
    def check(its: list[Rule], messages: list[tuple[bytes, int]]) -> None:
        listener.rules = its
        old = rig.plane.rules.replace(listener.number, listener.encode(its))
        for content, cut in messages:
            data = body(7, content)
            assert decided(client, data) == listener.wanted(data, address)
            if cut:
                assert in_pieces(client, data, 1 + cut % (len(data) - 1)) == listener.wanted(data, address)
        rig.plane.wait_for_programs()
        rig.plane.rules.free(old)

    check()


def test_names_are_compared_by_whole_labels_in_any_case(rig: Rig) -> None:
    listener = Listener(rig, [rule(Deny(), suffix("example.test"))], framing=DNS)
    client = listener.client()
    for name, denied in (
        (b"\7example\4test\0", True),
        (b"\7eXaMpLe\4TEST\0", True),
        (b"\3www\7example\4test\0", True),
        (b"\1a\1b\1c\7example\4test\0", True),
        (b"\x08wexample\4test\0", False),
        (b"\x0cw\7example\4test\0"[:1] + b"w\7example\4test\0"[:12] + b"\0", False),
        (b"\x0dx\7example\4test\0"[:14] + b"\0", False),
        (b"\7example\0", False),
        (b"\4test\0", False),
        (b"\0", False),
        (b"\7example\4test\2de\0", False),
        (b"\7example\4test\xc0\x0c", False),
    ):
        asked = query(1, name=name)
        assert rules.decide(listener.rules, asked, b"") == (Deny() if denied else None), name
        assert (decided(client, asked) == DENY) is denied, name


def test_the_longest_name(rig: Rig) -> None:
    long = (b"\x3f" + b"n" * 63) * 3 + b"\x3d" + b"m" * 61
    listener = Listener(rig, [rule(Deny(), Suffix(long[64:]))], framing=DNS)
    client = listener.client()
    for name in (long, long[64:], long[64:].upper().replace(b"\x1f", b"\x3f")):
        asked = query(1, name=name + b"\0")
        assert decided(client, asked) == listener.wanted(asked)
    assert decided(client, query(1, name=long + b"\0")) == DENY


def test_a_method_is_the_whole_of_the_counted_string(rig: Rig) -> None:
    framing = replace(COUNTED, name="counted-too")
    its = [
        Rule(((rules.method(framing, b"add"), rules.method(framing, b"addAllOfThem")),), Target(OTHER)),
        rule(Deny(), rules.method(framing, b"ad")),
    ]
    listener = Listener(rig, its, framing=framing)
    client = listener.client()
    for name, wanted in (
        (b"add", to_pool(listener.pools[OTHER])),
        (b"addAllOfThem", to_pool(listener.pools[OTHER])),
        (b"ad", DENY),
        (b"addAllOfThen", to_pool(listener.pools[MAIN])),
        (b"addA", to_pool(listener.pools[MAIN])),
        (b"", to_pool(listener.pools[MAIN])),
    ):
        data = counted(5, name)
        assert decided(client, data) == wanted == listener.wanted(data)


def test_the_most_tests_there_can_be(rig: Rig) -> None:
    """Of one rule with many values, or many with one: the last decides, and one more does not fit."""
    each = 8
    many = [
        Rule(
            (tuple(body_is(each * number + value) for value in range(each)),),
            Target(OTHER) if number % 2 else Deny(),
        )
        for number in range((MAX_TESTS - 1) // each)
    ]
    listener = Listener(rig, many)
    client = listener.client()
    for value in (0, 7, 8, 500, each * len(many) - 1, each * len(many)):
        data = body(1, value.to_bytes(4, "big"))
        assert decided(client, data) == listener.wanted(data)
    fits = 4096 // len(listener.encode(many)) - 1
    for _ in range(fits):
        rig.plane.rules.replace(listener.number, listener.encode(many))
    with pytest.raises(TableFullError, match="4096 tests"):
        rig.plane.rules.replace(listener.number, listener.encode(many))


def test_little_endian_numbers(rig: Rig) -> None:
    listener = Listener(rig, [rule(Deny(), rules.number(8, 3, 0xFFFF0F, 0x123405, Endian.LITTLE))])
    client = listener.client()
    assert decided(client, body(1, b"\xf5\x34\x12")) == DENY
    assert decided(client, body(1, b"\x12\x34\x05")) != DENY
    assert decided(client, body(1, b"\xf5\x34")) != DENY


# --- where messages go -----------------------------------------------------------------------------------


def test_messages_go_to_the_pool_or_backend_of_the_first_rule_that_matches(rig: Rig) -> None:
    """All in one segment: batches end where the decision changes, and each upstream gets its own in order."""
    its = [
        rule(Target(OTHER), body_is(1)),
        rule(Target(MAIN, "b"), body_is(2)),
        rule(Deny(), body_is(3)),
        rule(Target(MAIN), body_is(2)),
        rule(Target(OTHER), body_is(3)),
    ]
    listener = Listener(rig, its, backends=2)
    client = listener.client()
    sent = [body(number, (number * 7 // 3 % 4).to_bytes(4, "big")) for number in range(240)]
    by_value = [[data for data in sent if data[-1] == value] for value in range(4)]

    client.far.sendall(b"".join(sent))

    until_equal(lambda: client.mapped.consumed_bytes, len(b"".join(sent)))
    plain, second, *others = client.upstreams
    assert rig.counted(Counter.DROPPED_RULE) == len(by_value[3])
    assert sum(upstream.redirected_bytes for upstream in others) == len(b"".join(by_value[1]))
    assert all(upstream.redirected_bytes for upstream in others)
    assert plain.redirected_bytes + second.redirected_bytes == len(b"".join(by_value[0] + by_value[2]))
    got = rigs.receive(second.far, second.redirected_bytes)
    assert [data for data in by_value[2] if data not in got] == []
    assert plain.mapped.outstanding + second.mapped.outstanding == len(by_value[0]) + len(by_value[2])
    assert [backend.outstanding for backend in listener.backends[OTHER]] == [
        upstream.mapped.outstanding for upstream in others
    ]


def test_a_backend_that_a_rule_names_has_no_stand_in(rig: Rig) -> None:
    listener = Listener(rig, [rule(Target(MAIN, "a"), body_is(1))], backends=2)
    client = listener.client()
    client.cut(client.upstreams[0])
    data = body(1, b"\0\0\0\1")
    client.far.sendall(data)
    client.expect_paused(Pause.PAUSED_NO_UPSTREAM, data)


def test_a_pool_without_upstreams_makes_only_its_messages_wait(rig: Rig) -> None:
    listener = Listener(rig, [rule(Target(OTHER), body_is(1))])
    client = listener.client()
    client.cut(client.upstreams[1])
    first, second = body(1, b"\0\0\0\0"), body(2, b"\0\0\0\1")
    client.far.sendall(first + second)
    expect(client.upstreams[0].far, first)
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_NO_UPSTREAM)
    assert rig.plane.decision(client.mapped) == Decision(listener.pools[OTHER])
    rig.plane.route(client.ref, client.upstreams[1].ref, client.upstreams[1].backend.index)
    rig.resume(client)
    expect(client.upstreams[1].far, second)


def test_rules_by_client_are_those_of_its_address(rig: Rig) -> None:
    its = [rule(Target(OTHER), Client(ip_network("10.1.2.0/29"))), rule(Deny(), Client(ip_network("::/0")))]
    listener = Listener(rig, its)
    data = body(1, b"any")
    for address, wanted in (("10.1.2.3", 1), ("10.1.2.9", 0)):
        client = listener.client(ip_address(address).packed)
        client.far.sendall(data)
        expect(client.upstreams[wanted].far, data)
    client = listener.client(ip_address("2001:db8::1").packed)
    client.far.sendall(data)
    until_equal(lambda: rig.counted(Counter.DROPPED_RULE), 1)


@dataclass(frozen=True)
class Site:
    """Two pools whose clients share their upstreams."""

    policy: Policy
    main: Shared
    other: Shared

    @classmethod
    def of(cls, rig: Rig, value: Rule, framing: Framing = PREFIXED, **how: int) -> "Site":
        main, other = rig.share(framing, **how), rig.share(framing, **how)
        shared = [
            rig.shared(policy, Backend(rig.plane, 1, policy.pool), max_in_flight=how.get("max_in_flight", 32))
            for policy in (main, other)
        ]

        def decision(action: Action) -> int:
            return DENY if isinstance(action, Deny) else to_pool(other.pool)

        number = rig.plane.rules.publish(encode([value], decision, to_pool(main.pool)))
        return cls(replace(main, rules=number), shared[0], shared[1])


def test_clients_that_share_reach_the_other_pool_by_its_own_route(rig: Rig) -> None:
    site = Site.of(rig, rule(Target(OTHER), body_is(1)))
    clients = [rig.client(site.policy) for _ in range(3)]
    for client in clients:
        sent = [body(number, (number % 2).to_bytes(4, "big")) for number in range(40)]
        client.far.sendall(b"".join(sent))
        for parity, upstream in enumerate((site.main, site.other)):
            for _ in range(20):
                asked = rigs.receive(upstream.far, 12)
                assert asked[-1] == parity
                upstream.far.sendall(asked)
        got = [rigs.receive(client.far, 12) for _ in range(40)]
        assert sorted(got) == sorted(sent)
        assert client.mapped.outstanding == 0
    assert site.main.mapped.outstanding == site.other.mapped.outstanding == 0


def test_a_full_pool_that_is_shared_does_not_stop_the_other(rig: Rig) -> None:
    site = Site.of(rig, rule(Target(OTHER), body_is(1)), max_in_flight=2)
    client = rig.client(site.policy)
    sent = [body(number, b"\0\0\0\1") for number in range(3)]
    client.far.sendall(b"".join(sent[:2]) + body(9, bytes(4)) + sent[2])
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_LIMIT)
    assert site.other.mapped.outstanding == 2
    assert site.main.mapped.outstanding == 1
    asked = rigs.receive(site.other.far, 24)
    site.other.far.sendall(asked)
    expect(client.far, sent[0] + sent[1])
    rig.resume(client)
    assert rigs.receive(site.other.far, 12)[8:] == sent[2][8:]


def test_a_hashed_pool_behind_a_rule_is_hashed(rig: Rig) -> None:
    listener = Listener(rig, [rule(Target(OTHER), body_is(1))], backends=2, balance=abi.Balance.HASH)
    table = maglev.table([Named("a", 1), Named("b", 1)])
    for name, pool in listener.pools.items():
        indices = [backend.index for backend in listener.backends[name]]
        rig.plane.hashing.publish(pool, Hash(BY_ID, None), indices, table)
    listener.policy = replace(listener.policy, hashed=True)
    client = listener.client()
    for number in range(60):
        data = body(number, (number % 2).to_bytes(4, "big"))
        member = table[maglev.place(key_hash(BY_ID.of(data)))]
        client.far.sendall(data)
        expect(client.upstreams[2 * (number % 2) + member].far, data)


# --- order, and messages that arrive in pieces -----------------------------------------------------------


def test_fifo_waits_until_nothing_is_outstanding_elsewhere(rig: Rig) -> None:
    its = [rule(Target(OTHER), body_is(1)), rule(Deny(), body_is(2))]
    listener = Listener(rig, its, framing=FIFO)
    client = listener.client()
    plain, other, denied = (body(number, number.to_bytes(4, "big")) for number in range(3))

    client.far.sendall(plain + denied + plain + other)

    expect(client.upstreams[0].far, plain + plain)
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_ORDER)
    assert rig.counted(Counter.DROPPED_RULE) == 1
    client.upstreams[0].far.sendall(plain + plain)
    expect(client.far, plain + plain)
    rig.resume(client)
    expect(client.upstreams[1].far, other)


def test_fifo_waits_in_front_of_a_message_that_nobody_can_decide_on_yet(rig: Rig) -> None:
    listener = Listener(rig, [rule(Target(OTHER), body_is(1))], framing=FIFO)
    client = listener.client()
    plain, other = body(1, bytes(4)), body(2, b"\0\0\0\1")
    client.far.sendall(plain)
    expect(client.upstreams[0].far, plain)
    client.far.sendall(other[:10])
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_ORDER)
    assert rig.plane.decision(client.mapped) == Decision(0, undecided=True)
    client.upstreams[0].far.sendall(plain)
    expect(client.far, plain)
    client.far.sendall(other[10:])
    rig.resume(client)
    expect(client.upstreams[1].far, other)


@pytest.mark.parametrize("value", range(3))
def test_one_that_comes_byte_by_byte(rig: Rig, value: int) -> None:
    its = [rule(Target(OTHER), body_is(1)), rule(Deny(), body_is(2))]
    listener = Listener(rig, its)
    client = listener.client()
    whole = body(1, value.to_bytes(4, "big") + b"and more")
    for end in range(1, len(whole)):
        client.far.sendall(whole[end - 1 : end])
        until_equal(lambda: client.mapped.undecided, end)
    client.far.sendall(whole[-1:] + whole)
    if value < 2:
        expect(client.upstreams[value].far, whole + whole)
    else:
        until_equal(lambda: rig.counted(Counter.DROPPED_RULE), 2)
    assert sum(upstream.redirected_bytes for upstream in client.upstreams) == 2 * len(whole) * (value < 2)


def test_one_that_is_larger_than_a_segment(rig: Rig) -> None:
    listener = Listener(rig, [rule(Target(OTHER), body_is(1)), rule(Deny(), body_is(2))])
    client = listener.client()
    large = [body(number, number.to_bytes(4, "big") + bytes(200_000)) for number in range(3)]
    client.far.sendall(large[2] + large[1] + large[2])
    expect(client.upstreams[1].far, large[1])
    until_equal(lambda: rig.counted(Counter.DROPPED_RULE), 2)


# --- denied, and refused --------------------------------------------------------------------------------

EVIL = suffix("evil.test")


def evil(number: int, kind: int = 1) -> bytes:
    return query(number, kind, name=b"\3www\4eViL\4test\0")


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_denied_is_refused_and_the_rest_goes_on(rig: Rig, shared: bool) -> None:
    if shared:
        site = Site.of(rig, rule(Deny(), EVIL), DNS)
        client, upstream = rig.client(site.policy), site.main.far
    else:
        client = Listener(rig, [rule(Deny(), EVIL)], framing=DNS).client()
        upstream = client.upstreams[0].far
    sent = [evil(number) if number % 5 < 2 else query(number) for number in range(50)]
    client.far.sendall(b"".join(sent))
    expect(client.far, b"".join(refused(asked) for asked in sent if b"eViL" in asked))
    for asked in sent:
        if b"eViL" not in asked:
            got = rigs.receive(upstream, len(asked))
            upstream.sendall(answer(got))
            expect(client.far, answer(asked))
    assert rig.counted(Counter.DROPPED_RULE) == rig.counted(Counter.REFUSALS) == 20
    assert client.mapped.outstanding == 0
    assert not any(rig.outstanding(client).values())


def test_what_is_denied_needs_no_upstream(rig: Rig) -> None:
    client = Listener(rig, [rule(Deny(), EVIL)], framing=DNS, backends=0).client()
    client.far.sendall(evil(1) + evil(2) + query(3))
    expect(client.far, refused(evil(1) + evil(2)))
    until_equal(lambda: client.mapped.paused, Pause.PAUSED_NO_UPSTREAM)


def test_a_rule_comes_before_rates_and_transfers(rig: Rig) -> None:
    """No rate is charged for what a rule denies, and a transfer that it denies counts once."""
    site = Site.of(rig, rule(Deny(), EVIL), DNS)
    rig.plane.rates.set(1, messages_per_second=1, burst=1, deny=True)
    before = rig.plane.rates.ready_at(1)
    client = rig.client(replace(site.policy, rate=1))
    client.far.sendall(evil(1) + evil(2, AXFR) + evil(3))
    expect(client.far, refused(evil(1) + evil(2, AXFR) + evil(3)))
    assert rig.plane.rates.ready_at(1) == before
    client.far.sendall(query(4, AXFR) + query(5) + query(6) + evil(7))
    expect(client.far, refused(query(4, AXFR)) + refused(query(6)) + refused(evil(7)))
    assert rigs.receive(site.main.far, len(query(5)))[4:] == query(5)[4:]
    assert rig.counted(Counter.DROPPED_RULE) == 4
    assert rig.counted(Counter.DROPPED_TRANSFER) == rig.counted(Counter.DROPPED_RATE_LIMITED) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_who_does_not_read_refusals_is_paused_and_loses_none(rig: Rig, shared: bool) -> None:
    if shared:
        policy = Site.of(rig, rule(Deny(), EVIL), DNS).policy
    else:
        policy = Listener(rig, [rule(Deny(), EVIL)], framing=DNS, backends=0).policy
    client = rig.client(replace(policy, batch=4, budget=16 * 1024))
    client.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    client.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    sent = [query(number, name=b"\4evil\4test\0", rest=bytes(1000)) for number in range(8000)]
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

    rigs.until(stands)
    decision = rig.plane.decision(client.mapped)
    assert decision is not None
    assert decision.denied or decision.undecided
    assert waiting  # or nothing was held back
    framer, got = Framer(DNS, Direction.RESPONSE), list[bytes]()

    def arrived() -> bool:
        pour()
        with contextlib.suppress(BlockingIOError):
            got.extend(reply.data for reply in framer.feed(client.far.recv(1 << 16)))
        if client.mapped.paused and client.mapped.has_room:
            rig.resume(client)
        return len(got) == len(sent)

    rigs.until(arrived)
    assert got == [refused(asked) for asked in sent]
    assert most <= 16 * 1024 + 4 * len(sent[0])
    assert rig.counted(Counter.REFUSALS) == rig.counted(Counter.DROPPED_RULE) == len(sent)


def test_what_user_space_has_taken_over_is_decided_on_too(rig: Rig) -> None:
    listener = Listener(rig, [rule(Deny(), EVIL), rule(Target(OTHER), suffix("other"))], framing=DNS)
    client = listener.client()
    channel = rig.plane.post
    channel.sock.setblocking(True)
    elsewhere = query(6, name=b"\5other\0")
    channel.sock.sendall(
        PostChannel.forward(client.ref, evil(5)) + PostChannel.forward(client.ref, elsewhere)
    )
    expect(client.far, refused(evil(5)))
    expect(client.upstreams[1].far, elsewhere)
    assert rig.counted(Counter.FORWARDED) == 2
    assert rig.counted(Counter.DROPPED_RULE) == rig.counted(Counter.REFUSALS) == 1


def test_a_protocol_without_refusal_drops(rig: Rig) -> None:
    listener = Listener(rig, [rule(Deny(), body_is(1))])
    client = listener.client()
    client.far.sendall(body(1, b"\0\0\0\1") * 10 + body(2, b"\0\0\0\2"))
    expect(client.upstreams[0].far, body(2, b"\0\0\0\2"))
    assert rig.counted(Counter.DROPPED_RULE) == 10
    assert rig.counted(Counter.REFUSALS) == client.redirected_bytes == 0


# --- other rules while messages flow --------------------------------------------------------------------


def test_rules_are_replaced_while_messages_flow(rig: Rig) -> None:
    """Every message follows the old rules or the new ones; when all programs have ended, only the new."""
    listener = Listener(rig, [rule(Target(OTHER), body_is(1))])
    client = listener.client()
    data = body(1, b"\0\0\0\1")
    client.far.sendall(data)
    expect(client.upstreams[1].far, data)
    passed = len(data)

    def send() -> None:
        nonlocal passed
        client.far.sendall(data)
        passed += len(data)

    def arrived() -> None:
        until_equal(lambda: client.mapped.consumed_bytes, passed)

    for turn in range(100):
        its = [rule(Target(MAIN), body_is(0)) for _ in range(turn % 7)]
        its.append(rule(Target(OTHER) if turn % 2 else Target(MAIN), body_is(1)))
        send()
        old = rig.plane.rules.replace(listener.number, listener.encode(its))
        arrived()
        rig.plane.wait_for_programs()
        rig.plane.rules.free(old)
        before = [upstream.redirected_bytes for upstream in client.upstreams]
        send()
        arrived()
        grown = [
            upstream.redirected_bytes - bytes_
            for upstream, bytes_ in zip(client.upstreams, before, strict=True)
        ]
        assert grown == ([0, len(data)] if turn % 2 else [len(data), 0])


def test_more_listeners_with_rules_than_the_maps_were_loaded_for(rig: Rig) -> None:
    one = encode([], lambda _: DENY, to_pool(0))
    numbers = [rig.plane.rules.publish(one) for _ in range(4)]
    assert numbers == [1, 2, 3, 4]
    with pytest.raises(TableFullError, match="4 listeners with rules"):
        rig.plane.rules.publish(one)
    rig.plane.rules.withdraw(2)
    assert rig.plane.rules.publish(one) == 2
