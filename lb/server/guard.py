"""A bug in one connection ends that connection, not the process."""

import logging
from types import TracebackType
from typing import Protocol

_log = logging.getLogger(__name__)


class Guarded(Protocol):
    """A connection that can be ended from outside. Its name is what ``str`` makes of it."""

    @property
    def guard(self) -> "Guard":
        """Around everything that is done for this connection.

        Made anew each time: one that the connection kept would refer to it in a circle, which only the
        garbage collector can undo.
        """

    def crashed(self) -> None:
        """A bug of ours ends it."""


class Guard:
    """Logs what escapes from a connection's handlers and ends the connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Guarded) -> None:
        self._connection = connection

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        _log.error("%s: closed because of a bug", self._connection, exc_info=error)
        self._connection.crashed()
        return True
