"""The key `rules` of a listener: what it means, and how its mistakes are reported."""

from ipaddress import ip_network

import pytest

from lb.abi import MAX_TESTS
from lb.config import ConfigErrors, hints, parse
from lb.config import rules as config_rules
from lb.dataplane.rules import count
from lb.framing import PRESETS, Endian
from lb.rules import MAX_RULES, Client, Deny, Rule, Suffix, Target, Test, method, number, prefix

THRIFT = PRESETS["thrift-framed"]


def listener(rules: str, *, protocol: str = "length-prefixed", pools: str = "") -> str:
    return f"""\
listeners:
  - name: rpc
    address: 0.0.0.0:7000
    protocol: {protocol}
    pool: w
    rules: {rules}
pools:
  - {{name: w, backends: [{{name: a, address: 10.0.0.1:1}}, {{name: b, address: 10.0.0.1:2}}]}}
  - {{name: c, backends: [{{name: x, address: 10.0.0.1:3}}]}}
{pools}
"""


def rules_of(text: str) -> tuple[Rule, ...]:
    return parse(text, "lb.yaml").listeners[0].rules


def refusals(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "lb.yaml")
    return [str(error).removeprefix("lb.yaml:6: listeners[0].rules") for error in caught.value.errors]


def test_without_any() -> None:
    pools = "pools: [{name: w, accept: 0.0.0.0:2, connections: shared}]"
    (found,) = parse(f"listeners: [{{name: a, address: 0.0.0.0:1}}]\n{pools}", "").listeners
    assert found.rules == ()
    assert found.pools == ("w",)


@pytest.mark.parametrize(
    ("match", "protocol", "conditions"),
    [
        ("{offset: 8, width: 2, equals: 0x102}", "length-prefixed", ((number(8, 2, 0xFFFF, 0x102),),)),
        ("{offset: 8, width: 1, mask: 0xf0, equals: 16}", "length-prefixed", ((number(8, 1, 0xF0, 16),),)),
        (
            "{offset: 8, width: 4, endian: little, in: [1, 2]}",
            "length-prefixed",
            (tuple(number(8, 4, 0xFFFFFFFF, value, Endian.LITTLE) for value in (1, 2)),),
        ),
        ("{offset: 8, prefix: 0x0aFF}", "length-prefixed", ((prefix(8, b"\n\xff"),),)),
        ("{offset: 8, width: 9, prefix: canary}", "length-prefixed", ((prefix(8, b"canary"),),)),
        ("{dns-name: WWW.Example.com.}", "dns", ((Suffix(b"\3www\7example\3com"),),)),
        (
            "{dns-name: [com, _dmarc.xn--bcher-kva.de]}",
            "dns",
            ((Suffix(b"\3com"), Suffix(b"\6_dmarc\x0dxn--bcher-kva\2de")),),
        ),
        ("{method: add}", "thrift-framed", ((method(THRIFT, b"add"),),)),
        ("{method: [add, sub]}", "thrift-framed", ((method(THRIFT, b"add"), method(THRIFT, b"sub")),)),
        (
            '{client: [10.0.0.0/8, "fd00::/8"]}',
            "dns",
            ((Client(ip_network("10.0.0.0/8")), Client(ip_network("fd00::/8"))),),
        ),
        (
            "{dns-name: com, client: 10.1.2.3, offset: 2, width: 1, equals: 0}",
            "dns",
            ((Client(ip_network("10.1.2.3/32")),), (number(2, 1, 0xFF, 0),), (Suffix(b"\3com"),)),
        ),
    ],
)
def test_what_matches(match: str, protocol: str, conditions: tuple[tuple[Test, ...], ...]) -> None:
    (rule,) = rules_of(listener(f"[{{match: {match}, then: deny}}]", protocol=protocol))
    assert rule == Rule(conditions, Deny())


def test_a_backend_that_is_a_name_is_several() -> None:
    more = '  - {name: n, backends: [{name: h, address: "rpc.example:9000"}]}'
    assert refusals(listener("[{then: {backend: n/h}}]", pools=more)) == [
        "[0].then.backend: `h` of pool n is a server at each address of a name; use {pool: ...}"
    ]
    assert len(rules_of(listener("[{then: {pool: n}}]", pools=more))) == 1


