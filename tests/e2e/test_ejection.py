"""Backends lose their messages because of what became of others, and get them back."""

import itertools
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from lb.framing import Message
from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, framing_of
from tests.e2e.lab import Lab
from tests.e2e.messages import message
from tests.e2e.polling import eventually, eventually_equal

# As length-prefixed, with a byte behind the id that is 0xee in a response that is an error.
MARKED = {
    "length": {"offset": 0, "width": 4, "adjust": 4},
    "id": {"offset": 4, "width": 4},
    "min_message": 9,
    "response_error": {"offset": 8, "value": 0xEE},
}
GOOD, BAD = b"\x00", b"\xee"
FOR_LONG = {"consecutive_failures": 3, "base_ejection": "60s"}


class Moody:
    """What a backend answers: good, or an error, behind which so many bytes follow."""

    def __init__(self, size: int = 0) -> None:
        self.good = True
        self.size = size

    def __call__(self, backend: Backend, asked: Message) -> bytes:
        del backend
        assert asked.id is not None
        return message(asked.id, (GOOD if self.good else BAD) + bytes(self.size))


def marked(lab: Lab, moods: list[Moody], ejection: dict[str, object], **settings: object) -> Balancer:
    """A balancer with a backend of each mood, which take turns."""
    tree = lab.tree([], protocol="marked", protocols={"marked": MARKED})
    tree["pools"][0]["backends"] = [{"name": "x", "address": "127.0.0.1:1"}]
    framing = framing_of(tree)
    backends = [
        lab.backend(name, respond=mood, framing=framing) for name, mood in zip("abcd", moods, strict=False)
    ]
    return lab.serve(
        backends,
        protocol="marked",
        protocols={"marked": MARKED},
        ejection=ejection,
        **({"balance": "round_robin", "batch": 1} | settings),
    )


def ask(balancer: Balancer, count: int, numbers: Iterator[int]) -> list[bytes]:
    """Responses of a client of its own."""
    client = balancer.connect()
    answers = client.ask(*(message(next(numbers), b"?") for _ in range(count)))
    client.close()
    return answers


def ejected(balancer: Balancer) -> set[str]:
    return set(balancer.metrics().seen("backend", "backend_ejected"))


def requests(balancer: Balancer) -> dict[str, float]:
    return balancer.metrics().by("backend", "messages_total")


@pytest.mark.parametrize("connections", ["per_client", "shared"])
def test_error_responses(lab: Lab, connections: str) -> None:
    moods = [Moody(), Moody()]
    numbers = itertools.count()
    ejection = FOR_LONG | {"base_ejection": "2s"}
    balancer = marked(lab, moods, ejection, connections=connections)
    assert len(ask(balancer, 20, numbers)) == 20
    moods[0].good = False
    # Errors are delivered like any other response, and so are those that are on their way.
    eventually(lambda: ask(balancer, 2, numbers) and ejected(balancer) == {"a"})
    since = time.monotonic()
    before = requests(balancer)
    assert [answer[8:9] for answer in ask(balancer, 20, numbers)] == [GOOD] * 20
    assert requests(balancer) == {"a": before["a"], "b": before["b"] + 20}
    metrics = balancer.metrics()
    assert metrics.value("backend_ejections_total", backend="a", reason="error_response") == 1
    assert metrics.value("backend_error_responses_total", backend="a") >= 3
    assert metrics.by("backend", "backend_weight") == {"a": 0, "b": 1}
    assert metrics.by("backend", "backend_up") == {"a": 1, "b": 1}, "a is alive"
    entry = balancer.status()["pools"][0]["backends"][0]
    assert entry["ejections"] == {"error_response": 1}
    assert entry["ejected_seconds_left"] is not None
    assert "backend workers/a is ejected for 2 s: " in balancer.log
    moods[0].good = True
    eventually_equal(lambda: ejected(balancer), set())
    assert time.monotonic() - since > 1
    # A client takes what is connected when the first backend is, and the others when they are.
    eventually(lambda: ask(balancer, 20, numbers) and requests(balancer)["a"] > before["a"])
    assert balancer.metrics().value("dropped_messages_total") == 0


