"""Which requests were outstanding on an upstream that died?

The table of outstanding requests is one for all upstreams, and looking through it takes as long for one as
for all: everybody who asks meanwhile shares the next look.
"""

import asyncio

from lb.dataplane import DataPlane
from lb.slots import SlotRef


class Inquest:
    """Looks for the requests of dead upstreams."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._wanted = asyncio.Event()
        self._asked: list[tuple[SlotRef, asyncio.Future[list[int]]]] = []

    async def run(self) -> None:
        """Serves for ever; to be run as a task."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            asked, self._asked = self._asked, []
            upstreams = {upstream for upstream, _ in asked}
            found = await asyncio.to_thread(self._plane.requests.outstanding, upstreams)
            for upstream, answer in asked:
                if not answer.done():
                    answer.set_result(found[upstream])

    async def requests(self, upstream: SlotRef) -> list[int]:
        """The ids of the requests that are outstanding there."""
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._asked.append((upstream, answer))
        self._wanted.set()
        return await answer
