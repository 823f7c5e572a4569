"""Messages of any framing, and what can be done to them. Pure, from a source of random numbers."""

import itertools
import random

from lb.framing import MAX_LENGTH, Endian, Field, Framing, Match

_FLIPS = 3  # most bits
_JUNK = 40  # most bytes that a message grows or shrinks by


def build(framing: Framing, number: int, body: bytes, *, response: bool = False) -> bytes:
    """A message with this id, and this body behind the fields and whatever else must be there."""
    data = bytearray(framing.min_message) + body
    if framing.magic is not None:
        _write(data, framing.magic.field, framing.magic.value | _kept(data, framing.magic))
    if framing.response is not None:
        mark = framing.response
        other = mark.value ^ (mark.mask & -mark.mask)  # what is no response says something else there
        _write(data, mark.field, (mark.value if response else other) | _kept(data, mark))
    if framing.id is not None:
        _write(data, framing.id, number & framing.id.ones)
    _write_length(data, framing, len(data) - framing.length.adjust)
    return bytes(data)


def body_of(framing: Framing, data: bytes) -> bytes:
    """The body of a message that was built here."""
    return data[framing.min_message :]


def _kept(data: bytearray, mark: Match) -> int:
    return mark.field.read(data) & ~mark.mask


def _write_length(data: bytearray, framing: Framing, value: int) -> None:
    """The field may hold other things beside the length."""
    field, mask = framing.length.field, framing.length.mask
    _write(data, field, (value & mask) | (field.read(data) & ~mask))


def _write(data: bytearray, field: Field, value: int) -> None:
    data[field.offset : field.end] = value.to_bytes(
        field.width, "big" if field.endian is Endian.BIG else "little"
    )


def mutate(framing: Framing, data: bytes, source: random.Random) -> bytes:
    """Change a message in one of many ways; most leave it a message, so that others can follow it."""
    changed = bytearray(data)
    chance = source.random()
    if chance < 0.6:  # its id, or a byte behind the fields
        at = source.randrange(framing.window, len(changed)) if len(changed) > framing.window else 0
        if framing.id is not None and source.random() < 0.5:
            at = source.randrange(framing.id.offset, framing.id.end)
        changed[at] ^= 1 << source.randrange(8)
    elif chance < 0.9:  # longer or shorter, and it says so
        body = body_of(framing, data)
        body = (body + source.randbytes(source.randrange(_JUNK)))[: source.randrange(len(body) + _JUNK)]
        fields = bytes(changed[: framing.min_message])
        changed = bytearray(fields + body)
        _write_length(changed, framing, len(changed) - framing.length.adjust)
    elif chance < 0.93:  # any bits of its fields
        for _ in range(source.randint(1, _FLIPS)):
            changed[source.randrange(framing.window)] ^= 1 << source.randrange(8)
    elif chance < 0.95:  # cut off: what follows is taken for its rest
        del changed[source.randrange(len(changed)) :]
    elif chance < 0.97:  # bytes between two messages
        changed += source.randbytes(source.randint(1, _JUNK))
    else:
        _write_length(changed, framing, source.choice(limits(framing)))
    return bytes(changed)


def limits(framing: Framing) -> list[int]:
    """Values of the length field where something changes, as far as the field holds them."""
    adjust, ones = framing.length.adjust, framing.length.mask
    totals = (framing.min_message - 1, framing.min_message, framing.max_message, framing.max_message + 1)
    values = [0, *(total - adjust for total in totals), MAX_LENGTH, MAX_LENGTH + 1, (1 << 32) - 1, ones]
    return sorted({value for value in values if 0 <= value <= ones})


def split(data: bytes, source: random.Random) -> list[bytes]:
    """Cut into segments: one, a few, or many small ones."""
    pieces = source.choice([1, 1, 2, 5, 20])
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(pieces - 1))
    bounds = [0, *cuts, len(data)]
    return [piece for start, end in itertools.pairwise(bounds) if (piece := data[start:end])]
