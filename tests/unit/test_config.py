"""The configuration file: what it means, and how its mistakes are reported."""

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lb.config import (
    Address,
    Admin,
    Backend,
    Balance,
    Config,
    ConfigError,
    ConfigErrors,
    Connections,
    HealthCheck,
    Limits,
    Listener,
    Over,
    Pool,
    Rate,
    Runtime,
    Timeouts,
    load,
    parse,
    within,
)
from lb.framing import PRESETS, Endian, Field, Framing, Length, Match, OneOf, Ordering, Responses

EXAMPLE = """\
admin:
  address: 127.0.0.1:9902        # /metrics /healthz /readyz /status and the dashboard
runtime:
  user: daemon
  max_connections: 1024
  buffer_budget: 2MiB
protocols:
  acme:
    length: {offset: 0, width: 4, endian: big, adjust: 4}   # whole message = field + adjust
    id: {offset: 4, width: 4}
    max_message: 1MiB
    ordering: any
listeners:
  - name: rpc
    address: 0.0.0.0:7000
    protocol: acme
    pool: workers
    limits: {max_clients: 5000, max_clients_per_address: 100, idle: 90s, rate: {messages_per_second: 9},
             rate_per_address: {messages_per_second: 5, burst: 2, over: deny}}
pools:
  - name: workers
    balance: least_outstanding
    connections: per_client
    batch: 32
    backends:
      - {name: a, address: 10.0.0.11:9000, weight: 2, max_outstanding: 64}
      - {name: b, address: 10.0.0.12:9000, priority: 3}
    panic_threshold: 70%
    slow_start: 30s
    health_check: {interval: 3s, timeout: 1500ms, rise: 3, fall: 4, jitter: 20%, fast_interval: 1s}
    timeouts: {connect: 1s, idle: 20m, drain: 1h, half_message: 250ms, unacknowledged: 5s, queue: 3s}
"""

MINIMAL = """\
listeners:
  - {name: rpc, address: "[::]:7000"}
pools:
  - name: workers
    backends: [{name: a, address: "[::1]:9000"}]
"""

LENGTH = "length: {offset: 0, width: 4}"
GOOD_PROTOCOLS = f"{{p: {{{LENGTH}}}}}"
GOOD_POOLS = "[{name: w, backends: [{name: a, address: 10.0.0.1:1}]}]"


def at(host: str, port: int) -> Address:
    return Address(IPv6Address(host) if ":" in host else IPv4Address(host), port)


def refusals(text: str) -> list[str]:
    """What is reported about a text, a line each: `LINE: PATH: PROBLEM; REMEDY`."""
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "lb.yaml")
    lines = [str(error) for error in caught.value.errors]
    assert str(caught.value) == "\n".join(lines)
    assert all(line.startswith("lb.yaml:") for line in lines)
    return [line.removeprefix("lb.yaml:") for line in lines]


def refusal(text: str) -> str:
    (line,) = refusals(text)
    return line


def with_protocol(text: str) -> str:
    return f"protocols: {{p: {text}}}\n" + MINIMAL.replace("name: rpc,", "name: rpc, protocol: p,")


def protocol(text: str) -> Framing:
    """The framing that a text declares."""
    return parse(with_protocol(text), "").listeners[0].framing


# --- what it means ----------------------------------------------------------------------------------------


def test_every_key_has_its_meaning() -> None:
    acme = Framing(
        name="acme",
        length=Length(Field(0, 4, Endian.BIG), mask=0xFFFFFFFF, adjust=4),
        id=Field(4, 4),
        max_message=1 << 20,
        min_message=8,
        ordering=Ordering.ANY,
    )

    assert parse(EXAMPLE, "lb.yaml") == Config(
        admin=Admin(at("127.0.0.1", 9902)),
        runtime=Runtime(user="daemon", max_connections=1024, buffer_budget=2 << 20),
        listeners=(
            Listener(
                "rpc",
                at("0.0.0.0", 7000),
                acme,
                "workers",
                Limits(
                    max_clients=5000,
                    max_clients_per_address=100,
                    idle=90.0,
                    rate=Rate(messages_per_second=9, burst=9, over=Over.WAIT),
                    rate_per_address=Rate(messages_per_second=5, burst=2, over=Over.DENY),
                ),
            ),
        ),
        pools=(
            Pool(
                name="workers",
                backends=(
                    Backend("a", at("10.0.0.11", 9000), weight=2, max_outstanding=64),
                    Backend("b", at("10.0.0.12", 9000), weight=1, max_outstanding=None, priority=3),
                ),
                panic_threshold=70,
                slow_start=30.0,
                balance=Balance.LEAST_OUTSTANDING,
                connections=Connections.PER_CLIENT,
                batch=32,
                health_check=HealthCheck(
                    interval=3.0, timeout=1.5, rise=3, fall=4, jitter=20, fast_interval=1.0
                ),
                timeouts=Timeouts(
                    connect=1.0, idle=1200.0, drain=3600.0, half_message=0.25, unacknowledged=5.0, queue=3.0
                ),
            ),
        ),
    )


def test_names_and_addresses_are_enough() -> None:
    assert parse(MINIMAL, "lb.yaml") == Config(
        admin=Admin(at("127.0.0.1", 9901)),
        runtime=Runtime(user="nobody", max_connections=65536, buffer_budget=1 << 20),
        listeners=(
            Listener(
                "rpc",
                at("::", 7000),
                PRESETS["length-prefixed"],
                "workers",
                Limits(max_clients=None, max_clients_per_address=None, idle=None),
            ),
        ),
        pools=(
            Pool(
                name="workers",
                backends=(Backend("a", at("::1", 9000), weight=1, max_outstanding=None, priority=0),),
                balance=Balance.LEAST_OUTSTANDING,
                connections=Connections.PER_CLIENT,
                batch=64,
                health_check=None,
                panic_threshold=50,
                slow_start=0.0,
                timeouts=Timeouts(
                    connect=2.0, idle=600.0, drain=30.0, half_message=10.0, unacknowledged=60.0, queue=5.0
                ),
            ),
        ),
    )


