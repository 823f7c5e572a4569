"""Named mixes of what backends and clients do. A round draws from one of them."""

from dataclasses import dataclass
from enum import Enum


class Mood(Enum):
    """What a backend does for a while."""

    WELL = "well"
    STALL = "stall"  # reads nothing, then reads on
    TRICKLE = "trickle"  # reads and writes a little at a time
    RESET = "reset"  # resets some of its connections
    DIE = "die"  # closes its listener, resets all connections, comes back
    CLOSE = "close"  # ends some of its connections with FIN, in mid-traffic
    TWICE = "twice"  # answers some requests two times
    UNKNOWN = "unknown"  # sends answers whose id nobody uses
    GARBAGE = "garbage"  # sends what is no message


SLOW = frozenset({Mood.STALL, Mood.TRICKLE})


class Behaviour(Enum):
    """What a client does with one connection."""

    LOAD = "load"  # pipelined requests in a closed loop
    LAZY = "lazy"  # as above, and stops to read for a while
    HALF = "half"  # some requests, FIN, then reads to the end
    CRUMBS = "crumbs"  # a byte at a time
    FORGET = "forget"  # messages without response, then closes at once
    RESET = "reset"  # resets in mid-traffic
    GARBAGE = "garbage"  # sends what is no message
    OVERSIZE = "oversize"  # sends a message that is too long
    LEAVE = "leave"  # connects and closes


WELL_BEHAVED = frozenset({Behaviour.LOAD, Behaviour.LAZY, Behaviour.HALF, Behaviour.CRUMBS, Behaviour.FORGET})
ASKING = (Behaviour.LOAD, Behaviour.LOAD, Behaviour.LAZY, Behaviour.HALF, Behaviour.CRUMBS)
RUDE = (Behaviour.RESET, Behaviour.GARBAGE, Behaviour.OVERSIZE, Behaviour.LEAVE)


@dataclass(frozen=True, slots=True)
class Mix:
    """What may happen in a round; repeated entries are more frequent."""

    moods: tuple[Mood, ...]
    behaviours: tuple[Behaviour, ...]


MIXES = {
    "calm": Mix((Mood.WELL,), (*ASKING, Behaviour.FORGET)),
    "rude": Mix((Mood.WELL,), (*ASKING, *RUDE)),
    "slow": Mix((Mood.WELL, Mood.STALL, Mood.TRICKLE), (*ASKING, Behaviour.FORGET)),
    "ends": Mix((Mood.WELL, Mood.RESET, Mood.DIE, Mood.CLOSE), ASKING),
    "forget": Mix((Mood.WELL, Mood.STALL, Mood.RESET, Mood.DIE, Mood.CLOSE), (Behaviour.FORGET,)),
    "liars": Mix((Mood.WELL, Mood.TWICE, Mood.UNKNOWN), ASKING),
    "garbage": Mix((Mood.WELL, Mood.GARBAGE), (*ASKING, Behaviour.GARBAGE, Behaviour.OVERSIZE)),
    "all": Mix(tuple(Mood), (*ASKING, *ASKING, Behaviour.FORGET, *RUDE)),
}
