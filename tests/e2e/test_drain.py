"""SIGTERM lets what is outstanding be answered; a second signal, or SIGINT, does not wait."""

import errno
import time
from signal import Signals

import pytest

from tests.e2e.balancer import Balancer
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import PATIENCE, eventually, eventually_equal

AT_ONCE = 3.0 * PATIENCE  # seconds, on a busy machine


def wait_draining(balancer: Balancer) -> None:
    eventually_equal(lambda: balancer.get("/readyz?verbose"), (503, "not ready\ndraining\n"))


def test_outstanding_messages_are_answered(lab: Lab) -> None:
    backends = [lab.backend(name, holding=True) for name in "abc"]
    balancer = lab.serve(backends, balance="round_robin")
    idle = balancer.connect()
    clients = [balancer.connect() for _ in range(10)]
    for client in clients:
        client.send(*(message(number, bytes(2000)) for number in range(30)))
    eventually_equal(lambda: sum(len(backend.received) for backend in backends), 300)
    balancer.process.signal(Signals.SIGTERM)
    wait_draining(balancer)
    assert idle.answers_to_the_end() == [], "a client without a request has nothing to wait for"
    with pytest.raises(OSError, match="refused") as refusal:
        balancer.connect()
    assert refusal.value.errno == errno.ECONNREFUSED
    assert balancer.get("/healthz")[0] == 200
    assert balancer.metrics().value("backend_outstanding_messages") == 300
    assert balancer.process.running
    for backend in backends:
        backend.release()
    for client in clients:
        answers = [read_answer(answer) for answer in client.answers_to_the_end()]
        assert sorted(answer.number for answer in answers) == list(range(30))
    ended = balancer.wait()
    assert ended.code == 0
    assert "drop" not in ended.log


def test_with_slow_backends_under_load(lab: Lab) -> None:
    """Each client gets the answers to a beginning of what it sent, and none twice."""
    backends = [lab.backend(name, delay=0.002) for name in "abc"]
    balancer = lab.serve(backends)
    clients = [balancer.connect() for _ in range(20)]
    for number in range(30):
        for client in clients:
            client.send(message(number, bytes(500)))
        if number == 15:
            balancer.process.signal(Signals.SIGTERM)
    asked = 0
    for client in clients:
        answers = [read_answer(answer).number for answer in client.answers_to_the_end()]
        assert sorted(answers) == list(range(len(answers)))
        asked += len(answers)
    assert balancer.wait().code == 0
    assert sum(len(backend.received) for backend in backends) == asked


def test_messages_that_come_too_late_are_counted(lab: Lab) -> None:
    backend = lab.backend("a", holding=True)
    balancer = lab.serve([backend])
    client, other = balancer.connect(), balancer.connect()
    for each in (client, other):
        each.send(message(1))
    eventually(lambda: len(backend.received) == 2)
    balancer.process.signal(Signals.SIGTERM)
    wait_draining(balancer)
    # The verdict leaves them on the socket once the client is held, which is soon after.
    client.send(message(2))
    eventually_equal(lambda: len(backend.received), 2)
    other.reset()
    eventually_equal(lambda: balancer.status()["listeners"][0]["clients"], 1)
    backend.release()
    assert [read_answer(answer).number for answer in client.answers_to_the_end()] == [1]
    assert balancer.wait().code == 0
    assert [asked.id for asked in backend.received] == [1, 1]


def test_a_backend_that_ends_meanwhile(lab: Lab) -> None:
    """Its answers will not come: neither the client nor the balancer waits for the time-out."""
    backend = lab.backend("a", holding=True)
    balancer = lab.serve([backend], timeouts={"drain": "60s"})
    client = balancer.connect()
    client.send(message(1))
    eventually(lambda: backend.received)
    balancer.process.signal(Signals.SIGTERM)
    wait_draining(balancer)
    since = time.monotonic()
    backend.finish()
    assert client.is_reset()
    assert balancer.wait().code == 0
    assert time.monotonic() - since < AT_ONCE


def test_the_time_out(lab: Lab) -> None:
    """What is not answered within it is lost, and its client is told."""
    backend = lab.backend("a", holding=True)
    balancer = lab.serve([backend], timeouts={"drain": "500ms"})
    client = balancer.connect()
    client.send(message(1), message(2))
    eventually(lambda: len(backend.received) == 2)
    ended = balancer.stop()
    assert ended.code == 0
    assert 0.5 <= ended.seconds < 0.5 + AT_ONCE
    assert client.is_reset()
    assert "not drained" in ended.log


@pytest.mark.parametrize("first", [Signals.SIGTERM, None])
@pytest.mark.parametrize("second", [Signals.SIGTERM, Signals.SIGINT])
def test_at_once(lab: Lab, first: Signals | None, second: Signals) -> None:
    backend = lab.backend("a", holding=True)
    balancer = lab.serve([backend], timeouts={"drain": "60s"})
    client = balancer.connect()
    client.send(message(1))
    eventually(lambda: backend.received)
    if first is None and second is Signals.SIGTERM:
        first = Signals.SIGINT  # SIGINT, then SIGTERM: the second one finds it ending
    if first is Signals.SIGTERM:
        balancer.process.signal(first)
        wait_draining(balancer)
    elif first is not None:
        balancer.process.signal(first)
    ended = balancer.stop(second)
    assert ended.code == 0
    assert ended.seconds < AT_ONCE
    assert client.is_reset()


@pytest.mark.parametrize("number", [Signals.SIGTERM, Signals.SIGINT])
@pytest.mark.parametrize("clients", [0, 3])
def test_signals_until_the_end(lab: Lab, number: Signals, clients: int) -> None:
    """Somebody is impatient: none of the signals finds a moment in which it kills."""
    balancer = lab.serve([lab.backend()])
    for _ in range(clients):
        assert balancer.connect().ask(message(1))
    while balancer.process.running:
        balancer.process.signal(number)
        time.sleep(0.002)
    assert balancer.wait().code == 0


def test_an_admin_connection_that_stays_open_does_not_delay_the_end(lab: Lab) -> None:
    balancer = lab.serve([lab.backend()])
    with (
        balancer.where.connect(balancer.admin) as idle,
        balancer.where.connect(balancer.admin) as half,
        balancer.where.connect(balancer.admin) as kept,
    ):
        half.sendall(b"GET /metrics HTTP/1.1\r\nHost")
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept.recv(1000).startswith(b"HTTP/1.1 200")
        ended = balancer.stop()
        assert idle.recv(1) == b""
    assert ended.code == 0
    assert ended.seconds < AT_ONCE
