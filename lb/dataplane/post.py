"""The post channel: what user space has to say to a mapped socket.

Two writers to one socket would write into each other's messages, and the kernel is one of them. So user
space writes to a loopback connection of its own whose other end runs the programs: a header
(``struct lb_post``), and the message, which the verdict redirects behind all that waits for the socket.
"""

from typing import TYPE_CHECKING

from lb import abi
from lb.dataplane import sockets
from lb.slots import SlotRef

if TYPE_CHECKING:
    from lb.dataplane.plane import DataPlane


class PostChannel:
    """Owns both ends of a loopback connection, and a slot. Whole messages must be written to ``sock``."""

    def __init__(self, plane: "DataPlane", max_message: int) -> None:
        self._plane = plane
        self.sock, self._near = sockets.loopback_pair(max_message)
        self._mapped = plane.insert_own(self._near, abi.Role.POST)

    @staticmethod
    def forward(source: SlotRef, message: bytes) -> bytes:
        """A message of a source that user space has taken over, as it is to be written."""
        return _post(abi.PostKind.FORWARD, source, message)

    @staticmethod
    def reply(client: SlotRef, message: bytes) -> bytes:
        """An answer of the balancer's own, as it is to be written."""
        return _post(abi.PostKind.REPLY, client, message)

    @staticmethod
    def charge(rate: int, address_rate: int) -> bytes:
        """Charges two rates (0: none) for a message that user space carries, as it is to be written."""
        return bytes(abi.Post(0, abi.PostKind.CHARGE, rate, address_rate))

    def close(self) -> None:
        """Closes the connection."""
        self._plane.remove_own(self._mapped)
        self._near.close()
        self.sock.close()


def _post(kind: abi.PostKind, ref: SlotRef, message: bytes) -> bytes:
    return bytes(abi.Post(len(message), kind, ref.number, ref.generation)) + message
