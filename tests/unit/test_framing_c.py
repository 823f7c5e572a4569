"""``bpf/lb_framing.h`` against the oracle: the same bytes are the same messages on both sides.

The header is the one that the parser is made of; only the loop and the loading of bytes are this machine's.
"""

import errno
import itertools
import re
import shutil
import socket
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb import abi
from lb.dataplane.encode import encode
from lb.framing import (
    MAX_LENGTH,
    MAX_WINDOW,
    PRESETS,
    WIDTHS,
    Direction,
    Endian,
    Field,
    Framer,
    Framing,
    FramingError,
    Length,
    Match,
    Message,
    OneOf,
    Ordering,
    Reason,
    Responses,
    measure,
)
from lb.server import faults
from tests.headers import ROOT, Batch, Headers
from tests.unit.test_framing import framings, messages, pieces, streams

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

ERRNO = {
    Reason.TOO_SHORT: errno.EBADMSG,
    Reason.OVERSIZE: errno.EMSGSIZE,
    Reason.BAD_MAGIC: errno.EPROTO,
    Reason.UNEXPECTED_RESPONSE: errno.EPROTOTYPE,
}
REASON = {number: reason for reason, number in ERRNO.items()}

limits = st.integers(1, abi.MAX_BATCH)
directions = st.sampled_from(Direction)
junk = st.binary(max_size=70)


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Headers:
    return Headers(tmp_path_factory.mktemp("headers"))


# --- what the oracle says of a batch ----------------------------------------------------------------------


def expects(framing: Framing, data: bytes, start: int, direction: Direction) -> bool:
    """Whether the message is a response, or a request that gets one."""
    if direction is Direction.RESPONSE:
        return framing.response is None or framing.response.matches(data, start)
    return framing.no_response is None or not framing.no_response.matches(data, start)


def aside(framing: Framing, data: bytes, start: int, direction: Direction) -> bool:
    """Whether the message of a backend is an answer to a quiet request, of which no account is kept."""
    return (
        direction is Direction.RESPONSE
        and framing.responses is Responses.ANY
        and framing.no_response is not None
        and framing.no_response.matches(data, start)
    )


def by_id(framing: Framing) -> bool:
    """Whether responses are told apart by their ids."""
    return framing.id is not None


def expected(framing: Framing, data: bytes, limit: int, direction: Direction) -> Batch:
    """The batch at the start of the data, built from single messages that the oracle measured."""
    total, kinds, ids = 0, list[bool](), list[int]()
    while len(kinds) < limit and total < len(data):
        try:
            length = measure(framing, data, total, direction)
        except FramingError as error:
            if not kinds:
                return Batch(-ERRNO[error.reason], 0, 0, ())
            break
        if length is None or (kinds and total + length > len(data)):
            break
        kind = expects(framing, data, total, direction)
        if kinds and direction is Direction.RESPONSE and kind is not kinds[0]:
            break
        kinds.append(kind)
        if (
            kind
            and by_id(framing)
            and total + length <= len(data)
            and not aside(framing, data, total, direction)
        ):
            number = framing.read_id(data, total, direction)
            assert number is not None
            ids.append(number)
        total += length
    return Batch(total, len(kinds), sum(kinds), tuple(ids))


def errors(framing: Framing, data: bytes, batch: Batch, direction: Direction) -> tuple[int, int, bool]:
    """The error responses of a batch, how many stand at its end, and whether the first message is one."""
    if framing.response_error is None or direction is Direction.REQUEST or not batch.expecting:
        return 0, 0, False
    found, start = list[bool](), 0
    for _ in range(batch.messages):
        found.append(framing.response_error.matches(data, start))
        start += measure(framing, data, start, direction) or 0
    return sum(found), len(list(itertools.takewhile(bool, reversed(found)))), found[0]


# --- any framing, any bytes -------------------------------------------------------------------------------


@st.composite
def fields(draw: st.DrawFn, span: int) -> Field:
    width = draw(st.sampled_from([width for width in WIDTHS if width <= span]))
    return Field(draw(st.integers(0, span - width)), width, draw(st.sampled_from(Endian)))


