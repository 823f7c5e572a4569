"""The reference of rules, and the tests that are made of them."""

from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest

from lb import abi, rules
from lb.dataplane.rules import DENY, Decision, address_words, count, encode, to_pool
from lb.framing import PRESETS, Endian
from lb.rules import (
    Action,
    Bytes,
    Client,
    Deny,
    Rule,
    Suffix,
    Target,
    decide,
    method,
    number,
    pools_of,
    prefix,
)

ANYBODY = ip_address("192.0.2.1").packed
EXAMPLE = Suffix(b"\7example\3com")


def query(name: bytes) -> bytes:
    """A DNS query over TCP."""
    body = bytes(12) + name + b"\0\1\0\1"
    return len(body).to_bytes(2, "big") + body


@pytest.mark.parametrize(
    ("test", "message", "holds"),
    [
        (number(2, 2, 0xFFFF, 5), b"\0\0\0\5", True),
        (number(2, 2, 0xFFFF, 5), b"\0\0\0\5\0", True),
        (number(2, 2, 0xFFFF, 5), b"\0\0\0\6", False),
        (number(2, 2, 0xFFFF, 0), b"\0\0\0", False),
        (number(2, 2, 0x0F, 5), b"\0\0\xff\xf5", True),
        (number(0, 3, 0xFFFFFF, 1, Endian.LITTLE), b"\1\0\0", True),
        (number(0, 3, 0xFFFFFF, 1, Endian.LITTLE), b"\0\0\1", False),
        (prefix(1, b"ab"), b"xabc", True),
        (prefix(1, b"ab"), b"xa", False),
        (EXAMPLE, query(b"\7example\3com\0"), True),
        (EXAMPLE, query(b"\3www\7EXAMPLE\3Com\0"), True),
        (EXAMPLE, query(b"\x0dwww\7example\3com"[:14] + b"\0"), False),
        (EXAMPLE, query(b"\x0bwww.example\3com\0"), False),
        (EXAMPLE, query(b"\7example\3com\xc0\x0c"), False),
        (EXAMPLE, query(b"\7example\3com")[:26], False),
        (EXAMPLE, query(b"\0"), False),
    ],
)
def test_what_holds(test: rules.Test, message: bytes, holds: bool) -> None:
    assert test.holds(message, ANYBODY) is holds


@pytest.mark.parametrize(
    ("network", "address", "holds"),
    [
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("0.0.0.0/0", "::1", False),
        ("::/0", "10.0.0.1", False),
        ("::/0", "::ffff:10.0.0.1", True),
        ("2001:db8::/33", "2001:db8:7fff::1", True),
        ("2001:db8::/33", "2001:db8:8000::1", False),
    ],
)
def test_a_client_is_of_a_network_of_its_own_version(network: str, address: str, holds: bool) -> None:
    assert Client(ip_network(network)).holds(b"", ip_address(address).packed) is holds


def test_a_client_whose_address_nobody_knows_is_in_no_network() -> None:
    assert not Client(ip_network("0.0.0.0/0")).holds(b"", b"")
    assert address_words(b"") == (0, 0, 0)


def test_the_first_rule_that_matches_decides() -> None:
    its = [
        Rule(((number(0, 1, 0xFF, 1), number(0, 1, 0xFF, 2)), (prefix(1, b"x"),)), Target("one")),
        Rule(((number(0, 1, 0xFF, 1),),), Deny()),
        Rule((), Target("rest", "a")),
        Rule((), Deny()),
    ]
    assert decide(its, b"\1x", ANYBODY) == decide(its, b"\2x", ANYBODY) == Target("one")
    assert decide(its, b"\1y", ANYBODY) == Deny()
    assert decide(its, b"\2", ANYBODY) == decide(its, b"", ANYBODY) == Target("rest", "a")
    assert decide(its[:2], b"\3", ANYBODY) is None
    assert pools_of(its) == ["one", "rest"]
    assert [rule.by_message for rule in its] == [True, True, False, False]


def test_a_method_is_a_counted_string() -> None:
    assert method(PRESETS["thrift-framed"], b"add") == Bytes(8, b"\xff" * 7, b"\0\0\0\3add")
    with pytest.raises(ValueError, match="dns has no counted string"):
        method(PRESETS["dns"], b"add")


@pytest.mark.parametrize(("mask", "value"), [(b"", b""), (b"\1", b"\2"), (b"\1\1", b"\1")])
def test_bytes_that_cannot_match(mask: bytes, value: bytes) -> None:
    with pytest.raises(ValueError, match="mask"):
        Bytes(0, mask, value)


def test_decisions_are_what_the_programs_keep() -> None:
    assert Decision.of(to_pool(3)) == Decision(3)
    assert Decision.of(to_pool(63, 1023)) == Decision(63, 1023)
    assert Decision.of(to_pool(3, 0)) == Decision(3, 0)
    assert Decision.of(to_pool(3, 0) | 5 << 24 | 77) == Decision(3, 0)
    assert Decision.of(DENY) == Decision(0, denied=True)
    assert Decision.of((1 << 64) - 1) == Decision(0, undecided=True)
    assert Decision.of(0) is None


def run(tests: list[abi.Test], holds: Callable[[abi.Test], bool]) -> tuple[int, int]:
    """Follow tests as the programs do: the decision, and how many tests that took."""
    place = steps = 0
    while True:
        steps += 1
        test = tests[place]
        if test.subject == abi.Subject.NONE or holds(test):
            if test.decision:
                return test.decision, steps
            assert place < test.then
            place = test.then
        else:
            assert place < test.otherwise
            place = test.otherwise


def test_tests_only_lead_forward_and_end() -> None:
    actions: dict[Action, int] = {Deny(): DENY, Target("p"): to_pool(1)}
    its = [
        Rule(
            ((prefix(0, bytes(20)), EXAMPLE), (Client(ip_network("2001:db8::/48")), prefix(3, b"x"))), Deny()
        ),
        Rule(((EXAMPLE,),), Target("p")),
        Rule((), Deny()),
        Rule(((prefix(0, b"never"),),), Target("p")),
    ]
    tests = encode(its, lambda action: actions[action], to_pool(0))
    assert tests[0].names
    assert count(its) == len(tests)
    assert run(tests, lambda _: True) == (DENY, 3 + 2)
    assert run(tests, lambda _: False)[0] == DENY
    assert run(tests[:-3], lambda test: test.subject in (abi.Subject.NAME, abi.Subject.LABEL))[0] == to_pool(
        1
    )
    assert run(encode([], lambda _: 0, to_pool(9)), lambda _: False) == (to_pool(9), 1)
