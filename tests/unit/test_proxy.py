"""PROXY headers: the vectors of the specification, and whatever else may stand at the head of a stream."""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.config import Address, ProxyVersion
from lb.proxy import LONGEST, Endpoints, Header, HeaderError, build, crc32c, parse

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
HOSTS = st.ip_addresses()
PORTS = st.integers(0, 65535)
ADDRESSES = st.builds(Address, HOSTS, PORTS)
VERSIONS = st.sampled_from(ProxyVersion)


def ends(source: str, source_port: int, destination: str, destination_port: int) -> Endpoints:
    return Endpoints(
        Address(ip_address(source), source_port), Address(ip_address(destination), destination_port)
    )


def v2(command: int, kind: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([command, kind]) + struct.pack("!H", len(body)) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


INET = ends("192.0.2.1", 56324, "198.51.100.2", 443)
INET_BODY = bytes.fromhex("c0000201 c6336402 dc04 01bb")
INET6 = ends("2001:db8::1", 1, "2001:db8::2", 65535)
INET6_BODY = bytes.fromhex(
    "20010db8 00000000 00000000 00000001 20010db8 00000000 00000000 00000002 0001 ffff"
)


class TestVersion1:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            # Section 2.1: the longest line of each kind.
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535",
                ends("255.255.255.255", 65535, "255.255.255.255", 65535),
            ),
            (
                f"PROXY TCP6 {':'.join(['ffff'] * 8)} {':'.join(['ffff'] * 8)} 65535 65535",
                ends(":".join(["ffff"] * 8), 65535, ":".join(["ffff"] * 8), 65535),
            ),
            (f"PROXY UNKNOWN {':'.join(['ffff'] * 8)} {':'.join(['ffff'] * 8)} 65535 65535", None),
            ("PROXY UNKNOWN", None),
            (
                "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443",
                ends("192.168.0.1", 56324, "192.168.0.11", 443),
            ),
            ("PROXY TCP6 ::1 fe80::A 0 7000", ends("::1", 0, "fe80::a", 7000)),
            ("PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2", ends("192.0.2.1", 1, "2001:db8::1", 2)),
        ],
    )
    def test_what_it_says(self, line: str, expected: Endpoints | None) -> None:
        data = line.encode() + b"\r\n"
        assert len(data) <= 107
        assert parse(data) == Header(len(data), expected)

    def test_the_longest_line(self) -> None:
        line = f"PROXY UNKNOWN {':'.join(['ffff'] * 8)} {':'.join(['ffff'] * 8)} 65535 65535\r\n".encode()
        assert len(line) == 107
        assert parse(line) == Header(107, None)
        assert parse(line[:106]) is None
        with pytest.raises(HeaderError, match="no end within 107 bytes"):
            parse(line[:105] + b"5\r\n")

    @pytest.mark.parametrize(
        "line",
        [
            b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
            b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 ::1 ::2 1 2\r\n",
            b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP6 fe80::1%1 ::2 1 2\r\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY UNKNOWNS\r\n",
            b"PROXY UNKNOWN a\rb\r\n",
            b"PROXY TCP4 \xd9\xa1.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY \r\n",
            b"proxy tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
        ],
    )
    def test_what_is_none(self, line: bytes) -> None:
        with pytest.raises(HeaderError):
            parse(line)


