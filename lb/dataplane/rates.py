"""Rates as the programs read them (``bpf/lb_rate.h``)."""

import time

from lb import abi
from lb.libbpf import ArrayMap, Object

_SECOND = 1_000_000_000


class Rates:
    """The token buckets, by number; 0 stands for none."""

    def __init__(self, loaded: Object) -> None:
        self._rates = loaded.map("lb_rates", ArrayMap).view(abi.Rate)

    @property
    def size(self) -> int:
        """Numbers below it exist."""
        return len(self._rates)

    def set(self, number: int, *, messages_per_second: int, burst: int, deny: bool) -> None:
        """Makes a bucket new, and full. No client may have its number."""
        assert number > 0, "0 is no rate"
        rate = self._rates[number]
        # Up: never more than was allowed.
        rate.interval = -(-_SECOND // messages_per_second)
        rate.burst = rate.interval * burst
        rate.deny = deny
        rate.full = 0

    def interval(self, number: int) -> int:
        """Nanoseconds for one message."""
        return self._rates[number].interval

    def ready_at(self, number: int) -> int:
        """When one message may go, in nanoseconds of CLOCK_MONOTONIC."""
        rate = self._rates[number]
        return rate.full + rate.interval - rate.burst

    @staticmethod
    def now() -> int:
        """The time of the programs' clock."""
        return time.monotonic_ns()
