"""Refusals: a request becomes the response that says that it was denied."""

from dataclasses import replace
from typing import Any

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.dataplane.encode import encode
from lb.framing import (
    MAX_EDITS,
    MAX_WINDOW,
    PRESETS,
    Direction,
    Edit,
    Field,
    Framer,
    Framing,
    Ordering,
    Transfers,
    refusal,
)

DNS = PRESETS["dns"]
PLAIN = replace(PRESETS["length-prefixed"], refusal=(Edit(7, keep=0xFF, set=1),))


def prefixed(wire: bytes) -> bytes:
    return len(wire).to_bytes(2, "big") + wire


@pytest.mark.parametrize(
    ("offset", "keep", "to"),
    [(-1, 0, 0), (MAX_WINDOW, 0, 0), (0, 256, 0), (0, 0, 256), (0, -1, 0), (0, 0, -1)],
)
def test_an_edit_is_of_one_byte_in_the_window(offset: int, keep: int, to: int) -> None:
    Edit(MAX_WINDOW - 1, 0xFF, 0xFF)
    with pytest.raises(ValueError, match=r"byte|edit"):
        Edit(offset, keep, to)


@pytest.mark.parametrize(
    "change",
    [
        {"refusal": (Edit(0, 0, 0),) * (MAX_EDITS + 1)},
        {"refusal": (Edit(8, 0, 0),)},  # the shortest message has eight bytes
        {"ordering": Ordering.FIFO},
        {"id": None},
        {"response_id": Field(0, 4)},
    ],
)
def test_a_refusal_can_be_told_from_others_and_lies_within_each_message(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="refusal"):
        replace(PLAIN, **change)


@given(st.integers(0, 65535), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=40))
def test_any_query_of_the_preset_dns_becomes_a_response_to_it(
    number: int, high: int, low: int, rest: bytes
) -> None:
    asked = prefixed(number.to_bytes(2, "big") + bytes([high & 0x7F, low]) + bytes(8) + rest)
    (request,) = Framer(DNS, Direction.REQUEST).feed(asked)

    reply = refusal(DNS, asked)

    assert reply is not None
    (response,) = Framer(DNS, Direction.RESPONSE).feed(reply)
    assert response.is_response
    assert response.id == request.id == number
    assert reply[:4] + reply[6:] == asked[:4] + asked[6:]
    flags = int.from_bytes(reply[4:6], "big")
    assert flags & 0xF == dns.rcode.REFUSED
    assert flags & dns.flags.QR
    assert flags & dns.flags.RA
    assert not flags & (dns.flags.AA | dns.flags.TC | dns.flags.AD | 0x40)
    assert flags & (dns.flags.RD | dns.flags.CD | 0x7800) == (high << 8 | low) & 0x7910


@pytest.mark.parametrize("opcode", [dns.opcode.QUERY, dns.opcode.STATUS, dns.opcode.NOTIFY])
@pytest.mark.parametrize("edns", [False, True])
def test_another_implementation_takes_it_for_the_response(opcode: dns.opcode.Opcode, *, edns: bool) -> None:
    query = dns.message.make_query("www.example.test.", "A", use_edns=edns, flags=dns.flags.RD)
    query.set_opcode(opcode)
    asked = query.to_wire()
    reply = refusal(DNS, prefixed(asked))
    assert reply is not None
    answer = dns.message.from_wire(reply[2:])
    assert dns.message.from_wire(asked).is_response(answer)
    assert answer.rcode() == dns.rcode.REFUSED


def test_other_presets_have_none() -> None:
    assert {name for name, framing in PRESETS.items() if framing.refusal} == {"dns"}
    assert {name for name, framing in PRESETS.items() if framing.transfers} == {"dns"}
    assert DNS.transfers is Transfers.DNS
    assert refusal(PRESETS["modbus"], bytes(8)) is None


def test_the_programs_get_as_many_changes_as_are_declared() -> None:
    def edits(framing: Framing) -> list[tuple[int, int, int]]:
        value = encode(framing)
        return [(edit.offset, edit.keep, edit.set) for edit in value.refusal[: value.edits]]

    assert edits(PLAIN) == [(7, 0xFF, 1)]
    assert edits(DNS) == [(4, 0x79, 0x80), (5, 0x10, 0x85)]
    assert edits(PRESETS["modbus"]) == []
