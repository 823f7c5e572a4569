"""Readers for single values: names, words, numbers within their limits, addresses."""

import re
from collections.abc import Callable, Collection
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeVar

import yaml

from lb.config.forms import Form, Kind, Range
from lb.config.model import Address, Networks
from lb.config.units import UnitError, format_duration, format_size, parse_duration, parse_size
from lb.config.value import Scalar, Value, either, scalar, show, suggest

E = TypeVar("E", bound=StrEnum)
N = TypeVar("N", int, float)

_INTEGER_TAG = "tag:yaml.org,2002:int"
# YAML 1.1 also reads 010 as 8 and 1:30 as 90, which nobody means; no limit has more than 20 digits.
_INTEGER = re.compile(r"[-+]?(?:0x[0-9A-Fa-f]{1,16}|0|[1-9][0-9]{0,19})")
# Names become metric labels and arguments of commands (POOL/BACKEND), where a leading dash is an option.
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,62}")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<v4>[^\[\]:]+)):(?P<port>[0-9]{1,5})")
ADDRESS_PATTERN = r"(\[[^\[\]]+\]|[^\[\]:]+):[0-9]{1,5}"  # the same for those who do not know named groups
_HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_.-]+")
_PERCENT = re.compile(r"([0-9]{1,9})%?")
_BOOLEAN_TAG = "tag:yaml.org,2002:bool"
_YES = ("true", "yes", "on")  # what YAML 1.1 reads as such
_MAX_PORT = 65535
_DAY = 86400.0
_ADDRESS_EXAMPLE = 'an IP address and a port, such as 10.0.0.11:9000 or "[::1]:9000"'


def _range(low: N, high: N, step: N, form: Callable[[N], str], why: str) -> Range:
    return Range(form(low), form(high), form(low - step), form(high + step), why)


def _format_percent(number: int) -> str:
    return f"{number}%"


def is_name(text: str) -> bool:
    """Return whether a text may name a listener, pool, backend or protocol."""
    return _NAME.fullmatch(text) is not None


def refuse_name(value: Value, text: str) -> None:
    """Note that a text is no name."""
    value.fail(
        f"{show(text)} is not a name", "use 1 to 63 letters, digits, `_`, `.` and `-`, with no `-` in front"
    )


@scalar(Form(Kind.NAME, pattern=_NAME.pattern))
def read_name(value: Value) -> str | None:
    """Read a name."""
    text = value.text("a name")
    if text is not None and not is_name(text):
        refuse_name(value, text)
        return None
    return text


def integer(low: int, high: int, why: str) -> Scalar[int]:
    """Return a reader of whole numbers within `low..high`, decimal or hexadecimal."""

    @scalar(Form(Kind.INTEGER, _range(low, high, 1, str, why)))
    def read(value: Value) -> int | None:
        node = value.node
        if isinstance(node, yaml.ScalarNode) and node.tag == _INTEGER_TAG and _INTEGER.fullmatch(node.value):
            return _within(value, int(node.value, 0), low, high, str, why)
        value.refuse("a whole number, such as 16 or 0x10")
        return None

    return read


@scalar(Form(Kind.FLAG))
def read_flag(value: Value) -> bool | None:
    """Read `true` or `false`."""
    node = value.node
    if isinstance(node, yaml.ScalarNode) and node.tag == _BOOLEAN_TAG:
        return node.value.lower() in _YES
    value.refuse("true or false")
    return None


def _quantity(
    wanted: str, convert: Callable[[str], N], low: N, high: N, form: Callable[[N], str], why: str
) -> Callable[[Value], N | None]:
    def read(value: Value) -> N | None:
        text = value.text(wanted)
        if text is None:
            return None
        try:
            number = convert(text)
        except UnitError as error:
            value.fail(f"{show(text)} {error.problem}", error.remedy)
            return None
        return _within(value, number, low, high, form, why)

    return read


def size(low: int, high: int, why: str) -> Scalar[int]:
    """Return a reader of sizes in bytes within `low..high`."""
    form = Form(Kind.SIZE, _range(low, high, 1, format_size, why))
    return Scalar(form, _quantity("a size, such as 64KiB", parse_size, low, high, format_size, why))


def duration(low: float, high: float, why: str) -> Scalar[float]:
    """Return a reader of durations in seconds within `low..high`."""
    form = Form(Kind.DURATION, _range(low, high, 0.001, format_duration, why))
    read = _quantity("a duration, such as 2s", parse_duration, low, high, format_duration, why)
    return Scalar(form, read)


