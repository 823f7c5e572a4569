"""Pools: who is in them, who takes part, and for how long a client does."""

import itertools
import time

from tests.e2e.balancer import show
from tests.e2e.lab import Lab
from tests.e2e.load import pipeline
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually, eventually_equal

MOST_UPSTREAMS = 32


def test_a_pool_that_is_larger_than_a_client_can_have_upstreams(lab: Lab) -> None:
    """A client uses 32 of the 40, always the same ones; all clients together use all."""
    backend = lab.backend("a")
    tree = lab.tree([backend], balance="round_robin", batch=1)
    names = [f"b{number}" for number in range(40)]
    tree["pools"][0]["backends"] = [{"name": name, "address": show(backend.endpoint)} for name in names]
    balancer = lab.balancer(tree).wait_ready()

    def used() -> set[str]:
        return {name for name, count in balancer.metrics().by("backend", "messages_total").items() if count}

    client = balancer.connect()
    for _ in range(3):
        client.ask(*(message(number) for number in range(200)))
        assert len(used()) == MOST_UPSTREAMS
    assert balancer.metrics().value("backend_connections") == MOST_UPSTREAMS
    for _ in range(10):
        other = balancer.connect()
        other.ask(*(message(number) for number in range(200)))
    assert used() == set(names)


def test_health_checks_see_what_no_client_does(lab: Lab) -> None:
    backends = [lab.backend("a"), lab.backend("b")]
    checks = {"interval": "100ms", "timeout": "100ms", "rise": 2, "fall": 3}
    balancer = lab.serve(backends, health_check=checks)
    endpoint = backends[1].endpoint
    backends[1].close()
    eventually_equal(lambda: balancer.metrics().by("backend", "backend_up"), {"a": 1, "b": 0})
    assert balancer.metrics().value("backend_connect_failures_total", backend="b", reason="refused") >= 3
    assert balancer.get("/readyz")[0] == 200
    lab.backend("b", endpoint=endpoint)
    eventually_equal(lambda: balancer.metrics().by("backend", "backend_up"), {"a": 1, "b": 1})
    assert balancer.metrics().value("client_connections_total") == 0


def test_idle_clients_are_asked_to_leave(lab: Lab) -> None:
    """With FIN, and only if they have nothing outstanding."""
    backend = lab.backend("a", holding=True)
    balancer = lab.serve([backend], timeouts={"idle": "400ms"})
    idle, waiting = balancer.connect(), balancer.connect()
    waiting.send(message(1))
    eventually(lambda: backend.received)
    since = time.monotonic()
    assert idle.answers_to_the_end() == []
    assert time.monotonic() - since < 5
    backend.release()
    assert len(waiting.answers(1)) == 1
    eventually_equal(lambda: balancer.status()["sockets"], 0)
    assert balancer.metrics().value("dropped_messages_total") == 0


def test_clients_that_talk_are_not_idle(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")], timeouts={"idle": "1s"})
    client = balancer.connect()
    end = time.monotonic() + 2.5
    numbers = itertools.count()
    while time.monotonic() < end:
        assert client.ask(message(next(numbers)))


def test_a_slot_that_is_reused_gets_no_answers_of_its_past(lab: Lab) -> None:
    """Clients leave before their answers come; others follow in their places."""
    backends = [lab.backend(name, delay=0.002) for name in "ab"]
    balancer = lab.serve(backends, runtime={"max_connections": 64}, balance="round_robin")
    numbers = itertools.count()
    for _ in range(60):
        leaving = balancer.connect()
        leaving.send(*(message(next(numbers)) for _ in range(6)))
        leaving.reset()
        staying = balancer.connect()
        mine = [next(numbers) for _ in range(6)]
        answers = staying.ask(*(message(number) for number in mine))
        assert sorted(read_answer(answer).number for answer in answers) == mine
        staying.half_close()
        assert staying.answers_to_the_end() == []
        staying.close()
    eventually_equal(lambda: balancer.status()["sockets"], 0)


def test_two_balancers_in_a_row(lab: Lab) -> None:
    """A listener is a backend like any other."""
    backends = [lab.backend(name) for name in "abc"]
    inner = [lab.serve(backends) for _ in range(2)]
    outer = lab.serve([balancer.listeners["rpc"] for balancer in inner])
    answers = pipeline(lambda: outer.connect().sock, (message(number) for number in range(2000)), depth=100)
    assert sorted(read_answer(answer).number for answer in answers) == list(range(2000))
    assert sum(len(backend.received) for backend in backends) == 2000
