"""A socket in the maps, and its numbers."""

import socket

from lb import abi
from lb.dataplane import sockets
from lb.slots import SlotRef

_FIN = 1  # counts as a byte received
_PAUSES = tuple(abi.Pause)


class MappedSocket:
    """A socket in the sockmap. The owner of the socket keeps it; nobody reads or writes it meanwhile.

    Its numbers are the kernel's, live.
    """

    __slots__ = ("_sent_before", "_slot", "ref", "sock", "taken")

    def __init__(self, ref: SlotRef, sock: socket.socket, slot: abi.Slot, written: int) -> None:
        """``written``: by all before the kernel, see :func:`lb.dataplane.sockets.written`."""
        self.ref = ref
        self.sock = sock
        self.taken = 0  # bytes that its owner had read before it was mapped
        self._slot = slot
        self._sent_before = written

    @property
    def outstanding(self) -> int:
        """Requests whose response has not come. For a client: from it; for an upstream: to it."""
        # Read in this order, an answer that comes in between makes it too large, never negative.
        answered = self._slot.answered + self._slot.written_off
        return self._slot.sent - answered

    def write_off(self, requests: int) -> None:
        """Client: that many of its requests will not be answered by a backend; it was told."""
        self._slot.written_off += requests

    @property
    def waits_for(self) -> SlotRef:
        """Shared upstream that is paused: the client that has no room."""
        return SlotRef(self._slot.target, self._slot.target_generation)

    @property
    def ambiguous(self) -> int:
        """Upstream: outstanding requests that have no entry of their own (``bpf/lb_inflight.h``)."""
        return self._slot.ambiguous - self._slot.disambiguated

    @property
    def consumed_bytes(self) -> int:
        """Bytes from this socket that got a verdict."""
        return self._slot.consumed_bytes

    @property
    def passed_messages(self) -> int:
        """Messages from this socket that the verdict left to user space."""
        return self._slot.passed_messages

    @property
    def paused(self) -> abi.Pause:
        """Why the parser stopped in front of a message, if it did. Ends with :meth:`DataPlane.resume`."""
        return _PAUSES[self._slot.paused]

    @property
    def begun(self) -> bool:
        """Whether a message from this socket is still coming in: it cannot be paused."""
        return self._slot.started != 0

    @property
    def has_room(self) -> bool:
        """Whether senders that were paused for the sake of this socket may go on: half its budget is free."""
        return self.backlog <= self._slot.budget // 2

    @property
    def undelivered_quiet(self) -> int:
        """Upstream: requests without response that the backend has not certainly received.

        Final once the connection is dead. What the backend acknowledged and never read nobody knows of.
        """
        slot = self._slot
        if not slot.quiet:
            return 0
        acknowledged = sockets.progress(self.sock).acknowledged - self._sent_before
        if acknowledged >= slot.redirected_bytes:
            return 0
        return slot.quiet - (slot.mark_quiet if acknowledged >= slot.mark_bytes else slot.delivered_quiet)

    @property
    def backlog(self) -> int:
        """Bytes that were redirected to this socket and are not in its TCP send queue yet."""
        if not self._slot.redirected_bytes:  # many upstreams are never used: the kernel need not be asked
            return 0
        return self._not_queued(sockets.progress(self.sock).acknowledged)

    def _not_queued(self, acknowledged: int) -> int:
        rest = self._slot.redirected_bytes - (acknowledged - self._sent_before)
        return max(0, rest - sockets.unacknowledged(self.sock)) if rest > 0 else 0

    @property
    def at_rest(self) -> bool:
        """Upstream: whether nothing is on its way there, and no response is to come."""
        return not self.outstanding and not self._slot.quiet and self.backlog == 0

    @property
    def all_answered(self) -> bool:
        """Client that has sent FIN: whether nothing that it sent, and no answer to it, is on its way."""
        progress = sockets.progress(self.sock)
        # In this order: what has its verdict is outstanding or answered, and an answer has been redirected.
        return (
            progress.received - self.taken - self._slot.consumed_bytes <= _FIN
            and not self.outstanding
            and not self._not_queued(progress.acknowledged)
        )

    @property
    def acknowledged(self) -> int:
        """Bytes that the peer has acknowledged in the connection's life."""
        return sockets.progress(self.sock).acknowledged

    @property
    def delivered(self) -> bool:
        """Whether the peer has acknowledged all that is in the TCP send queue, our FIN included."""
        return sockets.unacknowledged(self.sock) == 0

    @property
    def dead(self) -> bool:
        """Whether the connection is closed in both directions, or reset."""
        return sockets.tcp_state(self.sock) == sockets.TCP_CLOSE

    @property
    def undecided(self) -> int:
        """Bytes that arrived on this socket and got no verdict: at rest, an incomplete message.

        A FIN of the peer counts as a byte.
        """
        return max(0, sockets.progress(self.sock).received - self.taken - self._slot.consumed_bytes)

    def set_rates(self, rate: int, address_rate: int) -> None:
        """Client: other numbers of rates, from the next message on; 0 for none."""
        self._slot.rate = rate
        self._slot.address_rate = address_rate

    def hold(self) -> None:
        """Makes the parser pause in front of the next message."""
        self._slot.hold = 1