class TestVersion2:
    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            (v2(0x21, 0x11, INET_BODY), INET),
            (v2(0x21, 0x21, INET6_BODY), INET6),
            (v2(0x21, 0x11, INET_BODY + tlv(4, b"\0\0") + tlv(0xE0, b"own")), INET),
            (v2(0x21, 0x12, INET_BODY), None),  # UDP
            (v2(0x21, 0x10, INET_BODY), None),
            (v2(0x21, 0x31, bytes(216)), None),  # UNIX
            (v2(0x21, 0x00, b""), None),
            (v2(0x21, 0x00, tlv(4, b"noise")), None),
            (v2(0x20, 0x00, b""), None),
            (v2(0x20, 0x11, INET_BODY), None),
            (v2(0x20, 0x11, b"any"), None),
            (
                v2(0x21, 0x21, IPv6Address("::ffff:192.0.2.1").packed + INET6_BODY[16:]),
                ends("192.0.2.1", 1, "2001:db8::2", 65535),
            ),
        ],
    )
    def test_what_it_says(self, header: bytes, expected: Endpoints | None) -> None:
        assert parse(header) == Header(len(header), expected)

    @pytest.mark.parametrize(
        "header",
        [
            v2(0x11, 0x11, INET_BODY),  # version 1
            v2(0x31, 0x11, INET_BODY),
            v2(0x22, 0x11, INET_BODY),  # neither LOCAL nor PROXY
            v2(0x21, 0x41, INET_BODY),  # no such family
            v2(0x21, 0x13, INET_BODY),  # no such transport
            v2(0x21, 0x11, INET_BODY[:-1]),
            v2(0x21, 0x21, INET6_BODY[:-1]),
            v2(0x21, 0x31, bytes(215)),
            v2(0x21, 0x11, INET_BODY + b"\4"),
            v2(0x21, 0x11, INET_BODY + b"\4\0\2x"),
            v2(0x21, 0x11, INET_BODY + tlv(3, b"\0\0\0\0")),  # not the checksum
            v2(0x21, 0x11, INET_BODY + tlv(3, b"\0\0\0")),
            v2(0x21, 0x11, INET_BODY + bytes(LONGEST - 27)),
            b"\r\n\r\n\0\r\nquit\n" + v2(0x21, 0x11, INET_BODY)[12:],
        ],
    )
    def test_what_is_none(self, header: bytes) -> None:
        with pytest.raises(HeaderError):
            parse(header)

    def test_a_mistake_is_seen_before_the_header_is_whole(self) -> None:
        for header in (v2(0x21, 0x41, INET_BODY), v2(0x21, 0x11, bytes(LONGEST))):
            with pytest.raises(HeaderError):
                parse(header[:16])

    def test_the_longest_header(self) -> None:
        body = INET_BODY + tlv(4, bytes(LONGEST - 16 - len(INET_BODY) - 3))
        assert parse(v2(0x21, 0x11, body)) == Header(LONGEST, INET)

    def test_the_checksum(self) -> None:
        assert crc32c(b"123456789") == 0xE3069283
        assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
        blank = v2(0x21, 0x11, INET_BODY + tlv(3, bytes(4)) + tlv(0xE0, b"own"))
        whole = blank.replace(tlv(3, bytes(4)), tlv(3, crc32c(blank).to_bytes(4, "big")))
        assert parse(whole) == Header(len(whole), INET)
        kind = whole.index(tlv(3, whole[31:35]))
        for at in (*range(16, kind), *range(kind + 1, len(whole))):
            damaged = bytearray(whole)
            damaged[at] ^= 1
            with pytest.raises(HeaderError):
                parse(bytes(damaged))


def plain(address: Address) -> Address:
    mapped = address.host.ipv4_mapped if isinstance(address.host, IPv6Address) else None
    return address if mapped is None else Address(mapped, address.port)


@given(VERSIONS, ADDRESSES, ADDRESSES, st.binary(max_size=40))
def test_what_is_built_can_be_read(
    version: ProxyVersion, source: Address, destination: Address, behind: bytes
) -> None:
    header = build(version, Endpoints(source, destination))
    assert len(header) <= {ProxyVersion.V1: 107, ProxyVersion.V2: 52}[version]
    assert parse(header + behind) == Header(len(header), Endpoints(plain(source), plain(destination)))
    for length in range(len(header)):
        assert parse(header[:length]) is None


@given(VERSIONS)
def test_a_connection_of_ones_own(version: ProxyVersion) -> None:
    header = build(version, None)
    assert parse(header) == Header(len(header), None)


def test_what_is_built_has_the_bytes_of_the_specification() -> None:
    assert build(ProxyVersion.V1, INET) == b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
    assert build(ProxyVersion.V2, INET) == v2(0x21, 0x11, INET_BODY)
    assert build(ProxyVersion.V2, INET6) == v2(0x21, 0x21, INET6_BODY)
    assert build(ProxyVersion.V2, None) == v2(0x20, 0x00, b"")
    mixed = Endpoints(Address(IPv4Address("192.0.2.1"), 1), Address(IPv6Address("2001:db8::2"), 65535))
    assert build(ProxyVersion.V1, mixed) == b"PROXY TCP6 ::ffff:c000:201 2001:db8::2 1 65535\r\n"


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda data: b"PROXY " + data),
        st.binary(max_size=300).map(lambda data: SIGNATURE + data),
        st.builds(v2, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300)),
        st.text("PROXYTC46UNKW 0123456789.:abf\r\n", max_size=120).map(
            lambda text: b"PROXY " + text.encode()
        ),
    )
)
def test_anything_is_read_refused_or_waited_for(data: bytes) -> None:
    try:
        header = parse(data)
    except HeaderError:
        with pytest.raises(HeaderError):
            parse(data + b"more")
        return
    if header is None:
        assert len(data) < LONGEST
    else:
        assert header.length <= len(data)
        assert parse(data[: header.length]) == header
