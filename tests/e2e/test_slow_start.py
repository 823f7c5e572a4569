"""A backend that comes back gets its share little by little."""

from typing import Any

import pytest

from tests.e2e.balancer import Balancer
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message
from tests.e2e.polling import eventually

CHECKS = {"interval": "100ms", "timeout": "5s", "rise": 1, "fall": 1}
# Messages that a backend may be behind its turns on a processor, or ahead: bpf/lb_pick.h.
LAG = 64
MESSAGES = 2000


def weight(balancer: Balancer, name: str) -> float:
    return balancer.metrics().value("backend_weight", backend=name)


def after_a_failure(lab: Lab, **settings: Any) -> tuple[Balancer, Client]:
    """Of the two backends, b has just come back."""
    backends = [lab.backend("a"), lab.backend("b")]
    settings = {"balance": "round_robin", "batch": 1, "health_check": CHECKS} | settings
    balancer = lab.serve(backends, **settings)
    assert [weight(balancer, name) for name in "ab"] == [1, 1], "no slow start when the process starts"
    client = balancer.connect()
    endpoint = backends[1].endpoint
    backends[1].close()
    eventually(lambda: weight(balancer, "b") == 0)
    lab.backend("b", endpoint=endpoint)
    eventually(lambda: weight(balancer, "b") > 0)
    eventually(lambda: balancer.metrics().value("backend_connections", backend="b"))
    return balancer, client


def share(balancer: Balancer, client: Client) -> tuple[float, float, float]:
    """The part of b in many messages, and what its weight before and after them would give it."""
    before, sent = weight(balancer, "b"), balancer.metrics().value("messages_total", backend="b")
    for number in range(0, MESSAGES, 10):
        client.ask(*(message(number + place) for place in range(10)))
    after = weight(balancer, "b")
    got = balancer.metrics().value("messages_total", backend="b") - sent
    return got / MESSAGES, before / (1 + before), after / (1 + after)


def test_its_share_starts_low(lab: Lab) -> None:
    balancer, client = after_a_failure(lab, slow_start="10m")
    got, low, high = share(balancer, client)
    assert high < 0.35, "this machine stood still for minutes"
    # In turns for each processor.
    assert low - 2 * LAG / MESSAGES <= got <= high + 2 * LAG / MESSAGES
    assert got > 0


def test_its_share_ends_at_its_weight(lab: Lab) -> None:
    balancer, client = after_a_failure(lab, slow_start="1s")
    eventually(lambda: weight(balancer, "b") == 1)
    assert share(balancer, client)[0] == pytest.approx(0.5, abs=2 * LAG / MESSAGES)
    assert balancer.status()["pools"][0]["backends"][1]["effective_weight"] == 1
