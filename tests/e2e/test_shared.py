"""Clients that share a few connections to each backend: everybody gets the answers to what he asked."""

from signal import Signals
from typing import Any

import pytest

from lb.framing import Message
from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually, eventually_equal


def shared(lab: Lab, backends: list[Backend], **settings: Any) -> Balancer:
    """A balancer whose clients share connections."""
    return lab.serve(backends, connections="shared", **settings)


def ids(messages: list[Message]) -> list[int]:
    """Those that a backend has seen."""
    return [asked.id for asked in messages if asked.id is not None]


class TestIds:
    def test_clients_with_equal_ids_get_their_own_answers(self, lab: Lab) -> None:
        backends = [lab.backend(name) for name in "abc"]
        balancer = shared(lab, backends, connections_per_backend=4)
        clients = [balancer.connect() for _ in range(60)]

        for turn in range(3):
            for who, client in enumerate(clients):
                client.send(*(message(number, f"{who} {turn} {number}".encode()) for number in range(20)))
            for who, client in enumerate(clients):
                answers = [read_answer(data) for data in client.answers(20)]
                assert sorted(answer.number for answer in answers) == list(range(20))
                assert all(answer.asked == f"{who} {turn} {answer.number}".encode() for answer in answers)

        assert sum(len(backend.received) for backend in backends) == 3 * 60 * 20
        metrics = balancer.metrics()
        assert metrics.by("backend", "backend_connections") == {"a": 4, "b": 4, "c": 4}
        assert metrics.value("backend_outstanding_messages") == 0
        assert metrics.seen("reason", "dropped_messages_total") == {}
        assert metrics.value("datapath_messages_total", path="userspace") == 0
        assert metrics.value("messages_total") == metrics.value("responses_total") == 3 * 60 * 20

    def test_no_id_is_in_flight_twice_on_a_connection(self, lab: Lab) -> None:
        backend = lab.backend("a", holding=True)
        balancer = shared(lab, [backend], connections_per_backend=1)
        clients = [balancer.connect() for _ in range(10)]
        for client in clients:
            client.send(*(message(number) for number in range(50)))
        eventually(lambda: len(backend.received) == 500)

        assert len(set(ids(backend.received))) == 500
        backend.release()
        for client in clients:
            assert {read_answer(data).number for data in client.answers(50)} == set(range(50))

    def test_answers_in_another_order(self, lab: Lab) -> None:
        backend = lab.backend("a", holding=True)
        balancer = shared(lab, [backend], connections_per_backend=1)
        clients = [balancer.connect() for _ in range(5)]
        for who, client in enumerate(clients):
            client.send(*(message(7, bytes([who, number])) for number in range(10)))
        eventually(lambda: len(backend.received) == 50)
        assert backend.held is not None
        backend.held.reverse()

        backend.release()

        for who, client in enumerate(clients):
            answers = [read_answer(data) for data in client.answers(10)]
            assert [answer.asked for answer in answers] == [bytes([who, n]) for n in reversed(range(10))]
            assert {answer.number for answer in answers} == {7}

    @pytest.mark.parametrize("pieces", [1, 3, 7])
    def test_messages_that_come_in_pieces(self, lab: Lab, pieces: int) -> None:
        backend = lab.backend("a")
        balancer = shared(lab, [backend], connections_per_backend=1)
        client, other = balancer.connect(), balancer.connect()
        data = b"".join(message(number, b"x" * number) for number in range(30))
        for start in range(0, len(data), pieces):
            client.send(data[start : start + pieces])
            if start % 50 == 0:
                other.send(message(start))
                assert [read_answer(got).number for got in other.answers(1)] == [start]
        assert [read_answer(got).number for got in client.answers(30)] == list(range(30))

    def test_large_messages(self, lab: Lab) -> None:
        backend = lab.backend("a")
        balancer = shared(lab, [backend], connections_per_backend=2)
        clients = [balancer.connect() for _ in range(3)]
        bodies = [bytes([number]) * 300_000 for number in range(3)]
        for client, body in zip(clients, bodies, strict=True):
            client.send(message(1, body), message(2, body))
        for client, body in zip(clients, bodies, strict=True):
            answers = [read_answer(data) for data in client.answers(2)]
            assert sorted((answer.number, answer.asked == body) for answer in answers) == [
                (1, True),
                (2, True),
            ]


class TestLimits:
    def test_no_more_in_flight_than_allowed(self, lab: Lab) -> None:
        backend = lab.backend("a", holding=True)
        balancer = shared(lab, [backend], connections_per_backend=2, max_in_flight=3)
        clients = [balancer.connect() for _ in range(4)]
        for client in clients:
            client.send(*(message(number) for number in range(5)))
        eventually(lambda: len(backend.received) == 6)
        eventually(lambda: balancer.metrics().value("pauses_total", reason="limit") >= 1)
        assert len(backend.received) == 6

        backend.release()

        for client in clients:
            assert {read_answer(data).number for data in client.answers(5)} == set(range(5))
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {}

    def test_a_client_that_does_not_read_does_not_stop_the_others(self, lab: Lab) -> None:
        backend = lab.backend("a", respond=lambda _, asked: message(asked.id or 0, b"y" * 100_000))
        balancer = shared(lab, [backend], connections_per_backend=1, timeouts={"slow_client": "300ms"})
        deaf, other = balancer.connect(), balancer.connect()
        deaf.send(*(message(number) for number in range(200)))
        eventually(lambda: len(backend.received) == 200)

        answers = other.ask(*(message(number) for number in range(10)))

        assert [int.from_bytes(data[4:8], "big") for data in answers] == list(range(10))
        eventually(lambda: balancer.metrics().value("client_connections") == 1)


