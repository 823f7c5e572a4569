"""The `protocols` section: declared framings beside the presets."""

from dataclasses import dataclass

from lb.config.forms import Form, Kind
from lb.config.scalars import choice, integer, is_name, refuse_name, size
from lb.config.value import Scalar, Section, Value, either, scalar
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
    OneOf,
    Ordering,
    Responses,
)

_ID_WIDTHS = (2, 3, 4, 8)
_DEFAULT_MAX_MESSAGE = 1 << 20
_MAX_MESSAGE = 64 << 20
_LOOKS = f"the kernel program looks at the first {MAX_WINDOW} bytes of a message"


@dataclass(frozen=True, slots=True)
class _Id:
    """What the key `id` declares, as the fields of a framing."""

    id: Field | None = None
    response_id: Field | None = None
    id_after: Field | None = None

    @property
    def ends(self) -> list[int]:
        """Where the fields end that stand at a fixed place."""
        fixed = (self.id_after,) if self.id_after is not None else (self.id, self.response_id)
        return [field.end for field in fixed if field is not None]


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
        "response_error",
        "magic",
        "max_message",
        "min_message",
        "ordering",
        "responses",
    )
    if section is None:
        return None
    length = section.required("length", _read_length, "{offset: 0, width: 4}")
    number = section.optional("id", _read_id, _Id())
    response = section.optional("response", read_match, None)
    no_response = section.optional("no_response", _read_silence, None)
    response_error = section.optional("response_error", read_match, None)
    magic = section.optional("magic", read_match, None)
    ordering = section.optional(
        "ordering", choice(Ordering), Ordering.ANY if "id" in section.entries else Ordering.FIFO
    )
    responses = section.optional("responses", choice(Responses), Responses.ONE)
    if responses is Responses.ANY and "id" not in section.entries:
        section.entries["responses"].fail(
            "without an id nobody knows which response is that of a quiet request",
            "declare the `id`, or use many",
        )
    ends = number.ends + ([length.field.end] if length is not None else [])
    ends += [mark.field.end for mark in (response, no_response, response_error, magic) if mark]
    window = max(ends, default=1)
    max_message, min_message = _read_sizes(section, window)
    if len(value.log) > before or length is None:
        return None
    return Framing(
        name=name,
        length=length,
        max_message=max_message,
        min_message=min_message,
        id=number.id,
        response_id=number.response_id,
        id_after=number.id_after,
        response=response,
        no_response=no_response,
        response_error=response_error,
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


def _read_id(value: Value) -> _Id | None:
    section = value.section("offset", "width", "endian", "response_offset", "after")
    if section is None:
        return None
    width = section.required("width", _width(_ID_WIDTHS), "4")
    if "after" in section.entries:
        if "response_offset" in section.entries:
            section.entries["response_offset"].fail(
                "an id behind a string has no offset of its own", "remove this, or `after`"
            )
        after = section.required("after", _read_after, "{offset: 8, width: 4}")
        field = _read_field(section, width, offset=0)
        return None if field is None or after is None else _Id(field, id_after=after)
    field = _read_field(section, width)
    other = section.optional("response_offset", integer(0, MAX_WINDOW - (width or 1), _LOOKS), None)
    if field is None:
        return None
    return _Id(field, None if other is None else Field(other, field.width, field.endian))


def _read_after(value: Value) -> Field | None:
    section = value.section("offset", "width", "endian")
    if section is None:
        return None
    return _read_field(section, section.required("width", _width(WIDTHS), "4"))


def read_match(value: Value, *, wanted: str = "value") -> Match | None:
    """Read a test of a field; `wanted` is the key of what it must be."""
    section = value.section("offset", "width", "endian", "mask", wanted)
    return None if section is None else _match(section, wanted)


def _read_silence(value: Value) -> Match | OneOf | None:
    section = value.section("offset", "width", "endian", "mask", "value", "in")
    if section is None:
        return None
    return _one_of(section) if "in" in section.entries else _match(section)


def _match(section: Section, key: str = "value") -> Match | None:
    width = section.required("width", _width(WIDTHS), "1") if "width" in section.entries else 1
    field = _read_field(section, width)
    mask = _read_mask(section, width)
    wanted = section.required(key, integer(0, _ones(8), "no field is wider than 8 bytes"), "0x80")
    if mask is None or wanted is None or not _within(section.entries[key], wanted, mask):
        return None
    return None if field is None else Match(field, mask, wanted)


def _one_of(section: Section) -> OneOf | None:
    for key in ("value", "width", "endian"):
        if key in section.entries:
            section.entries[key].fail(
                "has no meaning beside `in`, which lists values of one byte", "remove it"
            )
    field = _read_field(section, 1)
    mask = _read_mask(section, 1)
    items = section.entries["in"].items("a list of the byte's values, such as [0x09, 0x0d]")
    read = integer(0, _ones(1), "the field is one byte")
    values = frozenset(
        wanted
        for item in items
        if (wanted := read(item)) is not None and (mask is None or _within(item, wanted, mask))
    )
    return None if field is None or mask is None or not values else OneOf(field, mask, values)


def _within(value: Value, wanted: int, mask: int) -> bool:
    if not wanted & ~mask:
        return True
    value.fail(
        f"{wanted:#x} has bits outside the mask {mask:#x}, so that nothing matches",
        "clear these bits, or widen the mask or the field",
    )
    return False


def _width(widths: tuple[int, ...]) -> Scalar[int]:
    inner = integer(1, 8, "the bytes of an integer")

    @scalar(Form(Kind.INTEGER, choices=tuple(map(str, widths))))
    def read(value: Value) -> int | None:
        width = inner.read(value)
        if width is None or width in widths:
            return width
        value.fail(f"{width} bytes are no width for this field", f"use {either(widths)}")
        return None

    return read


def _read_field(section: Section, width: int | None, *, offset: int | None = None) -> Field | None:
    """Read a field; `offset` is the default of its offset, which must be given if there is none."""
    read = integer(0, MAX_WINDOW - (width or 1), _LOOKS)
    if offset is None:
        offset = section.required("offset", read, "0")
    else:
        offset = section.optional("offset", read, offset)
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
