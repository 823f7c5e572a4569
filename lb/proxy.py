r"""The PROXY protocol: what a proxy says in front of a connection about whose it is.

Version 1 is a line, `PROXY TCP4 SOURCE DESTINATION PORT PORT\r\n`; version 2 a binary header with room for
more (TLVs), of which only the checksum means something here. `UNKNOWN` and `LOCAL`, and families other than
TCP over IP, say nothing of a client: the connection is its peer's own, a health check for example.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
"""

import re
import struct
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from lb.config import Address, ProxyVersion

# Of a header. A certificate in a TLV would be longer; nobody sends one without being told to.
LONGEST = 4096

_V1 = b"PROXY "
_V1_LONGEST = 107  # with CR LF; every sender can write all of it at once
_V1_TCP = re.compile(
    rb"PROXY TCP([46]) ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39})"
    rb" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n"
)
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN( [^\r\n]*)?\r\n")
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED = struct.Struct("!12sBBH")  # signature, version and command, family and transport, bytes behind
_VERSION = 2
_LOCAL, _PROXY = 0, 1
_UNSPEC, _INET, _INET6, _UNIX = range(4)
_STREAM, _DGRAM = 1, 2
_PORTS = struct.Struct("!HH")
_FAMILIES = {_UNSPEC: 0, _INET: 12, _INET6: 36, _UNIX: 216}  # bytes of the addresses
_TLV = struct.Struct("!BH")
_CRC32C = 3
_MAX_PORT = 65535


class HeaderError(Exception):
    """The stream does not begin with a header."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Both ends of a connection, as its client sees them."""

    source: Address
    destination: Address


@dataclass(frozen=True, slots=True)
class Header:
    """A header that has been read; no `endpoints`: the connection is its peer's own."""

    length: int  # bytes
    endpoints: Endpoints | None


def parse(data: bytes) -> Header | None:
    """Return the header at the head of a stream, None if it is not complete yet.

    An IPv4 address in the clothes of an IPv6 one (`::ffff:192.0.2.1`) is taken for what it is.

    Raises:
        HeaderError: this cannot become a header, or is longer than :data:`LONGEST`.
    """
    if data[: len(_V2)] == _V2[: len(data)]:
        return _parse_v2(data)
    if data[: len(_V1)] == _V1[: len(data)]:
        return _parse_v1(data)
    raise HeaderError("it does not begin with a PROXY header")


def build(version: ProxyVersion, endpoints: Endpoints | None) -> bytes:
    """Return the header that tells a backend of a connection's ends; None: it is our own.

    Where one end has an IPv4 and the other an IPv6 address, the first becomes an IPv6 one.
    """
    if endpoints is None:
        return b"PROXY UNKNOWN\r\n" if version is ProxyVersion.V1 else _v2(_LOCAL, _UNSPEC, 0, b"")
    source, destination = endpoints.source, endpoints.destination
    hosts = [source.host, destination.host]
    if hosts[0].version != hosts[1].version:
        hosts = [_mapped(host) for host in hosts]
    if version is ProxyVersion.V1:
        kind = 4 if hosts[0].version == 4 else 6
        return f"PROXY TCP{kind} {hosts[0]} {hosts[1]} {source.port} {destination.port}\r\n".encode("ascii")
    family = _INET if hosts[0].version == 4 else _INET6
    packed = b"".join(host.packed for host in hosts) + _PORTS.pack(source.port, destination.port)
    return _v2(_PROXY, family, _STREAM, packed)


def _v2(command: int, family: int, transport: int, body: bytes) -> bytes:
    return _V2_FIXED.pack(_V2, _VERSION << 4 | command, family << 4 | transport, len(body)) + body


def _mapped(host: IPv4Address | IPv6Address) -> IPv6Address:
    return host if isinstance(host, IPv6Address) else IPv6Address(b"\0" * 10 + b"\xff\xff" + host.packed)


def _address(host: IPv4Address | IPv6Address, port: int) -> Address:
    if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    return Address(host, port)


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, _V1_LONGEST) + 1
    if not end:
        if len(data) >= _V1_LONGEST:
            raise HeaderError(f"its line has no end within {_V1_LONGEST} bytes")
        return None
    line = data[:end]
    if _V1_UNKNOWN.fullmatch(line):
        return Header(end, None)
    match = _V1_TCP.fullmatch(line)
    if match is None:
        raise HeaderError(f"{line!r} is not `PROXY TCP4|TCP6 SOURCE DESTINATION PORT PORT`")
    kind = IPv4Address if match[1] == b"4" else IPv6Address
    try:
        hosts = [kind(match[group].decode("ascii")) for group in (2, 3)]
    except AddressValueError as error:
        raise HeaderError(f"{line!r}: {error}") from None
    ports = [int(match[group]) for group in (4, 5)]
    if max(ports) > _MAX_PORT:
        raise HeaderError(f"{line!r}: a port is above {_MAX_PORT}")
    return Header(end, Endpoints(_address(hosts[0], ports[0]), _address(hosts[1], ports[1])))


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < _V2_FIXED.size:
        return None
    _, command, kind, size = _V2_FIXED.unpack_from(data)
    length = _V2_FIXED.size + size
    family, transport = kind >> 4, kind & 15
    if command >> 4 != _VERSION or command & 15 not in (_LOCAL, _PROXY):
        raise HeaderError(f"its version and command are {command:#04x}")
    if family not in _FAMILIES or transport > _DGRAM:
        raise HeaderError(f"its family and transport are {kind:#04x}")
    if length > LONGEST:
        raise HeaderError(f"it is {length} bytes long, above {LONGEST}")
    local = command & 15 == _LOCAL
    if not local and size < _FAMILIES[family]:
        raise HeaderError(f"{size} bytes are too few for its addresses")
    if len(data) < length:
        return None
    if local:  # what is behind says nothing, and need not even be well formed
        return Header(length, None)
    _check_tlvs(data[:length], _V2_FIXED.size + _FAMILIES[family])
    if transport != _STREAM or family not in (_INET, _INET6):
        return Header(length, None)
    width = 4 if family == _INET else 16
    at = _V2_FIXED.size
    packed = data[at : at + width], data[at + width : at + 2 * width]
    ports = _PORTS.unpack_from(data, at + 2 * width)
    address = IPv4Address if family == _INET else IPv6Address
    source, destination = (_address(address(host), port) for host, port in zip(packed, ports, strict=True))
    return Header(length, Endpoints(source, destination))


def _check_tlvs(header: bytes, at: int) -> None:
    """Walks over what stands behind the addresses."""
    while at < len(header):
        if at + _TLV.size > len(header):
            raise HeaderError("its last TLV is cut")
        kind, size = _TLV.unpack_from(header, at)
        at += _TLV.size
        if at + size > len(header):
            raise HeaderError("its last TLV is cut")
        if kind == _CRC32C:
            if size != 4:
                raise HeaderError(f"its checksum has {size} bytes")
            zeroed = header[:at] + b"\0\0\0\0" + header[at + 4 :]
            if crc32c(zeroed) != int.from_bytes(header[at : at + 4], "big"):
                raise HeaderError("its checksum is wrong")
        at += size


def crc32c(data: bytes) -> int:
    """Return the checksum of RFC 4960, appendix B."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = tuple(_entry(byte) for byte in range(256))
