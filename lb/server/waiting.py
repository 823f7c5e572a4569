"""Waiting for the kernel where it gives no event."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_SHORTEST = 0.001
_LONGEST = 0.05


async def until(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds. The caller sets the limit with ``asyncio.timeout``.

    The kernel does not tell when a backlog has run empty. Only connections that are being closed are looked
    at, each ever more seldom, from 1 ms to 50 ms.
    """
    delay = _SHORTEST
    while not condition():
        await asyncio.sleep(delay)
        delay = min(delay * 2, _LONGEST)


@asynccontextmanager
async def patience(seconds: float, progress: Callable[[], object]) -> AsyncIterator[None]:
    """Raises TimeoutError when ``progress`` has not changed for so long, give or take an eighth."""
    loop = asyncio.get_running_loop()
    seen = progress()
    timer: asyncio.TimerHandle
    async with asyncio.timeout(seconds) as limit:

        def look() -> None:
            nonlocal seen, timer
            if (now := progress()) != seen:
                seen = now
                limit.reschedule(loop.time() + seconds)
            timer = loop.call_later(seconds / 8, look)

        timer = loop.call_later(seconds / 8, look)
        try:
            yield
        finally:
            timer.cancel()
