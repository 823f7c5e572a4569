"""The `health_check` of a pool: how its backends are tried."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lb.config.forms import Form, Kind
from lb.config.model import HealthCheck, Listener, Ping, Pool
from lb.config.protocols import read_match
from lb.config.scalars import choice, duration, integer, percent, read_duration, read_flag
from lb.config.value import Section, Value, scalar, show
from lb.framing import Direction, Framer, Framing, Match

_LONGEST = 4096  # bytes of a message that asks nothing but whether somebody answers
_SHORTEST = 0.01

_read_streak = integer(1, 100, "results in a row; more would take minutes to act on")
_read_jitter = percent("how far checks stray from their interval, so that they do not all come at once")


class CheckType(StrEnum):
    """What a check asks for: a connection, the response to a message, or to the protocol's own ping."""

    TCP = "tcp"
    MESSAGE = "message"
    PROTOCOL = "protocol"


_read_type = choice(CheckType)


@dataclass(frozen=True, slots=True)
class Asking:
    """What a check sends and expects, before its protocol is known; None: the protocol's ping."""

    value: Value
    request: bytes | None = None
    expect: Match | None = None


Check = tuple[HealthCheck | None, Asking | None]


def read_health_check(value: Value) -> Check | None:
    """Read a `health_check`; its `ping` is found by :func:`with_pings`."""
    section = value.section(
        "type", "message", "protocol", "interval", "jitter", "fast_interval", "timeout", "rise", "fall"
    )
    if section is None:
        return None
    default = HealthCheck()
    interval = section.optional("interval", read_duration, default.interval)
    half = max(interval / 2, _SHORTEST)
    read_fast = duration(_SHORTEST, interval, "what changes is looked at more often, not less")
    check = HealthCheck(
        interval=interval,
        timeout=section.optional("timeout", read_duration, min(default.timeout, half)),
        rise=section.optional("rise", _read_streak, default.rise),
        fall=section.optional("fall", _read_streak, default.fall),
        jitter=section.optional("jitter", _read_jitter, default.jitter),
        fast_interval=section.optional("fast_interval", read_fast, half),
    )
    return check, _read_asking(section)


def _read_asking(section: Section) -> Asking | None:
    given = {
        CheckType.MESSAGE: "message" in section.entries,
        CheckType.PROTOCOL: section.optional("protocol", read_flag, default=False),
    }
    implied = next((kind for kind, is_given in given.items() if is_given), CheckType.TCP)
    kind = section.optional("type", _read_type, implied)
    for other, is_given in given.items():
        if is_given and other is not kind:
            section.entries[other].fail(f"has no meaning with `type: {kind}`", "remove one of them")
    if kind is CheckType.MESSAGE:
        return section.required("message", _read_message, "{send: 00000004 00000001}")
    if kind is CheckType.PROTOCOL:
        return Asking(section.entries["protocol" if given[kind] else "type"])
    return None


def _read_message(value: Value) -> Asking | None:
    section = value.section("send", "expect")
    if section is None:
        return None
    request = section.required("send", _read_hex, "00000004 00000001")
    expect = section.optional("expect", _read_expect, None)
    return None if request is None else Asking(value, request, expect)


def _read_expect(value: Value) -> Match | None:
    return read_match(value, wanted="equals")


@scalar(Form(Kind.HEX))
def _read_hex(value: Value) -> bytes | None:
    wanted = "the bytes of a message in hexadecimal, such as 00000004 00000001"
    text = value.text(wanted)
    if text is None:
        return None
    try:
        data = bytes.fromhex(text)
    except ValueError:
        value.fail(f"{show(text)} is not hexadecimal", f"write {wanted}")
        return None
    if not 1 <= len(data) <= _LONGEST:
        problem = f"has {len(data)} bytes, outside 1..{_LONGEST} (all backends get it at each interval)"
        value.fail(problem, "write a small message")
        return None
    return data


def with_pings(
    pools: Sequence[Pool], asking: dict[str, Asking], listeners: Sequence[Listener]
) -> tuple[Pool, ...]:
    """The pools with what their checks send, now that it is known which protocol their listeners speak."""
    return tuple(
        _with_ping(pool, asking[pool.name], listeners) if pool.name in asking else pool for pool in pools
    )


def _with_ping(pool: Pool, asking: Asking, listeners: Sequence[Listener]) -> Pool:
    assert pool.health_check is not None
    framings = framings_of(pool, listeners)
    value = asking.value
    if not framings:
        value.fail(
            f"no listener says what pool {pool.name} speaks",
            "use `type: tcp`, or add a listener for it",
        )
        return pool
    if len(framings) > 1:
        names = " and ".join(framing.name for framing in framings)
        problem = f"the listeners of pool {pool.name} speak {names}"
        value.fail(problem, "use `type: tcp`, or a pool for each protocol")
        return pool
    (framing,) = framings
    request = asking.request if asking.request is not None else framing.ping
    if request is None:
        problem = f"{show(framing.name)} has no ping that every server answers at once"
        value.fail(problem, "use `message: {send: HEX}` with a message that your servers answer")
        return pool
    objection = _objection(framing, request)
    if objection is not None:
        value.fail(f"`send` is not a request of {show(framing.name)} ({objection})", "write a whole message")
        return pool
    ping = Ping(framing, request, asking.expect)
    return replace(pool, health_check=replace(pool.health_check, ping=ping))


def framings_of(pool: Pool, listeners: Sequence[Listener]) -> list[Framing]:
    """What the listeners of a pool speak, by name."""
    framings = {
        listener.framing.name: listener.framing for listener in listeners if pool.name in listener.pools
    }
    return [framing for _, framing in sorted(framings.items())]


def _objection(framing: Framing, request: bytes) -> str | None:
    """Why these bytes are not one request that gets a response."""
    framer = Framer(framing, Direction.REQUEST)
    messages = framer.feed(request)
    if framer.error is not None:
        return framer.error.reason.value
    if framer.pending or len(messages) != 1:
        return "it is cut short" if framer.pending else "it is several"
    return None if messages[0].wants_response else "it gets no response"