def test_an_empty_section_has_its_defaults() -> None:
    text = MINIMAL.replace("name: rpc,", "name: rpc, limits: {},")
    config = parse(
        f"admin: {{}}\nruntime: {{}}\ntcp: {{}}\nprotocols: {{}}\n{text}    health_check: {{}}\n", ""
    )
    plain = parse(MINIMAL, "")

    assert config.pools[0].health_check == HealthCheck(interval=2.0, timeout=1.0, rise=2, fall=3)
    assert replace(config, pools=plain.pools) == plain


def test_none_switches_off() -> None:
    config = parse(f"admin: {{address: none}}\nruntime: {{user: none}}\n{MINIMAL}", "")

    assert config.admin.address is None
    assert config.runtime.user is None


def test_pools_are_found_by_name() -> None:
    config = parse(EXAMPLE, "")

    assert config.pool("workers") is config.pools[0]
    with pytest.raises(KeyError):
        config.pool("rpc")


def test_plain_words_of_yaml_may_be_names() -> None:
    text = MINIMAL.replace("rpc", "on").replace("workers", "7").replace("name: a", "name: 2024-01-01")

    config = parse(text, "")

    assert (config.listeners[0].name, config.pools[0].name) == ("on", "7")
    assert config.pools[0].backends[0].name == "2024-01-01"


def test_listeners_may_share_port_0_and_a_pool() -> None:
    config = parse(
        MINIMAL.replace(
            '  - {name: rpc, address: "[::]:7000"}',
            "  - {name: x, address: 127.0.0.1:0}\n  - {name: y, address: 127.0.0.1:0, protocol: dns}",
        ),
        "",
    )

    assert [str(listener.address) for listener in config.listeners] == ["127.0.0.1:0", "127.0.0.1:0"]
    assert config.listeners[1].framing is PRESETS["dns"]


@pytest.mark.parametrize(
    ("host", "text"),
    [("1.2.3.4", "1.2.3.4:80"), ("::1", "[::1]:80"), ("2001:db8:0:0::1", "[2001:db8::1]:80")],
)
def test_an_address_is_written_as_it_is_read(host: str, text: str) -> None:
    assert str(at(host, 80)) == text
    assert parse(MINIMAL.replace("[::1]:9000", text), "").pools[0].backends[0].address == at(host, 80)


def test_a_protocol_has_every_key() -> None:
    framing = protocol(
        "{length: {offset: 2, width: 3, endian: little, mask: 0x7fffff, adjust: -1},"
        " id: {offset: 8, width: 8, endian: little},"
        " response: {offset: 5, width: 2, endian: little, mask: 0x8000, value: 32768},"
        " no_response: {offset: 7, mask: 0x60, value: 0x40}, magic: {offset: 0, width: 2, value: 0xdabb},"
        " max_message: 64KiB, min_message: 20, ordering: fifo, responses: many}"
    )

    assert framing == Framing(
        name="p",
        length=Length(Field(2, 3, Endian.LITTLE), mask=0x7FFFFF, adjust=-1),
        max_message=65536,
        min_message=20,
        id=Field(8, 8, Endian.LITTLE),
        response=Match(Field(5, 2, Endian.LITTLE), mask=0x8000, value=0x8000),
        no_response=Match(Field(7, 1), mask=0x60, value=0x40),
        magic=Match(Field(0, 2), mask=0xFFFF, value=0xDABB),
        ordering=Ordering.FIFO,
        responses=Responses.MANY,
    )


def test_a_protocol_needs_no_more_than_a_length() -> None:
    bare = protocol("{length: {offset: 1, width: 2}}")
    with_id = protocol("{length: {offset: 1, width: 2}, id: {offset: 3, width: 2}}")

    assert bare == Framing(
        "p", Length(Field(1, 2), 0xFFFF, 0), max_message=1 << 20, min_message=3, ordering=Ordering.FIFO
    )
    assert (with_id.ordering, with_id.min_message) == (Ordering.ANY, 5)


def test_an_id_may_stand_elsewhere_in_responses() -> None:
    framing = protocol(
        "{length: {offset: 0, width: 4, endian: little},"
        " id: {offset: 4, width: 4, endian: little, response_offset: 8}}"
    )

    assert (framing.id, framing.response_id) == (Field(4, 4, Endian.LITTLE), Field(8, 4, Endian.LITTLE))
    assert framing.min_message == 12


@pytest.mark.parametrize(("between", "offset"), [("", 0), ("offset: 3, ", 3)])
def test_an_id_may_stand_behind_a_string(between: str, offset: int) -> None:
    framing = protocol(
        "{length: {offset: 0, width: 4, adjust: 4},"
        f" id: {{after: {{offset: 8, width: 2, endian: little}}, {between}width: 8}}}}"
    )

    assert (framing.id, framing.id_after) == (Field(offset, 8), Field(8, 2, Endian.LITTLE))
    assert framing.min_message == 10


def test_requests_without_response_may_be_a_set() -> None:
    framing = protocol(
        "{length: {offset: 0, width: 4}, id: {offset: 8, width: 4}, responses: any,"
        " no_response: {offset: 5, mask: 0x7f, in: [0x09, 13, 0x11]}}"
    )

    assert framing.no_response == OneOf(Field(5, 1), 0x7F, frozenset({9, 13, 17}))
    assert framing.responses is Responses.ANY
    assert framing.ordering is Ordering.ANY


# --- its mistakes -----------------------------------------------------------------------------------------


