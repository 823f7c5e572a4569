"""The framings that have a name of their own."""

from collections.abc import Mapping
from types import MappingProxyType

from lb.framing.spec import (
    Edit,
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

# GetQ, GetKQ; Set, Add, Replace, Delete, Increment, Decrement, Quit, Flush, Append, Prepend; GATQ, GATKQ; and
# of ranges, which no server has implemented, RSetQ to RDecrQ.
_MEMCACHED_QUIET = frozenset(
    {0x09, 0x0D, *range(0x11, 0x1B), 0x1E, 0x24} | {0x32, 0x34, 0x36, 0x38, 0x3A, 0x3C}
)


def _length(offset: int, width: int, adjust: int) -> Length:
    field = Field(offset, width)
    return Length(field, field.ones, adjust)


# 1 MiB where the protocol has no limit of its own: what receive buffers must hold four times over.
_FRAMINGS = (
    Framing(
        name="length-prefixed",
        length=_length(0, 4, adjust=4),
        id=Field(4, 4),
        min_message=8,
        max_message=1 << 20,
        ordering=Ordering.ANY,
        ping=bytes.fromhex("00000004 70696e67"),
    ),
    # DNS over TCP, RFC 1035 4.2.2: a length of two bytes, then a message with a header of twelve.
    Framing(
        name="dns",
        length=_length(0, 2, adjust=2),
        id=Field(2, 2),
        response=Match(Field(4, 1), mask=0x80, value=0x80),
        min_message=2 + 12,
        max_message=2 + 0xFFFF,
        ordering=Ordering.ANY,
        responses=Responses.MANY,  # zone transfers: RFC 5936 2.2
        error_reply=ErrorReply.DNS,
        response_error=Match(Field(5, 1), mask=0x0F, value=2),  # SERVFAIL
        # QR; of the flags what a response keeps, OPCODE, RD and CD (RFC 4035 3.2.2); RA; RCODE 5, REFUSED.
        refusal=(Edit(4, keep=0x79, set=0x80), Edit(5, keep=0x10, set=0x80 | 5)),
        transfers=Transfers.DNS,
        ping=bytes.fromhex("0011 7069 0000 0001 0000 0000 0000 00 0002 0001"),  # the name servers of the root
    ),
    # Thrift's framed transport, strict binary protocol: thrift-binary-protocol.md, thrift-rpc.md. A frame of
    # 4 bytes, version and type in 4, the counted name of the method, the sequence id, a struct of 1 or more.
    Framing(
        name="thrift-framed",
        length=_length(0, 4, adjust=4),
        id=Field(0, 4),
        id_after=Field(8, 4),
        magic=Match(Field(4, 2), mask=0xFFFF, value=0x8001),
        response=Match(Field(7, 1), mask=0xFE, value=2),  # 2 reply, 3 exception
        no_response=Match(Field(7, 1), mask=0xFF, value=4),  # oneway
        min_message=4 + 4 + 4 + 4 + 1,
        max_message=1 << 20,
        ordering=Ordering.ANY,
        # A call of "ping" without arguments; where nobody has such a method the answer is an exception.
        ping=bytes.fromhex("00000011 80010001 00000004 70696e67 00000001 00"),
    ),
    # ONC RPC over TCP, RFC 5531 9 and 11. The shortest message is a rejection: xid, type, reply_stat,
    # reject_stat, auth_stat. A record of several fragments lacks the top bit in the first: none is taken.
    Framing(
        name="onc-rpc",
        length=Length(Field(0, 4), mask=0x7FFFFFFF, adjust=4),
        id=Field(4, 4),
        magic=Match(Field(0, 1), mask=0x80, value=0x80),
        response=Match(Field(8, 4), mask=0xFFFFFFFF, value=1),
        min_message=4 + 20,
        max_message=1 << 20,
        ordering=Ordering.ANY,
        # The null procedure of the port mapper; everybody else has to say that it has no such program.
        ping=bytes.fromhex(
            "80000028 70696e67 00000000 00000002 000186a0 00000002 00000000 00000000 00000000"
            " 00000000 00000000"
        ),
    ),
    # Dubbo 2, ExchangeCodec: magic, flags (0x80 request, 0x40 two-way), status, id, length of the body.
    Framing(
        name="dubbo",
        length=_length(12, 4, adjust=16),
        id=Field(4, 8),
        magic=Match(Field(0, 2), mask=0xFFFF, value=0xDABB),
        response=Match(Field(2, 1), mask=0x80, value=0),
        no_response=Match(Field(2, 1), mask=0x40, value=0),
        min_message=16,
        max_message=1 << 20,
        ordering=Ordering.ANY,
        # HeartbeatHandler: an event (0x20) in Hessian 2, whose body is null.
        ping=bytes.fromhex("dabb e2 00 0000000070696e67 00000001 4e"),
    ),
    # memcached, protocol-binary.xml. Answers keep the order of the requests. A quiet request is answered if
    # there is something to say: a get hits, anything else fails.
    Framing(
        name="memcached-binary",
        length=_length(8, 4, adjust=24),
        id=Field(12, 4),
        magic=Match(Field(0, 1), mask=0xFE, value=0x80),
        response=Match(Field(0, 1), mask=0xFF, value=0x81),
        no_response=OneOf(Field(1, 1), 0xFF, _MEMCACHED_QUIET),
        min_message=24,
        max_message=1 << 20,  # an item, its key and 48 bytes of its own have 1 MiB by default
        ordering=Ordering.FIFO,
        responses=Responses.ANY,
        ping=bytes.fromhex("80 0a 0000 00 00 0000 00000000 70696e67 0000000000000000"),  # NOOP
    ),
    # Modbus/TCP, Messaging on TCP/IP Implementation Guide V1.0b 3.1.3: transaction, protocol 0, length, unit,
    # then a PDU of 1 to 253 bytes, of which a request has two or more.
    Framing(
        name="modbus",
        length=_length(4, 2, adjust=6),
        id=Field(0, 2),
        magic=Match(Field(2, 2), mask=0xFFFF, value=0),
        min_message=7 + 1,
        max_message=7 + 253,
        ordering=Ordering.ANY,
        # The first holding register of the server itself (unit 255, 4.4.2.2); an exception will do.
        ping=bytes.fromhex("7069 0000 0006 ff 03 0000 0001"),
    ),
    # Diameter, RFC 6733 3: the hop-by-hop identifier is what a relay replaces and an answer returns. No ping:
    # before its peer has introduced itself by name (5.3) a server answers nothing.
    Framing(
        name="diameter",
        length=_length(1, 3, adjust=0),
        id=Field(12, 4),
        magic=Match(Field(0, 1), mask=0xFF, value=1),
        response=Match(Field(4, 1), mask=0x80, value=0),
        min_message=20,
        max_message=1 << 20,
        ordering=Ordering.ANY,
    ),
    # SMPP 3.4, 3.2: command_length, command_id, command_status, sequence_number.
    Framing(
        name="smpp",
        length=_length(0, 4, adjust=0),
        id=Field(12, 4),
        response=Match(Field(4, 1), mask=0x80, value=0x80),
        min_message=16,
        max_message=128 << 10,  # message_payload alone has up to 64 KiB
        ordering=Ordering.ANY,
        ping=bytes.fromhex("00000010 00000015 00000000 70696e67"),  # enquire_link
    ),
)

PRESETS: Mapping[str, Framing] = MappingProxyType({framing.name: framing for framing in _FRAMINGS})
