"""What the programs count, added up over the CPUs."""

from dataclasses import dataclass

from lb import abi
from lb.libbpf import Object, PerCpuArray
from lb.ranges import Ranges


@dataclass(frozen=True, slots=True)
class Traffic:
    """Messages and bytes between one listener and one backend."""

    requests: int
    responses: int
    request_bytes: int
    response_bytes: int


@dataclass(frozen=True, slots=True)
class Durations:
    """Message durations of one backend.

    ``buckets[i]`` counts messages that took less than ``bucket_limit(i)`` seconds and no less than the limit
    before; ``sum`` is in seconds.
    """

    buckets: tuple[int, ...]
    sum: float


def bucket_limit(index: int) -> float:
    """The upper limit of a bucket in seconds, exclusive: mirrors ``lb_bucket()``."""
    index += 1
    if index <= 4:
        return index / 1e6
    octave, quarter = divmod(index, 4)
    return ((4 + quarter) << (octave - 1)) / 1e6


class Counters:
    """Reads the per-CPU maps; a read costs a system call, so they are for scrapes, not for messages."""

    def __init__(self, loaded: Object) -> None:
        self._traffic = loaded.map("lb_traffic", PerCpuArray)
        self._durations = loaded.map("lb_durations", PerCpuArray)
        self._counters = loaded.map("lb_counters", PerCpuArray)
        self.rows = Ranges("pairs of listener and backend", self._traffic.max_entries)
        self._before: dict[abi.Counter, int] = dict.fromkeys(abi.REASONS, 0)

    def new_traffic_rows(self, count: int = 1) -> int:
        """Rows side by side, each for a pair of listener and backend; returns the first.

        Raises:
            TableFullError: the maps were not loaded for so many.
        """
        return self.rows.acquire(count)

    def release_traffic_rows(self, first: int, count: int = 1) -> None:
        """Gives rows back; nobody may count there any more."""
        for row in range(first, first + count):
            self.clear_traffic(row)
        self.rows.release(first, count)

    def traffic(self, row: int) -> Traffic:
        """The sums of one row."""
        return Traffic(*_add_up(self._traffic, row))

    def clear_traffic(self, row: int) -> None:
        """Starts a row again from 0; nobody may count there meanwhile."""
        self._traffic.update(row, bytes(self._traffic.stride * self._traffic.cpus))

    def clear_durations(self, backend: int) -> None:
        """Starts a histogram again from 0; nobody may count there meanwhile."""
        self._durations.update(backend, bytes(self._durations.stride * self._durations.cpus))

    def durations(self, backend: int) -> Durations:
        """The histogram of one backend."""
        total, *buckets = _add_up(self._durations, backend)
        return Durations(tuple(buckets), total / 1e6)

    def messages(self, counter: abi.Counter) -> int:
        """Messages that were counted for a reason since :meth:`start`."""
        return _add_up(self._counters, counter)[0] - self._before[counter]

    def start(self) -> None:
        """Counts from here on: what the self-test caused is not the users' traffic."""
        self._before = {counter: _add_up(self._counters, counter)[0] for counter in abi.REASONS}


def _add_up(array: PerCpuArray, index: int) -> list[int]:
    """The sums over the CPUs of a value that is made of 64-bit words."""
    words = memoryview(array.lookup(index)).cast("Q")
    count = array.stride // words.itemsize
    return [sum(words[word::count]) for word in range(count)]
