"""Connections end in many ways; no message is lost in silence, and nobody else is hurt."""

import itertools
import random
import socket
from collections import Counter
from signal import Signals
from typing import Any

import pytest

from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, configuration
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually, eventually_equal


def three(lab: Lab, **how: Any) -> list[Backend]:
    return [lab.backend(name, **how) for name in "abc"]


def numbers(answers: list[bytes]) -> list[int]:
    return sorted(read_answer(answer).number for answer in answers)


def wait_outstanding(balancer: Balancer, count: int, **labels: str) -> None:
    eventually_equal(lambda: balancer.metrics().value("backend_outstanding_messages", **labels), count)


def received(backends: list[Backend]) -> Counter[int | None]:
    return Counter(asked.id for backend in backends for asked in list(backend.received))


class TestClients:
    """Clients that leave."""

    @pytest.mark.parametrize("delay", [0.0, 0.002])
    def test_half_close_after_pipelined_requests(self, lab: Lab, delay: float) -> None:
        balancer = lab.serve(three(lab, delay=delay))
        client = balancer.connect()
        client.send(*(message(number, b"x" * 100) for number in range(200)))
        client.half_close()
        assert numbers(client.answers_to_the_end()) == list(range(200))
        eventually_equal(lambda: balancer.status()["sockets"], 0)

    def test_half_close_while_backends_still_think(self, lab: Lab) -> None:
        backends = three(lab, holding=True)
        balancer = lab.serve(backends)
        client = balancer.connect()
        client.send(*(message(number) for number in range(30)))
        client.half_close()
        eventually_equal(lambda: received(backends).total(), 30)
        eventually(lambda: any(c.ended for b in backends for c in b.connections), what="FIN was passed on")
        for backend in backends:
            backend.release()
        assert numbers(client.answers_to_the_end()) == list(range(30))

    def test_half_close_without_a_request(self, lab: Lab) -> None:
        balancer = lab.serve(three(lab))
        client = balancer.connect()
        client.half_close()
        assert client.answers_to_the_end() == []
        eventually_equal(lambda: balancer.status()["sockets"], 0)

    def test_a_backend_that_ignores_fin_delays_the_end_but_not_the_answers(self, lab: Lab) -> None:
        balancer = lab.serve(
            [lab.backend("a", stubborn=True)], timeouts={"drain": "500ms"}, balance="round_robin"
        )
        client = balancer.connect()
        assert client.ask(message(1))
        client.send(message(2), message(3))
        client.half_close()
        assert numbers(client.answers_to_the_end()) == [2, 3]
        assert balancer.metrics().value("dropped_messages_total") == 0

    def test_messages_of_a_client_that_closes_at_once_arrive(self, lab: Lab) -> None:
        backends = three(lab)
        balancer = lab.serve(backends)
        ids = itertools.count()
        for _ in range(100):
            with balancer.connect() as client:
                client.send(*(message(next(ids), b"y" * 1000) for _ in range(5)))
        eventually_equal(lambda: received(backends).total(), 500)
        assert set(received(backends).values()) == {1}
        assert not any(backend.half_messages for backend in backends)
        eventually_equal(lambda: balancer.status()["sockets"], 0)

    def test_fin_before_the_client_is_mapped(self, lab: Lab) -> None:
        """As of ``printf ... | nc -N``."""
        backends = three(lab)
        balancer = lab.serve(backends)
        for _ in range(200):
            client = balancer.connect()
            client.send(message(1), message(2), message(3))
            client.half_close()
            assert numbers(client.answers_to_the_end()) == [1, 2, 3]
            client.close()
        assert received(backends) == {1: 200, 2: 200, 3: 200}
        assert balancer.metrics().value("messages_total") == 600
        assert balancer.metrics().value("responses_total") == 600

    def test_fin_before_the_client_is_accepted(self, lab: Lab) -> None:
        """The balancer stands still meanwhile, so that user space must carry every one of them."""
        backends = three(lab)
        balancer = lab.serve(backends)
        with balancer.standing_still():
            clients = [balancer.connect() for _ in range(30)]
            for client in clients:
                client.send(message(1), message(2), message(3))
                client.half_close()
        for client in clients:
            assert numbers(client.answers_to_the_end()) == [1, 2, 3]
        metrics = balancer.metrics()
        assert metrics.value("datapath_messages_total", path="userspace") == 180
        assert metrics.value("datapath_messages_total", path="kernel") == 0
        assert all(backend.received for backend in backends), "the exchanges are spread over the backends"
        eventually_equal(lambda: balancer.status()["sockets"], 0)

    def test_much_before_the_client_is_accepted(self, lab: Lab) -> None:
        """More than fits the buffers at once, and answers that are much longer than the questions."""
        many, long = 100, 200_000
        backend = lab.backend("a", respond=lambda _, asked: message(asked.id or 0, b"a " + bytes(long)))
        balancer = lab.serve([backend])
        asked = (message(number, bytes(10_000)) for number in range(many))
        client = balancer.connect_while_it_stands_still(*asked)
        answers = client.answers_to_the_end()
        assert numbers(answers) == list(range(many))
        assert {len(answer) for answer in answers} == {long + 10}

    def test_messages_before_a_close_that_precedes_the_accept_arrive(self, lab: Lab) -> None:
        backends = three(lab)
        balancer = lab.serve(backends)
        with balancer.standing_still():
            for number in range(20):
                with balancer.connect() as client:
                    client.send(*(message(10 * number + i, bytes(50_000)) for i in range(10)))
        eventually_equal(lambda: received(backends).total(), 200)
        assert set(received(backends).values()) == {1}
        eventually_equal(lambda: balancer.status()["sockets"], 0)

    def test_answers_to_a_client_that_was_reset_are_dropped_and_counted(self, lab: Lab) -> None:
        backends = three(lab, holding=True)
        balancer = lab.serve(backends)
        bystander, client = balancer.connect(), balancer.connect()
        client.send(*(message(number) for number in range(30)))
        eventually_equal(lambda: received(backends).total(), 30)
        client.reset()
        eventually_equal(lambda: balancer.status()["listeners"][0]["clients"], 1)
        for backend in backends:
            backend.release()
        eventually_equal(lambda: balancer.metrics().value("dropped_messages_total", reason="client_gone"), 30)
        assert numbers(bystander.ask(message(7))) == [7]
        wait_outstanding(balancer, 0)
        eventually_equal(lambda: balancer.status()["sockets"], 4)

    def test_many_resets_among_others(self, lab: Lab) -> None:
        balancer = lab.serve(three(lab))
        bystander = balancer.connect()
        source = random.Random(1)
        for number in range(150):
            client = balancer.connect()
            if source.random() < 0.8:
                client.send(*(message(i, bytes(source.randrange(3000))) for i in range(10)))
            if source.random() < 0.5:
                client.answers(1 if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else 0)
            client.reset()
            assert numbers(bystander.ask(message(number))) == [number]
        eventually_equal(lambda: balancer.status()["sockets"], 4)
        assert balancer.metrics().value("client_connections") == 1


