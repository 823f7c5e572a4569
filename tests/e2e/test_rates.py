"""Rates of messages. What may come is computed from the time that has passed: no test is a matter of luck."""

import time
from functools import partial
from typing import Any

from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, Tree
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.load import Pipeline, pipelines
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually_equal
from tests.e2e.test_limits import come_from


class Limited:
    """A balancer whose listener has limits, and the time since it could have been used."""

    def __init__(self, lab: Lab, limits: Tree, **settings: Any) -> None:
        self.backend: Backend = lab.backend()
        tree = lab.tree([self.backend], **settings)
        tree["listeners"][0]["limits"] = limits
        self.balancer: Balancer = lab.balancer(tree).wait_ready()
        self._since = time.monotonic()

    def most(self, rate: Tree) -> float:
        """As many messages as may have passed by now."""
        elapsed = time.monotonic() - self._since
        return float(rate["burst"] + rate["messages_per_second"] * elapsed + 1)

    def dropped(self) -> dict[str, float]:
        return self.balancer.metrics().seen("reason", "dropped_messages_total")

    def pauses(self) -> float:
        return self.balancer.metrics().value("pauses_total", reason="rate")


def numbers(answers: list[bytes]) -> list[int]:
    return sorted(read_answer(answer).number for answer in answers)


def test_what_is_over_waits_and_comes_in_the_end(lab: Lab) -> None:
    rate = {"messages_per_second": 200, "burst": 20}
    it = Limited(lab, {"rate": rate})
    client = it.balancer.connect()
    client.send(*(message(number) for number in range(200)))
    assert numbers(client.answers(200)) == list(range(200))
    assert it.most(rate) >= 200
    assert it.pauses() > 0
    assert it.dropped() == {}
    assert it.balancer.metrics().value("datapath_messages_total", path="userspace") == 0


def test_clients_of_a_listener_share_its_rate_and_all_get_on(lab: Lab) -> None:
    rate = {"messages_per_second": 400, "burst": 10}
    it = Limited(lab, {"rate": rate})
    count, each = 15, 30

    def make(client: int) -> Pipeline:
        return Pipeline((message(1000 * client + number) for number in range(each)), depth=5)

    answers = pipelines(lambda: it.balancer.connect().sock, count, make)
    assert it.most(rate) >= count * each
    for client, theirs in enumerate(answers):
        assert numbers(theirs) == [1000 * client + number for number in range(each)]
    assert it.pauses() > 0


def test_each_address_has_its_own_and_coming_back_does_not_fill_it(lab: Lab) -> None:
    rate = {"messages_per_second": 1, "burst": 10, "over": "deny"}
    it = Limited(lab, {"rate_per_address": rate})
    passed: dict[str, int] = {}
    sent = 0
    for address in ("127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.2"):
        before = len(it.backend.received)
        client: Client = come_from(lab, it.balancer, address)
        client.send(*(message(number) for number in range(40)))
        sent += 40
        eventually_equal(
            lambda: len(it.backend.received) + it.dropped().get("rate_limited", 0),
            sent,
        )
        passed[address] = passed.get(address, 0) + len(it.backend.received) - before
        assert len(client.answers(len(it.backend.received) - before)) == len(it.backend.received) - before
        client.close()
    for messages in passed.values():
        assert 10 <= messages <= it.most(rate)
    assert it.dropped() == {"rate_limited": sent - sum(passed.values())}
    assert it.pauses() == 0


def test_one_greedy_address_leaves_the_listener_to_others(lab: Lab) -> None:
    """It waits for its own rate, and not in front of the others."""
    slow = {"messages_per_second": 1, "burst": 5}
    it = Limited(lab, {"rate": {"messages_per_second": 1_000_000}, "rate_per_address": slow})
    greedy = come_from(lab, it.balancer, "127.0.0.2")
    greedy.send(*(message(number) for number in range(1000)))
    assert len(greedy.answers(5)) == 5
    for last in range(3, 23):
        other = come_from(lab, it.balancer, f"127.0.0.{last}")
        assert len(other.ask(*(message(number) for number in range(5)))) == 5
    got = len(it.backend.received) - 20 * 5
    assert 5 <= got <= it.most(slow)
    greedy.reset()


def test_a_client_that_half_closes_while_it_waits_gets_all_its_answers(lab: Lab) -> None:
    rate = {"messages_per_second": 50, "burst": 5}
    it = Limited(lab, {"rate": rate})
    client = it.balancer.connect()
    assert len(client.ask(message(99))) == 1
    client.send(*(message(number) for number in range(30)))
    client.half_close()
    assert numbers(client.answers_to_the_end()) == list(range(30))
    assert it.most(rate) >= 31


def test_one_that_half_closes_before_it_is_served_waits_like_others(lab: Lab) -> None:
    rate = {"messages_per_second": 50, "burst": 5}
    it = Limited(lab, {"rate": rate})
    client = it.balancer.connect_while_it_stands_still(*(message(number) for number in range(30)))
    assert numbers(client.answers_to_the_end()) == list(range(30))
    assert it.most(rate) >= 30
    assert it.balancer.metrics().value("datapath_messages_total", path="userspace") == 60


def test_one_that_half_closes_before_it_is_served_is_denied_like_others(lab: Lab) -> None:
    rate = {"messages_per_second": 1, "burst": 5, "over": "deny"}
    it = Limited(lab, {"rate": {"messages_per_second": 1_000_000}, "rate_per_address": rate})
    client = it.balancer.connect_while_it_stands_still(*(message(number) for number in range(30)))
    answers = len(client.answers_to_the_end())
    assert 5 <= answers <= it.most(rate)
    assert it.dropped() == {"rate_limited": 30 - answers}


def test_a_drain_does_not_wait_for_a_rate(lab: Lab) -> None:
    rate = {"messages_per_second": 1, "burst": 2}
    it = Limited(lab, {"rate": rate})
    client = it.balancer.connect()
    client.send(*(message(number) for number in range(50)))
    assert len(client.answers(2)) == 2
    eventually_equal(lambda: it.balancer.status()["pools"][0]["backends"][0]["outstanding"], 0)
    ended = it.balancer.stop()
    assert ended.code == 0
    assert "not drained" not in ended.log


def test_large_messages_that_come_in_pieces(lab: Lab) -> None:
    rate = {"messages_per_second": 40, "burst": 4}
    it = Limited(lab, {"rate": rate})
    ask = partial(message, body=bytes(100_000))
    answers = pipelines(
        lambda: it.balancer.connect().sock, 1, lambda _: Pipeline((ask(n) for n in range(24)), depth=4)
    )
    assert numbers(answers[0]) == list(range(24))
    assert it.most(rate) + 1 >= 24  # one that has begun does not wait
