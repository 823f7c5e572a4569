"""What the service manager is told: the protocol of sd_notify(3), in a page instead of a library.

A service manager that wants to know names a datagram socket in ``NOTIFY_SOCKET``, and in ``WATCHDOG_USEC``
how often it wants a sign of life; one that does not name them is told nothing. The signs come from the event
loop: when it hangs, they stop.
"""

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Self

_log = logging.getLogger(__name__)

_AGAIN = 0.1  # seconds until a full queue is tried again
_STATUS_INTERVAL = 5.0  # seconds between looks at what `systemctl status` shows


class Notifier:
    """The connection to a service manager, or to none."""

    def __init__(self, sock: socket.socket | None, watchdog: float | None = None) -> None:
        """Takes over a connected socket that does not block; ``watchdog``: seconds between signs of life."""
        self._sock = sock
        self._watchdog = watchdog
        self._waiting: deque[bytes] = deque()
        self._status = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Connects to the service manager that the environment names, if one is there."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address:
            return cls(None)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            sock.close()
            _log.warning("NOTIFY_SOCKET=%s: %s; the service manager is told nothing", address, error.strerror)
            return cls(None)
        return cls(sock, _watchdog(environment))

    def ready(self) -> None:
        """It serves, for the first time or after a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """It has begun to reload: :meth:`ready` ends that, however the reload went."""
        # The clock that systemd compares with: a READY=1 that was sent before is not the end of this reload.
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, seconds: float) -> None:
        """It has begun to end, and asks for so much time."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        if text != self._status:
            self._status = text
            self._tell(f"STATUS={text}")

    async def keep_telling(self, summary: Callable[[], str]) -> None:
        """Gives signs of life, and says what there is to see, until it is cancelled."""
        if self._sock is None:
            return
        # Twice as often as asked for, as sd_watchdog_enabled(3) recommends.
        interval = min(_STATUS_INTERVAL, self._watchdog / 2 if self._watchdog else _STATUS_INTERVAL)
        while True:
            if self._watchdog and not self._waiting:
                self._tell("WATCHDOG=1")
            self.status(summary())
            await asyncio.sleep(interval)

    def close(self) -> None:
        """Closes the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._waiting.clear()

    def _tell(self, *lines: str) -> None:
        if self._sock is not None:
            self._waiting.append("\n".join(lines).encode())
            if len(self._waiting) == 1:
                self._send()

    def _send(self) -> None:
        """Sends what waits, in its order; a full queue of the receiver's delays it."""
        while self._waiting and self._sock is not None:
            try:
                self._sock.send(self._waiting[0])
            except BlockingIOError:
                asyncio.get_running_loop().call_later(_AGAIN, self._send)
                return
            except OSError as error:  # ECONNREFUSED: the service manager is gone
                _log.warning("the service manager cannot be told anything: %s", error.strerror)
                self.close()
                return
            self._waiting.popleft()


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Seconds within which a sign of life is expected of this process; None: none is."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    process = environment.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or process not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1e6
