"""Declared framings: where a message says how long it is, which request it belongs to, and what it is.

A framing is data. The kernel program reads it from a map, the slow path reads it here, and both must come to
the same answer for the same bytes.
"""

from dataclasses import dataclass, replace
from enum import Enum, StrEnum

# The kernel program copies this many leading bytes of a message onto its stack in one helper call.
MAX_WINDOW = 56
# The kernel counts the bytes of one message in a signed 32-bit integer.
MAX_LENGTH = 2**31 - 1
WIDTHS = (1, 2, 3, 4, 8)
# The kernel program has room for so many in its value of a framing.
MAX_EDITS = 4


class Endian(StrEnum):
    """The byte order of a field."""

    BIG = "big"
    LITTLE = "little"


class Ordering(StrEnum):
    """The order in which a client takes its responses: any, or that of its requests."""

    ANY = "any"
    FIFO = "fifo"


class Responses(StrEnum):
    """How many responses a request gets: one, perhaps several, or any number.

    With `ANY` a quiet request, too, may get some: memcached answers a quiet get that hits, and a quiet set
    that fails.
    """

    ONE = "one"
    MANY = "many"
    ANY = "any"


class ErrorReply(StrEnum):
    """How the balancer answers a request that no backend will answer (:mod:`lb.framing.replies`)."""

    DNS = "dns"


class Transfers(StrEnum):
    """How a request that gets many responses is known, where that shared connections cannot carry them."""

    DNS = "dns"  # by its question: a zone transfer


class Direction(Enum):
    """The way a message travels: requests come from a client, responses from a backend."""

    REQUEST = "request"
    RESPONSE = "response"


@dataclass(frozen=True, slots=True)
class Field:
    """An unsigned integer of `width` bytes that starts `offset` bytes into a message.

    Raises ValueError if the width is none of `WIDTHS` or the field leaves the first `MAX_WINDOW` bytes.
    """

    offset: int
    width: int
    endian: Endian = Endian.BIG

    def __post_init__(self) -> None:
        if self.width not in WIDTHS:
            raise ValueError(f"field width {self.width} is none of {WIDTHS}")
        if self.offset < 0 or self.end > MAX_WINDOW:
            raise ValueError(f"field at {self.offset}..{self.end} leaves the first {MAX_WINDOW} bytes")

    @property
    def end(self) -> int:
        """The offset of the first byte behind the field."""
        return self.offset + self.width

    @property
    def ones(self) -> int:
        """The mask that keeps all bits of the field."""
        return (1 << 8 * self.width) - 1

    def read(self, data: bytes | bytearray | memoryview, start: int = 0) -> int:
        """Return the field of the message that starts at `start`; its bytes must be there."""
        raw = data[start + self.offset : start + self.end]
        return int.from_bytes(raw, "big" if self.endian is Endian.BIG else "little")


@dataclass(frozen=True, slots=True)
class Match:
    """A test of a message: it matches when `field & mask == value`.

    Raises ValueError if the mask is 0 or wider than the field, or the value has bits outside the mask.
    """

    field: Field
    mask: int
    value: int

    def __post_init__(self) -> None:
        _check_mask(self.field, self.mask)
        if self.value < 0 or self.value & ~self.mask:
            raise ValueError(f"value {self.value:#x} has bits outside mask {self.mask:#x}")

    def matches(self, data: bytes | bytearray | memoryview, start: int = 0) -> bool:
        """Return whether the message that starts at `start` matches; the field's bytes must be there."""
        return self.field.read(data, start) & self.mask == self.value


@dataclass(frozen=True, slots=True)
class OneOf:
    """A test of one byte of a message: it matches when `field & mask` is one of the values.

    Raises ValueError if the field has more than one byte, the mask is 0 or wider than it, there is no value,
    or one has bits outside the mask.
    """

    field: Field
    mask: int
    values: frozenset[int]

    def __post_init__(self) -> None:
        if self.field.width != 1:
            raise ValueError(f"a set is one of bytes, not of fields of {self.field.width}")
        _check_mask(self.field, self.mask)
        if not self.values or any(value < 0 or value & ~self.mask for value in self.values):
            raise ValueError(
                f"values {sorted(self.values)} are none, or have bits outside mask {self.mask:#x}"
            )

    def matches(self, data: bytes | bytearray | memoryview, start: int = 0) -> bool:
        """Return whether the message that starts at `start` matches; the field's byte must be there."""
        return self.field.read(data, start) & self.mask in self.values