def test_what_becomes_of_a_message() -> None:
    written = "[{then: deny}, {then: {pool: c}}, {then: {backend: b}}, {then: {backend: c/x}}]"
    text = listener(written)
    actions = [rule.action for rule in rules_of(text)]
    assert actions == [Deny(), Target("c"), Target("w", "b"), Target("c", "x")]
    assert parse(text, "").listeners[0].pools == ("w", "c")


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (
            "[]",
            [": is an empty list; write a list of rules such as [{match: {client: 10.0.0.0/8}, then: deny}]"],
        ),
        ("[{match: {client: 10.0.0.0/8}}]", ["[0].then: is missing; add `then: deny`"]),
        (
            "[{then: drop}]",
            ["[0].then: `drop` is nothing to do with a message; write deny, {pool: NAME} or {backend: NAME}"],
        ),
        (
            "[{then: {pool: c, backend: a}}]",
            ["[0].then: names 2 places; write deny, {pool: NAME} or {backend: NAME}"],
        ),
        ("[{then: {pool: cc}}]", ["[0].then.pool: unknown pool `cc`; did you mean `c`?"]),
        ("[{then: {backend: x}}]", ["[0].then.backend: pool w has no backend `x`; known backends: a, b"]),
        ("[{then: {backend: d/x}}]", ["[0].then.backend: unknown pool `d`; known pools: c, w"]),
        (
            "[{match: {dns-name: example.com}, then: deny}]",
            ["[0].match.dns-name: `length-prefixed` has no DNS names; use `protocol: dns`"],
        ),
        (
            "[{match: {method: add}, then: deny}]",
            [
                (
                    "[0].match.method: `length-prefixed` has no counted string in front of its id,"
                    " which a method is; use"
                    " `protocol: thrift-framed`, or match `offset`"
                )
            ],
        ),
        (
            "[{match: {client: 10.0.0.1/8}, then: deny}]",
            [
                (
                    "[0].match.client: `10.0.0.1/8` is not a network (10.0.0.1/8 has host bits set);"
                    " write one such as"
                    " 10.0.0.0/8 or fd00::/8"
                )
            ],
        ),
        (
            "[{match: {offset: 8, width: 2, equals: 65536}, then: deny}]",
            [
                (
                    "[0].match.equals: 0x10000 has bits outside a field of 2 bytes, so it never"
                    " matches; use another value or mask"
                )
            ],
        ),
        (
            "[{match: {offset: 8, width: 1, mask: 0x0f, in: [1, 0x10]}, then: deny}]",
            [
                (
                    "[0].match.in[1]: 0x10 has bits outside the mask, so it never matches; use"
                    " another value or mask"
                )
            ],
        ),
        (
            "[{match: {offset: 8, width: 1, equals: 1, in: [1]}, then: deny}]",
            ["[0].match: has equals and in; write one of equals, in or prefix"],
        ),
        ("[{match: {offset: 8, equals: 1}, then: deny}]", ["[0].match.width: is missing; add `width: 4`"]),
        (
            "[{match: {offset: 8, prefix: 0xabc}, then: deny}]",
            ["[0].match.prefix: `0xabc` is no row of bytes; write two hexadecimal digits for each"],
        ),
        (
            "[{match: {offset: 8, width: 2, prefix: abc}, then: deny}]",
            ["[0].match.prefix: has 3 bytes, not 1 to 2; write fewer, or more than none"],
        ),
        (
            "[{match: {offset: 8, mask: 1, prefix: a}, then: deny}]",
            ["[0].match.mask: is for integers; use `equals` or `in`, or remove it"],
        ),
        (
            "[{match: {client: x, offset: 5000, width: 9, equals: 1}, then: {pool: q}}]",
            [
                (
                    "[0].match.client: `x` is not a network ('x' does not appear to be an IPv4 or"
                    " IPv6 network); write one"
                    " such as 10.0.0.0/8 or fd00::/8"
                ),
                (
                    "[0].match.offset: 5000 is outside 0..4095 (the parser waits for all bytes in"
                    " front of those that it"
                    " looks at); use 4095 or less"
                ),
                "[0].match.width: 9 is outside 1..8 (the bytes of an integer); use 8 or less",
                "[0].then.pool: unknown pool `q`; known pools: c, w",
            ],
        ),
    ],
)
def test_mistakes(rules: str, expected: list[str]) -> None:
    assert refusals(listener(rules)) == expected


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", "-a.de", "a b", "bücher.de", "a" * 64, ".".join(["abcdefg"] * 32)]
)
def test_what_is_no_domain(name: str) -> None:
    (refusal,) = refusals(listener(f'[{{match: {{dns-name: "{name}"}}, then: deny}}]', protocol="dns"))
    assert "is no domain; write one such as example.com" in refusal


