"""The framings that are in use, each published once."""

from lb.dataplane import DataPlane
from lb.framing import Framing


class Framings:
    """Counts who uses a framing; what nobody uses any more is withdrawn."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._known: dict[Framing, tuple[int, int]] = {}  # index, users

    def acquire(self, framing: Framing) -> int:
        """The index of a framing, for one more user.

        Raises:
            TableFullError: the maps were not loaded for one more.
        """
        index, users = self._known.get(framing, (-1, 0))
        if not users:
            index = self._plane.publish_framing(framing)
        self._known[framing] = (index, users + 1)
        return index

    def release(self, framing: Framing) -> None:
        """A user less; no program knows of him any more."""
        index, users = self._known.pop(framing)
        if users > 1:
            self._known[framing] = (index, users - 1)
        else:
            self._plane.withdraw_framing(index)
