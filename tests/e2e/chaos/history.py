"""What clients and backends saw, as plain data: made by the actors, judged by the model.

Times are seconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from dataclasses import dataclass, field
from enum import Enum


class End(Enum):
    """How a client's connection ended, as the client saw it."""

    LEFT = "left"  # it closed in good order, nothing was due to it any more
    GONE = "gone"  # it reset the connection itself
    RESET = "reset"  # the balancer reset it
    EOF = "closed"  # the balancer sent FIN first
    SHORT = "short"  # FIN from both, and answers were due
    REFUSED = "refused"  # it was not let in
    WAITING = "waiting"  # its patience ended: no answer, no end


@dataclass(slots=True)
class ClientHistory:
    """One connection of a client; its requests are numbered 0, 1, 2, ..."""

    client: int
    behaviour: str
    fifo: bool
    well: bool  # whether it does nothing wrong
    began: float
    shared: bool = False  # whether it has its upstreams together with others
    sent: bytearray = field(default_factory=bytearray)  # by sequence: 1 if nobody answers it
    answers: list[tuple[int, int]] = field(default_factory=list)  # sequence and copy, as they came
    foreign: list[int] = field(default_factory=list)  # clients whose answers came here
    corrupted: int = 0  # answers with other bytes than they were made with, or cut off by FIN
    complete: bool = False  # whether all that it sent, and then FIN, was taken by the kernel
    end: End = End.WAITING
    ended: float = 0.0


@dataclass(slots=True)
class UpstreamHistory:
    """One connection that a backend accepted."""

    backend: str
    began: float
    reads: list[tuple[int, int]] = field(default_factory=list)  # client and sequence, as they were read
    # What its kernel had when it was reset, and nobody had read: as above. The balancer cannot know of it.
    unread: list[tuple[int, int]] = field(default_factory=list)
    corrupted: int = 0  # as above
    answered: int = 0
    failed: float | None = None  # when the backend reset, closed or poisoned it
    deceived: bool = False  # whether it carried answers that nobody asked for
