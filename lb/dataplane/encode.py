"""Declared framings as the programs read them."""

from lb import abi
from lb.framing import Endian, Field, Framing, Match, Ordering, Responses


def encode(framing: Framing) -> abi.Framing:
    """The framing as a value of ``lb_framings``."""
    flags = abi.FramingFlag(0)
    value = abi.Framing(
        window=framing.window,
        min_message=framing.min_message,
        max_message=framing.max_message,
        adjust=framing.length.adjust,
        length=_field(framing.length.field, framing.length.mask),
    )
    if framing.id is not None:
        flags |= abi.FramingFlag.HAS_ID
        value.id = _field(framing.id)
    if framing.response is not None:
        flags |= abi.FramingFlag.HAS_RESPONSE
        value.response = _match(framing.response)
    if framing.no_response is not None:
        flags |= abi.FramingFlag.HAS_NO_RESPONSE
        value.no_response = _match(framing.no_response)
    if framing.magic is not None:
        flags |= abi.FramingFlag.HAS_MAGIC
        value.magic = _match(framing.magic)
    if framing.ordering is Ordering.FIFO:
        flags |= abi.FramingFlag.FIFO
    if framing.responses is Responses.MANY:
        flags |= abi.FramingFlag.MANY_RESPONSES
    if framing.error_reply is not None:
        flags |= abi.FramingFlag.KEEP_HEADS
    value.flags = flags
    return value


def _field(field: Field, mask: int | None = None, value: int = 0) -> abi.Field:
    return abi.Field(
        offset=field.offset,
        shift=64 - 8 * field.width,
        little=field.endian is Endian.LITTLE,
        mask=field.ones if mask is None else mask,
        value=value,
    )


def _match(match: Match) -> abi.Field:
    return _field(match.field, match.mask, match.value)
