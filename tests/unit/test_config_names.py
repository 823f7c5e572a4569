"""Backends by name in the configuration."""

from ipaddress import ip_address

import pytest

from lb.config import (
    Address,
    Backend,
    Config,
    ConfigErrors,
    Family,
    HostName,
    Name,
    Pool,
    Resolve,
    parse,
)

TEXT = """\
listeners: [{{name: rpc, address: "0.0.0.0:7000"}}]
pools:
  - name: w
    backends: [{backends}]
    {more}
"""
ONE = "{name: a, address: backend.example:9000}"


def read(backends: str = ONE, more: str = "") -> Config:
    return parse(TEXT.format(backends=backends, more=more), "lb.yaml")


def refusals(backends: str = ONE, more: str = "") -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        read(backends, more)
    return [str(error).removeprefix("lb.yaml:") for error in caught.value.errors]


def test_a_name_has_what_its_backends_have() -> None:
    (pool,) = read(
        "{name: a, address: backend.example:9000, weight: 3, max_outstanding: 7, priority: 2},"
        " {name: b, address: 10.0.0.2:9000}"
    ).pools
    assert pool.names == (Name("a", HostName("backend.example", 9000), 3, 7, 2),)
    assert pool.backends == (Backend("b", Address(ip_address("10.0.0.2"), 9000)),)
    assert pool.resolve == Resolve()
    for host, label in (("10.0.0.1", "a@10.0.0.1"), ("fd00::1", "a@fd00::1")):
        address = Address(ip_address(host), 9000)
        assert pool.names[0].at(address.host) == Backend(label, address, 3, 7, 2)


@pytest.mark.parametrize(
    "host",
    ["localhost", "a.b.c.example.", "xn--bcher-kva.example", "_rpc.example", "10.0.0.x", "3com.example"],
)
def test_what_is_a_name(host: str) -> None:
    assert read(f"{{name: a, address: '{host}:1'}}").pools[0].names[0].target == HostName(host, 1)


@pytest.mark.parametrize(
    "host", ["-a.example", "a-.example", "a..example", ".example", "a b", "büro.example", "a" * 64, "a.b/c"]
)
def test_what_is_none(host: str) -> None:
    (line,) = refusals(f"{{name: a, address: '{host}:1'}}")
    shown = host[:63] + ("..." if len(host) > 63 else "")
    assert line == (
        f"4: pools[0].backends[0].address: `{shown}` is not a host name;"
        " write up to 63 letters, digits and `-` between dots (xn--... for other letters)"
    )


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("backend.example", "is not an address with a port"),
        ("backend.example:0", "port 0 is outside 1..65535"),
        ("backend.example:65536", "port 65536 is outside 1..65535"),
        ("10.0.0.256:1", "is not an IP address"),
        ("[backend.example]:1", "is a host name"),
        (".".join(["a" * 63] * 4) + ":1", "is not a host name"),
    ],
)
def test_what_is_no_address(address: str, problem: str) -> None:
    (line,) = refusals(f"{{name: a, address: '{address}'}}")
    assert problem in line


def test_how_names_are_looked_up() -> None:
    more = "resolve: {interval: 1m, timeout: 500ms, family: both, max_addresses: 4}"
    (pool,) = read(more=more).pools
    assert pool.resolve == Resolve(60.0, 0.5, Family.BOTH, 4)
    assert pool.most_backends == 4


@pytest.mark.parametrize(
    ("resolve", "problem"),
    [
        ("interval: 999ms", "999ms is outside 1s..24h"),
        ("timeout: 99ms", "99ms is outside 100ms..1m"),
        ("max_addresses: 0", "0 is outside 1..256"),
        ("max_addresses: 257", "257 is outside 1..256"),
        ("family: ipv5", "`ipv5` is not a choice here; did you mean `ipv6`?"),
        ("ttl: 5s", "unknown key"),
    ],
)
def test_how_they_are_not(resolve: str, problem: str) -> None:
    (line,) = refusals(more=f"resolve: {{{resolve}}}")
    assert problem in line


def test_there_is_nothing_to_look_up() -> None:
    (line,) = refusals("{name: a, address: 10.0.0.1:1}", "resolve: {interval: 1m}")
    assert line == (
        "5: pools[0].resolve: is for backends by name only;"
        " write a name as address of a backend, or remove it"
    )


def named(count: int) -> str:
    return ", ".join(f"{{name: n{i}, address: h{i}.example:1}}" for i in range(count))


def test_all_addresses_have_room() -> None:
    hashed = "balance: hash\n    hash: client-address"
    assert read(named(2), hashed).pools
    (line,) = refusals(named(3), hashed)
    assert line == (
        "4: pools[0].backends: may have 48 backends (a client has at most 32 connections, and each key must"
        " find its backend from all clients);"
        " remove some, lower `resolve.max_addresses`, or use another balance"
    )
    assert read(named(1), "connections: shared").pools
    (line,) = refusals(named(2), "connections: shared")
    assert line == (
        "3: pools[0]: makes 64 connections (of a pool at most 32); use fewer for each backend or"
        " `resolve.max_addresses`, or several pools"
    )
    assert read(named(64)).pools
    (line,) = refusals(named(65), "resolve: {max_addresses: 1}")
    assert "brings all pools to 65 names" in line
    assert "brings all pools to 1280 backends" in refusals(named(64), "resolve: {max_addresses: 20}")[0]


def test_no_message_can_be_sent() -> None:
    (line,) = refusals("{name: a, address: backend.example:9000, weight: 0}")
    assert "has only weights of 0" in line


def test_a_listener_is_no_name() -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(TEXT.format(backends=ONE, more="").replace("0.0.0.0", "localhost"), "")
    assert "`localhost` is a host name" in str(caught.value)


def test_a_pool_without_names_has_its_backends_and_no_more() -> None:
    assert Pool("w", (Backend("a", Address(ip_address("10.0.0.1"), 1)),)).most_backends == 1
