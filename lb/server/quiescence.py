"""Grace periods: when can no program hold an old reference any more?

A program that runs right now may have compared a generation, or read a route, before it was changed.
:meth:`DataPlane.wait_for_programs` waits for every such program. It takes milliseconds, so it runs in a
thread, and everybody who waits meanwhile shares the next one.
"""

import asyncio

from lb.dataplane import DataPlane


class Quiescence:
    """Grace periods for those who changed what programs read."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._wanted = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """Serves for ever; to be run as a task."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            retired = self._plane.slots.take_retired()
            waiters, self._waiters = self._waiters, []
            await asyncio.to_thread(self._plane.wait_for_programs)
            requests = self._plane.requests
            if left := requests.left_behind(retired):
                found = await asyncio.to_thread(requests.outstanding, left)
                for upstream, idents in found.items():
                    requests.forget(upstream, idents)
            self._plane.reclaim(retired)
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def reclaim_soon(self) -> None:
        """Makes the slots that were retired so far free after a grace period."""
        self._wanted.set()

    async def wait(self) -> None:
        """Returns when every program that ran at the time of the call has ended."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wanted.set()
        await waiter
