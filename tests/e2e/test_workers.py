"""Backends that connect to the balancer, say who they are, and leave by closing."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lb.framing import PRESETS, Direction, Framer
from tests.e2e.balancer import Balancer
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import LIMIT, eventually, eventually_equal


def serve(lab: Lab, **pool: Any) -> Balancer:
    """A balancer whose only pool accepts workers."""
    tree = lab.tree([], connections="shared", accept="127.0.0.1:0", **pool)
    del tree["pools"][0]["backends"]
    return lab.balancer(tree)


class Worker:
    """Answers by hand."""

    def __init__(self, lab: Lab, balancer: Balancer, greeting: bytes) -> None:
        accept = balancer.status()["pools"][0]["accept"]
        assert accept is not None
        host, _, port = accept.rpartition(":")
        self.sock = lab.here.connect((host, int(port)))
        self.sock.settimeout(LIMIT)
        self._framer = Framer(PRESETS["length-prefixed"], Direction.REQUEST)
        self._asked: list[bytes] = []
        self.sock.sendall(greeting)

    def receive(self, count: int) -> list[bytes]:
        """The next requests."""
        while len(self._asked) < count:
            data = self.sock.recv(1 << 16)
            assert data, f"the end after {len(self._asked)} requests"
            self._asked += [asked.data for asked in self._framer.feed(data)]
        asked, self._asked = self._asked[:count], self._asked[count:]
        return asked

    def answer(self, asked: list[bytes], name: bytes = b"w") -> None:
        """Answer requests."""
        answers = (message(int.from_bytes(data[4:8], "big"), name + b" " + data[8:]) for data in asked)
        self.sock.sendall(b"".join(answers))

    def is_reset(self) -> bool:
        """Whether the balancer turns it away."""
        try:
            return self.sock.recv(1) != b""
        except ConnectionResetError:
            return True


Hire = Callable[..., Worker]


@pytest.fixture
def hire(lab: Lab) -> Iterator[Hire]:
    """Makes workers of a balancer, with what they say first."""
    with ExitStack() as stack:

        def make(balancer: Balancer, greeting: bytes = b"") -> Worker:
            worker = Worker(lab, balancer, greeting)
            stack.callback(worker.sock.close)
            return worker

        yield make


def names(balancer: Balancer) -> dict[str, int]:
    """The workers by name, with their weights."""
    return {entry["name"]: entry["weight"] for entry in balancer.status()["pools"][0]["backends"]}


class TestComing:
    def test_a_worker_serves_from_the_moment_it_connects(self, lab: Lab, hire: Hire) -> None:
        balancer = serve(lab)
        client = balancer.connect()
        client.send(message(1, b"early"))
        worker = hire(balancer)

        worker.answer(worker.receive(1))

        assert [read_answer(data).asked for data in client.answers(1)] == [b"early"]
        assert names(balancer) == {"127.0.0.1": 1}
        assert balancer.get("/readyz") == (200, "ready\n")

    def test_it_says_its_name_and_weight(self, lab: Lab, hire: Hire) -> None:
        balancer = serve(lab, balance="round_robin", batch=1)
        heavy = hire(balancer, b"worker heavy weight 3\n")
        light = hire(balancer, b"worker light\r\n")
        eventually_equal(lambda: names(balancer), {"heavy": 3, "light": 1})
        client = balancer.connect()

        client.send(*(message(number) for number in range(8)))

        heavy.answer(heavy.receive(6), b"heavy")
        light.answer(light.receive(2), b"light")
        assert {read_answer(data).number for data in client.answers(8)} == set(range(8))
        metrics = balancer.metrics()
        assert metrics.by("backend", "messages_total") == {"heavy": 6, "light": 2}
        assert metrics.value("backend_outstanding_messages") == 0

    def test_workers_of_one_name_are_one_backend(self, lab: Lab, hire: Hire) -> None:
        balancer = serve(lab)
        first, second = (hire(balancer, b"worker a weight 2\n") for _ in range(2))
        eventually_equal(lambda: balancer.metrics().by("backend", "backend_connections"), {"a": 2})
        client = balancer.connect()
        for number in (1, 2):
            client.send(message(number))
            eventually_equal(lambda: balancer.metrics().value("backend_outstanding_messages"), number)

        for worker in (first, second):
            worker.answer(worker.receive(1))

        assert len(client.answers(2)) == 2

    def test_a_greeting_in_pieces_and_a_response_behind_it(self, lab: Lab, hire: Hire) -> None:
        """Nothing behind the line is taken: it is the worker's first message, which nobody waits for."""
        balancer = serve(lab)
        worker = hire(balancer, b"worker a wei")
        worker.sock.sendall(b"ght 7\n" + message(9))
        eventually_equal(lambda: names(balancer), {"a": 7})
        eventually_equal(lambda: balancer.metrics().value("dropped_messages_total", reason="unsolicited"), 1)
        client = balancer.connect()
        client.send(message(1))
        worker.answer(worker.receive(1))
        assert len(client.answers(1)) == 1

    @pytest.mark.parametrize(
        ("greeting", "reason"),
        [
            (b"worker\xff x y z\n", None),
            (b"worker a weight many\n", "bad_greeting"),
            (b"worker a weight 257\n", "bad_greeting"),
            (b"worker -a\n", "bad_greeting"),
            (b"worker " + b"a" * 200, "bad_greeting"),
        ],
    )
    def test_greetings_that_are_none(self, lab: Lab, hire: Hire, greeting: bytes, reason: str | None) -> None:
        balancer = serve(lab)
        worker = hire(balancer, greeting)
        assert worker.is_reset()
        if reason is not None:
            refused = balancer.metrics().seen("reason", "refused_connections_total")
            assert refused == {reason: 1}

    def test_networks_that_are_not_allowed(self, lab: Lab, hire: Hire) -> None:
        balancer = serve(lab, allow=["10.0.0.0/8", "fd00::/8"])
        assert hire(balancer).is_reset()
        assert balancer.status()["pools"][0]["refused_workers"] == {"not_allowed": 1}

    def test_no_more_than_max_workers(self, lab: Lab, hire: Hire) -> None:
        balancer = serve(lab, max_workers=2)
        workers = [hire(balancer, b"worker %d\n" % number) for number in range(2)]
        eventually(lambda: len(names(balancer)) == 2)
        assert hire(balancer, b"worker 2\n").is_reset()
        workers[0].sock.close()
        eventually_equal(lambda: set(names(balancer)), {"1"})
        third = hire(balancer, b"worker 3\n")
        eventually_equal(lambda: set(names(balancer)), {"1", "3"})
        third.sock.close()


