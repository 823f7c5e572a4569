"""The life of a connection as data: one table, one step.

Who owns the bytes follows from the state alone: user space while ``ADMITTED``, the kernel while ``SPLICED``
and ``DRAINING``, nobody once ``CLOSED``.
"""

import enum


class State(enum.StrEnum):
    """Where a connection is in its life."""

    ADMITTED = "admitted"  # accepted, or connecting
    SPLICED = "spliced"  # in the sockmap
    DRAINING = "draining"  # in the sockmap; nothing new is routed to it, what is on its way arrives
    CLOSED = "closed"


class Event(enum.StrEnum):
    """What can happen to a connection."""

    INSERTED = "inserted"  # the sockmap took it
    ENDING = "ending"  # its peer sent FIN, or we want it to end
    ENDED = "ended"  # nothing is left to deliver
    FAILED = "failed"  # reset, malformed, timed out


class IllegalEventError(Exception):
    """An event that cannot happen in this state: a bug of ours."""


_STEPS = {
    (State.ADMITTED, Event.INSERTED): State.SPLICED,
    (State.ADMITTED, Event.ENDING): State.DRAINING,
    (State.ADMITTED, Event.FAILED): State.CLOSED,
    (State.SPLICED, Event.ENDING): State.DRAINING,
    (State.SPLICED, Event.FAILED): State.CLOSED,
    (State.DRAINING, Event.ENDED): State.CLOSED,
    (State.DRAINING, Event.FAILED): State.CLOSED,
}


def step(state: State, event: Event) -> State:
    """The state after an event.

    Raises:
        IllegalEventError: the table has no such step.
    """
    try:
        return _STEPS[state, event]
    except KeyError:
        raise IllegalEventError(f"{event.name} cannot happen to a connection that is {state.name}") from None
