"""Who gets how many messages of one connection."""

import logging
import math

import pytest

from tests.e2e.balancer import Balancer
from tests.e2e.lab import Lab
from tests.e2e.load import pipeline
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually_equal

log = logging.getLogger(__name__)

MESSAGES = 30_000
DEPTH = 256


def spread(
    lab: Lab, weights: tuple[int, ...], balance: str, **settings: object
) -> tuple[Balancer, list[float]]:
    """Each backend's part of the messages, divided by its weight's part of the weights."""
    backends = [lab.demo_backend(name)[1] for name, _ in zip("abc", weights, strict=True)]
    balancer = lab.serve(backends, weights=weights, balance=balance, **settings)
    requests = [message(number, bytes(56)) for number in range(MESSAGES)]
    answers = pipeline(lambda: balancer.connect().sock, requests, depth=DEPTH)
    assert sorted(read_answer(answer).number for answer in answers) == list(range(MESSAGES))
    metrics = balancer.metrics()
    counts = metrics.by("backend", "messages_total")
    assert sum(counts.values()) == MESSAGES
    assert metrics.value("datapath_messages_total", path="userspace") == 0
    shares = [
        counts[name] / MESSAGES / (weight / sum(weights)) for name, weight in zip("abc", weights, strict=True)
    ]
    log.info("%s %s %s: %s, relative to the weights %s", balance, weights, settings, counts, shares)
    return balancer, shares


WEIGHTS = pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3)], ids=str)


@WEIGHTS
class TestRoundRobin:
    def test_one_by_one(self, lab: Lab, weights: tuple[int, ...]) -> None:
        _, shares = spread(lab, weights, "round_robin", batch=1)
        assert shares == pytest.approx([1, 1, 1], abs=0.05)

    def test_in_batches(self, lab: Lab, weights: tuple[int, ...]) -> None:
        _, shares = spread(lab, weights, "round_robin")
        assert shares == pytest.approx([1, 1, 1], abs=0.10)


@WEIGHTS
class TestRandom:
    """A share is that of a binomial distribution: five of its standard deviations fail once in a million."""

    def test_one_by_one(self, lab: Lab, weights: tuple[int, ...]) -> None:
        _, shares = spread(lab, weights, "random", batch=1)
        for share, bound in zip(shares, bounds(weights, 1), strict=True):
            assert share == pytest.approx(1, abs=bound)

    def test_in_batches(self, lab: Lab, weights: tuple[int, ...]) -> None:
        """A batch is one draw. With at most 8 messages each there are at least 3750."""
        _, shares = spread(lab, weights, "random", batch=8)
        for share, bound in zip(shares, bounds(weights, 8), strict=True):
            assert share == pytest.approx(1, abs=bound)


def bounds(weights: tuple[int, ...], batch: int) -> list[float]:
    """Five standard deviations of each share, relative to it."""
    probabilities = [weight / sum(weights) for weight in weights]
    return [5 * math.sqrt((1 - p) / p / (MESSAGES / batch)) for p in probabilities]


class TestLeastOutstanding:
    """Shares follow the backends' speed, so only their order is certain."""

    @WEIGHTS
    @pytest.mark.parametrize("batch", [1, 64])
    def test_backends_that_answer_at_once(self, lab: Lab, weights: tuple[int, ...], batch: int) -> None:
        """Equally fast ones: nobody is left out, and ties go by weight."""
        _, shares = spread(lab, weights, "least_outstanding", batch=batch)
        assert min(shares) > 0.25

    def test_a_slow_backend_gets_less(self, lab: Lab) -> None:
        backends = [lab.backend("a"), lab.backend("b"), lab.backend("c", delay=0.01)]
        balancer = lab.serve(backends, balance="least_outstanding", batch=1)
        requests = (message(number) for number in range(3000))
        pipeline(lambda: balancer.connect().sock, requests, depth=30)
        counts = balancer.metrics().by("backend", "messages_total")
        assert 0 < counts["c"] < 300
        assert counts["a"] > 1000 - 300
        assert counts["b"] > 1000 - 300

    def test_the_weight_of_what_is_outstanding(self, lab: Lab) -> None:
        """Backends that answer nothing fill up in proportion to their weights, exactly."""
        backends = [lab.backend(name, holding=True) for name in "abc"]
        balancer = lab.serve(backends, weights=(1, 2, 3), balance="least_outstanding", batch=1)
        client = balancer.connect()
        client.send(*(message(number) for number in range(60)))
        for backend in backends:
            wanted = {"a": 10, "b": 20, "c": 30}[backend.name]
            eventually_equal(lambda backend=backend: len(backend.received), wanted)  # type: ignore[misc]
            backend.release()
        assert len(client.answers(60)) == 60


def test_weight_0_gets_nothing(lab: Lab) -> None:
    backends = [lab.backend("a"), lab.backend("b")]
    balancer = lab.serve(backends, weights=(0, 1))
    client = balancer.connect()
    assert {read_answer(answer).backend for answer in client.ask(*(message(n) for n in range(100)))} == {"b"}
