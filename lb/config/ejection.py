"""The `ejection` of a pool: how a backend loses its messages because of what became of others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lb.config.checks import framings_of
from lb.config.model import Ejection, Listener, Pool
from lb.config.scalars import duration, integer, percent, read_flag
from lb.config.value import Value
from lb.framing import PRESETS

_HOUR = 3600.0
_DAY = 24 * _HOUR

_read_failures = integer(1, 1000, "in a row; more are no sign, but a state that checks find sooner")
_read_base = duration(0.1, _HOUR, "less changes nothing, more is a removal")
_read_percent = percent("of the pool's backends; without any nobody is ejected", 10)


@dataclass(frozen=True, slots=True)
class Counting:
    """Whether error responses count, before the protocol is known; None: as is usual there."""

    value: Value
    wanted: bool | None


def read_ejection(value: Value) -> tuple[Ejection | None, Counting | None] | None:
    """Read an `ejection`; whether error responses count is found by :func:`with_errors`."""
    section = value.section(
        "consecutive_failures", "base_ejection", "max_ejection", "max_ejection_percent", "error_responses"
    )
    if section is None:
        return None
    default = Ejection()
    base = section.optional("base_ejection", _read_base, default.base_ejection)
    read_most = duration(base, _DAY, "from base_ejection on; more is a removal")
    ejection = Ejection(
        consecutive_failures=section.optional(
            "consecutive_failures", _read_failures, default.consecutive_failures
        ),
        base_ejection=base,
        max_ejection=section.optional("max_ejection", read_most, max(base, default.max_ejection)),
        max_ejection_percent=section.optional(
            "max_ejection_percent", _read_percent, default.max_ejection_percent
        ),
    )
    wanted: bool | None = section.optional("error_responses", read_flag, None)
    return ejection, Counting(section.entries.get("error_responses", value), wanted)


def with_errors(
    pools: Sequence[Pool], counting: dict[str, Counting], listeners: Sequence[Listener]
) -> tuple[Pool, ...]:
    """The pools, now that it is known whether their listeners' protocols have error responses that count."""
    return tuple(
        _with_errors(pool, counting[pool.name], listeners) if pool.name in counting else pool
        for pool in pools
    )


def _with_errors(pool: Pool, counting: Counting, listeners: Sequence[Listener]) -> Pool:
    assert pool.ejection is not None
    framings = framings_of(pool, listeners)
    marked = [framing for framing in framings if framing.response_error is not None]
    # Clients can make a server of a preset answer by errors: who asks a resolver for broken names does.
    usual = any(framing.name not in PRESETS for framing in marked)
    if counting.wanted and not marked:
        names = " and ".join(framing.name for framing in framings) or f"pool {pool.name}"
        counting.value.fail(
            f"nobody knows the error responses of {names}", "declare `response_error` in the protocol"
        )
    wanted = usual if counting.wanted is None else counting.wanted
    return replace(pool, ejection=replace(pool.ejection, error_responses=wanted))
