"""Finding out whether a backend can be connected to.

Without ``health_check`` in its pool a backend is tried at the start and, once it is down, until it is up
again; in between the clients' own connections tell. With it, it is tried all the time.
"""

import asyncio
import random
import socket
from collections.abc import Callable

from lb import config
from lb.backends import AdminState, Backend, Health, backoff, connect_failure


class Monitor:
    """Tries one backend by TCP connections of its own."""

    def __init__(self, backend: Backend, check: config.HealthCheck | None, connect_timeout: float) -> None:
        self._backend = backend
        self._check = check
        self._timeout = connect_timeout if check is None else check.timeout
        self._changed = asyncio.Event()
        backend.on_change.append(lambda _: self._changed.set())

    async def run(self) -> None:
        """Serves for ever; to be run as a task."""
        attempt = 0
        while True:
            await self._until(lambda: self._backend.admin is not AdminState.MAINT)
            reason = await self._try()
            self._changed.clear()
            if reason is None:
                attempt = 0
                self._backend.connected()
            else:
                attempt += 1
                self._backend.failed(reason)
            if self._check is not None:
                await asyncio.sleep(self._check.interval * random.uniform(0.9, 1.1))
            elif reason is None and self._backend.health is not Health.DOWN:
                await self._until(lambda: self._backend.health is not Health.UP)
            else:
                await asyncio.sleep(backoff(attempt))

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Returns when something has changed so that the condition holds."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _try(self) -> str | None:
        """Connects and closes; the reason of a failure, None for success."""
        address = self._backend.config.address
        try:
            with socket.socket(address.family, socket.SOCK_STREAM) as sock:
                sock.setblocking(False)
                async with asyncio.timeout(self._timeout):
                    await asyncio.get_running_loop().sock_connect(sock, address.sockaddr)
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return connect_failure(error.errno or 0)
        return None
