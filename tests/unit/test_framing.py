"""Declared framings: their own invariants, the reference parser, the presets."""

from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

LENGTH = Length(Field(2, 2), mask=0x0FFF, adjust=4)
MARKED = Framing(
    name="marked",
    length=LENGTH,
    min_message=6,
    max_message=100,
    id=Field(4, 2, Endian.LITTLE),
    response=Match(Field(1, 1), mask=0x80, value=0x80),
    no_response=Match(Field(1, 1), mask=0x41, value=0x40),
    magic=Match(Field(0, 1), mask=0xFF, value=0xAB),
)


def message(*, magic: int = 0xAB, flags: int = 0, length: int = 6, body: bytes = b"\x01\x02") -> bytes:
    """A message of `MARKED` whose length field says that the whole of it has `length` bytes."""
    return bytes([magic, flags]) + (length - LENGTH.adjust).to_bytes(2, "big") + body


def reason_of(framing: Framing, data: bytes, direction: Direction = Direction.REQUEST) -> Reason:
    with pytest.raises(FramingError) as caught:
        measure(framing, data, 0, direction)
    return caught.value.reason


# --- declarations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "width"), [(0, 0), (0, 5), (0, 16), (-1, 1), (MAX_WINDOW, 1), (MAX_WINDOW - 7, 8)]
)
def test_a_field_lies_within_the_window(offset: int, width: int) -> None:
    Field(MAX_WINDOW - 8, 8)
    with pytest.raises(ValueError, match="field"):
        Field(offset, width)


@pytest.mark.parametrize(("mask", "value"), [(0, 0), (0x100, 0), (-1, 0), (0x80, 0x40), (0x80, -1)])
def test_a_match_can_match(mask: int, value: int) -> None:
    Match(Field(0, 1), 0xFF, 0xFF)
    with pytest.raises(ValueError, match="mask"):
        Match(Field(0, 1), mask, value)


@pytest.mark.parametrize(
    ("mask", "adjust"), [(0, 0), (0x10000, 0), (1, MAX_LENGTH + 1), (1, -MAX_LENGTH - 1)]
)
def test_a_length_has_a_mask_of_its_field_and_a_bounded_adjustment(mask: int, adjust: int) -> None:
    Length(Field(0, 2), 0xFFFF, -MAX_LENGTH)
    with pytest.raises(ValueError, match=r"mask|adjust"):
        Length(Field(0, 2), mask, adjust)


@pytest.mark.parametrize(("low", "high"), [(3, 100), (10, 9), (4, MAX_LENGTH + 1)])
def test_the_sizes_of_a_framing_are_in_order(low: int, high: int) -> None:
    Framing("x", LENGTH, min_message=4, max_message=4)
    with pytest.raises(ValueError, match="min_message"):
        Framing("x", LENGTH, min_message=low, max_message=high)


@pytest.mark.parametrize(
    ("width", "mask", "values"),
    [(2, 1, {1}), (1, 0, {0}), (1, 0xFF, set()), (1, 0x0F, {1, 16}), (1, 1, {-1})],
)
def test_a_set_can_match(width: int, mask: int, values: set[int]) -> None:
    OneOf(Field(0, 1), 0xFF, frozenset({0, 255}))
    with pytest.raises(ValueError, match=r"mask|bytes"):
        OneOf(Field(0, width), mask, frozenset(values))


@pytest.mark.parametrize(
    "parts",
    [
        {"response_id": Field(0, 4)},
        {"id_after": Field(0, 4)},
        {"responses": Responses.ANY},
        {"id": Field(0, 2), "response_id": Field(4, 4)},
        {"id": Field(0, 4), "response_id": Field(4, 4, Endian.LITTLE)},
        {"id": Field(0, 4), "response_id": Field(4, 4), "id_after": Field(4, 4)},
    ],
)
def test_what_is_said_of_an_id_fits_together(parts: Any) -> None:
    Framing("x", LENGTH, 100, 40, id=Field(0, 4), response_id=Field(4, 4), responses=Responses.ANY)
    with pytest.raises(ValueError, match="id"):
        Framing("x", LENGTH, 100, 40, **parts)


