"""The protocol of the chaos suite: messages that prove whose they are, and that they are whole.

    byte 0      marks: 0x50 in 0x70 (the magic), 0x80 a response, 0x01 nobody answers, 0x02 of a fifo client,
                0x04 of a client that shares its upstreams
    bytes 1-3   length of the whole message, big-endian
    bytes 4-7   id: the sequence of the request, the same for all clients; on shared upstreams another
    bytes 8-23  label: client, sequence, origin (0, or which backend and which copy), checksum of all but id
    byte 24-    filling

The cutter here is not the program's own: a mistake in one of them shows.
"""

import random
import struct
import zlib
from typing import Any, NamedTuple

LEAST = 24  # bytes: header and label
MOST = 256 * 1024  # bytes: max_message
LARGEST = 64 * 1024  # bytes: the longest request that a client sends
NO_SEQUENCE = 0xFFFFFFFF  # of an answer to nothing
FIRST, AGAIN, FORGED = range(3)  # copies of an answer

_MAGIC, _RESPONSE, _SILENT, _FIFO, _SHARED = 0x50, 0x80, 0x01, 0x02, 0x04
_HEADER = struct.Struct(">II")
_LABEL = struct.Struct(">III")
_CHECKSUM = struct.Struct(">I")
_WHOLE = struct.Struct(">IIIIII")
_FILLING = random.Random("filling").randbytes(1 << 20)


def protocol(ordering: str) -> dict[str, Any]:
    """The declaration for a configuration; ``any`` or ``fifo``."""
    mark = {"offset": 0, "width": 1}
    return {
        "length": {"offset": 1, "width": 3},
        "id": {"offset": 4, "width": 4},
        "magic": mark | {"mask": 0x70, "value": _MAGIC},
        "response": mark | {"mask": _RESPONSE, "value": _RESPONSE},
        "no_response": mark | {"mask": _SILENT, "value": _SILENT},
        "min_message": LEAST,
        "max_message": MOST,
        "ordering": ordering,
    }


class MalformedError(Exception):
    """Bytes that are no message: nothing after them can be trusted."""


class Label(NamedTuple):
    """What a message says of itself."""

    client: int
    sequence: int
    number: int  # the id that it came with
    backend: int
    copy: int
    response: bool
    silent: bool
    fifo: bool
    shared: bool


def _checksum(head: bytes, filling: bytes) -> int:
    return zlib.crc32(filling, zlib.crc32(head[_HEADER.size :], zlib.crc32(head[:4])))


def _message(marks: int, number: int, client: int, sequence: int, origin: int, size: int) -> bytes:
    size = max(LEAST, size)
    head = _HEADER.pack((_MAGIC | marks) << 24 | size, number) + _LABEL.pack(client, sequence, origin)
    start = (client * 31 + sequence * 4099) % (len(_FILLING) - MOST)
    filling = _FILLING[start : start + size - LEAST]
    return head + _CHECKSUM.pack(_checksum(head, filling)) + filling


def request(
    client: int, sequence: int, size: int, *, silent: bool = False, fifo: bool = False, shared: bool = False
) -> bytes:
    """A request of ``size`` bytes."""
    marks = _SILENT * silent | _FIFO * fifo | _SHARED * shared
    return _message(marks, sequence, client, sequence, 0, size)


def answer(asked: Label, backend: int, size: int, copy: int = FIRST) -> bytes:
    """The answer to a request."""
    return _message(_RESPONSE, asked.number, asked.client, asked.sequence, backend << 8 | copy, size)


def forged(asked: Label, backend: int, number: int) -> bytes:
    """An answer that nobody asked for, on the upstream of the client that asked this."""
    return _message(_RESPONSE, number, asked.client, NO_SEQUENCE, backend << 8 | FORGED, LEAST)


def read(data: bytes) -> Label | None:
    """Return the label of a message, None if it has other bytes than it was made with."""
    first, number, client, sequence, origin, checksum = _WHOLE.unpack_from(data)
    if checksum != _checksum(data[: LEAST - _CHECKSUM.size], data[LEAST:]):
        return None
    marks = first >> 24
    if sequence not in (number, NO_SEQUENCE) and not marks & _SHARED:
        return None
    return Label(
        client,
        sequence,
        number,
        origin >> 8,
        origin & 0xFF,
        bool(marks & _RESPONSE),
        bool(marks & _SILENT),
        bool(marks & _FIFO),
        bool(marks & _SHARED),
    )


class Cutter:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def pending(self) -> int:
        """Bytes of a message that is not whole."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the messages that they complete. Raises MalformedError."""
        if self._rest:
            data = self._rest + data
        messages = []
        at, end = 0, len(data)
        while end - at >= 4:
            first = int.from_bytes(data[at : at + 4], "big")
            size = first & 0xFFFFFF
            if first >> 24 & 0x70 != _MAGIC or not LEAST <= size <= MOST:
                raise MalformedError(data[at : at + 8].hex())
            if end - at < size:
                break
            messages.append(data[at : at + size])
            at += size
        self._rest = data[at:]
        return messages


def garbage(source: random.Random) -> bytes:
    """The start of what is no message: a wrong magic, too short, too long, or noise."""
    body = source.randbytes(source.choice([4, 20, 400]))
    match source.randrange(4):
        case 0:
            return _HEADER.pack(0x20 << 24 | 100, 1) + body
        case 1:
            return _HEADER.pack(_MAGIC << 24 | source.randrange(LEAST), 1) + body
        case 2:
            return oversize(source) + body
        case _:
            return bytes([source.randrange(256) & 0x8F]) + source.randbytes(7) + body


def oversize(source: random.Random) -> bytes:
    """The header of a message that is longer than any may be."""
    size = source.choice([MOST + 1, MOST + 1000, 0xFFFFFF])
    return _HEADER.pack(_MAGIC << 24 | size, 7)