MISTAKES = """\
admin: {address: localhost:9901}
runtime:
  user: -x
  max_connections: 5
  buffer_budget: 1kB
  bufer_budget: 2
protocols:
  dns: {length: {offset: 0, width: 2}}
  acme:
    length: {offset: 54, width: 4, mask: 0x1ffffffff}
    response: {offset: 4, mask: 0x80, value: 0x81}
    max_message: 1GiB
  half:
    length: {offset: 0, width: 5}
    id: {offset: 1, width: 1}
listeners:
  - name: rpc
    address: 0.0.0.0:7000
    protocol: acme
    pool: worker
  - {name: rpc, address: 0.0.0.0:7000, protocol: length-prefixd, pool: workers}
  - address: "::1:80"
    name:
    pool: *x
pools:
  - name: workers
    balance: hash
    connections: sharde
    batch: 65
    backends:
      - {name: a, address: 10.0.0.11:0, weight: 257}
      - {name: a, address: 10.0.0.12, weight: "2"}
      - name: "a b"
        adress: 10.0.0.12:99999
    health_check: {interval: 2, timeout: 0s, rise: 0}
    timeouts: []
  - name: zero
    name: one
    backends: [{name: x, address: "[::1]:1", weight: 0}]
  - {name: empty, backends: []}
"""

# A line that starts with blanks belongs to the one before.
REPORT = """\
1: admin.address: `localhost` is a host name; write an IP address and a port, such as 10.0.0.11:9000 or
    "[::1]:9000"
3: runtime.user: `-x` is not a name; use 1 to 63 letters, digits, `_`, `.` and `-`, with no `-` in front
4: runtime.max_connections: 5 is outside 16..1048576 (a client takes two or more; the sockmap is allocated
    whole at the start); use 16 or more
5: runtime.buffer_budget: `1kB` has an unknown unit; sizes end in KiB, MiB or GiB, or are plain bytes
6: runtime.bufer_budget: unknown key; did you mean `buffer_budget`?
8: protocols.dns: `dns` is the name of a preset; choose another name, or remove this and use the preset
10: protocols.acme.length.offset: 54 is outside 0..52 (the kernel program looks at the first 56 bytes of a
    message); use 52 or less
10: protocols.acme.length.mask: 8589934591 is outside 1..4294967295 (at least one bit, and none outside the
    field); use 4294967295 or less
11: protocols.acme.response.value: 0x81 has bits outside the mask 0x80, so that nothing matches; clear these
    bits, or widen the mask or the field
12: protocols.acme.max_message: 1GiB is outside 1..64MiB (a message holds its fields, and waits whole in a
    socket's buffer); use 64MiB or less
14: protocols.half.length.width: 5 bytes are no width for this field; use 1, 2, 3, 4 or 8
15: protocols.half.id.width: 1 bytes are no width for this field; use 2, 3, 4 or 8
20: listeners[0].pool: unknown pool `worker`; did you mean `workers`?
21: listeners[1].name: `rpc` is taken by listeners[0].name (line 17); choose another name
21: listeners[1].address: `0.0.0.0:7000` is taken by listeners[0].address; use another address or port
21: listeners[1].protocol: unknown protocol `length-prefixd`; did you mean `length-prefixed`?
22: listeners[2].address: `::1:80` is not an address with a port; write an IP address and a port, such as
    10.0.0.11:9000 or "[::1]:9000"
23: listeners[2].name: is empty; write a name
24: listeners[2].pool: is an alias of `x`; write the value itself
26: pools[0].hash: is missing; add `hash: client-address`
28: pools[0].connections: `sharde` is not a choice here; did you mean `shared`?
29: pools[0].batch: 65 is outside 1..64 (the kernel program measures at most 64 messages at once); use 64 or
    less
31: pools[0].backends[0].address: `10.0.0.11:0` has port 0; write the port at which the backend listens, 1
    to 65535
31: pools[0].backends[0].weight: 257 is outside 0..256 (0 takes no new messages; the kernel's turns are too
    coarse for more than 256); use 256 or less
32: pools[0].backends[1].name: `a` is taken by pools[0].backends[0].name (line 31); choose another name
32: pools[0].backends[1].address: `10.0.0.12` is not an address with a port; write an IP address and a port,
    such as 10.0.0.11:9000 or "[::1]:9000"
32: pools[0].backends[1].weight: is the text `2`; write a whole number, such as 16 or 0x10
33: pools[0].backends[2].name: `a b` is not a name; use 1 to 63 letters, digits, `_`, `.` and `-`, with no
    `-` in front
33: pools[0].backends[2].address: is missing; add `address: 10.0.0.11:9000`
34: pools[0].backends[2].adress: unknown key; did you mean `address`?
35: pools[0].health_check.interval: `2` has no unit; write 2s
35: pools[0].health_check.timeout: 0ms is outside 10ms..24h (less is lost in the scheduling of the process,
    more is no limit); use 10ms or more
35: pools[0].health_check.rise: 0 is outside 1..100 (results in a row; more would take minutes to act on);
    use 1 or more
36: pools[0].timeouts: is a list; write a mapping with the keys connect, idle, drain, half_message,
    unacknowledged, queue, response, slow_client
38: pools[1].name: is given twice, first at line 37; keep one of them
39: pools[1].backends: has only weights of 0, so no message can be sent; give one backend a weight above 0
40: pools[2].backends: is an empty list; write a list of backends with name and address
"""