@st.composite
def matches(draw: st.DrawFn, span: int) -> Match:
    """A test of a few bits, so that random bytes pass it and fail it."""
    field = draw(fields(span))
    mask = 0
    for bit in draw(st.lists(st.integers(0, 8 * field.width - 1), min_size=1, max_size=3)):
        mask |= 1 << bit
    return Match(field, mask, draw(st.integers(0, field.ones)) & mask)


@st.composite
def sets(draw: st.DrawFn, span: int) -> OneOf:
    """A test of one byte with many values."""
    field = Field(draw(st.integers(0, span - 1)), 1)
    mask = draw(st.sampled_from([0xFF, 0xF0, 0x0F, 0x41]))
    values = draw(st.lists(st.integers(0, 255), min_size=1, max_size=100))
    return OneOf(field, mask, frozenset(value & mask for value in values))


@st.composite
def ids(draw: st.DrawFn, span: int) -> dict[str, Field | None]:
    """What a framing declares of ids: nothing, one place, two, or one behind a string.

    The length of most strings is a byte, so that in random bytes some ids are inside of their message.
    """
    number, response_id, after = draw(st.none() | fields(span)), None, None
    kind = draw(st.sampled_from(["one", "two", "behind"])) if number else "none"
    if number and kind == "two":
        response_id = replace(number, offset=draw(st.integers(0, span - number.width)))
    elif kind == "behind":
        after = draw(fields(1) | fields(1) | fields(span))
        after = replace(after, offset=draw(st.integers(0, span - after.width)))
    return {"id": number, "response_id": response_id, "id_after": after}


@st.composite
def any_framings(draw: st.DrawFn) -> Framing:
    """Framings of any shape, the fields perhaps on top of each other.

    Most of them find messages in random bytes: these take a few bits for the length, and nearly any length.
    """
    span = draw(st.integers(1, 12) | st.integers(1, MAX_WINDOW))
    length = draw(fields(span))
    parts: Any = {
        name: draw(st.none() | matches(span))
        for name in ("response", "no_response", "response_error", "magic")
    }
    parts["no_response"] = draw(st.just(parts["no_response"]) | sets(span))
    marks = [mark.field for mark in parts.values() if mark]
    parts |= draw(ids(span))
    fixed = (parts["id_after"],) if parts["id_after"] else (parts["id"], parts["response_id"])
    window = max(part.end for part in (length, *fixed, *marks) if part)
    shortest = draw(st.integers(window, window + 20))
    few_bits = st.integers(1, 8).map(lambda bits: (1 << bits) - 1)
    few_bytes = st.integers(shortest - 3, shortest + 20)
    return Framing(
        name="any",
        length=Length(
            field=length,
            mask=draw(few_bits | few_bits | st.integers(1, length.ones)),
            adjust=draw(few_bytes | few_bytes | st.integers(-MAX_LENGTH, MAX_LENGTH)),
        ),
        min_message=shortest,
        max_message=draw(st.integers(shortest, shortest + 300) | st.integers(shortest + 255, MAX_LENGTH)),
        ordering=draw(st.sampled_from(Ordering)),
        responses=draw(st.sampled_from(Responses)) if parts["id"] else Responses.ONE,
        **parts,
    )


@st.composite
def any_bytes(draw: st.DrawFn) -> bytes:
    size = draw(st.integers(0, 80) | st.integers(60, 700))
    return draw(st.randoms(use_true_random=False)).randbytes(size)


@given(any_framings(), any_bytes(), limits, directions, junk)
def test_any_bytes_in_any_framing(
    headers: Headers, framing: Framing, data: bytes, limit: int, direction: Direction, before: bytes
) -> None:
    got = headers.measure(encode(framing), before + data, len(before), limit, direction)

    assert got == expected(framing, data, limit, direction)
    assert headers.errors == errors(framing, data, got, direction)


@given(streams(), limits, st.integers(0, 2000), junk)
def test_a_stream_of_messages_that_ends_anywhere(
    headers: Headers,
    stream: tuple[Framing, Direction, list[Message]],
    limit: int,
    missing: int,
    before: bytes,
) -> None:
    framing, direction, sent = stream
    data = b"".join(message.data for message in sent)
    data = data[: len(data) - missing % (len(data) + 1)]

    got = headers.measure(encode(framing), before + data, len(before), limit, direction)

    assert got == expected(framing, data, limit, direction)