def test_the_window_holds_every_field() -> None:
    high = Match(Field(30, 2), 1, 1)

    assert Framing("x", LENGTH, 100, 40).window == 4
    assert Framing("x", LENGTH, 100, 40, id=Field(20, 8)).window == 28
    assert Framing("x", LENGTH, 100, 40, id=Field(20, 8), response=high).window == 32
    assert Framing("x", LENGTH, 100, 40, no_response=high).window == 32
    assert Framing("x", LENGTH, 100, 40, magic=high).window == 32
    assert Framing("x", LENGTH, 100, 40, id=Field(4, 8), response_id=Field(20, 8)).window == 28
    assert Framing("x", LENGTH, 100, 40, id=Field(20, 8), id_after=Field(6, 2)).window == 8


# --- one message ------------------------------------------------------------------------------------------


def test_a_message_is_measured_from_its_window_on() -> None:
    data = message(length=100)

    assert MARKED.window == 6
    assert measure(MARKED, data[:5], 0, Direction.REQUEST) is None
    assert measure(MARKED, data, 0, Direction.REQUEST) == 100
    assert measure(MARKED, memoryview(b"..." + data), 3, Direction.REQUEST) == 100
    assert measure(MARKED, b"..." + data[:5], 3, Direction.REQUEST) is None


def test_bits_outside_the_mask_of_the_length_do_not_count() -> None:
    assert measure(MARKED, b"\xab\x00\xf0\x02\x00\x00", 0, Direction.REQUEST) == 6


def test_every_reason_has_its_message() -> None:
    assert reason_of(MARKED, message(magic=0xAA)) is Reason.BAD_MAGIC
    assert reason_of(MARKED, message(length=5)) is Reason.TOO_SHORT
    assert reason_of(MARKED, message(length=101)) is Reason.OVERSIZE
    assert reason_of(MARKED, message(flags=0x80)) is Reason.UNEXPECTED_RESPONSE
    assert measure(MARKED, message(flags=0x80), 0, Direction.RESPONSE) == 6


def test_of_several_faults_the_first_in_order_is_the_reason() -> None:
    assert reason_of(MARKED, message(magic=0, flags=0x80, length=101)) is Reason.BAD_MAGIC
    assert reason_of(MARKED, message(flags=0x80, length=5)) is Reason.TOO_SHORT
    assert reason_of(MARKED, message(flags=0x80, length=101)) is Reason.OVERSIZE


def test_a_length_field_beyond_31_bits_is_oversize_whatever_the_adjustment() -> None:
    field = Field(0, 8)
    framing = Framing("x", Length(field, field.ones, 8 - MAX_LENGTH), max_message=100, min_message=8)

    assert measure(framing, MAX_LENGTH.to_bytes(8, "big"), 0, Direction.REQUEST) == 8
    assert reason_of(framing, (MAX_LENGTH + 1).to_bytes(8, "big")) is Reason.OVERSIZE
    assert reason_of(framing, b"\xff" * 8) is Reason.OVERSIZE
    assert reason_of(framing, bytes(8)) is Reason.TOO_SHORT


COUNTED = Framing("counted", LENGTH, min_message=6, max_message=100, id=Field(1, 2), id_after=Field(4, 2))


def counted(string: bytes, number: int, *, length: int | None = None, count: int | None = None) -> bytes:
    """A message of `COUNTED`; it may lie about its length, and about that of its string."""
    data = (
        (len(string) if count is None else count).to_bytes(2, "big")
        + string
        + b"."
        + number.to_bytes(2, "big")
    )
    return b".." + (len(data) if length is None else length - LENGTH.adjust).to_bytes(2, "big") + data


@pytest.mark.parametrize("size", [0, 1, 50, 91])
def test_a_header_ends_with_an_id_behind_a_string(size: int) -> None:
    data = counted(bytes(size), 0xBEEF)

    assert COUNTED.window == 6
    assert len(data) == 9 + size
    assert [measure(COUNTED, data[:there], 0, Direction.REQUEST) for there in (5, 6, 8 + size)] == [None] * 3
    assert measure(COUNTED, b".." + data, 2, Direction.REQUEST) == 9 + size
    assert COUNTED.id_offset(b".." + data, 2) == 7 + size
    assert [message.id for message in Framer(COUNTED, Direction.REQUEST).feed(data)] == [0xBEEF]


