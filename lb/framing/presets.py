"""The framings that have a name of their own."""

from collections.abc import Mapping
from types import MappingProxyType

from lb.framing.spec import ErrorReply, Field, Framing, Length, Match, Ordering, Responses


def _length(offset: int, width: int, adjust: int) -> Length:
    field = Field(offset, width)
    return Length(field, field.ones, adjust)


_FRAMINGS = (
    Framing(
        name="length-prefixed",
        length=_length(0, 4, adjust=4),
        id=Field(4, 4),
        min_message=8,
        max_message=1 << 20,
        ordering=Ordering.ANY,
    ),
    # DNS over TCP, RFC 1035 4.2.2: a length of two bytes, then a message with a header of twelve.
    Framing(
        name="dns",
        length=_length(0, 2, adjust=2),
        id=Field(2, 2),
        response=Match(Field(4, 1), mask=0x80, value=0x80),
        min_message=2 + 12,
        max_message=2 + 0xFFFF,
        ordering=Ordering.ANY,
        responses=Responses.MANY,  # zone transfers: RFC 5936 2.2
        error_reply=ErrorReply.DNS,
    ),
)

PRESETS: Mapping[str, Framing] = MappingProxyType({framing.name: framing for framing in _FRAMINGS})
