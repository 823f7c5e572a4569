"""The `health_check` of a pool: what it means, and how its mistakes are reported."""

import pytest

from lb.config import HealthCheck, Ping, parse
from lb.framing import PRESETS, Field, Match
from tests.unit.test_config import refusal, refusals

FILE = """\
protocols:
  plain: {{length: {{offset: 0, width: 2, adjust: 2}}}}
  silent: {{length: {{offset: 0, width: 2, adjust: 2}}, no_response: {{offset: 2, mask: 0x80, value: 0x80}}}}
listeners:
  - {{name: rpc, address: 127.0.0.1:7000, protocol: {protocol}, pool: workers}}
pools:
  - name: workers
    backends: [{{name: a, address: 127.0.0.1:9000}}]
    health_check: {check}
"""
OTHER = """\
  - name: other
    backends: [{name: a, address: 127.0.0.1:9000}]
    health_check: {type: protocol}
"""


def file(check: str, protocol: str = "length-prefixed") -> str:
    return FILE.format(check=check, protocol=protocol)


def check_of(text: str) -> HealthCheck:
    check = parse(text, "").pools[0].health_check
    assert check is not None
    return check


@pytest.mark.parametrize("text", ["{}", "{type: tcp}", "{protocol: false}"])
def test_by_default_a_connection_is_enough(text: str) -> None:
    assert check_of(file(text)) == HealthCheck(
        interval=2.0, timeout=1.0, rise=2, fall=3, jitter=10, fast_interval=1.0, ping=None
    )


def test_what_is_not_given_follows_from_the_interval() -> None:
    """So that a backend that does not answer is out within fall times interval."""
    check = check_of(file("{interval: 400ms}"))
    assert (check.timeout, check.fast_interval) == (0.2, 0.2)
    check = check_of(file("{interval: 10s}"))
    assert (check.timeout, check.fast_interval) == (1.0, 5.0)
    check = check_of(file("{interval: 10ms}"))
    assert (check.timeout, check.fast_interval) == (0.01, 0.01)


@pytest.mark.parametrize("text", ["{protocol: true}", "{type: protocol}", "{type: protocol, protocol: true}"])
@pytest.mark.parametrize("protocol", sorted(set(PRESETS) - {"diameter"}))
def test_a_preset_has_a_ping_of_its_own(text: str, protocol: str) -> None:
    framing = PRESETS[protocol]
    assert framing.ping is not None
    assert check_of(file(text, protocol)).ping == Ping(framing, framing.ping)


@pytest.mark.parametrize("kind", ["", "type: message, "])
def test_a_message(kind: str) -> None:
    message = "{send: 0000 0005 0000 0001 aa, expect: {offset: 8, mask: 0x0f, equals: 0x0a}}"
    text = f"{{{kind}message: {message}}}"
    assert check_of(file(text)).ping == Ping(
        PRESETS["length-prefixed"], bytes.fromhex("0000000500000001aa"), Match(Field(8, 1), 0x0F, 0x0A)
    )


def test_digits_alone_are_bytes_too() -> None:
    ping = check_of(file("{message: {send: 0000000400000001}}")).ping
    assert ping is not None
    assert ping.request == bytes.fromhex("0000000400000001")


@pytest.mark.parametrize(
    ("check", "protocol", "wrong"),
    [
        ("{type: ping}", "dns", "type: `ping` is not a choice here; known choices: message, protocol, tcp"),
        ("{type: message}", "dns", "message: is missing; add `message: {send: 00000004 00000001}`"),
        ("{message: {}}", "dns", "message.send: is missing; add `send: 00000004 00000001`"),
        ("{protocol: 1}", "dns", "protocol: is `1`; write true or false"),
        (
            "{protocol: true}",
            "diameter",
            (
                "protocol: `diameter` has no ping that every server answers at once; use"
                " `message: {send: HEX}`"
                " with a message that your servers answer"
            ),
        ),
        (
            "{type: protocol}",
            "plain",
            (
                "type: `plain` has no ping that every server answers at once; use `message: {send: HEX}`"
                " with a message that your servers answer"
            ),
        ),
        (
            "{type: tcp, message: {send: 00}}",
            "plain",
            "message: has no meaning with `type: tcp`; remove one of them",
        ),
        (
            "{type: message, message: {send: 000100}, protocol: true}",
            "plain",
            "protocol: has no meaning with `type: message`; remove one of them",
        ),
        (
            "{message: {send: 0x00}}",
            "plain",
            (
                "message.send: `0x00` is not hexadecimal; write the bytes of a message in"
                " hexadecimal, such as"
                " 00000004 00000001"
            ),
        ),
        (
            "{message: {send: ''}}",
            "plain",
            (
                "message.send: has 0 bytes, outside 1..4096 (all backends get it at each"
                " interval); write a small"
                " message"
            ),
        ),
        (
            "{message: {send: 0005aabb}}",
            "plain",
            "message: `send` is not a request of `plain` (it is cut short); write a whole message",
        ),
        (
            "{message: {send: 0001aa 0001bb}}",
            "plain",
            "message: `send` is not a request of `plain` (it is several); write a whole message",
        ),
        (
            "{message: {send: 000180}}",
            "silent",
            "message: `send` is not a request of `silent` (it gets no response); write a whole message",
        ),
        (
            "{message: {send: 000c 0001 8000 0000 0000 0000 0000}}",
            "dns",
            "message: `send` is not a request of `dns` (unexpected_response); write a whole message",
        ),
        (
            "{message: {send: 000100, expect: {offset: 56, equals: 1}}}",
            "plain",
            (
                "message.expect.offset: 56 is outside 0..55 (the kernel program looks at the"
                " first 56 bytes of a"
                " message); use 55 or less"
            ),
        ),
        (
            "{interval: 1s, fast_interval: 2s}",
            "plain",
            (
                "fast_interval: 2s is outside 10ms..1s (what changes is looked at more often, not less);"
                " use 1s or less"
            ),
        ),
        ("{jitter: 101%}", "plain", None),
    ],
)
def test_mistakes(check: str, protocol: str, wrong: str | None) -> None:
    line = refusal(file(check, protocol))
    assert line.startswith("9: pools[0].health_check.")
    if wrong is not None:
        assert line == f"9: pools[0].health_check.{wrong}"


def test_a_pool_that_nobody_uses_has_no_protocol() -> None:
    assert refusals(file("{}") + OTHER) == [
        (
            "12: pools[1].health_check.type: no listener says what pool other speaks; use"
            " `type: tcp`, or add a"
            " listener for it"
        )
    ]


def test_a_pool_with_several_protocols_has_none() -> None:
    second = "  - {name: dns, address: 127.0.0.1:7001, protocol: dns, pool: workers}\npools:"
    assert refusals(file("{type: protocol}").replace("pools:", second)) == [
        (
            "10: pools[0].health_check.type: the listeners of pool workers speak dns and length-prefixed; use"
            " `type: tcp`, or a pool for each protocol"
        )
    ]


def test_a_listener_with_a_mistake_is_reported_alone() -> None:
    line = refusal(file("{type: protocol}", "nonsense"))
    assert line.startswith("5: listeners[0].protocol: unknown protocol `nonsense`")