@pytest.mark.parametrize("count", [1, 2, 92, 0x7FFF, 0x8000, 0xFFFF])
def test_a_message_ends_after_the_id_that_its_string_stands_before(count: int) -> None:
    data = counted(b"", 7, count=count)

    assert reason_of(COUNTED, data) is Reason.TOO_SHORT
    assert reason_of(COUNTED, data[:6]) is Reason.TOO_SHORT
    assert reason_of(COUNTED, counted(b"", 7, length=101, count=count)) is Reason.OVERSIZE


def test_a_response_may_have_its_id_elsewhere() -> None:
    framing = Framing("x", LENGTH, 100, 8, id=Field(4, 2), response_id=Field(6, 2))
    data = message(length=8, body=b"\0\1\0\2")

    assert [message.id for message in Framer(framing, Direction.REQUEST).feed(data)] == [1]
    assert [message.id for message in Framer(framing, Direction.RESPONSE).feed(data)] == [2]
    assert framing.id_offset(data) == 4
    assert framing.id_offset(data, 0, Direction.RESPONSE) == 6
    assert Framing("x", LENGTH, 100, 8).id_offset(data) is None


# --- a stream ---------------------------------------------------------------------------------------------


def test_what_a_message_is_follows_from_its_marks() -> None:
    request, oneway, response = message(), message(flags=0x40), message(flags=0x80)
    both = message(flags=0x41)

    assert Framer(MARKED, Direction.REQUEST).feed(request + oneway + both) == [
        Message(request, id=0x0201, is_response=False, wants_response=True),
        Message(oneway, id=0x0201, is_response=False, wants_response=False),
        Message(both, id=0x0201, is_response=False, wants_response=True),
    ]
    assert Framer(MARKED, Direction.RESPONSE).feed(response + request) == [
        Message(response, id=0x0201, is_response=True, wants_response=False),
        Message(request, id=0x0201, is_response=False, wants_response=True),
    ]


def test_without_a_response_mark_the_direction_decides() -> None:
    plain = Framing("plain", LENGTH, min_message=4, max_message=100)
    data = b"..\x00\x00"

    assert Framer(plain, Direction.REQUEST).feed(data) == [Message(data, None, False, True)]
    assert Framer(plain, Direction.RESPONSE).feed(data) == [Message(data, None, True, False)]


def test_an_error_comes_after_the_messages_before_it_and_stays() -> None:
    framer = Framer(MARKED, Direction.REQUEST)

    assert framer.feed(message() + message()[:2]) == [Message(message(), 0x0201, False, True)]
    assert (framer.error, framer.pending) == (None, 2)
    assert len(framer.feed(message()[2:] + message(magic=0) + message())) == 1
    assert framer.error is not None
    assert (framer.error.reason, framer.pending) == (Reason.BAD_MAGIC, 0)
    for data in (b"", message()):
        with pytest.raises(FramingError, match="bad_magic") as caught:
            framer.feed(data)
        assert caught.value is framer.error


def test_an_oversize_message_is_refused_before_its_body_comes() -> None:
    framer = Framer(MARKED, Direction.REQUEST)

    assert framer.feed(message(length=101)) == []
    assert framer.error is not None
    assert framer.error.reason is Reason.OVERSIZE


@st.composite
def layouts(draw: st.DrawFn) -> list[Field]:
    """Six fields that do not overlap, in any order: length, id, response, no_response, magic, response_id.

    The last one is like the id but for its offset; that of no_response is a byte.
    """
    widths = draw(st.lists(st.sampled_from(WIDTHS), min_size=6, max_size=6))
    endians = draw(st.lists(st.sampled_from(Endian), min_size=6, max_size=6))
    widths[5], endians[5], widths[3] = widths[1], endians[1], 1
    fields: dict[int, Field] = {}
    start = 0
    for index in draw(st.permutations(range(6))):
        start += draw(st.integers(0, 2))
        fields[index] = Field(start, widths[index], endians[index])
        start = fields[index].end
    return [fields[index] for index in range(6)]


def masks(field: Field) -> st.SearchStrategy[int]:
    return st.integers(1, field.ones)