def percent(why: str, low: int = 0, high: int = 100) -> Scalar[int]:
    """Return a reader of whole percentages within `low..high`, `50` or `50%`."""

    @scalar(Form(Kind.PERCENT, _range(low, high, 1, _format_percent, why)))
    def read(value: Value) -> int | None:
        wanted = "a percentage, such as 50%"
        text = value.text(wanted)
        if text is None:
            return None
        match = _PERCENT.fullmatch(text)
        if match is None:
            value.fail(f"{show(text)} is not a percentage", f"write {wanted}")
            return None
        return _within(value, int(match[1]), low, high, _format_percent, why)

    return read


# How long to wait, in seconds, where nothing narrower is known.
read_duration = duration(0.01, _DAY, "less is lost in the scheduling of the process, more is no limit")


def choice(kind: type[E], absent: Collection[E] = ()) -> Scalar[E]:
    """Return a reader of the words of an enum, `absent` of which this version does not have."""
    words = [member.value for member in kind if member not in absent]

    @scalar(Form(Kind.WORD, choices=tuple(words)))
    def read(value: Value) -> E | None:
        text = value.text(either(words))
        if text is None:
            return None
        if text in absent:
            value.fail(f"{show(text)} is not in this version", f"use {either(words)}")
        elif text not in words:
            value.fail(f"{show(text)} is not a choice here", suggest(text, words, "choices"))
        else:
            return kind(text)
        return None

    return read


@scalar(Form(Kind.ADDRESS, pattern=ADDRESS_PATTERN))
def read_listen_address(value: Value) -> Address | None:
    """Read an address to listen at; port 0 lets the kernel choose."""
    text = value.text(_ADDRESS_EXAMPLE)
    return None if text is None else _address(value, text)


def _read_network(value: Value) -> IPv4Network | IPv6Network | None:
    text = value.text("a network such as 10.0.0.0/8")
    if text is None:
        return None
    try:
        return ip_network(text)
    except ValueError as error:
        value.fail(f"{show(text)} is not a network ({error})", "write one such as 10.0.0.0/8 or fd00::/8")
        return None


# Networks, or single addresses.
read_network: Scalar[IPv4Network | IPv6Network] = Scalar(Form(Kind.NETWORK), _read_network)


def read_networks(value: Value) -> Networks | None:
    """Read a list of networks, or single addresses."""
    items = value.items("a list of networks such as [10.0.0.0/8]")
    networks = [network for item in items if (network := read_network(item))]
    return tuple(networks) if items and len(networks) == len(items) else None


@scalar(Form(Kind.ADDRESS, pattern=ADDRESS_PATTERN))
def read_numeric_backend_address(value: Value) -> Address | None:
    """Read an IP address to connect to, and a port."""
    address = read_listen_address(value)
    if address is None:
        return None
    if address.port == 0:
        value.fail(
            f"{show(str(address))} has port 0", "write the port at which the backend listens, 1 to 65535"
        )
        return None
    if address.host.is_unspecified or address.host.is_multicast:
        value.fail(
            f"{show(str(address))} is no address of a single host", "write the backend's own IP address"
        )
        return None
    return address


def _address(value: Value, text: str) -> Address | None:
    match = _ADDRESS.fullmatch(text)
    if match is None:
        value.fail(f"{show(text)} is not an address with a port", f"write {_ADDRESS_EXAMPLE}")
        return None
    try:
        # A zone (fe80::1%eth0) names an interface of this machine, which an address alone does not.
        host = (
            IPv6Address(match["v6"].replace("%", " "))
            if match["v6"] is not None
            else IPv4Address(match["v4"])
        )
    except AddressValueError:
        written = match["v6"] or match["v4"]
        if _HOST_NAME.fullmatch(written):
            value.fail(f"{show(written)} is a host name", f"write {_ADDRESS_EXAMPLE}")
        else:
            value.fail(f"{show(written)} is not an IP address", f"write {_ADDRESS_EXAMPLE}")
        return None
    port = int(match["port"])
    if port > _MAX_PORT:
        value.fail(f"port {port} is outside 0..{_MAX_PORT}", "use a port that TCP has")
        return None
    return Address(host, port)


def _within(value: Value, number: N, low: N, high: N, form: Callable[[N], str], why: str) -> N | None:
    if low <= number <= high:
        return number
    value.fail(
        f"{form(number)} is outside {form(low)}..{form(high)} ({why})",
        f"use {form(low)} or more" if number < low else f"use {form(high)} or less",
    )
    return None
