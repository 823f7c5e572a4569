"""Framings: how protocols cut a byte stream into messages. Pure, without I/O."""

from lb.framing.oracle import Framer, FramingError, Message, Reason, measure
from lb.framing.presets import PRESETS
from lb.framing.replies import error_reply, refusal
from lb.framing.spec import (
    MAX_EDITS,
    MAX_LENGTH,
    MAX_WINDOW,
    WIDTHS,
    Direction,
    Edit,
    Endian,
    ErrorReply,
    Field,
    Framing,
    Length,
    Match,
    OneOf,
    Ordering,
    Responses,
    Transfers,
)

__all__ = [
    "MAX_EDITS",
    "MAX_LENGTH",
    "MAX_WINDOW",
    "PRESETS",
    "WIDTHS",
    "Direction",
    "Edit",
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
    "Transfers",
    "error_reply",
    "measure",
    "refusal",
]
