"""What may stand at a key, as data: readers carry it, the reference and the schema are written from it."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a scalar is, in the words of the reference."""

    INTEGER = "integer"
    NUMBER = "number"
    PERCENT = "percent"
    DURATION = "duration"
    SIZE = "size"
    WORD = "word"
    NAME = "name"
    ADDRESS = "address"
    NETWORK = "network"
    TEXT = "text"
    FLAG = "flag"
    HEX = "bytes in hexadecimal"


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a scalar, as they are written in a file.

    `below` and `above` are the nearest values outside, `why` says what the bounds are good for.
    """

    low: str
    high: str
    below: str
    above: str
    why: str


@dataclass(frozen=True, slots=True)
class Form:
    """A scalar: its kind, its bounds or choices, and a regular expression of the whole text if there is one.

    `wanted` says in words what may stand here, where the kind alone does not.
    """

    kind: Kind
    range: Range | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    wanted: str = ""