def test_all_mistakes_of_a_file_are_reported_at_once() -> None:
    assert refusals(MISTAKES) == re.sub(r"\n +", " ", REPORT).splitlines()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["1: file: is empty; declare `listeners` and `pools`"]),
        ("# nothing\n", ["1: file: is empty; declare `listeners` and `pools`"]),
        (
            "\n- a\n",
            [
                (
                    "2: file: is a list; write a mapping with the keys "
                    "admin, runtime, tcp, protocols, listeners, pools"
                )
            ],
        ),
        (
            "{}",
            [
                "1: pools: is missing; add `pools: [{name: workers, backends: [...]}]`",
                "1: listeners: is missing; add `listeners: [{name: rpc, address: 0.0.0.0:7000}]`",
            ],
        ),
        (
            "listeners: {}\npools: 5\n",
            [
                "1: listeners: is a mapping; write a list of listeners",
                "2: pools: is `5`; write a list of pools",
            ],
        ),
        (
            "listeners: [7]\npools: [x]\n",
            [
                (
                    "1: listeners[0]: is `7`; write a mapping with the keys name, address, protocol, pool,"
                    " rules, limits, proxy_protocol, trusted"
                ),
                (
                    "2: pools[0]: is `x`; write a mapping with the keys name, backends, balance, hash,"
                    " max_load, connections, connect, connections_per_backend, max_in_flight, batch,"
                    " health_check, ejection, timeouts, panic_threshold, slow_start, accept, allow,"
                    " max_workers, send_proxy, resolve"
                ),
            ],
        ),
    ],
)
def test_a_file_that_is_something_else_is_refused(text: str, expected: list[str]) -> None:
    assert refusals(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: 1\nb: [1, 2\nc: 3\n",
            (
                "3: file: is not valid YAML: while parsing a flow sequence (from line 2), expected ',' or"
                " ']', but got ':'; check the indentation, quotes and brackets here and on the line before"
            ),
        ),
        (
            "a:\n\t- b\n",
            (
                "2: file: is not valid YAML: found character '\\t' that cannot start any token;"
                " indent with spaces"
            ),
        ),
        (
            "listeners:\n  - name: x\n    address: [::]:7000\n",
            (
                "3: file: is not valid YAML: while parsing a flow node (from line 3), expected the node"
                " content, but found ':'; put an IPv6 address in quotes, such as \"[::]:7000\""
            ),
        ),
        ("a: 1\nb: \x07\n", "2: file: contains the control character 0x07; remove it"),
        (
            '\na: "\\U00110000"\n',
            "2: file: is not valid YAML: an escape is out of range; write the character itself",
        ),
        (
            "\n" + "[" * 10_000,
            (
                "2: file: is not valid YAML: nested deeper than 32 levels; check the indentation, quotes and"
                " brackets here and on the line before"
            ),
        ),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(text: str, expected: str) -> None:
    assert refusal(text) == expected


def test_aliases_are_refused_and_not_followed() -> None:
    bomb = "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))

    assert refusals(f"pools:\n- &a0 x\n{bomb}listeners: &l\n- *l\n- {{<<: *a1}}\n")[-4:] == [
        "33: listeners[0]: is an alias of `l`; write the value itself",
        (
            "34: listeners[1].<<: unknown key; known keys: address, limits, name, pool, protocol,"
            " proxy_protocol, rules, trusted"
        ),
        "34: listeners[1].name: is missing; add `name: rpc`",
        "34: listeners[1].address: is missing; add `address: 0.0.0.0:7000`",
    ]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("10.0.0.11", "`10.0.0.11` is not an address with a port"),
        ('"10.0.0.11:"', "`10.0.0.11:` is not an address with a port"),
        ("10.0.0.11:http", "`10.0.0.11:http` is not an address with a port"),
        ("10.0.0.11:-1", "`10.0.0.11:-1` is not an address with a port"),
        ('"::1:80"', "`::1:80` is not an address with a port"),
        ('"[::1]"', "`[::1]` is not an address with a port"),
        ("host.example:80", "`host.example` is a host name"),
        ("10.0.0:80", "`10.0.0` is not an IP address"),
        ("10.0.0.256:80", "`10.0.0.256` is not an IP address"),
        ('"[10.0.0.1]:80"', "`10.0.0.1` is not an IP address"),
        ('"[fe80::1%eth0]:80"', "`fe80::1%eth0` is not an IP address"),
    ],
)
def test_what_is_no_address_is_refused(value: str, problem: str) -> None:
    remedy = 'write an IP address and a port, such as 10.0.0.11:9000 or "[::1]:9000"'

    assert refusal(MINIMAL.replace('"[::]:7000"', value)) == f"2: listeners[0].address: {problem}; {remedy}"


def test_the_port_of_an_address_has_16_bits() -> None:
    assert refusal(MINIMAL.replace("7000", "65536")) == (
        "2: listeners[0].address: port 65536 is outside 0..65535; use a port that TCP has"
    )


@pytest.mark.parametrize("value", ["0.0.0.0:80", '"[::]:80"', "224.0.0.1:80", '"[ff02::1]:80"'])
def test_a_backend_is_a_single_host(value: str) -> None:
    assert refusal(MINIMAL.replace('"[::1]:9000"', value)) == (
        f"5: pools[0].backends[0].address: `{value.strip(chr(34))}` is no address of a single host;"
        " write the backend's own IP address"
    )


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "-a", "ä", "x" * 64, '"a\\nb"', "'a\"b'"], ids=lambda name: f"<{name[:9]}>"
)
def test_what_is_no_name_is_refused(name: str) -> None:
    name = name or '""'

    (line,) = (line for line in refusals(MINIMAL.replace("name: a,", f"name: {name},")))

    assert line.startswith("5: pools[0].backends[0].name: `")
    assert " is not a name; use 1 to 63 letters, digits," in line
    assert "\n" not in line


def test_names_may_have_every_allowed_character_and_63_of_them() -> None:
    for name in ("aZ09_.-", "_", "x" * 63):
        assert parse(MINIMAL.replace("name: a,", f"name: {name},"), "").pools[0].backends[0].name == name


