"""Reserves: who serves when others are down, and what happens to connections that are not needed any more."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, Tree
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually, eventually_equal

CHECKS = {"interval": "100ms", "timeout": "5s", "rise": 1, "fall": 1}


def tree(lab: Lab, backends: Sequence[Backend], priorities: Sequence[int], **settings: Any) -> Tree:
    tree = lab.tree(backends, **({"balance": "round_robin", "health_check": CHECKS} | settings))
    for backend, priority in zip(tree["pools"][0]["backends"], priorities, strict=True):
        backend["priority"] = priority
    return tree


def weights(balancer: Balancer) -> dict[str, float]:
    return balancer.metrics().by("backend", "backend_weight")


def connections(balancer: Balancer) -> dict[str, float]:
    return balancer.metrics().by("backend", "backend_connections")


def who_answers(client: Client, messages: int = 50) -> set[str]:
    return {
        read_answer(answer).backend for number in range(messages) for answer in client.ask(message(number))
    }


def test_reserves_serve_only_while_they_are_needed(lab: Lab) -> None:
    """And a client that is there throughout notices nothing."""
    backends = [lab.backend(name) for name in "abc"]
    balancer = lab.balancer(tree(lab, backends, (0, 1, 2))).wait_ready()
    client = balancer.connect()
    endpoint = backends[0].endpoint
    for _ in range(2):
        assert weights(balancer) == {"a": 1, "b": 0, "c": 0}
        assert who_answers(client) == {"a"}
        assert connections(balancer) == {"a": 1, "b": 0, "c": 0}
        backends[0].close()
        eventually_equal(lambda: weights(balancer), {"a": 0, "b": 1, "c": 0})
        assert who_answers(client) == {"b"}
        assert who_answers(balancer.connect()) == {"b"}
        backends[0] = lab.backend("a", endpoint=endpoint)
        eventually_equal(lambda: weights(balancer), {"a": 1, "b": 0, "c": 0})
        balancer.clients.pop().close()
        eventually_equal(lambda: connections(balancer), {"a": 1, "b": 0, "c": 0})
    assert balancer.metrics().value("dropped_messages_total") == 0
    shown = balancer.status()["pools"][0]["backends"]
    assert [(backend["priority"], backend["effective_weight"]) for backend in shown] == [
        (0, 1),
        (1, 0),
        (2, 0),
    ]


@pytest.mark.parametrize(
    ("threshold", "serving"), [(60, {"a", "c", "d"}), ("50%", {"a"}), (None, {"a"}), (0, {"a"})], ids=str
)
def test_a_level_that_is_too_weak_is_helped(lab: Lab, threshold: int | str | None, serving: set[str]) -> None:
    """By all of the next level; what is left of it goes on."""
    backends = [lab.backend(name) for name in "abcd"]
    settings = {} if threshold is None else {"panic_threshold": threshold}
    balancer = lab.balancer(tree(lab, backends, (0, 0, 1, 1), **settings)).wait_ready()
    client = balancer.connect()
    assert who_answers(client) == {"a", "b"}
    backends[1].close()
    eventually_equal(lambda: balancer.metrics().by("backend", "backend_up")["b"], 0)
    eventually_equal(lambda: {name for name, count in connections(balancer).items() if count}, serving)
    # A backend that is new to its turns may be 64 messages behind the others.
    assert who_answers(client, 400) == serving


def test_without_health_checks_the_connections_of_clients_tell(lab: Lab) -> None:
    """A client that comes when the first level is gone is served too."""
    backends = [lab.backend("a"), lab.backend("b")]
    balancer = lab.balancer(tree(lab, backends, (0, 1), health_check={"rise": 1, "fall": 1})).wait_ready()
    backends[0].close()
    assert who_answers(balancer.connect()) == {"b"}


def test_a_reserve_answers_what_it_owes_before_it_is_left(lab: Lab) -> None:
    first, reserve = lab.backend("a"), lab.backend("b", holding=True)
    balancer = lab.balancer(tree(lab, [first, reserve], (0, 1))).wait_ready()
    endpoint = first.endpoint
    first.close()
    eventually_equal(lambda: weights(balancer), {"a": 0, "b": 1})
    client = balancer.connect()
    client.send(*(message(number) for number in range(10)))
    eventually(lambda: len(reserve.received) == 10)

    lab.backend("a", endpoint=endpoint)

    eventually_equal(lambda: connections(balancer), {"a": 1, "b": 1})
    assert who_answers(client) == {"a"}
    assert len(reserve.received) == 10
    reserve.release()
    assert {read_answer(answer).backend for answer in client.answers(10)} == {"b"}
    eventually_equal(lambda: connections(balancer), {"a": 1, "b": 0})
    assert who_answers(client) == {"a"}
    assert balancer.metrics().value("dropped_messages_total") == 0
    assert reserve.resets == 0


def test_levels_larger_than_a_client_can_have_upstreams(lab: Lab) -> None:
    """The one that does not serve any more makes room for the other, again and again."""
    one, other = lab.backend("a"), lab.backend("b")
    layout = tree(lab, [one, other], (0, 1))
    first, second = layout["pools"][0]["backends"]
    layout["pools"][0]["backends"] = [
        entry | {"name": f"{entry['name']}{number}"} for entry in (first, second) for number in range(32)
    ]
    balancer = lab.balancer(layout).wait_ready()
    client = balancer.connect()
    endpoint = one.endpoint
    for _ in range(2):
        assert who_answers(client, 10) == {"a"}
        one.close()
        eventually_equal(lambda: sum(weights(balancer).values()), 32)
        eventually_equal(lambda: {n[0] for n, w in weights(balancer).items() if w}, {"b"})
        assert who_answers(client, 10) == {"b"}
        one = lab.backend("a", endpoint=endpoint)
        eventually_equal(lambda: {n[0] for n, w in weights(balancer).items() if w}, {"a"})
        eventually_equal(lambda: {n[0] for n, c in connections(balancer).items() if c}, {"a"})