@given(st.data(), limits)
def test_a_batch_holds_as_many_messages_as_there_are_and_at_most_its_limit(
    headers: Headers, data: st.DataObject, limit: int
) -> None:
    framing = data.draw(framings())
    one = data.draw(messages(framing, Direction.REQUEST))
    count = data.draw(st.integers(1, 100))

    got = headers.measure(encode(framing), one.data * count, 0, limit, Direction.REQUEST)

    assert got.messages == min(count, limit)
    assert got.length == got.messages * len(one.data)
    assert got.expecting == got.messages * one.wants_response
    if by_id(framing):
        assert got.ids == (one.id,) * got.expecting


@given(any_framings().filter(lambda framing: framing.id is not None), any_bytes(), directions)
def test_both_sides_find_an_id_at_the_same_place(
    headers: Headers, framing: Framing, data: bytes, direction: Direction
) -> None:
    data += bytes(framing.window)
    at = framing.id_offset(data, 0, direction)

    assert at is not None
    assert headers.id_offset(encode(framing), data, direction) == (at if at <= MAX_LENGTH else -1)


# --- a stream, as the strparser cuts it -------------------------------------------------------------------


class Strparser:
    """What the kernel does with the parser: asks where a message may start, then waits until it is whole."""

    def __init__(self, headers: Headers, framing: Framing, limit: int, direction: Direction) -> None:
        self._headers, self._framing = headers, encode(framing)
        self._limit, self._direction = limit, direction
        self._buffer = b""
        self._batch: Batch | None = None
        self.reason: Reason | None = None

    @property
    def pending(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[tuple[Batch, bytes]]:
        """Give it bytes; returns the batches that they complete."""
        self._buffer += data
        batches = []
        while self.reason is None:
            batch = self._batch
            if batch is None:
                batch = self._headers.measure(self._framing, self._buffer, 0, self._limit, self._direction)
            if batch.length < 0:
                self.reason = REASON[-batch.length]
                self._buffer = b""
            elif batch.length == 0:
                break
            elif batch.length > len(self._buffer):
                assert batch.messages == 1
                self._batch = batch
                break
            else:
                batches.append((batch, self._buffer[: batch.length]))
                self._buffer = self._buffer[batch.length :]
                self._batch = None
        return batches


@given(st.data(), any_framings() | framings(), limits, directions, st.lists(st.integers(0, 2000)))
def test_however_a_stream_is_cut_both_sides_find_the_same_messages(
    headers: Headers,
    data: st.DataObject,
    framing: Framing,
    limit: int,
    direction: Direction,
    cuts: list[int],
) -> None:
    parts = any_bytes()
    if framing.name == "random":
        valid = messages(framing, direction).map(lambda message: message.data)
        parts = st.lists(valid, max_size=5).map(b"".join)
    sent = data.draw(parts) + data.draw(any_bytes() | st.just(b""))
    strparser = Strparser(headers, framing, limit, direction)
    framer = Framer(framing, direction)

    for piece in pieces(sent, cuts):
        found = framer.feed(piece)
        for batch, whole in strparser.feed(piece):
            assert 1 <= batch.messages <= limit
            mine, found = found[: batch.messages], found[batch.messages :]
            assert whole == b"".join(message.data for message in mine)
            kinds = [
                message.is_response if direction is Direction.RESPONSE else message.wants_response
                for message in mine
            ]
            assert batch.expecting == sum(kinds)
            if direction is Direction.RESPONSE:
                assert len(set(kinds)) == 1
            # Of one that came in piece by piece note is taken when it is whole, in the verdict.
            if by_id(framing) and batch.ids:
                assert batch.ids == tuple(
                    message.id
                    for message, kind in zip(mine, kinds, strict=True)
                    if kind and not aside(framing, message.data, 0, direction)
                )
        assert not found
        assert strparser.reason == (framer.error and framer.error.reason)
        assert strparser.pending == framer.pending
        if framer.error is not None:
            return


# --- single facts -----------------------------------------------------------------------------------------

PREFIXED = PRESETS["length-prefixed"]
DNS = PRESETS["dns"]


def prefixed(number: int, total: int) -> bytes:
    """A message of the framing ``length-prefixed`` with `total` bytes."""
    return (total - 4).to_bytes(4, "big") + number.to_bytes(4, "big") + bytes(total - 8)


def test_an_incomplete_first_message_gives_its_length(headers: Headers) -> None:
    whole = prefixed(7, 100)
    for size in range(8):
        assert headers.measure(encode(PREFIXED), whole[:size], 0, 64, Direction.REQUEST) == (0, 0, 0, ())
    for size in range(8, 101):
        got = headers.measure(encode(PREFIXED), whole[:size], 0, 64, Direction.REQUEST)
        assert got == (100, 1, 1, (7,) if size == 100 else ())


def test_an_incomplete_message_does_not_travel_with_those_before_it(headers: Headers) -> None:
    data = prefixed(1, 20) + prefixed(2, 30)
    for size in range(20, 50):
        got = headers.measure(encode(PREFIXED), data[:size], 0, 64, Direction.REQUEST)
        assert got == (20, 1, 1, (1,))
    assert headers.measure(encode(PREFIXED), data, 0, 64, Direction.REQUEST) == (50, 2, 2, (1, 2))


def test_an_error_waits_until_the_messages_before_it_are_gone(headers: Headers) -> None:
    data = prefixed(1, 20) + (1 << 30).to_bytes(4, "big") + bytes(4)
    framing = encode(PREFIXED)

    assert headers.measure(framing, data, 0, 64, Direction.REQUEST).length == 20
    assert headers.measure(framing, data, 20, 64, Direction.REQUEST).length == -errno.EMSGSIZE


@pytest.mark.parametrize("value", [0, MAX_LENGTH - 8, MAX_LENGTH, MAX_LENGTH + 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("adjust", [8 - MAX_LENGTH, 0, MAX_LENGTH])
def test_lengths_at_the_ends_of_their_range(headers: Headers, value: int, adjust: int) -> None:
    field = Field(0, 8)
    framing = Framing("x", Length(field, field.ones, adjust), max_message=MAX_LENGTH, min_message=8)
    data = value.to_bytes(8, "big")

    got = headers.measure(encode(framing), data, 0, 64, Direction.REQUEST)

    assert got == expected(framing, data, 64, Direction.REQUEST)


def test_responses_and_other_messages_of_a_backend_travel_apart(headers: Headers) -> None:
    def dns(number: int, mark: int) -> bytes:
        return (12).to_bytes(2, "big") + number.to_bytes(2, "big") + bytes([mark]) + bytes(9)

    def batches(*marks: int) -> list[int]:
        data = b"".join(dns(number, mark) for number, mark in enumerate(marks))
        found, offset = [], 0
        while offset < len(data):
            batch = headers.measure(encode(DNS), data, offset, 64, Direction.RESPONSE)
            assert batch.expecting in (0, batch.messages)
            found.append(batch.expecting or -batch.messages)
            offset += batch.length
        return found

    assert batches(0x80, 0x80, 0, 0, 0, 0x80) == [2, -3, 1]
    assert batches(0, 0x80) == [-1, 1]


def test_error_responses_are_counted_and_those_at_the_end(headers: Headers) -> None:
    def batch(*codes: int, direction: Direction = Direction.RESPONSE) -> tuple[int, int, bool]:
        mark = 0x80 if direction is Direction.RESPONSE else 0
        data = b"".join(bytes([0, 12, 0, number, mark, code]) + bytes(8) for number, code in enumerate(codes))
        assert headers.measure(encode(DNS), data, 0, 64, direction).messages == len(codes)
        return headers.errors

    assert batch(0) == (0, 0, False)
    assert batch(2) == (1, 1, True)
    assert batch(0x82, 3, 2, 2) == (3, 2, True)
    assert batch(3, 2, 2, 0) == (2, 0, False)
    assert batch(*[2] * 64) == (64, 64, True)
    assert batch(2, 2, direction=Direction.REQUEST) == (0, 0, False)


def test_a_response_that_nobody_awaits_travels_apart_and_is_expected_by_none(headers: Headers) -> None:
    data = prefixed(1, 20) + prefixed(1, 20) + prefixed(2, 20) + prefixed(2, 20) + prefixed(1, 20)

    def batch(offset: int, framing: Framing = PREFIXED) -> Batch:
        return headers.measure(encode(framing), data, offset, 64, Direction.RESPONSE, awaited=1)

    assert batch(0) == (40, 2, 2, (1, 1))
    assert batch(40) == batch(60) == (20, 1, 0, ())
    assert batch(80) == (20, 1, 1, (1,))
    many = replace(PREFIXED, responses=Responses.MANY)
    assert batch(0, many) == (100, 5, 5, (1, 1, 1))


COUNTED = Framing(
    "counted",
    Length(Field(0, 4), 0xFFFFFFFF, 0),
    max_message=1 << 20,
    min_message=12,
    id=Field(2, 3, Endian.LITTLE),
    id_after=Field(4, 8),
)


def test_an_id_outside_of_the_window(headers: Headers) -> None:
    for count in (0, 1, 47, 48, 49, 100, 60_000):
        head = (17 + count + 5).to_bytes(4, "big") + count.to_bytes(8, "big")
        whole = head + bytes(count + 2) + b"\3\2\1" + b"after"

        assert headers.id_offset(encode(COUNTED), whole, Direction.REQUEST) == 14 + count
        for size in (0, 11, 12, 14 + count, 16 + count):
            got = headers.measure(encode(COUNTED), whole[:size], 0, 64, Direction.REQUEST)
            assert got == (0, 0, 0, ())
        for size in (17 + count, 21 + count):
            got = headers.measure(encode(COUNTED), whole[:size], 0, 64, Direction.REQUEST)
            assert got == (22 + count, 1, 1, ())
        got = headers.measure(encode(COUNTED), b"." + whole * 2, 1, 64, Direction.REQUEST)
        assert got == (44 + 2 * count, 2, 2, (0x010203, 0x010203))


@pytest.mark.parametrize(
    "count", [1, 6, 1 << 20, MAX_LENGTH - 14, MAX_LENGTH, 1 << 32, 1 << 63, (1 << 64) - 14]
)
def test_a_string_that_leaves_no_room_for_its_id(headers: Headers, count: int) -> None:
    data = (17).to_bytes(4, "big") + count.to_bytes(8, "big") + bytes(5)

    for size in (12, 17):
        got = headers.measure(encode(COUNTED), data[:size], 0, 64, Direction.REQUEST)
        assert got == (-errno.EBADMSG, 0, 0, ())


def test_answers_to_quiet_requests_answer_nothing(headers: Headers) -> None:
    def packet(opcode: int, number: int, kind: int) -> bytes:
        return bytes([kind, opcode]) + bytes(10) + number.to_bytes(4, "big") + bytes(8)

    def measured(framing: abi.Framing, data: bytes, limit: int, direction: Direction) -> tuple[Batch, bool]:
        return headers.measure(framing, data, 0, limit, direction), headers.open

    memcached = encode(PRESETS["memcached-binary"])
    noop, getkq = 0x0A, 0x0D
    asked = packet(noop, 1, 0x80) + packet(getkq, 2, 0x80)
    answered = packet(getkq, 1, 0x81) + packet(noop, 1, 0x81)

    assert measured(memcached, asked, 64, Direction.REQUEST) == ((48, 2, 1, (1,)), True)
    assert measured(memcached, asked, 1, Direction.REQUEST) == ((24, 1, 1, (1,)), False)
    assert measured(memcached, answered, 64, Direction.RESPONSE) == ((48, 2, 2, (1,)), False)
    assert measured(memcached, answered, 1, Direction.RESPONSE) == ((24, 1, 1, ()), True)
    others = encode(replace(PRESETS["memcached-binary"], responses=Responses.MANY))
    assert measured(others, answered, 64, Direction.RESPONSE) == ((48, 2, 2, (1, 1)), False)


def test_the_errors_in_c_are_the_reasons_of_the_oracle() -> None:
    text = (ROOT / "bpf/lb_framing.h").read_text(encoding="utf-8")
    body = re.search(r"enum lb_malformed \{(.*?)\};", text, re.DOTALL)
    assert body is not None
    in_c = dict(re.findall(r"LB_(\w+) = -(\w+),", body[1]))

    assert {name.lower(): getattr(errno, number) for name, number in in_c.items()} == ERRNO


def test_user_space_gives_an_error_of_the_parser_its_reason() -> None:
    labels = {number: reason.value for reason, number in ERRNO.items()}

    with socket.socket() as sock:
        assert {number: faults.malformed(sock, number) for number in labels} == labels