@pytest.mark.parametrize("number", ["1.0", "1e3", "010", "1:30", "1_000", '"1"', "yes", "0b1", "1" * 5000])
def test_what_is_no_whole_number_is_refused(number: str) -> None:
    line = refusal(f"{MINIMAL}    batch: {number}\n")

    assert line.startswith("6: pools[0].batch: is ")
    assert line.endswith("; write a whole number, such as 16 or 0x10")
    assert len(line) < 160


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("batch", ("1", "0"), ("64", "65")),
        ("health_check: {rise", ("1", "0"), ("100", "101")),
        ("health_check: {fall", ("1", "-1"), ("100", "101")),
        ("health_check: {interval", ("10ms", "9ms"), ("24h", "25h")),
        ("health_check: {timeout", ("10ms", "9ms"), ("24h", "25h")),
        ("slow_start", ("100ms", "99ms"), ("1h", "61m")),
        ("timeouts: {connect", ("10ms", "9ms"), ("24h", "25h")),
        ("timeouts: {idle", ("10ms", "9ms"), ("24h", "25h")),
        ("timeouts: {drain", ("10ms", "9ms"), ("24h", "25h")),
        ("timeouts: {half_message", ("10ms", "9ms"), ("24h", "25h")),
        ("timeouts: {unacknowledged", ("500ms", "499ms"), ("15m", "16m")),
        ("runtime: {max_connections", ("16", "15"), ("1048576", "1048577")),
        ("runtime: {buffer_budget", ("64KiB", "65535"), ("1GiB", "1073741825")),
    ],
)
def test_limits_are_where_they_are_said_to_be(key: str, low: tuple[str, str], high: tuple[str, str]) -> None:
    end = "}" if "{" in key else ""
    indent = "" if key.startswith("runtime") else "    "
    for number in (low[0], high[0]):
        parse(f"{MINIMAL}{indent}{key}: {number}{end}\n", "")
    for (limit, number), remedy in ((low, "or more"), (high, "or less")):
        line = refusal(f"{MINIMAL}{indent}{key}: {number}{end}\n")
        assert f" {number} is outside {low[0]}..{high[0]} (" in line
        assert line.endswith(f"; use {limit} {remedy}")


def test_a_shutdown_is_delayed_by_minutes_at_most() -> None:
    text = MINIMAL + "runtime: {shutdown_delay: N}\n"
    for number, seconds in (("0s", 0), ("250ms", 0.25), ("5m", 300)):
        assert parse(text.replace("N", number), "").runtime.shutdown_delay == seconds
    assert " 301s is outside 0ms..5m (" in refusal(text.replace("N", "301s"))


def test_a_weight_is_within_0_to_256() -> None:
    two = MINIMAL.replace(
        "[{name: a,", "[{name: b, weight: 256, address: 127.0.0.1:80}, {name: a, weight: W,"
    )

    assert parse(two.replace("W", "0"), "").pools[0].backends[1].weight == 0
    for number in ("-1", "257"):
        assert f" {number} is outside 0..256 (" in refusal(two.replace("W", number))


@pytest.mark.parametrize(
    ("after", "line", "path", "low", "high"),
    [
        ("name: rpc,", 2, "listeners[0].limits.max_clients", ("1", "0"), ("1048576", "1048577")),
        ("name: rpc,", 2, "listeners[0].limits.max_clients_per_address", ("1", "0"), ("1048576", "1048577")),
        ("name: rpc,", 2, "listeners[0].limits.idle", ("10ms", "9ms"), ("24h", "25h")),
        ("name: a,", 5, "pools[0].backends[0].max_outstanding", ("1", "0"), ("1000000", "1000001")),
        ("name: a,", 5, "pools[0].backends[0].priority", ("0", "-1"), ("255", "256")),
    ],
)
def test_limits_of_listeners_and_backends_are_where_they_are_said_to_be(
    after: str, line: int, path: str, low: tuple[str, str], high: tuple[str, str]
) -> None:
    key = path.rpartition(".")[2]

    def text(number: str) -> str:
        entry = f"{key}: {number}"
        return MINIMAL.replace(after, f"{after} " + (f"limits: {{{entry}}}," if line == 2 else f"{entry},"))

    for number in (low[0], high[0]):
        parse(text(number), "")
    for (limit, number), remedy in ((low, "or more"), (high, "or less")):
        said = refusal(text(number))
        assert said.startswith(f"{line}: {path}: {number} is outside {low[0]}..{high[0]} (")
        assert said.endswith(f"; use {limit} {remedy}")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (
            "7",
            (
                ": is `7`; write a mapping with the keys max_clients, max_clients_per_address, idle, rate,"
                " rate_per_address"
            ),
        ),
        ("{rate: 7}", ".rate: is `7`; write a mapping with the keys messages_per_second, burst, over"),
        ("{rate: {burst: 7}}", ".rate.messages_per_second: is missing; add `messages_per_second: 1000`"),
        (
            "{rate_per_address: {messages_per_second: 0}}",
            (
                ".rate_per_address.messages_per_second: 0 is outside 1..1000000 (none at all is a listener"
                " less, more is no limit); use 1 or more"
            ),
        ),
        (
            "{rate: {messages_per_second: 5, burst: 2000000}}",
            (
                ".rate.burst: 2000000 is outside 1..1000000 (none at all is a listener less, more is no"
                " limit); use 1000000 or less"
            ),
        ),
        (
            "{rate: {messages_per_second: 5, over: wiat}}",
            ".rate.over: `wiat` is not a choice here; did you mean `wait`?",
        ),
        ("{max_client: 7}", ".max_client: unknown key; did you mean `max_clients`?"),
        ("{max_clients: many}", ".max_clients: is `many`; write a whole number, such as 16 or 0x10"),
        ("{max_clients: none}", ".max_clients: is `none`; write a whole number, such as 16 or 0x10"),
        ("{idle: 30}", ".idle: `30` has no unit; write 30s"),
    ],
)
def test_a_mistake_in_the_limits_is_reported_where_it_stands(limits: str, expected: str) -> None:
    text = MINIMAL.replace("name: rpc,", f"name: rpc, limits: {limits},")

    assert refusal(text) == f"2: listeners[0].limits{expected}"