def test_a_field_that_no_message_has() -> None:
    assert refusals(
        listener("[{match: {offset: 255, width: 8, equals: 1}, then: deny}]", protocol="modbus")
    ) == [
        (
            "[0].match.offset: the field ends at 263, but no message of `modbus` is longer"
            " than 260 bytes; use another offset"
        )
    ]


def test_a_pool_whose_connections_are_others() -> None:
    text = listener(
        "[{then: {pool: s}}]",
        pools="  - {name: s, connections: shared, backends: [{name: x, address: 10.0.0.1:9}]}",
    )
    assert refusals(text) == [
        (
            ": pool s shares connections and pool w does not, so a client cannot reach both;"
            " use the same `connections`"
            " for all pools of a listener"
        )
    ]


def test_more_backends_than_a_client_has_connections() -> None:
    servers = ", ".join(f"{{name: b{number}, address: 10.0.0.2:{number + 1}}}" for number in range(31))
    more = f"  - {{name: many, backends: [{servers}]}}"
    (refusal,) = refusals(listener("[{then: {pool: many}}]", pools=more))
    assert refusal.startswith(": reaches 33 backends (a client has at most 32 connections")
    assert len(rules_of(listener("[{then: deny}]", pools=more))) == 1


def test_where_nobody_knows_when_the_last_response_has_come() -> None:
    """Only the client's address may send messages elsewhere; denying them is no matter of order."""
    fine = (
        "[{match: {client: 10.0.0.0/8}, then: {pool: c}}, {match: {offset: 1, width: 1,"
        " equals: 8}, then: deny}]"
    )
    assert len(rules_of(listener(fine, protocol="memcached-binary"))) == 2
    (refusal,) = refusals(
        listener("[{match: {offset: 1, width: 1, equals: 8}, then: {pool: c}}]", protocol="memcached-binary")
    )
    assert refusal.startswith("[0]: `memcached-binary` is `responses: any`")


def test_protocols_that_the_pool_behind_a_rule_cannot_have() -> None:
    shared = "connections: shared, backends: [{name: x, address: 10.0.0.1:9}]"
    text = listener(
        "[{then: {pool: t}}]", protocol="memcached-binary", pools=f"  - {{name: t, {shared}}}"
    ).replace("{name: w,", "{name: w, connections: shared,")
    assert [error for error in refusals(text) if "pool t shares connections" in error]


def test_too_many() -> None:
    one = "{match: {client: 10.0.0.0/8}, then: deny}"
    assert len(rules_of(listener("[" + ", ".join([one] * MAX_RULES) + "]"))) == MAX_RULES
    (refusal,) = refusals(listener("[" + ", ".join([one] * (MAX_RULES + 1)) + "]"))
    assert refusal.startswith(f": has {MAX_RULES + 1} rules")
    values = ", ".join(map(str, range(MAX_TESTS - 1)))
    assert len(rules_of(listener(f"[{{match: {{offset: 8, width: 2, in: [{values}]}}, then: deny}}]"))) == 1
    values += ", 65535"
    (refusal,) = refusals(listener(f"[{{match: {{offset: 8, width: 2, in: [{values}]}}, then: deny}}]"))
    assert refusal.startswith(f": makes {MAX_TESTS + 1} comparisons")


def test_comparisons_are_counted_as_they_are_made() -> None:
    written = (
        "[{match: {dns-name: [com, a.long.name.example.com], client: [10.0.0.0/8, 'fd00::/8', 'fd00::1'],"
        " offset: 9, prefix: 'twenty bytes of text'}, then: deny}, {then: deny}]"
    )
    its = rules_of(listener(written, protocol="dns"))
    assert sum(config_rules._tests_of(rule) for rule in its) + 1 == count(its)
    assert config_rules.MAX_TESTS == MAX_TESTS


def test_rules_that_nothing_reaches_are_worth_a_hint() -> None:
    reached = parse(listener("[{match: {client: 10.0.0.0/8}, then: deny}, {then: {pool: c}}]"), "")
    assert hints(reached) == []
    assert hints(parse(listener("[{then: {pool: c}}, {then: deny}]"), "")) == [
        "listeners[0].rules[0]: matches every message; no rule behind it is ever reached"
    ]