class TestEnds:
    def test_a_client_that_half_closes_gets_its_answers(self, lab: Lab) -> None:
        backend = lab.backend("a", holding=True)
        balancer = shared(lab, [backend])
        client, other = balancer.connect(), balancer.connect()
        client.send(*(message(number) for number in range(10)))
        other.send(message(1))
        client.half_close()
        eventually(lambda: len(backend.received) == 11)

        backend.release()

        assert {read_answer(data).number for data in client.answers_to_the_end()} == set(range(10))
        assert len(other.answers(1)) == 1
        assert len(other.ask(message(2))) == 1

    def test_answers_to_a_client_that_left_reach_nobody(self, lab: Lab) -> None:
        backend = lab.backend("a", holding=True)
        balancer = shared(lab, [backend], connections_per_backend=1)
        leaving, staying = balancer.connect(), balancer.connect()
        leaving.send(*(message(number) for number in range(10)))
        staying.send(*(message(number, b"mine") for number in range(10)))
        eventually(lambda: len(backend.received) == 20)
        leaving.reset()
        eventually_equal(lambda: balancer.metrics().value("client_connections"), 1)
        newcomers = [balancer.connect() for _ in range(5)]

        backend.release()

        assert {read_answer(data).asked for data in staying.answers(10)} == {b"mine"}
        for client in newcomers:
            assert [read_answer(data).asked for data in client.ask(message(3, b"new"))] == [b"new"]
        metrics = balancer.metrics()
        assert metrics.seen("reason", "dropped_messages_total") == {"client_gone": 10}
        assert metrics.value("backend_outstanding_messages") == 0

    @pytest.mark.parametrize("how", ["reset", "finish"])
    def test_a_backend_that_dies_is_told_to_those_who_wait(self, lab: Lab, how: str) -> None:
        dying, well = lab.backend("a", holding=True), lab.backend("b")
        balancer = shared(lab, [dying, well], balance="round_robin", connections_per_backend=2, batch=1)
        waiting, idle = balancer.connect(), balancer.connect()
        waiting.send(*(message(number) for number in range(20)))
        eventually(lambda: len(dying.received) + len(well.received) == 20)
        owed = len(dying.received)
        assert owed

        getattr(dying, how)()

        assert waiting.is_reset()
        eventually_equal(
            lambda: balancer.metrics().seen("reason", "dropped_messages_total"),
            {"backend_reset" if how == "reset" else "backend_closed": owed},
        )
        dying.held = None
        assert len(idle.ask(*(message(number) for number in range(10)))) == 10

    def test_an_upstream_is_connected_again(self, lab: Lab) -> None:
        backend = lab.backend("a")
        balancer = shared(lab, [backend], connections_per_backend=3)
        client = balancer.connect()
        assert len(client.ask(message(1))) == 1
        backend.reset()
        assert len(client.ask(message(2))) == 1
        eventually_equal(lambda: balancer.metrics().value("backend_connections"), 3)
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {}


class TestGivingUp:
    def test_a_request_without_response_is_told_and_its_answer_is_late(self, lab: Lab) -> None:
        backend = lab.backend("a", holding=True)
        balancer = shared(lab, [backend], connections_per_backend=1, timeouts={"response": "400ms"})
        client = balancer.connect()
        client.send(message(1), message(2))

        assert client.is_reset()
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {"response_timeout": 2}
        other = balancer.connect()
        other.send(message(3, b"other"))
        eventually(lambda: len(backend.received) == 3)
        assert len(set(ids(backend.received))) == 3
        backend.release()
        assert [read_answer(data).asked for data in other.answers(1)] == [b"other"]
        metrics = balancer.metrics()
        assert metrics.seen("reason", "dropped_messages_total") == {"response_timeout": 2, "late": 2}
        assert metrics.value("backend_outstanding_messages") == 0

    def test_a_connection_with_many_of_them_is_replaced(self, lab: Lab) -> None:
        backend = lab.backend("a", holding=True)
        balancer = shared(
            lab, [backend], connections_per_backend=1, max_in_flight=4, timeouts={"response": "400ms"}
        )
        client = balancer.connect()
        client.send(*(message(number) for number in range(4)))
        assert client.is_reset()
        eventually(lambda: "replaced: 4 requests got no response" in balancer.log)

        backend.held = None

        assert len(balancer.connect().ask(message(9))) == 1


class TestShutdown:
    def test_what_is_outstanding_is_answered(self, lab: Lab) -> None:
        backend = lab.backend("a", holding=True)
        balancer = shared(lab, [backend])
        clients = [balancer.connect() for _ in range(5)]
        for client in clients:
            client.send(*(message(number) for number in range(10)))
        eventually(lambda: len(backend.received) == 50)

        balancer.process.signal(Signals.SIGTERM)
        backend.release()

        for client in clients:
            assert len(client.answers_to_the_end()) == 10
        assert balancer.wait().code == 0
