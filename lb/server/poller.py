"""One edge-triggered epoll for every socket that an event loop must not touch.

asyncio transports would read from the sockets that they watch, and a level-triggered reader spins on data
that is not for it. So the sockets live in an epoll set of our own, and the loop watches only that set.
"""

import asyncio
import select
from typing import Protocol

from lb.server.guard import Guarded

_BATCH = 512
STATE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLERR | select.EPOLLET
CONNECTING = SPACE = STATE | select.EPOLLOUT


class Watched(Guarded, Protocol):
    """Who gets the events of a socket."""

    def on_events(self, mask: int) -> None:
        """Called with the EPOLL* bits; may come late, but never after :meth:`Poller.forget`."""


class Poller:
    """Dispatches socket events to their owners."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def watch(self, fd: int, owner: Watched, events: int = STATE) -> None:
        """Starts to report the events of a socket; what is already true is reported at once.

        Raises:
            OSError: the kernel has no memory, or the user has no more watches (ENOSPC).
        """
        self._epoll.register(fd, events)
        self._watched[fd] = owner

    def change(self, fd: int, events: int) -> None:
        """Changes what is reported; what is already true is reported again."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stops to report, if :meth:`watch` has not failed.

        To be called before the socket is closed, which takes it out of the set.
        """
        self._watched.pop(fd, None)

    def unwatch(self, fd: int) -> None:
        """Takes a socket out of the set, for an owner to come who watches it anew."""
        self.forget(fd)
        self._epoll.unregister(fd)

    def close(self) -> None:
        """Ends the polling of all sockets."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _dispatch(self) -> None:
        # Owners are looked up before the first handler runs: a number that it closes may be reused at once.
        events = [(fd, self._watched.get(fd), mask) for fd, mask in self._epoll.poll(0, _BATCH)]
        for fd, owner, mask in events:
            if owner is not None and self._watched.get(fd) is owner:
                with owner.guard:
                    owner.on_events(mask)
