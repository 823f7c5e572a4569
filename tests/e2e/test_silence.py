"""Peers that are gone without a word: no FIN, no RST, and no acknowledgement of what is sent to them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.balancer import Balancer
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.namespaces import Namespace, ip, join
from tests.e2e.polling import eventually, eventually_equal

# Seconds. Keepalive counts in whole ones: one of silence, one for the answer.
UNACKNOWLEDGED = 1.0
UNANSWERED = 2.0
SLACK = 1.0
TIMEOUTS = {"unacknowledged": "1s", "connect": "500ms"}
NETWORK = 7


@pytest.fixture
def far(lab: Lab) -> Namespace:
    """A network that is joined to that of the test: 10.7.0.1 is here, 10.7.0.2 there."""
    far = lab.namespace("far")
    join(lab.here, far, NETWORK)
    return far


def pull(far: Namespace) -> float:
    """Pull the plug at the far end; return when."""
    ip("-n", far.name, "link", "set", f"to-l{NETWORK}", "down")
    return time.monotonic()


def plug_in(far: Namespace) -> None:
    ip("-n", far.name, "link", "set", f"to-l{NETWORK}", "up")


@contextmanager
def within(seconds: float, since: float) -> Iterator[None]:
    """Allow what happens inside no more than this much time, and half of it at least."""
    yield
    took = time.monotonic() - since
    assert seconds / 2 < took < seconds + SLACK


def answerers(client: Client) -> set[str]:
    return {read_answer(client.ask(message(number))[0]).backend for number in range(4)}


class TestBackends:
    """`a` is far away, `b` is near. Messages go to one after the other."""

    @staticmethod
    def serve(lab: Lab, far: Namespace, **a: Any) -> Balancer:
        backends = [lab.backend("a", where=far, endpoint=("10.7.0.2", 0), **a), lab.backend("b")]
        return lab.serve(backends, balance="round_robin", batch=1, timeouts=TIMEOUTS)

    def test_requests_that_are_not_acknowledged(self, lab: Lab, far: Namespace) -> None:
        balancer = self.serve(lab, far)
        bystander, client = balancer.connect(), balancer.connect()
        assert answerers(client) == answerers(bystander) == {"a", "b"}
        since = pull(far)
        client.send(message(1), message(2))
        assert read_answer(client.answers(1)[0]).backend == "b"
        with within(UNACKNOWLEDGED, since):
            assert client.is_reset()
        metrics = balancer.metrics()
        assert metrics.seen("reason", "dropped_messages_total") == {"backend_reset": 1}
        # The bystander had asked nothing: its dead upstream is found too, and it notices nothing.
        eventually_equal(lambda: balancer.metrics().value("backend_connections", backend="a"), 0)
        assert answerers(bystander) == {"b"}
        plug_in(far)
        eventually(lambda: answerers(bystander) == {"a", "b"}, what="the upstream is replaced")
        newcomer = balancer.connect()
        eventually(lambda: answerers(newcomer) == {"a", "b"}, what="new clients have both backends")
        assert balancer.metrics().value("dropped_messages_total") == 1

    def test_requests_that_were_acknowledged(self, lab: Lab, far: Namespace) -> None:
        """Nothing is on its way to the backend, but an answer is awaited."""
        balancer = self.serve(lab, far, holding=True)
        client = balancer.connect()
        client.send(message(1), message(2))
        assert read_answer(client.answers(1)[0]).backend == "b"
        eventually_equal(lambda: balancer.metrics().value("backend_outstanding_messages", backend="a"), 1)
        since = pull(far)
        with within(UNANSWERED, since):
            assert client.is_reset()
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {"backend_reset": 1}

    def test_a_slow_backend_is_not_dead(self, lab: Lab, far: Namespace) -> None:
        balancer = self.serve(lab, far, delay=2 * UNANSWERED)
        client = balancer.connect()
        answers = client.ask(message(1), message(2))
        assert {read_answer(answer).backend for answer in answers} == {"a", "b"}
        assert balancer.metrics().value("dropped_messages_total") == 0


class TestClients:
    """A client far away, beside one that is near."""

    @staticmethod
    def serve(lab: Lab, **how: Any) -> tuple[Balancer, Any]:
        backend = lab.backend(**how)
        return lab.serve([backend], address="0.0.0.0:0", timeouts=TIMEOUTS), backend

    @staticmethod
    def connect(balancer: Balancer, far: Namespace) -> Client:
        _, port = balancer.listeners["rpc"]
        client = Client(far.connect(("10.7.0.1", port)))
        balancer.clients.append(client)
        return client

    def test_one_that_is_idle(self, lab: Lab, far: Namespace) -> None:
        balancer, _ = self.serve(lab)
        gone, near = self.connect(balancer, far), balancer.connect()
        assert answerers(gone) == answerers(near) == {"a"}
        assert balancer.status()["sockets"] == 4
        since = pull(far)
        with within(UNANSWERED, since):
            eventually_equal(lambda: balancer.status()["sockets"], 2)
        assert answerers(near) == {"a"}
        assert balancer.metrics().value("dropped_messages_total") == 0

    def test_one_that_waits_for_an_answer(self, lab: Lab, far: Namespace) -> None:
        balancer, backend = self.serve(lab, holding=True)
        gone = self.connect(balancer, far)
        gone.send(message(1), message(2))
        eventually_equal(lambda: len(backend.received), 2)
        since = pull(far)
        with within(UNANSWERED, since):
            eventually_equal(lambda: balancer.status()["listeners"][0]["clients"], 0)
        backend.release()
        eventually_equal(lambda: balancer.metrics().value("dropped_messages_total", reason="client_gone"), 2)
        eventually_equal(lambda: balancer.status()["sockets"], 0)

    def test_one_that_does_not_acknowledge_its_answer(self, lab: Lab, far: Namespace) -> None:
        balancer, backend = self.serve(lab, holding=True)
        gone = self.connect(balancer, far)
        gone.send(message(1))
        eventually_equal(lambda: len(backend.received), 1)
        since = pull(far)
        backend.release()
        with within(UNACKNOWLEDGED, since):
            eventually_equal(lambda: balancer.status()["sockets"], 0)

    def test_one_that_does_not_read(self, lab: Lab) -> None:
        """Its TCP acknowledges, but a window that stays shut is not waited for either."""
        balancer, backend = self.serve(lab, respond=lambda _, asked: message(asked.id or 0, bytes(500_000)))
        deaf, near = balancer.connect(), balancer.connect()
        deaf.send(*(message(number) for number in range(60)))
        eventually_equal(lambda: balancer.metrics().value("client_connections"), 1)
        assert near.ask(message(1))
        assert len(backend.received) == 61

    def test_one_that_is_quiet_is_not_dead(self, lab: Lab, far: Namespace) -> None:
        balancer, _ = self.serve(lab)
        client = self.connect(balancer, far)
        assert answerers(client) == {"a"}
        time.sleep(2 * UNANSWERED)
        assert answerers(client) == {"a"}
        assert balancer.metrics().value("client_connections_total") == 1
