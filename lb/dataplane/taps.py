"""Taps: some of a listener's messages, as the programs show them (``bpf/lb_tap.h``)."""

import ipaddress
import socket
import time
from dataclasses import dataclass

from lb import abi
from lb.libbpf import ArrayMap, Map, Object, RingReader
from lb.slots import SlotRef

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A client's message that got its verdict."""

    number: int  # of the sample
    place: int  # of the tap
    life: int
    time: int  # nanoseconds of CLOCK_MONOTONIC
    ref: SlotRef  # of the client
    client: str  # its address, as its socket has it
    backend: int | None  # index; None: it was denied
    length: int  # bytes of the message
    batch: int  # messages that travelled together, of which this was the first
    fate: abi.Fate
    shown: bytes  # the start of the message, at most abi.SAMPLE bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to a request that was sampled."""

    number: int  # of the sample
    time: int  # nanoseconds of CLOCK_MONOTONIC


class NoTapError(Exception):
    """All places are taken."""


class Taps:
    """Opens and closes taps, and reads what they show. While none is open, programs sample nothing."""

    def __init__(self, loaded: Object) -> None:
        self._taps = loaded.map("lb_taps", ArrayMap).view(abi.Taps)[0]
        self._ring = RingReader(loaded.map("lb_samples", Map))
        self._listeners = 0
        self._lives = 0

    def close(self) -> None:
        """Gives the ring buffer back."""
        self._ring.close()

    def fileno(self) -> int:
        """A descriptor that polls readable when there is something to read."""
        return self._ring.fileno()

    def new_listener(self) -> int:
        """A number by which the messages of a listener are known; nobody had it before."""
        self._listeners += 1
        return self._listeners

    def open(self, listener: int, rate: int) -> tuple[int, int]:
        """Opens a tap for ``rate`` samples a second; a quarter of them may come at once.

        Returns the tap's place and life: both stand in its samples. Two taps of one listener have samples of
        their own each.

        Raises:
            NoTapError: :data:`lb.abi.MAX_TAPS` are open.
        """
        assert listener > 0, "0 is no listener"
        free = [place for place in range(abi.MAX_TAPS) if not self._taps.taps[place].listener]
        if not free:
            raise NoTapError
        place = free[0]
        self._lives = self._lives % 0xFFFF_FFFF + 1
        tap = self._taps.taps[place]
        tap.life = self._lives
        tap.interval = -(-_SECOND // rate)
        tap.burst = tap.interval * max(1, rate // 4)
        tap.full = 0
        tap.lost = 0
        tap.listener = listener
        self._taps.open += 1
        return place, self._lives

    def shut(self, place: int) -> int:
        """Closes a tap; returns the number of samples for which there was no room."""
        tap = self._taps.taps[place]
        assert tap.listener, "the tap is not open"
        self._taps.open -= 1
        tap.listener = 0
        return tap.lost

    def read(self) -> list[Sample | Answer]:
        """What has happened since the last call, in order."""
        return [_decode(record) for record in self._ring.read()]

    @staticmethod
    def now() -> int:
        """The time of the programs' clock."""
        return time.monotonic_ns()


def _decode(record: bytes) -> Sample | Answer:
    head = abi.Record.from_buffer_copy(record)
    if head.kind == abi.RecordKind.ANSWER:
        return Answer(head.number, head.time)
    sample = abi.Sample.from_buffer_copy(record)
    fate = abi.Fate(sample.fate)
    return Sample(
        number=head.number,
        place=sample.tap,
        life=sample.life,
        time=head.time,
        ref=SlotRef(sample.client, sample.client_generation),
        client=_endpoint(sample),
        backend=None if fate is abi.Fate.DENIED else sample.backend,
        length=sample.length,
        batch=sample.batch,
        fate=fate,
        shown=bytes(sample.bytes[: sample.shown]),
    )


def _endpoint(sample: abi.Sample) -> str:
    address = bytes(sample.address)
    if sample.family == socket.AF_INET6:
        return f"[{ipaddress.IPv6Address(address)}]:{sample.port}"
    return f"{ipaddress.IPv4Address(address[:4])}:{sample.port}"