@st.composite
def matches(draw: st.DrawFn, field: Field) -> Match:
    mask = draw(masks(field))
    return Match(field, mask, draw(st.integers(0, field.ones)) & mask)


@st.composite
def sets(draw: st.DrawFn, field: Field) -> OneOf:
    """A set that neither is empty nor has all values."""
    mask = draw(masks(field))
    values = draw(st.sets(st.integers(0, field.ones).map(lambda value: value & mask), min_size=1))
    values.discard(draw(st.sampled_from(sorted({0, mask} - values) or [0])))
    return OneOf(field, mask, frozenset(values or {mask}))


@st.composite
def ids(draw: st.DrawFn, field: Field, other: Field) -> dict[str, Any]:
    """What a framing declares of ids: nothing, one place, two, or one behind a string."""
    behind = Field(draw(st.integers(0, 3)), draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(Endian)))
    return draw(
        st.sampled_from(
            [
                {"id": None},
                {"id": field},
                {"id": field, "response_id": other},
                {"id": behind, "id_after": field},
            ]
        )
    )


@st.composite
def framings(draw: st.DrawFn) -> Framing:
    """Framings of messages of up to 200 bytes; the mask of the length keeps at least 8 low bits."""
    length, id_field, response, no_response, magic, response_id = draw(layouts())
    bits = draw(st.integers(8, 8 * length.width))

    def maybe(strategy: st.SearchStrategy[Match]) -> Match | None:
        return draw(st.none() | strategy)

    return Framing(
        name="random",
        length=Length(length, mask=(1 << bits) - 1, adjust=draw(st.integers(-50, 50))),
        max_message=200,
        min_message=MAX_WINDOW,
        **draw(ids(id_field, response_id)),
        response=maybe(matches(response)),
        no_response=draw(st.none() | matches(no_response) | sets(no_response)),
        magic=maybe(matches(magic)),
        ordering=draw(st.sampled_from(Ordering)),
    )


def put(data: bytearray, field: Field, mask: int, value: int) -> None:
    """Write the bits of a mask, byte by byte from the least significant one."""
    for i in range(field.width):
        at = field.offset + (i if field.endian is Endian.LITTLE else field.width - 1 - i)
        keep = ~(mask >> 8 * i) & 0xFF
        data[at] = (data[at] & keep) | ((value & mask) >> 8 * i & 0xFF)


def bits(mark: Match | OneOf, matching: bool) -> st.SearchStrategy[int]:
    """What may stand in the field of a test for it to match, or not."""
    if isinstance(mark, Match):
        return st.just(mark.value if matching else mark.value ^ mark.mask)
    others = {value & mark.mask for value in range(256)} - mark.values
    return st.sampled_from(sorted(mark.values if matching else others))