@pytest.mark.parametrize(("text", "percent"), [("0", 0), ("35", 35), ("35%", 35), ("100%", 100)])
def test_a_percentage_may_have_its_sign(text: str, percent: int) -> None:
    assert parse(f"{MINIMAL}    panic_threshold: {text}\n", "").pools[0].panic_threshold == percent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "101",
            "101% is outside 0%..100% (0 waits until a whole level is down, 100 until one",
        ),
        ("half", "`half` is not a percentage; write a percentage, such as 50%"),
        ("-1", "`-1` is not a percentage;"),
        ("0.5", "`0.5` is not a percentage;"),
        ("[50]", "is a list; write a percentage, such as 50%"),
    ],
)
def test_what_is_no_percentage_is_refused(text: str, expected: str) -> None:
    line = refusal(f"{MINIMAL}    panic_threshold: {text}\n")

    assert line.startswith(f"6: pools[0].panic_threshold: {expected}")


def many(pools: int, backends: int, listeners: int) -> str:
    lines = ["listeners:"]
    lines += [f"- {{name: l{i}, address: 127.0.0.1:{7000 + i}, pool: p0}}" for i in range(listeners)]
    lines += ["pools:"]
    for i in range(pools):
        lines += [f"- name: p{i}", "  backends:"]
        lines += [f"  - {{name: b{k}, address: 10.0.{i}.1:{1 + k}}}" for k in range(backends)]
    return "\n".join(lines)


def test_tables_have_a_size() -> None:
    config = parse(many(pools=32, backends=32, listeners=64), "")
    assert sum(len(pool.backends) for pool in config.pools) == 1024
    assert len(parse(many(pools=63, backends=1, listeners=63), "").pools) == 63

    assert refusals(many(pools=65, backends=1, listeners=65)) == [
        "1: listeners: has 65 listeners (each has counters for each backend, 64 fit); remove some",
        "67: pools: has 65 pools (the kernel's table holds 63); remove some",
    ]
    assert refusal(many(pools=3, backends=513, listeners=1)).startswith(
        "520: pools[1].backends: brings all pools to 1026 backends (the kernel's table holds 1024); "
    )


def test_an_address_has_one_listener_and_the_admin_interface_is_one() -> None:
    taken = MINIMAL.replace('"[::]:7000"', "127.0.0.1:9901")

    assert refusal(taken) == (
        "2: listeners[0].address: `127.0.0.1:9901` is taken by admin.address; use another address or port"
    )
    assert parse(f"{taken}admin: {{address: none}}\n", "").listeners[0].address == at("127.0.0.1", 9901)


def test_a_listener_says_which_pool_if_there_are_several() -> None:
    text = MINIMAL + '  - {name: others, backends: [{name: a, address: "[::1]:9000"}]}\n'

    assert refusal(text) == "2: listeners[0].pool: is missing; add `pool: NAME, as there are several pools`"


KNOWN = "diameter, dns, dubbo, length-prefixed, memcached-binary, modbus, onc-rpc, smpp, thrift-framed"


def test_an_unknown_word_without_a_near_one_gets_the_known_ones() -> None:
    assert refusals(MINIMAL.replace("rpc,", "rpc, protocol: zzz, pool: qqq,") + "    balance: fastest\n") == [
        f"2: listeners[0].protocol: unknown protocol `zzz`; known protocols: {KNOWN}",
        "2: listeners[0].pool: unknown pool `qqq`; known pools: workers",
        (
            "6: pools[0].balance: `fastest` is not a choice here;"
            " known choices: hash, least_outstanding, random, round_robin"
        ),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "p.length: is missing; add `length: {offset: 0, width: 4}`"),
        ("[]", "p: is a list; write a mapping with the keys length, id, "),
        ("{length: {width: 4}}", "p.length.offset: is missing; add `offset: 0`"),
        ("{length: {offset: 0}}", "p.length.width: is missing; add `width: 4`"),
        ("{length: {offset: 53, width: 4}}", "p.length.offset: 53 is outside 0..52 ("),
        ("{length: {offset: -1, width: 4}}", "p.length.offset: -1 is outside 0..52 ("),
        ("{length: {offset: 0, width: 9}}", "p.length.width: 9 is outside 1..8 ("),
        (
            "{length: {offset: 0, width: 6}}",
            "p.length.width: 6 bytes are no width for this field; use 1, 2, 3, 4 or 8",
        ),
        ("{length: {offset: 0, width: 4, endian: pdp}}", "p.length.endian: `pdp` is not a choice here; "),
        ("{length: {offset: 0, width: 1, mask: 256}}", "p.length.mask: 256 is outside 1..255 ("),
        ("{length: {offset: 0, width: 1, mask: 0}}", "p.length.mask: 0 is outside 1..255 ("),
        (
            "{length: {offset: 0, width: 1, adjust: 2147483648}}",
            "p.length.adjust: 2147483648 is outside -2147483647..",
        ),
        ("{length: {offset: 0, width: 1, value: 1}}", "p.length.value: unknown key; known keys: "),
        (
            f"{{{LENGTH}, id: {{offset: 4, width: 1}}}}",
            "p.id.width: 1 bytes are no width for this field; use 2, 3, ",
        ),
        (f"{{{LENGTH}, id: {{offset: 4}}}}", "p.id.width: is missing; add `width: 4`"),
        (f"{{{LENGTH}, magic: {{offset: 4}}}}", "p.magic.value: is missing; add `value: 0x80`"),
        (
            f"{{{LENGTH}, magic: {{offset: 4, value: 256}}}}",
            "p.magic.value: 0x100 has bits outside the mask 0xff,",
        ),
        (
            f"{{{LENGTH}, response: {{offset: 4, width: 7, value: 1}}}}",
            "p.response.width: 7 bytes are no width",
        ),
        (
            f"{{{LENGTH}, no_response: {{offset: 4, value: -1}}}}",
            "p.no_response.value: -1 is outside 0..18446744",
        ),
        (
            f"{{{LENGTH}, no_response: {{offset: 4, in: []}}}}",
            "p.no_response.in: is an empty list; write a list of the byte's values, such as [0x09, 0x0d]",
        ),
        (f"{{{LENGTH}, no_response: {{offset: 4, in: 9}}}}", "p.no_response.in: is `9`; write a list of"),
        (f"{{{LENGTH}, no_response: {{in: [9]}}}}", "p.no_response.offset: is missing; add `offset: 0`"),
        (
            f"{{{LENGTH}, no_response: {{offset: 4, in: [9, 256]}}}}",
            "p.no_response.in[1]: 256 is outside 0..255 (the field is one byte); use 255 or less",
        ),
        (
            f"{{{LENGTH}, no_response: {{offset: 4, mask: 0x0f, in: [9, 0x1f]}}}}",
            "p.no_response.in[1]: 0x1f has bits outside the mask 0xf,",
        ),
        (
            f"{{{LENGTH}, no_response: {{offset: 4, in: [9], value: 9}}}}",
            "p.no_response.value: has no meaning beside `in`, which lists values of one byte; remove it",
        ),
        (f"{{{LENGTH}, response: {{offset: 4, value: 1, in: [9]}}}}", "p.response.in: unknown key; "),
        (
            f"{{{LENGTH}, id: {{offset: 4, width: 4, response_offset: 53}}}}",
            "p.id.response_offset: 53 is outside 0..52 (",
        ),
        (
            f"{{{LENGTH}, id: {{after: {{offset: 4}}, width: 4}}}}",
            "p.id.after.width: is missing; add `width: 4`",
        ),
        (
            f"{{{LENGTH}, id: {{after: {{offset: 4, width: 4}}, width: 4, response_offset: 9}}}}",
            "p.id.response_offset: an id behind a string has no offset of its own; remove this, or `after`",
        ),
        (
            f"{{{LENGTH}, id: {{offset: 4, width: 4, response_offset: 8}}, max_message: 11}}",
            "p.max_message: 11 is outside 12..64MiB (",
        ),
        (
            f"{{{LENGTH}, responses: any}}",
            "p.responses: without an id nobody knows which response is that of a quiet request; declare the",
        ),
        (f"{{{LENGTH}, responses: none}}", "p.responses: `none` is not a choice here"),
        (f"{{{LENGTH}, ordering: lifo}}", "p.ordering: `lifo` is not a choice here; did you mean `fifo`?"),
        (f"{{{LENGTH}, max_message: 65MiB}}", "p.max_message: 65MiB is outside 4..64MiB ("),
        (
            f"{{{LENGTH}, id: {{offset: 8, width: 8}}, max_message: 15}}",
            "p.max_message: 15 is outside 16..64MiB (",
        ),
        (f"{{{LENGTH}, max_message: 1kB, min_message: 2MiB}}", "p.max_message: `1kB` has an unknown unit;"),
        (f"{{{LENGTH}, min_message: 3}}", "p.min_message: 3 is outside 4..1MiB ("),
        (f"{{{LENGTH}, max_message: 10, min_message: 11}}", "p.min_message: 11 is outside 4..10 ("),
    ],
)
def test_a_mistake_in_a_protocol_is_reported_where_it_stands(text: str, expected: str) -> None:
    assert refusal(with_protocol(text)).startswith(f"1: protocols.{expected}")


