"""Messages of the framing ``length-prefixed``, and numbered bodies that prove to be whole."""

import random
import struct
import zlib
from typing import NamedTuple

_HEADER = struct.Struct(">II")
_LABEL = struct.Struct(">IIII")


def message(number: int, body: bytes = b"") -> bytes:
    """Length of what follows, id, body."""
    return _HEADER.pack(4 + len(body), number) + body


class Answer(NamedTuple):
    """What the demonstration's backends and our own say: who answers, and what was asked."""

    number: int
    backend: str
    asked: bytes


def read_answer(data: bytes) -> Answer:
    """Take an answer apart."""
    length, number = _HEADER.unpack_from(data)
    assert length + 4 == len(data)
    backend, space, asked = data[_HEADER.size :].partition(b" ")
    assert space
    return Answer(number, backend.decode(), asked)


def labelled(client: int, sequence: int, size: int, source: random.Random) -> bytes:
    """A body that says whose it is, which one, how long, and the checksum of all that."""
    filling = source.randbytes(max(0, size - _LABEL.size))
    label = struct.pack(">III", client, sequence, len(filling))
    return label + struct.pack(">I", zlib.crc32(label + filling)) + filling


def read_label(body: bytes) -> tuple[int, int]:
    """Client and sequence of a labelled body; an AssertionError says that it is not whole."""
    client, sequence, length, checksum = _LABEL.unpack_from(body)
    filling = body[_LABEL.size :]
    assert length == len(filling), f"{len(filling)} of {length} bytes"
    assert checksum == zlib.crc32(body[:12] + filling), "other bytes than were sent"
    return client, sequence
