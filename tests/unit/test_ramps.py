"""A backend that starts slowly, on a clock that the test moves."""

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from lb import config
from lb.backends import Backend
from lb.balance import RAMP_STEPS
from lb.server.weights import Ramps

SLOW_START = 20.0


class Call:
    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due, self.callback = due, callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """Moves only by :meth:`advance`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[Call] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Call:
        self.calls.append(Call(self.now + delay, callback))
        return self.calls[-1]

    @property
    def pending(self) -> list[Call]:
        return [call for call in self.calls if not call.cancelled]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [call for call in self.pending if call.due <= end + 1e-9]:
            call = min(due, key=lambda call: call.due)
            self.calls.remove(call)
            self.now = max(self.now, call.due)
            call.callback()
        self.now = end


def backend() -> Backend:
    address = config.Address(IPv4Address("127.0.0.1"), 9000)
    return Backend("pool", config.Backend("a", address, 4), config.HealthCheck(), index=0)


class Ramping:
    def __init__(self, slow_start: float = SLOW_START) -> None:
        self.clock = Clock()
        self.published: list[float] = []
        self.ramps = Ramps(self.clock, slow_start, lambda b: self.published.append(b.effective_weight))
        self.backend = backend()


def test_its_weight_grows_step_by_step_and_then_nothing_runs() -> None:
    it = Ramping()
    it.ramps.start(it.backend)
    assert it.backend.effective_weight == 4 * 0.05
    it.clock.advance(SLOW_START / 2)
    assert it.backend.effective_weight == pytest.approx(4 * 0.525)
    it.clock.advance(SLOW_START / 2)
    assert it.backend.effective_weight == 4
    assert it.clock.pending == []
    assert it.published == sorted(it.published)
    assert len(it.published) == RAMP_STEPS


def test_a_late_timer_makes_a_larger_step() -> None:
    it = Ramping()
    it.ramps.start(it.backend)
    (call,) = it.clock.calls
    it.clock.now += SLOW_START * 0.75
    call.callback()
    assert it.published == pytest.approx([4 * (0.05 + 0.95 * 0.75)])


def test_one_that_goes_down_starts_again_from_the_beginning() -> None:
    it = Ramping()
    for _ in range(2):
        it.ramps.start(it.backend)
        assert it.backend.warmth == 0.05
        it.clock.advance(SLOW_START / 3)
        assert 0.3 < it.backend.warmth < 0.4
        it.ramps.stop(it.backend)
        assert it.clock.pending == []
    it.ramps.stop(it.backend)  # it was not ramping


def test_without_slow_start_there_is_none() -> None:
    it = Ramping(slow_start=0.0)
    it.ramps.start(it.backend)
    assert it.backend.effective_weight == 4
    assert it.clock.calls == []
