"""What the kernel's parser does, in Python: the reference for its tests and the framing of the slow path.

`measure` looks at the start of one message and checks in a fixed order (magic, length, place of the id,
response mark), so that a message with several faults has the same reason on both sides. `Framer` cuts a byte
stream with it.
"""

from dataclasses import dataclass
from enum import StrEnum

from lb.framing.spec import MAX_LENGTH, Direction, Framing


class Reason(StrEnum):
    """Why bytes are not a message of their framing."""

    TOO_SHORT = "too_short"
    OVERSIZE = "oversize"
    BAD_MAGIC = "bad_magic"
    UNEXPECTED_RESPONSE = "unexpected_response"


class FramingError(Exception):
    """A peer sent bytes that are not a message of its framing; nothing after them can be trusted."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """One whole message; `id` is None where the framing declares none, and only responses are errors."""

    data: bytes
    id: int | None
    is_response: bool
    wants_response: bool
    is_error: bool = False


def measure(
    framing: Framing, data: bytes | bytearray | memoryview, offset: int, direction: Direction
) -> int | None:
    """Return the length in bytes of the message that starts at `offset`.

    None means that fewer than `framing.window` bytes are there, or, where the id stands behind a string, that
    the bytes up to the end of the id are not. The rest of the message need not be there.
    Raises FramingError if no message of this framing and direction starts like this.
    """
    if len(data) - offset < framing.window:
        return None
    if framing.magic is not None and not framing.magic.matches(data, offset):
        raise FramingError(Reason.BAD_MAGIC)
    value = framing.length.field.read(data, offset) & framing.length.mask
    if value > MAX_LENGTH:
        raise FramingError(Reason.OVERSIZE)
    total = value + framing.length.adjust
    if total < framing.min_message:
        raise FramingError(Reason.TOO_SHORT)
    if total > framing.max_message:
        raise FramingError(Reason.OVERSIZE)
    header = framing.window
    if framing.id is not None and framing.id_after is not None:
        header = (framing.id_offset(data, offset, direction) or 0) + framing.id.width
        if header > total:
            raise FramingError(Reason.TOO_SHORT)
    if (
        direction is Direction.REQUEST
        and framing.response is not None
        and framing.response.matches(data, offset)
    ):
        raise FramingError(Reason.UNEXPECTED_RESPONSE)
    return total if len(data) - offset >= header else None


class Framer:
    """Cuts the byte stream of one peer into messages.

    Between two calls it holds less than one message, so less than `framing.max_message` bytes.
    """

    def __init__(self, framing: Framing, direction: Direction) -> None:
        self._framing = framing
        self._direction = direction
        self._buffer = bytearray()
        self._error: FramingError | None = None

    @property
    def pending(self) -> int:
        """The bytes that are held and belong to no complete message."""
        return len(self._buffer)

    @property
    def error(self) -> FramingError | None:
        """What ended the stream, if anything did."""
        return self._error

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take the next bytes and return the messages that they complete.

        A framing error ends the stream: the messages before it are returned, `error` is set, what follows is
        forgotten, and every later call raises FramingError.
        """
        if self._error is not None:
            raise self._error
        self._buffer += data
        messages = []
        start = 0
        try:
            while (total := measure(self._framing, self._buffer, start, self._direction)) is not None:
                if len(self._buffer) - start < total:
                    break
                messages.append(self._message(bytes(self._buffer[start : start + total])))
                start += total
        except FramingError as error:
            self._error = error
            start = len(self._buffer)
        del self._buffer[:start]
        return messages

    def _message(self, data: bytes) -> Message:
        framing = self._framing
        if framing.response is not None:
            is_response = framing.response.matches(data)
        else:
            is_response = self._direction is Direction.RESPONSE
        silent = framing.no_response is not None and framing.no_response.matches(data)
        error = framing.response_error
        return Message(
            data=data,
            id=framing.read_id(data, 0, self._direction),
            is_response=is_response,
            wants_response=not is_response and not silent,
            is_error=is_response and error is not None and error.matches(data),
        )