@pytest.mark.parametrize(
    ("protocols", "pools", "expected"),
    [
        ("{p: {}}", GOOD_POOLS, ["1: protocols.p.length: is missing"]),
        ("{p: 7}", GOOD_POOLS, ["1: protocols.p: is `7`"]),
        ("7", GOOD_POOLS, ["1: protocols: is `7`"]),
        (GOOD_PROTOCOLS, "", ["2: pools: is empty"]),
        (GOOD_PROTOCOLS, "[]", ["2: pools: is an empty list"]),
        (GOOD_PROTOCOLS, "[{name: w}]", ["2: pools[0].backends: is missing"]),
        (GOOD_PROTOCOLS, GOOD_POOLS.replace("name: w,", ""), ["2: pools[0].name: is missing"]),
    ],
)
def test_what_is_declared_with_mistakes_is_not_reported_again_where_it_is_used(
    protocols: str, pools: str, expected: list[str]
) -> None:
    lines = refusals(
        f"protocols: {protocols}\npools: {pools}\n"
        "listeners: [{name: l, address: 127.0.0.1:0, protocol: p, pool: w}]\n"
    )

    assert [line.partition(";")[0] for line in lines] == expected


# --- files ------------------------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(EXAMPLE)
    assert load(path) == parse(EXAMPLE, "")

    path.write_bytes(b"\xef\xbb\xbf" + EXAMPLE.replace("\n", "\r\n").encode())
    assert load(path) == parse(EXAMPLE, "")


def test_a_mistake_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(MINIMAL + "x: 1\n")

    with pytest.raises(ConfigErrors) as caught:
        load(path)

    (error,) = caught.value.errors
    assert (error.source, error.line, error.path, error.problem) == (str(path), 6, "x", "unknown key")


def test_what_cannot_be_read_is_reported_at_line_1(tmp_path: Path) -> None:
    def reported(path: Path) -> str:
        with pytest.raises(ConfigErrors) as caught:
            load(path)
        (error,) = caught.value.errors
        assert error.line == 0
        return str(error).removeprefix(f"{path}:1: file: ")

    path = tmp_path / "lb.yaml"
    assert reported(path) == "cannot be read: No such file or directory; check the path and its permissions"
    assert reported(tmp_path) == "cannot be read: Is a directory; check the path and its permissions"
    path.write_bytes(b"a: \xff\n")
    assert reported(path) == "is not UTF-8 at byte 3; save it as UTF-8"
    path.write_bytes(b" " * (512 * 1024 + 1))
    assert reported(path) == "is larger than 512KiB; remove what is no configuration"


# --- any text ---------------------------------------------------------------------------------------------


