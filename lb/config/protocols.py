"""The `protocols` section: declared framings beside the presets."""

from lb.config.scalars import choice, integer, is_name, refuse_name, size
from lb.config.value import Reader, Section, Value, either
from lb.framing import (
    MAX_LENGTH,
    MAX_WINDOW,
    PRESETS,
    WIDTHS,
    Endian,
    Field,
    Framing,
    Length,
    Match,
    Ordering,
    Responses,
)

_ID_WIDTHS = (2, 3, 4, 8)
_DEFAULT_MAX_MESSAGE = 1 << 20
_MAX_MESSAGE = 64 << 20


class Protocols:
    """The framings that a listener may name.

    `names` has the declared ones that are wrong too, so that a mistake in a protocol is not reported again at
    the listeners that use it; None says that nobody knows what was meant to be declared.
    """

    def __init__(self, value: Value | None) -> None:
        self.framings = dict(PRESETS)
        self.names: frozenset[str] | None = frozenset(PRESETS)
        if value is None:
            return
        entries = value.entries("a mapping of names to framings")
        if entries is None:
            self.names = None
            return
        self.names |= frozenset(entries)
        for name, entry in entries.items():
            framing = _read_protocol(name, entry)
            if framing is not None:
                self.framings[name] = framing


def _read_protocol(name: str, value: Value) -> Framing | None:
    before = len(value.log)
    if not is_name(name):
        refuse_name(value, name)
    elif name in PRESETS:
        value.fail(
            f"`{name}` is the name of a preset", "choose another name, or remove this and use the preset"
        )
    section = value.section(
        "length",
        "id",
        "response",
        "no_response",
        "magic",
        "max_message",
        "min_message",
        "ordering",
        "responses",
    )
    if section is None:
        return None
    length = section.required("length", _read_length, "{offset: 0, width: 4}")
    id_field = section.optional("id", _read_id, None)
    response = section.optional("response", _read_match, None)
    no_response = section.optional("no_response", _read_match, None)
    magic = section.optional("magic", _read_match, None)
    ordering = section.optional(
        "ordering", choice(Ordering), Ordering.ANY if "id" in section.entries else Ordering.FIFO
    )
    responses = section.optional("responses", choice(Responses), Responses.ONE)
    ends = [field.end for field in (length and length.field, id_field) if field]
    ends += [mark.field.end for mark in (response, no_response, magic) if mark]
    window = max(ends, default=1)
    max_message, min_message = _read_sizes(section, window)
    if len(value.log) > before or length is None:
        return None
    return Framing(
        name=name,
        length=length,
        max_message=max_message,
        min_message=min_message,
        id=id_field,
        response=response,
        no_response=no_response,
        magic=magic,
        ordering=ordering,
        responses=responses,
    )


def _read_sizes(section: Section, window: int) -> tuple[int, int]:
    limit = _MAX_MESSAGE if "max_message" in section.entries else _DEFAULT_MAX_MESSAGE
    max_message = section.optional(
        "max_message",
        size(window, _MAX_MESSAGE, "a message holds its fields, and waits whole in a socket's buffer"),
        limit,
    )
    min_message = section.optional(
        "min_message",
        size(window, max_message, "from where the fields end to max_message"),
        window,
    )
    return max_message, min_message


def _read_length(value: Value) -> Length | None:
    section = value.section("offset", "width", "endian", "mask", "adjust")
    if section is None:
        return None
    width = section.required("width", _width(WIDTHS), "4")
    field = _read_field(section, width)
    mask = _read_mask(section, width)
    adjust = section.optional(
        "adjust", integer(-MAX_LENGTH, MAX_LENGTH, "the kernel counts a message in 31 bits"), 0
    )
    return None if field is None or mask is None else Length(field, mask, adjust)


def _read_id(value: Value) -> Field | None:
    section = value.section("offset", "width", "endian")
    if section is None:
        return None
    return _read_field(section, section.required("width", _width(_ID_WIDTHS), "4"))


def _read_match(value: Value) -> Match | None:
    section = value.section("offset", "width", "endian", "mask", "value")
    if section is None:
        return None
    width = section.required("width", _width(WIDTHS), "1") if "width" in section.entries else 1
    field = _read_field(section, width)
    mask = _read_mask(section, width)
    wanted = section.required("value", integer(0, _ones(8), "no field is wider than 8 bytes"), "0x80")
    if mask is None or wanted is None:
        return None
    if wanted & ~mask:
        section.entries["value"].fail(
            f"{wanted:#x} has bits outside the mask {mask:#x}, so that nothing matches",
            "clear these bits, or widen the mask or the field",
        )
        return None
    return None if field is None else Match(field, mask, wanted)


def _width(widths: tuple[int, ...]) -> Reader[int]:
    def read(value: Value) -> int | None:
        width = integer(1, 8, "the bytes of an integer")(value)
        if width is None or width in widths:
            return width
        value.fail(f"{width} bytes are no width for this field", f"use {either(widths)}")
        return None

    return read


def _read_field(section: Section, width: int | None) -> Field | None:
    why = f"the kernel program looks at the first {MAX_WINDOW} bytes of a message"
    offset = section.required("offset", integer(0, MAX_WINDOW - (width or 1), why), "0")
    endian = section.optional("endian", choice(Endian), Endian.BIG)
    return None if width is None or offset is None else Field(offset, width, endian)


def _read_mask(section: Section, width: int | None) -> int | None:
    """Return the mask, by default of the whole field; None if it or the width is wrong."""
    ones = _ones(width or 8)
    default = None if width is None else ones
    read = integer(1, ones, "at least one bit, and none outside the field")
    return section.required("mask", read, "0x80") if "mask" in section.entries else default


def _ones(width: int) -> int:
    return (1 << 8 * width) - 1