class TestLeaving:
    def test_what_it_owes_is_told_and_the_others_go_on(self, lab: Lab, hire: Hire) -> None:
        balancer = serve(lab, balance="round_robin", batch=1)
        leaving = hire(balancer, b"worker leaving\n")
        staying = hire(balancer, b"worker staying\n")
        eventually(lambda: len(names(balancer)) == 2)
        client = balancer.connect()
        client.send(*(message(number) for number in range(4)))
        leaving.answer(leaving.receive(2)[:1])
        staying.answer(staying.receive(2))
        assert len(client.answers(3)) == 3

        leaving.sock.shutdown(socket.SHUT_WR)

        assert client.is_reset()
        eventually_equal(lambda: set(names(balancer)), {"staying"})
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {"backend_closed": 1}
        other = balancer.connect()
        other.send(message(1))
        staying.answer(staying.receive(1))
        assert len(other.answers(1)) == 1

    def test_one_that_owes_nothing_leaves_unnoticed(self, lab: Lab, hire: Hire) -> None:
        balancer = serve(lab)
        first = hire(balancer, b"worker first\n")
        client = balancer.connect()
        client.send(message(1))
        first.answer(first.receive(1))
        assert len(client.answers(1)) == 1
        first.sock.shutdown(socket.SHUT_WR)
        eventually_equal(lambda: names(balancer), {})
        assert first.sock.recv(1) == b""
        client.send(message(2))
        second = hire(balancer, b"worker second\n")

        second.answer(second.receive(1))

        assert len(client.answers(1)) == 1
        assert balancer.metrics().seen("reason", "dropped_messages_total") == {}

    def test_a_name_that_comes_back_counts_from_the_start(self, lab: Lab, hire: Hire) -> None:
        balancer = serve(lab, max_workers=1)
        for name in (b"a", b"b", b"a"):
            worker = hire(balancer, b"worker " + name + b"\n")
            client = balancer.connect()
            client.send(message(1))
            worker.answer(worker.receive(1))
            assert len(client.answers(1)) == 1
            assert balancer.metrics().by("backend", "messages_total") == {name.decode(): 1}
            worker.sock.close()
            eventually_equal(lambda: names(balancer), {})


def test_beside_backends_that_are_dialled(lab: Lab, hire: Hire) -> None:
    backend = lab.backend("dialled")
    tree = lab.tree([backend], connections="shared", accept="127.0.0.1:0", balance="round_robin", batch=1)
    balancer = lab.balancer(tree).wait_ready()
    worker = hire(balancer, b"worker w\n")
    eventually_equal(lambda: set(names(balancer)), {"a", "w"})
    client = balancer.connect()

    client.send(*(message(number) for number in range(6)))

    worker.answer(worker.receive(3))
    assert len(client.answers(6)) == 6
    assert hire(balancer, b"worker a\n").is_reset(), "the name is taken"
