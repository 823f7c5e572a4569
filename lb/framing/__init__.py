"""Framings: how protocols cut a byte stream into messages. Pure, without I/O."""

from lb.framing.oracle import Framer, FramingError, Message, Reason, measure
from lb.framing.presets import PRESETS
from lb.framing.replies import error_reply
from lb.framing.spec import (
    MAX_LENGTH,
    MAX_WINDOW,
    WIDTHS,
    Direction,
    Endian,
    ErrorReply,
    Field,
    Framing,
    Length,
    Match,
    OneOf,
    Ordering,
    Responses,
)

__all__ = [
    "MAX_LENGTH",
    "MAX_WINDOW",
    "PRESETS",
    "WIDTHS",
    "Direction",
    "Endian",
    "ErrorReply",
    "Field",
    "Framer",
    "Framing",
    "FramingError",
    "Length",
    "Match",
    "Message",
    "OneOf",
    "Ordering",
    "Reason",
    "Responses",
    "error_reply",
    "measure",
]
