"""A backend that answers ``length-prefixed`` messages."""

import asyncio
from typing import cast

from lb.framing import PRESETS, Direction, Framer

_HEADER = 8


class DemoBackend(asyncio.Protocol):
    """Answers each message with the same id, its own name, a space, and the request's body."""

    def __init__(self, name: str) -> None:
        self._name = name.encode() + b" "
        self._framer = Framer(PRESETS["length-prefixed"], Direction.REQUEST)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answers every message that is complete, in one write."""
        assert self._transport is not None
        answers = bytearray()
        for message in self._framer.feed(data):
            body = self._name + message.data[_HEADER:]
            answers += (len(body) + 4).to_bytes(4, "big") + message.data[4:_HEADER] + body
        if answers:
            self._transport.write(bytes(answers))
        if self._framer.error is not None:
            self._transport.abort()
