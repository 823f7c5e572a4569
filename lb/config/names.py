"""Backends by name: host names, and how to look them up."""

import re

from lb.config.forms import Form, Kind
from lb.config.model import Family, HostName, Resolve, Target
from lb.config.scalars import ADDRESS_PATTERN, choice, duration, integer, read_numeric_backend_address
from lb.config.value import Section, Value, scalar, show

MAX_NAMES = 64  # in a file: each may keep two threads waiting for the resolver

_LONGEST = 253
_HOST = re.compile(r"(?P<host>[^\[\]:]*[A-Za-z_][^\[\]:]*):(?P<port>[0-9]{1,5})")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MAX_PORT = 65535

_read_interval = duration(1.0, 86400.0, "less asks the name server for nothing new, more is a reload")
_read_timeout = duration(0.1, 60.0, "less is over before the resolver asks twice, more is no limit")
_read_family = choice(Family)
_read_max_addresses = integer(1, 256, "each becomes a backend; more of them are for something else to spread")


@scalar(Form(Kind.ADDRESS, pattern=ADDRESS_PATTERN))
def read_backend_address(value: Value) -> Target | None:
    """Read where a backend is."""
    text = value.text("an address and a port, such as 10.0.0.11:9000 or backend.example:9000")
    match = None if text is None else _HOST.fullmatch(text)
    if text is None or match is None:
        return None if text is None else read_numeric_backend_address(value)
    host, port = match["host"], int(match["port"])
    labels = host.removesuffix(".").split(".")
    if len(host) > _LONGEST or not all(_LABEL.fullmatch(label) for label in labels):
        value.fail(
            f"{show(host)} is not a host name",
            "write up to 63 letters, digits and `-` between dots (xn--... for other letters)",
        )
        return None
    if not 1 <= port <= _MAX_PORT:
        value.fail(f"port {port} is outside 1..{_MAX_PORT}", "write the port at which the backends listen")
        return None
    return HostName(host, port)


def read_resolve(value: Value) -> Resolve | None:
    """Read how the names of a pool are looked up."""
    section = value.section("interval", "timeout", "family", "max_addresses")
    if section is None:
        return None
    default = Resolve()
    return Resolve(
        interval=section.optional("interval", _read_interval, default.interval),
        timeout=section.optional("timeout", _read_timeout, default.timeout),
        family=section.optional("family", _read_family, default.family),
        max_addresses=section.optional("max_addresses", _read_max_addresses, default.max_addresses),
    )


def refuse_resolve(section: Section) -> None:
    """Note that there is no name to look up."""
    if "resolve" in section.entries:
        section.entries["resolve"].fail(
            "is for backends by name only", "write a name as address of a backend, or remove it"
        )
