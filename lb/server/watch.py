"""Watching the configuration file (``runtime.watch``).

The content counts, not the file: what is read by its path is compared, so a file that is replaced, or reached
by a symbolic link that is (``..data`` of a Kubernetes ConfigMap), is noticed, and one that is only touched is
not. Looking once a second needs no event that could be missed.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)

INTERVAL = 1.0
_MOST = 1 << 20  # bytes; a larger file is no configuration


def fingerprint(path: Path) -> bytes | None:
    """Of the content; None if it cannot be read now."""
    try:
        with path.open("rb") as file:
            return hashlib.blake2b(file.read(_MOST)).digest()
    except OSError:
        return None


async def watch(path: Path, enabled: Callable[[], bool], changed: Callable[[], None]) -> None:
    """Calls when the content has changed and is the same at two looks; serves for ever.

    Args:
        path: of the file.
        enabled: whether to call; what changes meanwhile is not reported later.
        changed: is called.
    """
    reported = seen = await asyncio.to_thread(fingerprint, path)
    while True:
        await asyncio.sleep(INTERVAL)
        before, seen = seen, await asyncio.to_thread(fingerprint, path)
        if seen is None or seen != before:
            continue  # being written, or gone for a moment
        if seen != reported:
            reported = seen
            if enabled():
                changed()
