"""The last events, and floods that are told in sums."""

import logging
from collections.abc import Iterator
from itertools import pairwise

import pytest

from lb.events import Ring, event
from lb.server.bursts import Bursts, Count


@pytest.fixture(name="log")
def _log() -> Iterator[logging.Logger]:
    log = logging.Logger("of the test", logging.INFO)  # noqa: LOG001 - nobody else has it
    yield log
    for handler in log.handlers:
        handler.close()


class TestRing:
    def test_keeps_events_and_nothing_else(self, log: logging.Logger) -> None:
        ring = Ring()
        log.addHandler(ring)
        log.info("is no event")
        log.warning("backend %s is down", "a", extra=event("health", backend="a"))
        log.debug("is not logged", extra=event("health"))
        (only,) = ring.after()["events"]
        assert only["seq"] == 1
        assert (only["level"], only["kind"], only["message"]) == ("warning", "health", "backend a is down")
        assert only["about"] == {"backend": "a"}

    def test_goes_on_after_what_was_read(self, log: logging.Logger) -> None:
        ring = Ring()
        log.addHandler(ring)
        seen = 0
        for number in range(1, 4):
            log.info("event %d", number, extra=event("test"))
            news = ring.after(seen)
            assert [each["seq"] for each in news["events"]] == [number]
            assert news["missed"] == 0
            seen = news["next"]
        assert ring.after(seen) == {"events": [], "next": 3, "missed": 0}

    def test_is_bounded_and_says_what_it_has_forgotten(self, log: logging.Logger) -> None:
        ring = Ring(10)
        log.addHandler(ring)
        for _ in range(25):
            log.info("x" * 10_000, extra=event("test"))
        news = ring.after(5)
        assert [each["seq"] for each in news["events"]] == list(range(16, 26))
        assert news["missed"] == 10
        assert all(len(each["message"]) == 500 for each in news["events"])

    def test_a_reader_from_an_earlier_life_gets_all(self, log: logging.Logger) -> None:
        ring = Ring()
        log.addHandler(ring)
        log.info("first", extra=event("test"))
        assert len(ring.after(500)["events"]) == 1


class TestBursts:
    FULL = Count("refused", "rpc", "max_clients")
    LOST = Count("dropped", "", "client_gone")

    def test_tells_at_once_and_then_in_sums(self) -> None:
        counts = {self.FULL: 0, self.LOST: 0}
        bursts = Bursts(lambda: counts)
        told: dict[int, int] = {}
        for second in range(100):
            counts[self.FULL] += 7 if second >= 3 else 0
            for count, grown in bursts.news(second):
                assert count == self.FULL
                told[second] = grown
        assert next(iter(told.items())) == (3, 7)
        assert all(later - earlier == 10 for earlier, later in pairwise(told))
        assert sum(told.values()) == 7 * (max(told) - 2)

    def test_reasons_do_not_wait_for_each_other(self) -> None:
        counts = {self.FULL: 1, self.LOST: 0}
        bursts = Bursts(lambda: counts)
        assert dict(bursts.news(0)) == {self.FULL: 1}
        counts[self.LOST] = 2
        assert dict(bursts.news(1)) == {self.LOST: 2}

    def test_is_an_event(self, caplog: pytest.LogCaptureFixture) -> None:
        Bursts(lambda: {self.FULL: 3, self.LOST: 1}).tell(0)
        assert caplog.messages == [
            "listener rpc: 3 clients refused (max_clients)",
            "1 messages not delivered (client_gone)",
        ]
