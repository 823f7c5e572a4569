"""PROXY headers in the configuration: whom to believe, and whom to tell."""

from ipaddress import ip_network

import pytest

from lb.config import Config, ConfigErrors, ProxyVersion, parse, within

TEXT = """\
listeners: [{{name: rpc, address: "0.0.0.0:7000"{listener}}}]
pools: [{{name: w, backends: [{{name: a, address: "10.0.0.1:1"}}]{pool}}}]
"""


def read(listener: str = "", pool: str = "") -> Config:
    return parse(TEXT.format(listener=listener, pool=pool), "lb.yaml")


def refusal(listener: str = "", pool: str = "") -> str:
    with pytest.raises(ConfigErrors) as caught:
        read(listener, pool)
    (error,) = caught.value.errors
    return str(error)


@pytest.mark.parametrize("word", ["", ", proxy_protocol: false", ", proxy_protocol: no"])
def test_clients_connect_by_themselves(word: str) -> None:
    assert read(word).listeners[0].trusted is None


@pytest.mark.parametrize("word", ["true", "yes", "True"])
def test_proxies_of_this_machine_are_trusted(word: str) -> None:
    trusted = read(f", proxy_protocol: {word}").listeners[0].trusted
    assert trusted is not None
    told = {host: within(trusted, host) for host in ("127.0.0.5", "::1", "10.0.0.1", "fe80::1%eth0")}
    assert told == {"127.0.0.5": True, "::1": True, "10.0.0.1": False, "fe80::1%eth0": False}


def test_others_are_trusted_by_network() -> None:
    trusted = (
        read(', proxy_protocol: true, trusted: [10.0.0.0/8, "fd00::/8", 192.0.2.1]').listeners[0].trusted
    )
    assert trusted == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"), ip_network("192.0.2.1/32"))


def test_trust_without_headers_is_a_mistake() -> None:
    assert refusal(", trusted: [10.0.0.0/8]") == (
        "lb.yaml:1: listeners[0].trusted: is for proxies only; add `proxy_protocol: true`, or remove it"
    )
    assert "is for proxies only" in refusal(", trusted: [10.0.0.0/8], proxy_protocol: false")


@pytest.mark.parametrize("word", ["1", '"true"', "v1", "[true]", ""])
def test_what_is_no_flag(word: str) -> None:
    assert refusal(f", proxy_protocol: {word}").endswith("write true or false")


def test_what_is_no_network() -> None:
    assert "is not a network" in refusal(", proxy_protocol: true, trusted: [10.0.0.1/8]")
    assert "is an empty list" in refusal(", proxy_protocol: true, trusted: []")


def test_backends_can_be_told() -> None:
    assert read().pools[0].send_proxy is None
    assert read(pool=", send_proxy: v1").pools[0].send_proxy is ProxyVersion.V1
    assert read(pool=", send_proxy: v2").pools[0].send_proxy is ProxyVersion.V2


def test_what_backends_cannot_be_told() -> None:
    assert refusal(pool=", send_proxy: v3") == (
        "lb.yaml:2: pools[0].send_proxy: `v3` is not a choice here; known choices: v1, v2"
    )
    assert refusal(pool=", send_proxy: v2, connections: shared") == (
        "lb.yaml:2: pools[0].send_proxy: names the one client of a connection, but this pool shares"
        " connections; remove it, or use `connections: per_client`"
    )
