"""A bug in one connection ends that connection, not the process."""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

_log = logging.getLogger(__name__)


class Guarded(Protocol):
    """A connection that can be ended from outside."""

    @property
    def guard(self) -> "Guard":
        """Around everything that is done for this connection."""


class Guard:
    """Logs what escapes from a connection's handlers and ends the connection."""

    __slots__ = ("_end", "_name")

    def __init__(self, name: Callable[[], str], end: Callable[[], None]) -> None:
        self._name = name
        self._end = end

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        _log.error("%s: closed because of a bug", self._name(), exc_info=error)
        self._end()
        return True