@pytest.mark.parametrize("size", [0, 1000, 300_000])
def test_each_error_response_is_counted_once(lab: Lab, size: int) -> None:
    """Also those that come in many segments, and several in one."""
    mood = Moody(size)
    numbers = itertools.count()
    balancer = marked(lab, [mood], FOR_LONG | {"consecutive_failures": 1000}, batch=64)
    for good, count in ((False, 7), (True, 3), (False, 20)):
        mood.good = good
        assert len(ask(balancer, count, numbers)) == count
    assert balancer.metrics().value("backend_error_responses_total") == 27
    assert ejected(balancer) == set()


def test_errors_between_good_responses_are_no_row(lab: Lab) -> None:
    mood = Moody()
    numbers = itertools.count()
    balancer = marked(lab, [mood, Moody()], FOR_LONG)
    for _ in range(10):
        mood.good = False
        ask(balancer, 4, numbers)
        mood.good = True
        ask(balancer, 4, numbers)
    time.sleep(0.3)  # several looks
    assert balancer.metrics().value("backend_error_responses_total", backend="a") == 20
    assert ejected(balancer) == set()


def test_not_all_at_once(lab: Lab) -> None:
    moods = [Moody(), Moody()]
    numbers = itertools.count()
    balancer = marked(lab, moods, FOR_LONG)
    for mood in moods:
        mood.good = False
    eventually(lambda: ask(balancer, 4, numbers) and len(ejected(balancer)) == 1)
    eventually(lambda: ask(balancer, 4, numbers) and "is not ejected after" in balancer.log)
    (one,) = ejected(balancer)
    before = requests(balancer)
    assert len(ask(balancer, 10, numbers)) == 10
    (other,) = {"a", "b"} - {one}
    assert requests(balancer) == before | {other: before[other] + 10}


def test_connections_that_end_while_answers_are_due(lab: Lab) -> None:
    backends = [lab.backend("a", holding=True), lab.backend("b")]
    balancer = lab.serve(backends, ejection=FOR_LONG, balance="round_robin", batch=1)
    numbers = itertools.count()

    def lose_one() -> bool:
        client = balancer.connect()
        client.send(*(message(next(numbers)) for _ in range(2)))
        eventually(lambda: backends[0].connections and backends[0].held)
        assert backends[0].held is not None
        backends[0].held.clear()
        backends[0].reset()
        assert client.is_reset()
        return True

    for _ in range(3):
        assert ejected(balancer) == set()
        lose_one()
    eventually_equal(lambda: ejected(balancer), {"a"})
    assert balancer.metrics().value("backend_ejections_total", backend="a", reason="reset") == 1
    client = balancer.connect()
    assert len(client.ask(*(message(next(numbers)) for _ in range(10)))) == 10


def test_requests_that_get_no_response_in_time(lab: Lab) -> None:
    backends = [lab.backend("a", holding=True), lab.backend("b")]
    balancer = lab.serve(backends, ejection=FOR_LONG, connections="shared", timeouts={"response": "200ms"})
    numbers = itertools.count()

    def go_on() -> bool:
        client = balancer.connect()
        with suppress(ConnectionResetError):
            client.ask(*(message(next(numbers)) for _ in range(4)))
        client.close()
        return ejected(balancer) == {"a"}

    eventually(go_on)
    reasons = balancer.metrics().seen("reason", "backend_ejections_total", backend="a")
    assert reasons == {"response_timeout": 1}


def test_connections_that_cannot_be_made(lab: Lab) -> None:
    """A check by message does not see it in time; the traffic does."""
    backends = [lab.backend("a"), lab.backend("b")]
    check = {"interval": "60s", "fall": 100}
    balancer = lab.serve(backends, ejection=FOR_LONG, health_check=check)
    backends[0].close()
    eventually(lambda: (balancer.connect().ask(message(1)), ejected(balancer) == {"a"})[1])
    assert balancer.metrics().by("backend", "backend_up") == {"a": 1, "b": 1}
    assert balancer.metrics().seen("reason", "backend_ejections_total") == {"refused": 1}
