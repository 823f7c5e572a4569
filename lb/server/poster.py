"""Writes to the post channel, one whole message after the other."""

import asyncio

from lb.dataplane import PostChannel


class Poster:
    """The one writer of the channel."""

    def __init__(self, channel: PostChannel) -> None:
        self._channel = channel
        self._turn = asyncio.Lock()

    async def send(self, posted: bytes) -> None:
        """Writes what :class:`PostChannel` has made of a message; returns when the channel has taken it.

        Not to be cancelled halfway: what follows would be read as the rest of it.
        """
        await asyncio.shield(asyncio.ensure_future(self._send(posted)))

    async def _send(self, posted: bytes) -> None:
        async with self._turn:
            await asyncio.get_running_loop().sock_sendall(self._channel.sock, posted)