SHARED = """\
protocols:
  plain: {length: {offset: 0, width: 4}}
  wide: {length: {offset: 0, width: 4}, id: {offset: 4, width: 3}}
  ordered: {length: {offset: 0, width: 4}, id: {offset: 4, width: 4}, ordering: fifo}
listeners:
  - {name: a, address: 0.0.0.0:7001, protocol: dns, pool: p}
  - {name: b, address: 0.0.0.0:7002, protocol: plain, pool: p}
  - {name: c, address: 0.0.0.0:7003, protocol: wide, pool: p}
  - {name: d, address: 0.0.0.0:7004, protocol: ordered, pool: p}
  - {name: e, address: 0.0.0.0:7005, protocol: length-prefixed, pool: p}
  - {name: f, address: 0.0.0.0:7006, protocol: dns, pool: p}
  - {name: g, address: 0.0.0.0:7007, protocol: plain, pool: q}
pools:
  - name: p
    connections: shared
    connections_per_backend: 17
    max_in_flight: 16385
    backends: [{name: a, address: 10.0.0.1:1}, {name: b, address: 10.0.0.2:1}]
  - name: q
    connections_per_backend: 2
    backends: [{name: a, address: 10.0.0.1:1}]
"""

SHARED_REPORT = """\
7: listeners[1].protocol: `plain` has no id, but pool p shares connections; use a protocol with an id of 2, 4
    or 8 bytes, or `connections: per_client`
8: listeners[2].protocol: `wide` has an id of 3 bytes, but pool p shares connections; use a protocol with an
    id of 2, 4 or 8 bytes, or `connections: per_client`
9: listeners[3].protocol: `ordered` is `ordering: fifo`, but pool p shares connections; use `connections:
    per_client`
10: listeners[4].protocol: pool p shares connections, and speaks `dns` already; use another pool for each
    protocol
16: pools[0].connections_per_backend: makes 34 connections (of a pool at most 32); use fewer for each backend,
    or several pools
17: pools[0].max_in_flight: 16385 is outside 1..16384 (half of all 16-bit ids are in use then); use 16384 or
    less
20: pools[1].connections_per_backend: is for shared connections only; add `connections: shared`
"""


WORKERS = """\
listeners:
  - {name: a, address: 0.0.0.0:7001, pool: p}
  - {name: b, address: 0.0.0.0:7900, pool: r}
pools:
  - name: p
    accept: 0.0.0.0:7900
    backends: [{name: a, address: 10.0.0.1:1}]
  - name: q
    connections: shared
    allow: [10.0.0.0/8]
    max_workers: 33
    backends: [{name: a, address: 10.0.0.1:1}]
  - name: r
    connections: shared
    accept: 127.0.0.1:9901
    allow: [10.0.0.1/8, "fd00::/8", here]
  - name: s
    connections: shared
    connections_per_backend: 8
    accept: 0.0.0.0:7901
    max_workers: 17
    backends: [{name: a, address: 10.0.0.1:1}, {name: b, address: 10.0.0.2:1}]
"""

WORKERS_REPORT = """\
3: listeners[1].address: `0.0.0.0:7900` is taken by pools[0].accept; use another address or port
6: pools[0].accept: is for shared connections only; add `connections: shared`
10: pools[1].allow: is for workers only; add `accept: 0.0.0.0:7900`
11: pools[1].max_workers: is for workers only; add `accept: 0.0.0.0:7900`
15: pools[2].accept: `127.0.0.1:9901` is taken by admin.address; use another address or port
16: pools[2].allow[0]: `10.0.0.1/8` is not a network (10.0.0.1/8 has host bits set); write one such as
    10.0.0.0/8 or fd00::/8
16: pools[2].allow[2]: `here` is not a network ('here' does not appear to be an IPv4 or IPv6 network); write
    one such as 10.0.0.0/8 or fd00::/8
21: pools[3].max_workers: makes 33 connections (of a pool at most 32); use fewer for each backend, or several
    pools
"""


def test_workers_that_cannot_be() -> None:
    assert refusals(WORKERS) == re.sub(r"\n +", " ", WORKERS_REPORT).splitlines()


def test_a_pool_of_workers_alone() -> None:
    text = """\
listeners: [{name: a, address: 0.0.0.0:7001}]
pools: [{name: p, connections: shared, accept: 0.0.0.0:7900, allow: [10.0.0.0/8, 192.0.2.7]}]
"""
    (pool,) = parse(text, "lb.yaml").pools
    assert pool.backends == ()
    assert pool.workers is not None
    assert [within(pool.workers.allow, host) for host in ("10.1.2.3", "192.0.2.7", "192.0.2.8", "::1")] == [
        True,
        True,
        False,
        False,
    ]


def test_what_cannot_share_connections() -> None:
    assert refusals(SHARED) == re.sub(r"\n +", " ", SHARED_REPORT).splitlines()


def check_any(text: str) -> None:
    """A text is a configuration or has mistakes that name a line of it."""
    errors: tuple[ConfigError, ...] | None = None
    try:
        parse(text, "lb.yaml")
    except ConfigErrors as refused:
        errors = refused.errors
    if errors is not None:
        lines = [error.line for error in errors]
        assert lines
        assert lines == sorted(lines)
        assert 1 <= lines[0] <= lines[-1] <= len(text.splitlines()) + 1
        assert all(str(error).isprintable() for error in errors)


@given(st.text())
@example("a: *b")
@example("%YAML 1." + "1" * 5000 + "\n--- a")
@example("? [a]\n: 1")
@example('"\\ud800": 1')
@example("!!python/object:os.system {}")
@example("a: !!int x")
@example("--- a\n--- b")
def test_no_text_breaks_the_reader(text: str) -> None:
    check_any(text)


WORDS = st.sampled_from(
    [
        "",
        " ",
        "\n",
        "-",
        ":",
        "[]",
        "{}",
        "~",
        "0",
        "-1",
        "*a",
        "&a",
        "<<",
        "none",
        "'",
        '"',
        "é",
        "\t",
        "\x85",
        "!x",
    ]
)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 40), WORDS), min_size=1, max_size=4))
def test_no_edit_of_a_configuration_breaks_the_reader(edits: list[tuple[int, int, str]]) -> None:
    text = EXAMPLE
    for place, length, word in edits:
        start = place % len(text)
        text = text[:start] + word + text[start + length :]
    check_any(text)
