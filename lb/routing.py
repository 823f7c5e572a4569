"""What a message itself says about where it goes: the declarations, and the reference for the programs.

``bpf/lb_hash.h`` does the same; the tests compare both. User space needs it for the few messages that it
carries itself.
"""

from dataclasses import dataclass
from enum import StrEnum

from lb.framing import Endian

# A key is at most so long; of a longer one the start counts. No name in DNS is longer.
MAX_KEY = 255
MAX_LOAD = 1.25
# Bytes in front of a key: the parser waits for them.
MAX_OFFSET = 4095
# Behind the length and the header of a DNS message over TCP: RFC 1035, 4.1 and 4.2.2.
_QUESTION = 2 + 12
_LONGEST_LABEL = 63
_PRIME = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


class KeyKind(StrEnum):
    """What a message is hashed by."""

    FIELD = "field"
    STRING = "string"
    DNS_NAME = "dns-name"
    CLIENT_ADDRESS = "client-address"


@dataclass(frozen=True, slots=True)
class Key:
    """Where the key of a message is.

    `field`: `width` bytes at `offset`. `string`: its length is an integer of `width` bytes at `offset`, and
    it starts right behind. The other kinds need neither.
    """

    kind: KeyKind
    offset: int = 0
    width: int = 0
    endian: Endian = Endian.BIG

    def of(self, message: bytes, address: bytes = b"") -> bytes:
        """The key of a whole message; what the message does not have, its key has not either.

        Args:
            message: all of it.
            address: of the client, in network byte order.
        """
        if self.kind is KeyKind.CLIENT_ADDRESS:
            return address
        if self.kind is KeyKind.DNS_NAME:
            return dns_name(message)
        if self.kind is KeyKind.STRING:
            return counted(message, self.offset, self.width, self.endian)[:MAX_KEY]
        return message[self.offset : self.offset + self.width]


@dataclass(frozen=True, slots=True)
class Hash:
    """By what a pool's messages are hashed.

    `max_load`: the most requests outstanding on a backend, as a multiple of the mean by weight; None: any
    number.
    """

    key: Key
    max_load: float | None = MAX_LOAD

    @property
    def by_message(self) -> bool:
        """Whether messages of one client may be for several backends."""
        return self.key.kind is not KeyKind.CLIENT_ADDRESS


def counted(message: bytes, offset: int, width: int, endian: Endian = Endian.BIG) -> bytes:
    """The bytes behind their number, which is `width` bytes wide; nothing if that is not there."""
    start = offset + width
    if start > len(message):
        return b""
    count = int.from_bytes(message[offset:start], "big" if endian is Endian.BIG else "little")
    return message[start : start + count]


def dns_name(message: bytes) -> bytes:
    """The labels of the name that a DNS message over TCP asks for, in lower case, without the root."""
    at, end = _name_end(message)
    return message[_QUESTION : min(at, end)].lower()


def whole_dns_name(message: bytes) -> bytes | None:
    """The same; None if it does not end with the root, within the message and the bytes of a name."""
    at, end = _name_end(message)
    return message[_QUESTION:at].lower() if at < end and message[at] == 0 else None


def _name_end(message: bytes) -> tuple[int, int]:
    """Where the name ends, or its next label would start; and where it would have to end at the latest."""
    end = min(len(message), _QUESTION + MAX_KEY)
    at = _QUESTION
    while at < end and 0 < message[at] <= _LONGEST_LABEL:
        at += 1 + message[at]
    return at, end


def key_hash(key: bytes) -> int:
    """64 bits that depend on every bit of a key: words are multiplied in, and Murmur's finalizer ends it."""
    state = len(key)
    for at in range(0, len(key), 8):
        state = ((state ^ int.from_bytes(key[at : at + 8], "little")) * _PRIME) & _WORD
        state ^= state >> 32
    state = ((state ^ state >> 33) * 0xFF51AFD7ED558CCD) & _WORD
    state = ((state ^ state >> 33) * 0xC4CEB9FE1A85EC53) & _WORD
    return state ^ state >> 33
