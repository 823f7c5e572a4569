"""Waiting for the kernel where it gives no event."""

import asyncio
from collections.abc import Callable

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