@st.composite
def messages(draw: st.DrawFn, framing: Framing, direction: Direction) -> Message:
    """A message of a framing; bits that belong to no declared mask are noise.

    An id behind a string lies outside of the window.
    """
    total = draw(st.integers(MAX_WINDOW + 20, 200))
    data = bytearray(draw(st.randoms(use_true_random=False)).randbytes(total))
    length = framing.length
    put(data, length.field, length.mask, total - length.adjust)
    if framing.magic is not None:
        put(data, framing.magic.field, framing.magic.mask, framing.magic.value)
    number = None
    if framing.id is not None:
        number = draw(st.integers(0, framing.id.ones))
        field = framing.id
        if framing.id_after is not None:
            first = framing.id_after.end + framing.id.offset
            count = draw(st.integers(MAX_WINDOW - framing.id_after.end, total - first - framing.id.width))
            put(data, framing.id_after, framing.id_after.ones, count)
            data[first + count : first + count + field.width] = number.to_bytes(
                field.width, "big" if field.endian is Endian.BIG else "little"
            )
        else:
            if direction is Direction.RESPONSE and framing.response_id is not None:
                field = framing.response_id
            put(data, field, field.ones, number)
    is_response = direction is Direction.RESPONSE
    if framing.response is not None:
        is_response = is_response and draw(st.booleans())
        mark = framing.response
        put(data, mark.field, mark.mask, mark.value if is_response else mark.value ^ mark.mask)
    wants_response = not is_response
    if framing.no_response is not None:
        silent = draw(st.booleans())
        put(
            data, framing.no_response.field, framing.no_response.mask, draw(bits(framing.no_response, silent))
        )
        wants_response = wants_response and not silent
    return Message(bytes(data), number, is_response, wants_response)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Framing, Direction, list[Message]]:
    framing = draw(framings())
    direction = draw(st.sampled_from(Direction))
    return framing, direction, draw(st.lists(messages(framing, direction), max_size=5))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut data at any places, some of them perhaps the same."""
    ends = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


@given(streams(), st.lists(st.integers(0, 2000)), st.integers(0, 2000))
def test_however_a_stream_is_cut_the_messages_are_the_same(
    stream: tuple[Framing, Direction, list[Message]], cuts: list[int], missing: int
) -> None:
    framing, direction, expected = stream
    data = b"".join(message.data for message in expected)
    tail = b""
    if expected:
        *expected, last = expected
        tail = last.data[: missing % len(last.data)]
        data = data[: len(data) - len(last.data)] + tail

    framer = Framer(framing, direction)
    got = [message for piece in pieces(data, cuts) for message in framer.feed(piece)]

    assert got == expected
    assert framer.error is None
    assert framer.pending == len(tail)


@given(streams(), st.lists(st.integers(0, 2000)))
def test_however_a_stream_is_cut_the_messages_before_an_error_are_the_same(
    stream: tuple[Framing, Direction, list[Message]], cuts: list[int]
) -> None:
    framing, direction, expected = stream
    bad = bytearray(MAX_WINDOW)  # zeros: the string before an id is empty
    put(bad, framing.length.field, framing.length.mask, 201 - framing.length.adjust)
    if framing.magic is not None:
        put(bad, framing.magic.field, framing.magic.mask, framing.magic.value)
    data = b"".join(message.data for message in expected) + bad

    framer = Framer(framing, direction)
    got = []
    for piece in pieces(data, cuts):
        if framer.error is not None:
            break
        got += framer.feed(piece)

    assert got == expected
    assert framer.error is not None
    assert framer.error.reason is Reason.OVERSIZE


@given(st.data())
def test_any_bytes_are_measured_or_refused_as_the_declaration_says(data: st.DataObject) -> None:
    length, _, response, _, magic, _ = data.draw(layouts())
    framing = Framing(
        name="random",
        length=Length(length, data.draw(masks(length)), data.draw(st.integers(-MAX_LENGTH, MAX_LENGTH))),
        max_message=data.draw(st.integers(MAX_WINDOW, MAX_LENGTH)),
        min_message=MAX_WINDOW,
        response=data.draw(st.none() | matches(response)),
        magic=data.draw(st.none() | matches(magic)),
    )
    raw = data.draw(st.binary(min_size=MAX_WINDOW, max_size=MAX_WINDOW))
    direction = data.draw(st.sampled_from(Direction))

    def number(field: Field) -> int:
        octets = raw[field.offset : field.offset + field.width]
        if field.endian is Endian.BIG:
            octets = octets[::-1]
        return sum(octet << 8 * i for i, octet in enumerate(octets))

    value = number(length) & framing.length.mask
    total = value + framing.length.adjust
    expected: int | Reason = total
    if framing.magic and number(magic) & framing.magic.mask != framing.magic.value:
        expected = Reason.BAD_MAGIC
    elif value >= 1 << 31:
        expected = Reason.OVERSIZE
    elif total < MAX_WINDOW:
        expected = Reason.TOO_SHORT
    elif total > framing.max_message:
        expected = Reason.OVERSIZE
    elif (
        direction is Direction.REQUEST
        and framing.response
        and number(response) & framing.response.mask == framing.response.value
    ):
        expected = Reason.UNEXPECTED_RESPONSE

    try:
        got: int | Reason | None = measure(framing, raw, 0, direction)
    except FramingError as error:
        got = error.reason
    assert got == expected


# --- presets ----------------------------------------------------------------------------------------------


def test_presets_carry_their_own_names() -> None:
    assert {name: framing.name for name, framing in PRESETS.items()} == {name: name for name in PRESETS}
    assert set(PRESETS) == {
        "length-prefixed",
        "dns",
        "thrift-framed",
        "onc-rpc",
        "dubbo",
        "memcached-binary",
        "modbus",
        "diameter",
        "smpp",
    }


def test_length_prefixed() -> None:
    framing = PRESETS["length-prefixed"]
    data = (8).to_bytes(4, "big") + (7).to_bytes(4, "big") + b"body"

    assert Framer(framing, Direction.REQUEST).feed(data) == [Message(data, 7, False, True)]
    assert Framer(framing, Direction.RESPONSE).feed(data) == [Message(data, 7, True, False)]
    assert (framing.window, framing.min_message, framing.max_message) == (8, 8, 1 << 20)
    assert framing.ordering is Ordering.ANY


def test_dns() -> None:
    framing = PRESETS["dns"]
    query = bytes.fromhex("001d beef 0100 0001 0000 0000 0000 07 6578616d706c65 03 636f6d 00 0001 0001")
    answer = query[:4] + b"\x81\x80" + query[6:]

    assert Framer(framing, Direction.REQUEST).feed(query) == [Message(query, 0xBEEF, False, True)]
    assert Framer(framing, Direction.RESPONSE).feed(answer) == [Message(answer, 0xBEEF, True, False)]
    assert reason_of(framing, answer) is Reason.UNEXPECTED_RESPONSE
    assert reason_of(framing, b"\x00\x0b" + query[2:]) is Reason.TOO_SHORT
    assert measure(framing, b"\xff\xff" + query[2:], 0, Direction.REQUEST) == framing.max_message == 65537
    assert framing.ordering is Ordering.ANY


class Said(NamedTuple):
    """A message in hexadecimal digits, and what its protocol says of it."""

    data: str
    id: int
    is_response: bool = False
    wants_response: bool = True


CALL, ANSWER, QUIET = (False, True), (True, False), (False, False)
SAID = {
    "thrift-framed": [
        Said("0000 0011 8001 0001 0000 0004 70696e67 0000 0007 00", 7, *CALL),
        Said("0000 0011 8001 0002 0000 0004 70696e67 ffff ffff 00", 0xFFFFFFFF, *ANSWER),
        Said("0000 0011 8001 0003 0000 0004 70696e67 0000 0000 00", 0, *ANSWER),
        Said("0000 0011 8001 0004 0000 0004 70696e67 0000 0008 00", 8, *QUIET),
        Said("0000 000d 8001 0001 0000 0000 0000 0009 00", 9, *CALL),
    ],
    "onc-rpc": [
        Said("8000 0028 0000 0007 0000 0000 0000 0002 000186a0 00000002 00000000" + 4 * "00000000", 7, *CALL),
        Said("8000 0018 0000 0007 0000 0001 0000 0000 00000000 00000000 00000000", 7, *ANSWER),
        Said("8000 0014 ffff fffe 0000 0001 0000 0001 00000001 00000001", 0xFFFFFFFE, *ANSWER),
    ],
    "dubbo": [
        Said("dabb c2 00 0000000000000007 00000002 4e4e", 7, *CALL),
        Said("dabb 02 14 fffffffffffffffe 00000001 4e", 0xFFFFFFFFFFFFFFFE, *ANSWER),
        Said("dabb 82 00 0000000000000008 00000000", 8, *QUIET),
        Said("dabb e2 00 0000000000000009 00000001 4e", 9, *CALL),  # a heartbeat
    ],
    "memcached-binary": [
        Said("80 00 0003 00 00 0000 00000003 00000007 0000000000000000 6b6579", 7, *CALL),
        Said("81 00 0000 00 00 0001 00000000 00000007 0000000000000000", 7, *ANSWER),
        Said("80 09 0003 00 00 0000 00000003 00000008 0000000000000000 6b6579", 8, *QUIET),
        Said("80 11 0003 08 00 0000 0000000b 00000009 0000000000000000 0000000000000000 6b6579", 9, *QUIET),
        Said("80 0a 0000 00 00 0000 00000000 0000000a 0000000000000000", 10, *CALL),
        Said("80 10 0000 00 00 0000 00000000 0000000b 0000000000000000", 11, *CALL),
    ],
    "modbus": [
        Said("0007 0000 0006 01 03 0000 0002", 7, *CALL),
    ],
    "diameter": [
        Said("01 000014 80 000110 00000004 00000007 00000009", 7, *CALL),
        Said("01 000014 00 000110 00000004 00000007 00000009", 7, *ANSWER),
        Said("01 000014 20 000110 00000004 ffffffff 00000009", 0xFFFFFFFF, *ANSWER),
    ],
    "smpp": [
        Said("00000010 00000015 00000000 00000007", 7, *CALL),
        Said("00000010 80000015 00000000 00000007", 7, *ANSWER),
        Said("00000010 80000000 00000003 7fffffff", 0x7FFFFFFF, *ANSWER),
    ],
}


@pytest.mark.parametrize(("name", "said"), [(name, said) for name in SAID for said in SAID[name]])
def test_a_message_of_a_preset(name: str, said: Said) -> None:
    data = bytes.fromhex(said.data)
    direction = Direction.RESPONSE if said.is_response else Direction.REQUEST
    framer = Framer(PRESETS[name], direction)

    assert framer.feed(data[:-1]) == []
    assert framer.feed(data[-1:]) == [Message(data, said.id, said.is_response, said.wants_response)]
    if said.is_response:
        assert reason_of(PRESETS[name], data) is Reason.UNEXPECTED_RESPONSE


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("thrift-framed", "0000 0011 0001 0001 0000 0004 70696e67 0000 0007 00", Reason.BAD_MAGIC),
        ("thrift-framed", "0000 000c 8001 0001 0000 0000 0000 0007", Reason.TOO_SHORT),
        ("thrift-framed", "0000 0011 8001 0001 0000 0006 70696e67 0000 0007 00", Reason.TOO_SHORT),
        ("thrift-framed", "0000 0011 8001 0001 ffff fff4 70696e67 0000 0007 00", Reason.TOO_SHORT),
        ("thrift-framed", "ffff ffff 8001 0001 0000 0004 70696e67 0000 0007 00", Reason.OVERSIZE),
        ("onc-rpc", "0000 0028 0000 0007 0000 0000", Reason.BAD_MAGIC),  # not the last fragment
        ("onc-rpc", "8000 0013 0000 0007 0000 0000", Reason.TOO_SHORT),
        ("onc-rpc", "ffff ffff 0000 0007 0000 0000", Reason.OVERSIZE),
        ("dubbo", "dabc c2 00 0000000000000007 00000000", Reason.BAD_MAGIC),
        ("dubbo", "dabb c2 00 0000000000000007 000ffff1", Reason.OVERSIZE),
        ("memcached-binary", "67 00 0000 00 00 0000 00000000 00000007", Reason.BAD_MAGIC),  # "get ..."
        ("memcached-binary", "80 00 0000 00 00 0000 ffffffff 00000007", Reason.OVERSIZE),
        ("modbus", "0007 0001 0006 01 03 0000 0002", Reason.BAD_MAGIC),
        ("modbus", "0007 0000 0001 01", Reason.TOO_SHORT),
        ("modbus", "0007 0000 00ff 01", Reason.OVERSIZE),
        ("diameter", "02 000014 80 000110 00000004 00000007", Reason.BAD_MAGIC),
        ("diameter", "01 000013 80 000110 00000004 00000007", Reason.TOO_SHORT),
        ("smpp", "0000000f 00000015 00000000 00000007", Reason.TOO_SHORT),
        ("smpp", "47455420 2f20485454502f312e310d0a", Reason.OVERSIZE),  # "GET / HTTP/1.1"
    ],
)
def test_what_is_no_message_of_a_preset(name: str, data: str, reason: Reason) -> None:
    assert reason_of(PRESETS[name], bytes.fromhex(data)) is reason


def test_only_by_its_direction_is_a_modbus_message_a_response() -> None:
    data = bytes.fromhex("0007 0000 0003 01 83 02")

    assert Framer(PRESETS["modbus"], Direction.RESPONSE).feed(data) == [Message(data, 7, True, False)]


def test_the_order_matters_to_memcached_alone() -> None:
    assert {name for name in PRESETS if PRESETS[name].ordering is Ordering.FIFO} == {"memcached-binary"}
