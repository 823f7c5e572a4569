"""Shows when the kernel's strparser queue has run empty.

Work that the strparser puts off is queued in ``kstrp``, one queue for the whole machine that one worker
serves in order (``strp_dev_init()`` in net/strparser/strparser.c). The canary is a connection of the
balancer's own whose data always takes that way: it has arrived before the socket enters ``lb_sources``, and
the kick that releases it puts the work into the queue.
"""

from typing import TYPE_CHECKING

from lb import abi
from lb.dataplane import sockets

if TYPE_CHECKING:
    from lb.dataplane.plane import DataPlane


class Canary:
    """Owns both ends of a loopback connection, and a slot."""

    def __init__(self, plane: "DataPlane") -> None:
        self._plane = plane
        self._far, self._near = sockets.loopback_pair(1)
        self._mapped = plane.insert_own(self._near, abi.Role.CANARY)
        self._sent = 0
        self._caged = False  # sent, and not in the queue yet

    def send(self) -> None:
        """Starts to put work into the queue. What was sent before must have come through."""
        assert self.back()
        self._plane.leave_sources(self._mapped)
        self._far.sendall(b"?")
        self._sent += 1
        self._caged = True
        self.back()

    def back(self) -> bool:
        """Whether all work that stood in the queue at the time of :meth:`send` has been done."""
        if self._caged and sockets.progress(self._near).received == self._sent:
            self._caged = False
            self._plane.enter_sources(self._mapped)
        return self._mapped.consumed_bytes == self._sent

    def close(self) -> None:
        """Closes the connection."""
        self._plane.remove_own(self._mapped)
        self._near.close()
        self._far.close()