class TestBackends:
    """Backends that leave and come."""

    def test_an_idle_connection_that_the_backend_closes_is_replaced(self, lab: Lab) -> None:
        backends = three(lab)
        balancer = lab.serve(backends)
        client = balancer.connect()
        for _ in range(5):
            assert numbers(client.ask(*(message(number) for number in range(30)))) == list(range(30))
            backends[0].finish()
            eventually(lambda: backends[0].connections, what="a new connection to a")
            assert numbers(client.ask(*(message(number) for number in range(30)))) == list(range(30))
            eventually(lambda: "a" in answerers(client), what="a gets messages again")
        metrics = balancer.metrics()
        assert metrics.value("dropped_messages_total") == 0
        assert metrics.value("backend_up") == 3

    def test_the_only_backend_closes_an_idle_connection(self, lab: Lab) -> None:
        backend = lab.backend("a")
        balancer = lab.serve([backend])
        client = balancer.connect()
        for _ in range(3):
            assert answerers(client) == {"a"}
            backend.finish()
            eventually(lambda: backend.connections, what="a new connection")
            eventually_equal(lambda: balancer.status()["sockets"], 2)

    @pytest.mark.parametrize("end", ["finish", "reset"])
    def test_a_backend_that_ends_without_its_answers(self, lab: Lab, end: str) -> None:
        """Its client cannot wait for what will not come: it is reset, and the loss is counted."""
        backends = [lab.backend("a", holding=True), lab.backend("b"), lab.backend("c")]
        balancer = lab.serve(backends, balance="round_robin", batch=1)
        bystander, client = balancer.connect(), balancer.connect()
        client.send(*(message(number) for number in range(30)))
        client.answers(20)
        eventually(lambda: len(backends[0].received) == 10)
        getattr(backends[0], end)()
        assert client.is_reset()
        eventually_equal(
            lambda: balancer.metrics().seen("reason", "dropped_messages_total"),
            {"backend_closed" if end == "finish" else "backend_reset": 10},
        )
        backends[0].release()
        wait_outstanding(balancer, 0)
        assert numbers(bystander.ask(*(message(number) for number in range(9)))) == list(range(9))

    def test_a_backend_that_is_killed(self, lab: Lab) -> None:
        process, endpoint = lab.demo_backend("a")
        others = [lab.backend("b"), lab.backend("c")]
        balancer = lab.serve([endpoint, *(other.endpoint for other in others)], balance="round_robin")
        bystander, client = balancer.connect(), balancer.connect()
        process.signal(Signals.SIGSTOP)
        client.send(*(message(number) for number in range(30)))
        eventually_equal(lambda: balancer.metrics().value("messages_total"), 30)
        lost = balancer.metrics().value("backend_outstanding_messages", backend="a")
        assert lost
        process.signal(Signals.SIGKILL)
        process.wait()
        assert client.is_reset()
        for number in range(50):
            assert numbers(bystander.ask(message(number))) == [number]
        metrics = balancer.metrics()
        reasons = ("backend_reset", "backend_closed")
        assert sum(metrics.value("dropped_messages_total", reason=reason) for reason in reasons) == lost
        assert metrics.value("dropped_messages_total") == lost
        eventually_equal(lambda: balancer.metrics().value("backend_up", backend="a"), 0)
        assert balancer.get("/readyz")[0] == 200
        newcomer = balancer.connect()
        assert answerers(newcomer) == {"b", "c"}
        assert answerers(bystander) == {"b", "c"}

    def test_a_backend_that_is_down_at_the_start_and_comes_up(self, lab: Lab) -> None:
        port = lab.here.reserve("127.0.0.1")
        balancer = lab.balancer(configuration([lab.backend("a").endpoint, ("127.0.0.1", port)]))
        eventually_equal(lambda: balancer.get("/readyz")[0], 200)
        client = balancer.connect()
        assert answerers(client) == {"a"}
        assert balancer.metrics().value("backend_up", backend="b") == 0
        assert balancer.metrics().value("backend_connect_failures_total", backend="b", reason="refused") > 0
        lab.backend("b", endpoint=("127.0.0.1", port))
        eventually(lambda: answerers(client) == {"a", "b"}, what="the client uses b too")
        assert balancer.metrics().value("backend_up", backend="b") == 1

    def test_one_failure_to_connect_does_not_keep_a_backend_from_a_client(self, lab: Lab) -> None:
        """Fewer failures than take a backend out: it stays up, so the client must get to it in the end."""
        backends = [lab.backend("a"), lab.backend("b")]
        balancer = lab.serve(backends)
        endpoint = backends[1].endpoint
        backends[1].close()
        client = balancer.connect()
        assert answerers(client) == {"a"}
        lab.backend("b", endpoint=endpoint)
        eventually(lambda: answerers(client) == {"a", "b"}, what="the client uses b too")

    def test_all_backends_down(self, lab: Lab) -> None:
        ports = [lab.here.reserve("127.0.0.1") for _ in "ab"]
        balancer = lab.balancer(configuration([("127.0.0.1", port) for port in ports]))
        eventually_equal(lambda: balancer.get("/readyz")[0], 503)
        assert balancer.get("/readyz?verbose") == (503, "not ready\npool workers: no backend is up\n")
        assert balancer.get("/healthz")[0] == 200
        for count in range(1, 6):
            assert balancer.turns_away()
            metrics = balancer.metrics()
            assert metrics.value("refused_connections_total", listener="rpc", reason="no_backend") == count
        eventually_equal(lambda: balancer.status()["sockets"], 0)
        lab.backend("b", endpoint=("127.0.0.1", ports[1]))
        eventually_equal(lambda: balancer.get("/readyz"), (200, "ready\n"))
        assert answerers(balancer.connect()) == {"b"}

    def test_all_backends_end_under_a_client(self, lab: Lab) -> None:
        """A message without a backend to go to: the client is told by a reset."""
        backend = lab.backend("a")
        balancer = lab.serve([backend])
        client = balancer.connect()
        assert answerers(client) == {"a"}
        backend.close()
        eventually_equal(lambda: balancer.metrics().value("backend_connections"), 0)
        client.send(message(1), message(2))
        assert client.is_reset()
        eventually_equal(lambda: balancer.metrics().value("dropped_messages_total", reason="no_backend"), 2)
        assert backend.received
        assert len(backend.received) == 12

    def test_a_backend_that_does_not_answer_the_handshake(self, lab: Lab) -> None:
        """Clients wait for it for a moment only, then they are served by the others."""
        with lab.here.listen("127.0.0.1") as deaf:
            deaf.listen(0)
            endpoint = deaf.getsockname()
            with lab.here.connect(endpoint):
                balancer = lab.balancer(
                    configuration([lab.backend("a").endpoint, endpoint], timeouts={"connect": "300ms"})
                )
                eventually_equal(lambda: balancer.get("/readyz")[0], 200)
                client = balancer.connect()
                assert answerers(client) == {"a"}
                eventually(
                    lambda: balancer.metrics().value(
                        "backend_connect_failures_total", backend="b", reason="timeout"
                    )
                )


def answerers(client: Client) -> set[str]:
    """The names of those who answer a few questions."""
    return {read_answer(client.ask(message(number))[0]).backend for number in range(12)}
