"""Who has which rate, and whose turn it is."""

from ipaddress import IPv4Address
from typing import cast

import pytest

from lb import config
from lb.dataplane.rates import Rates
from lb.framing import PRESETS
from lb.server.rates import Buckets, Throttle

SECOND = 1_000_000_000


class Kernel:
    """What the programs would keep, on a clock that the test moves."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.time = 100 * SECOND
        self.buckets: dict[int, tuple[int, int]] = {}
        self.full: dict[int, int] = {}

    def set(self, number: int, *, messages_per_second: int, burst: int, deny: bool) -> None:  # noqa: ARG002
        assert 0 < number < self.size
        self.buckets[number] = (SECOND // messages_per_second, burst)
        self.full[number] = 0

    def interval(self, number: int) -> int:
        return self.buckets[number][0]

    def ready_at(self, number: int) -> int:
        interval, burst = self.buckets[number]
        return self.full[number] + interval - interval * burst

    def now(self) -> int:
        return self.time

    def take(self, number: int, messages: int) -> None:
        self.full[number] = max(self.full[number], self.time) + messages * self.interval(number)


def listener(name: str = "rpc", **limits: config.Rate) -> config.Listener:
    address = config.Address(IPv4Address("127.0.0.1"), 7000)
    framing = PRESETS["length-prefixed"]
    return config.Listener(name, address, framing, "workers", config.Limits(**limits))  # type: ignore[arg-type]


WAIT = config.Rate(10, 5)
DENY = config.Rate(10, 5, config.Over.DENY)


def make(size: int = 8) -> tuple[Kernel, Buckets]:
    kernel = Kernel(size)
    return kernel, Buckets(cast("Rates", kernel))


def test_clients_of_one_address_share_a_rate_and_keep_it_when_they_come_back() -> None:
    _, buckets = make()
    rpc, other = listener(rate_per_address=WAIT), listener("other", rate_per_address=WAIT)
    first, second = buckets.join(rpc, 0, "::1"), buckets.join(rpc, 0, "::1")
    assert first.address_rate == second.address_rate != 0
    assert buckets.join(other, 0, "::1").address_rate != first.address_rate
    assert buckets.join(rpc, 0, "::2").address_rate != first.address_rate
    for throttle in (first, second):
        buckets.leave(throttle)
    assert buckets.join(rpc, 0, "::1").address_rate == first.address_rate


def test_who_has_been_away_for_longest_loses_its_rate() -> None:
    kernel, buckets = make(size=1 + 3)
    rpc = listener(rate_per_address=WAIT)
    joined = {name: buckets.join(rpc, 0, name) for name in "abc"}
    for name in "bca":
        buckets.leave(joined[name])
    kernel.take(joined["b"].address_rate, 5)
    again = buckets.join(rpc, 0, "c")

    new = buckets.join(rpc, 0, "d")

    assert new.address_rate == joined["b"].address_rate
    assert kernel.full[new.address_rate] == 0, "it is new"
    assert again.address_rate == joined["c"].address_rate
    buckets.join(rpc, 0, "e")
    with pytest.raises(RuntimeError, match="loaded for 4 rates"):
        buckets.join(rpc, 0, "f")


def test_only_rates_that_wait_hold_back() -> None:
    kernel, buckets = make()
    denying, waiting = listener(rate_per_address=DENY), listener(rate=WAIT, rate_per_address=DENY)
    number = buckets.new(WAIT)
    one, other = buckets.join(denying, 0, "a"), buckets.join(waiting, number, "b")
    kernel.take(one.address_rate, 5)
    kernel.take(other.address_rate, 5)
    assert buckets.ready(one)
    assert buckets.ready(other)
    kernel.take(number, 5)
    assert not buckets.ready(other)
    assert buckets.turn(other) == pytest.approx(0.1)


def test_without_limits_nobody_has_a_rate() -> None:
    kernel, buckets = make()
    throttle = buckets.join(listener(), 0, "a")
    assert (throttle.rate, throttle.address_rate, throttle.waits_for) == (0, 0, frozenset())
    assert buckets.ready(throttle)
    buckets.leave(throttle)
    assert kernel.buckets == {}


def test_those_that_wait_for_a_rate_get_turns() -> None:
    kernel, buckets = make()
    rpc = listener(rate=WAIT)
    number = buckets.new(WAIT)
    clients = [buckets.join(rpc, number, "a") for _ in range(3)]
    kernel.take(number, 5)
    assert [buckets.turn(client) for client in clients] == pytest.approx([0.1, 0.2, 0.3])
    kernel.time += SECOND // 10
    assert buckets.ready(clients[0])
    kernel.take(number, 1)
    assert not buckets.ready(clients[1])
    buckets.go_on(clients[0])
    assert buckets.turn(clients[0]) == pytest.approx(0.3), "behind the others"


def test_turns_that_nobody_takes_do_not_add_up() -> None:
    kernel, buckets = make()
    rpc = listener(rate=WAIT)
    number = buckets.new(WAIT)
    client = buckets.join(rpc, number, "a")
    kernel.take(number, 5)
    for _ in range(50):
        assert buckets.turn(client) == pytest.approx(0.1)
    others: list[Throttle] = [buckets.join(rpc, number, "b") for _ in range(9)]
    for other in others:
        buckets.turn(other)
        buckets.leave(other)
    assert buckets.turn(client) == pytest.approx(0.1)
