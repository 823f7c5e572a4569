"""Rules of a listener: the declarations, and the reference for the programs.

The first rule all of whose conditions hold decides on a message. ``bpf/lb_rules.h`` does the same; the tests
compare both. User space needs it for the few messages that it carries itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from lb.framing import Endian, Framing
from lb.routing import whole_dns_name

MAX_RULES = 128
# Bytes in front of those that a rule looks at, and of these: the parser waits for both.
MAX_OFFSET = 4095
MAX_PREFIX = 128
MAX_WIDTH = 8


@dataclass(frozen=True, slots=True)
class Bytes:
    """Holds if a message has these bytes at an offset, as far as the mask has ones.

    Raises ValueError if mask and value differ in length or are empty, or the value has bits outside the mask.
    """

    offset: int
    mask: bytes
    value: bytes

    def __post_init__(self) -> None:
        if not self.mask or len(self.mask) != len(self.value):
            raise ValueError(f"mask {self.mask.hex()} and value {self.value.hex()} differ in length")
        if any(byte & ~mask for byte, mask in zip(self.value, self.mask, strict=True)):
            raise ValueError(f"value {self.value.hex()} has bits outside of mask {self.mask.hex()}")

    @property
    def end(self) -> int:
        """The offset of the first byte behind those that are looked at."""
        return self.offset + len(self.mask)

    def holds(self, message: bytes, address: bytes) -> bool:
        """Whether it holds for a whole message; what the message does not have does not match."""
        del address
        there = message[self.offset : self.end]
        return len(there) == len(self.mask) and self.value == bytes(
            byte & mask for byte, mask in zip(there, self.mask, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Suffix:
    """Holds if the name that a DNS message asks for is this domain or below it.

    `labels` are those of the domain, in lower case and each with its length in front, without the root.
    """

    labels: bytes

    def holds(self, message: bytes, address: bytes) -> bool:
        """Whether it holds for a whole message."""
        del address
        name = whole_dns_name(message)
        if name is None:
            return False
        at = 0
        while at < len(name):
            if name[at:] == self.labels:
                return True
            at += 1 + name[at]
        return False


@dataclass(frozen=True, slots=True)
class Client:
    """Holds if the client's address is in a network."""

    network: IPv4Network | IPv6Network

    def holds(self, message: bytes, address: bytes) -> bool:
        """Whether it holds; the address is in network byte order."""
        del message
        return len(address) in (4, 16) and ip_address(address) in self.network


Test = Bytes | Suffix | Client


@dataclass(frozen=True, slots=True)
class Action:
    """What becomes of a message: :class:`Deny` or :class:`Target`."""


@dataclass(frozen=True, slots=True)
class Deny(Action):
    """The message is dropped, and refused where its protocol has a word for that."""


@dataclass(frozen=True, slots=True)
class Target(Action):
    """The message goes to a pool, or to one backend of it."""

    pool: str
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Each of the conditions has to hold, and does if one of its tests does. Without any it always holds."""

    conditions: tuple[tuple[Test, ...], ...]
    action: Action

    @property
    def by_message(self) -> bool:
        """Whether it depends on the message, not on the client alone."""
        return any(not isinstance(test, Client) for tests in self.conditions for test in tests)

    def matches(self, message: bytes, address: bytes) -> bool:
        """Whether it decides on a whole message of a client."""
        return all(any(test.holds(message, address) for test in tests) for tests in self.conditions)


def decide(rules: Sequence[Rule], message: bytes, address: bytes) -> Action | None:
    """What becomes of a whole message of a client; None: no rule says anything of it.

    Args:
        rules: of the listener.
        message: all of it.
        address: of the client, in network byte order.
    """
    return next((rule.action for rule in rules if rule.matches(message, address)), None)


def pools_of(rules: Sequence[Rule]) -> list[str]:
    """The pools that rules name, each once, in their order."""
    return list(dict.fromkeys(rule.action.pool for rule in rules if isinstance(rule.action, Target)))


def number(offset: int, width: int, mask: int, value: int, endian: Endian = Endian.BIG) -> Bytes:
    """A test of an unsigned integer: `integer & mask == value`."""
    return Bytes(offset, _to_bytes(mask, width, endian), _to_bytes(value, width, endian))


def prefix(offset: int, value: bytes) -> Bytes:
    """A test of bytes that stand at an offset."""
    return Bytes(offset, b"\xff" * len(value), value)


def method(framing: Framing, name: bytes) -> Bytes:
    """A test of the counted string in front of the id: it is this name.

    Raises ValueError if the framing has no counted string.
    """
    field = framing.id_after
    if field is None:
        raise ValueError(f"framing {framing.name} has no counted string")
    return prefix(field.offset, _to_bytes(len(name), field.width, field.endian) + name)


def _to_bytes(value: int, width: int, endian: Endian) -> bytes:
    return value.to_bytes(width, "big" if endian is Endian.BIG else "little")
