"""Declared framings: where a message says how long it is, which request it belongs to, and what it is.

A framing is data. The kernel program reads it from a map, the slow path reads it here, and both must come to
the same answer for the same bytes.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum

# The kernel program copies this many leading bytes of a message onto its stack in one helper call.
MAX_WINDOW = 56
# The kernel counts the bytes of one message in a signed 32-bit integer.
MAX_LENGTH = 2**31 - 1
WIDTHS = (1, 2, 3, 4, 8)


class Endian(StrEnum):
    """The byte order of a field."""

    BIG = "big"
    LITTLE = "little"


class Ordering(StrEnum):
    """The order in which a client takes its responses: any, or that of its requests."""

    ANY = "any"
    FIFO = "fifo"


class Responses(StrEnum):
    """How many responses a request gets: one, or perhaps several."""

    ONE = "one"
    MANY = "many"


class ErrorReply(StrEnum):
    """How the balancer answers a request that no backend will answer (:mod:`lb.framing.replies`)."""

    DNS = "dns"


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
class Framing:
    """How a protocol cuts its byte stream into messages, and which of their fields matter.

    Sizes are bytes of a whole message. Raises ValueError unless
    `window <= min_message <= max_message <= MAX_LENGTH`.
    """

    name: str
    length: Length
    max_message: int
    min_message: int
    id: Field | None = None
    response: Match | None = None
    no_response: Match | None = None
    magic: Match | None = None
    ordering: Ordering = Ordering.ANY
    responses: Responses = Responses.ONE
    error_reply: ErrorReply | None = None

    def __post_init__(self) -> None:
        if not self.window <= self.min_message <= self.max_message <= MAX_LENGTH:
            raise ValueError(
                f"framing {self.name}: not window {self.window} <= min_message {self.min_message}"
                f" <= max_message {self.max_message} <= {MAX_LENGTH}"
            )

    @property
    def window(self) -> int:
        """The number of leading bytes that hold every declared field."""
        fields = [self.length.field, *(match.field for match in self.marks)]
        if self.id is not None:
            fields.append(self.id)
        return max(field.end for field in fields)

    @property
    def marks(self) -> tuple[Match, ...]:
        """The declared tests."""
        return tuple(match for match in (self.response, self.no_response, self.magic) if match is not None)


def _check_mask(field: Field, mask: int) -> None:
    if not 0 < mask <= field.ones:
        raise ValueError(f"mask {mask:#x} does not fit a field of {field.width} bytes")