@dataclass(frozen=True, slots=True)
class Length:
    """The length of a whole message in bytes: `(field & mask) + adjust`.

    Raises ValueError if the mask is 0 or wider than the field, or `adjust` is beyond ±`MAX_LENGTH`.
    """

    field: Field
    mask: int
    adjust: int

    def __post_init__(self) -> None:
        _check_mask(self.field, self.mask)
        if abs(self.adjust) > MAX_LENGTH:
            raise ValueError(f"adjust {self.adjust} is beyond {MAX_LENGTH}")


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of the byte that stands `offset` bytes into a message: `byte & keep | set`.

    Raises ValueError if `keep` or `set` is no byte, or the offset leaves the first `MAX_WINDOW` bytes.
    """

    offset: int
    keep: int
    set: int

    def __post_init__(self) -> None:
        if not (0 <= self.keep <= 0xFF and 0 <= self.set <= 0xFF):
            raise ValueError(f"keep {self.keep:#x} or set {self.set:#x} is no byte")
        if not 0 <= self.offset < MAX_WINDOW:
            raise ValueError(f"edit at {self.offset} leaves the first {MAX_WINDOW} bytes")


@dataclass(frozen=True, slots=True)
class Framing:
    """How a protocol cuts its byte stream into messages, and which of their fields matter.

    Sizes are bytes of a whole message. Where `id_after` is given, it is the length in bytes of a string that
    follows it, and the offset of `id` is counted from the end of that string. Otherwise a backend's messages
    may have their id at another offset, as `response_id`. `refusal` is what turns a request into the response
    that says that it was denied, where the protocol has one of the request's length. `ping` is a request that
    every server answers at once and that changes nothing, where the protocol has one.

    Raises ValueError unless `window <= min_message <= max_message <= MAX_LENGTH`, `response_id` differs from
    `id` in nothing but the offset, there is an id where one is needed, and a refusal is at most `MAX_EDITS`
    changes of bytes that every message has, makes a response of its request's id, and may overtake others.
    """

    name: str
    length: Length
    max_message: int
    min_message: int
    id: Field | None = None
    response_id: Field | None = None
    id_after: Field | None = None
    response: Match | None = None
    no_response: Match | OneOf | None = None
    response_error: Match | None = None
    magic: Match | None = None
    ordering: Ordering = Ordering.ANY
    responses: Responses = Responses.ONE
    error_reply: ErrorReply | None = None
    refusal: tuple[Edit, ...] = ()
    transfers: Transfers | None = None
    ping: bytes | None = None

    def __post_init__(self) -> None:
        if not self.window <= self.min_message <= self.max_message <= MAX_LENGTH:
            raise ValueError(
                f"framing {self.name}: not window {self.window} <= min_message {self.min_message}"
                f" <= max_message {self.max_message} <= {MAX_LENGTH}"
            )
        if self.id is None:
            if self.response_id or self.id_after or self.responses is Responses.ANY:
                raise ValueError(f"framing {self.name}: there is no id")
        elif self.response_id is not None and (
            self.id_after or self.response_id != replace(self.id, offset=self.response_id.offset)
        ):
            raise ValueError(f"framing {self.name}: response_id differs from id in more than its offset")
        if self.refusal:
            self._check_refusal()

    def _check_refusal(self) -> None:
        if len(self.refusal) > MAX_EDITS or any(edit.offset >= self.min_message for edit in self.refusal):
            raise ValueError(
                f"framing {self.name}: a refusal of more than {MAX_EDITS} bytes, or behind a message"
            )
        if self.id is None or self.response_id is not None or self.ordering is Ordering.FIFO:
            raise ValueError(f"framing {self.name}: nobody knows whose refusal it is")

    @property
    def window(self) -> int:
        """The number of leading bytes that hold every declared field, but for an id behind a string."""
        fields = [self.length.field, self.response_id, self.id_after]
        fields += [match.field for match in self.marks]
        if self.id_after is None:
            fields.append(self.id)
        return max(field.end for field in fields if field is not None)

    def id_offset(
        self, data: bytes | bytearray | memoryview, start: int = 0, direction: Direction = Direction.REQUEST
    ) -> int | None:
        """Return where the id of the message that starts at `start` stands, counted from that start.

        Its window must be there. The place lies within the message if that has been measured. None if the
        framing declares no id.
        """
        if self.id is None:
            return None
        if self.id_after is not None:
            return self.id_after.end + self.id_after.read(data, start) + self.id.offset
        if self.response_id is not None and direction is Direction.RESPONSE:
            return self.response_id.offset
        return self.id.offset

    def read_id(
        self, data: bytes | bytearray | memoryview, start: int = 0, direction: Direction = Direction.REQUEST
    ) -> int | None:
        """Return the id of the message that starts at `start`, has been measured, and whose id is there."""
        at = self.id_offset(data, start, direction)
        if self.id is None or at is None:
            return None
        return replace(self.id, offset=0).read(data, start + at)

    @property
    def marks(self) -> tuple[Match | OneOf, ...]:
        """The declared tests."""
        return tuple(
            match
            for match in (self.response, self.no_response, self.response_error, self.magic)
            if match is not None
        )


def _check_mask(field: Field, mask: int) -> None:
    if not 0 < mask <= field.ones:
        raise ValueError(f"mask {mask:#x} does not fit a field of {field.width} bytes")
