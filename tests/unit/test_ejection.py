"""Ejections, on a clock that the test moves and with answers that it makes up."""

import logging
from ipaddress import IPv4Address

import pytest

from lb import config
from lb.backends import Backend
from lb.dataplane import Answers
from lb.health import Ejections
from tests.unit.test_ramps import Clock

ADDRESS = config.Address(IPv4Address("127.0.0.1"), 9000)


class Pool:
    """Some backends, and what they answer."""

    def __init__(self, backends: int = 4, **settings: float) -> None:
        self.clock = Clock()
        self.answers = [Answers(0, 0, 0)] * backends
        defaults = {"consecutive_failures": 3, "base_ejection": 10.0, "max_ejection": 35.0}
        how = config.Ejection(**(defaults | settings))  # type: ignore[arg-type]
        self.ejections = Ejections(how, self.clock, lambda backend: self.answers[backend.index])
        self.backends = [
            Backend("pool", config.Backend(name, ADDRESS), config.HealthCheck(), index)
            for index, name in enumerate("abcdefgh"[:backends])
        ]
        for backend in self.backends:
            self.ejections.add(backend)

    @property
    def out(self) -> str:
        """The names of those that are ejected."""
        return "".join(backend.name for backend in self.backends if backend.ejected)

    def good(self, index: int = 0, responses: int = 1) -> None:
        """A backend gives good responses."""
        before = self.answers[index]
        self.answers[index] = Answers(before.answered + responses, before.errors, before.errors)

    def bad(self, index: int = 0, responses: int = 1) -> None:
        """A backend gives error responses, and user space looks."""
        before = self.answers[index]
        self.answers[index] = Answers(before.answered + responses, before.errors + responses, before.forgiven)
        self.ejections.look()

    def lose(self, index: int = 0, times: int = 3) -> None:
        for _ in range(times):
            self.backends[index].lost("reset")


def test_failures_in_a_row_eject() -> None:
    pool = Pool()
    backend = pool.backends[0]
    changes: list[bool] = []
    backend.on_change.append(lambda changed: changes.append(changed.usable))
    backend.connected()
    backend.failed("refused")
    backend.lost("reset")
    assert pool.out == ""
    pool.bad()
    assert pool.out == "a"
    assert not backend.usable
    assert +backend.ejections == {"error_response": 1}
    pool.clock.advance(9.9)
    assert pool.out == "a"
    pool.clock.advance(0.2)
    assert pool.out == ""
    assert changes == [True, False, True]


def test_a_good_response_forgives_all() -> None:
    pool = Pool()
    for _ in range(5):
        pool.backends[0].failed("refused")
        pool.lose(times=1)
        pool.good()
    pool.bad(responses=2)
    pool.good()
    pool.bad(responses=2)
    assert pool.out == ""
    pool.bad()
    assert pool.out == "a"


def test_a_good_response_between_two_looks_is_not_missed() -> None:
    pool = Pool()
    pool.answers[0] = Answers(answered=5, errors=4, forgiven=2)
    pool.ejections.look()
    assert pool.out == ""
    pool.answers[0] = Answers(answered=6, errors=5, forgiven=2)
    pool.ejections.look()
    assert pool.out == "a"


def test_a_connection_forgives_those_that_could_not_be_made_and_nothing_else() -> None:
    pool = Pool()
    backend = pool.backends[0]
    for _ in range(5):
        backend.failed("timeout")
        backend.failed("timeout")
        backend.connected()
    pool.lose(times=2)
    backend.connected()
    assert pool.out == ""
    pool.lose(times=1)
    assert pool.out == "a"


def test_several_at_once() -> None:
    pool = Pool()
    pool.backends[0].lost("response_timeout", 2)
    pool.backends[1].lost("response_timeout", 3)
    assert pool.out == "b"


def test_what_we_lack_ourselves_is_no_failure() -> None:
    pool = Pool()
    for _ in range(5):
        pool.backends[0].failed("no_descriptor")
    assert pool.out == ""


def test_checks_are_no_messages() -> None:
    pool = Pool()
    for _ in range(5):
        pool.backends[0].checked("refused", 0.1, connected=False)
    assert pool.out == ""
    assert not pool.backends[0].usable


def test_each_ejection_is_longer_up_to_a_limit_and_time_heals() -> None:
    pool = Pool()

    def eject() -> float:
        pool.lose()
        assert pool.out == "a"
        since = pool.clock.now
        while pool.out:
            pool.clock.advance(1)
        return pool.clock.now - since

    assert [eject() for _ in range(5)] == [10, 20, 30, 35, 35]
    pool.clock.advance(25)  # two and a half times base_ejection: two are forgotten
    assert eject() == 35
    pool.clock.advance(39)
    assert eject() == 20
    pool.clock.advance(1000)
    assert eject() == 10


def test_who_is_back_starts_anew() -> None:
    pool = Pool()
    pool.bad(responses=3)
    pool.bad(responses=3)
    pool.clock.advance(11)
    pool.ejections.look()
    pool.lose(times=2)
    assert pool.out == ""
    pool.bad()
    assert pool.out == "a"


@pytest.mark.parametrize(
    ("backends", "percent", "out"),
    [(1, 50, ""), (1, 100, "a"), (2, 50, "a"), (3, 50, "a"), (4, 50, "ab"), (5, 10, ""), (5, 20, "a")],
)
def test_at_most_so_many(backends: int, percent: int, out: str, caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(backends, max_ejection_percent=percent)
    with caplog.at_level(logging.WARNING):
        for index in range(backends):
            pool.lose(index, times=10)
    assert pool.out == out
    spared = [record for record in caplog.records if "is not ejected" in record.getMessage()]
    assert len(spared) == backends - len(out), "each is named once"


def test_there_is_room_again() -> None:
    pool = Pool(2)
    pool.lose(0)
    pool.lose(1, times=5)
    assert pool.out == "a"
    pool.clock.advance(11)
    pool.lose(1, times=1)
    assert pool.out == "b"


def test_who_leaves_is_forgotten_and_makes_no_room() -> None:
    pool = Pool(4)
    pool.lose(0)
    pool.ejections.remove(pool.backends[0])
    assert pool.clock.pending == []
    pool.lose(1)
    pool.lose(2)
    assert [backend.ejected for backend in pool.backends] == [True, True, False, False]


def test_the_end_brings_all_back() -> None:
    pool = Pool()
    pool.lose(0)
    pool.ejections.close()
    assert pool.out == ""
    assert pool.clock.pending == []
    pool.lose(1)
    assert pool.out == ""


def test_both_health_and_messages_have_to_agree() -> None:
    pool = Pool()
    backend = pool.backends[0]
    pool.lose()
    backend.checked(None, 0.1, connected=True)
    assert not backend.usable
    for _ in range(3):
        backend.checked("no_answer", 0.1, connected=True)
    pool.clock.advance(11)
    assert not backend.ejected
    assert not backend.usable
