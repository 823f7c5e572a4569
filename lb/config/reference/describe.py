"""Places and meanings to what the reference says of each key."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from lb.config.forms import Form, Kind
from lb.config.reference.meanings import LIKE, MEANINGS, Key
from lb.config.reference.trace import Place, Trace, missing
from lb.config.units import format_duration, format_size

EXAMPLE = "deploy/examples/every-key.yaml"
TABLE = "lb/config/reference/meanings.py"
COMMAND = "python -m lb.config.reference"


class Incomplete(Exception):
    """Keys that the reference cannot describe; the message has a line for each, with what to write where."""


@dataclass(frozen=True, slots=True)
class Described:
    """A key: its path, what may stand there, and its line.

    `value` is the default as a file may have it, where there is one, and `default` what is said of it. `why`
    says what fixed bounds are good for; it is empty where they depend on other keys.
    """

    path: str
    place: Place
    meaning: str
    required: bool
    default: str
    value: str | None
    bounds: str
    why: str

    @property
    def name(self) -> str:
        """The key itself."""
        return self.path.rpartition(".")[2]


class Reference:
    """All keys of a traced file; `lacks` says what must be written so that they can be described."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.lacks: list[str] = []
        for path in missing(trace.places):
            self.lacks.append(f"{path}: a reader knows it; show it in {EXAMPLE}")
        self._described = {
            path: self._describe(parent, path, key)
            for parent, place in trace.places.items()
            for key in place.keys
            if (path := join(parent, key)) in trace.places
        }
        for path, place in trace.places.items():
            if place.keys and path.endswith(("[]", ".NAME")) and path not in MEANINGS:
                self.lacks.append(_no_meaning(path))
        known = {join(parent, key) for parent, place in trace.places.items() for key in place.keys}
        known |= trace.places.keys()
        for path in sorted(MEANINGS.keys() - known):
            self.lacks.append(f"{path}: no reader knows it; remove its line from {TABLE}")

    def check(self) -> None:
        """Raise Incomplete if anything is lacking."""
        if self.lacks:
            raise Incomplete("\n".join([*self.lacks, f"then run: {COMMAND}"]))

    def keys(self, path: str) -> list[Described]:
        """The keys of the mapping at a path, in the order of its reader."""
        paths = [join(path, key) for key in self.trace.places[path].keys]
        return [self._described[path] for path in paths if path in self._described]

    def meaning(self, path: str) -> str:
        """What the mapping at a path is for."""
        line = MEANINGS[path]
        return line.text if isinstance(line, Key) else line

    def _describe(self, parent: str, path: str, key: str) -> Described:
        place = self.trace.places[path]
        line = MEANINGS.get(path) or MEANINGS.get(join(LIKE.get(parent, ""), key))
        if line is None:
            self.lacks.append(_no_meaning(path))
            line = ""
        line = line if isinstance(line, Key) else Key(line)
        required = not line.default and place.needed == self.trace.places[parent].mappings
        value = None if required or line.default else self._default(path, place)
        bounds, why = (line.bounds, "") if line.bounds else self._bounds(path, place)
        return Described(
            path=path,
            place=place,
            meaning=line.text,
            required=required,
            default="required" if required else line.default or (f"`{value}`" if value else "its own"),
            value=value,
            bounds=bounds,
            why=why,
        )

    def _default(self, path: str, place: Place) -> str | None:
        told = {_written(default, place.forms) for default in place.defaults}
        if len(told) != 1 or None in told:
            self.lacks.append(
                f'{path}: say in words what its default is; Key("...", default="...") in {TABLE}'
            )
            return None
        return None if place.keys else told.pop()

    def _bounds(self, path: str, place: Place) -> tuple[str, str]:
        forms = self.trace.places[f"{path}[]"].forms if place.listed else place.forms
        ranges = {form.range for form in forms if form.range is not None}
        if not ranges:
            return "", ""
        if len(ranges) > 1:
            self.lacks.append(f'{path}: its bounds depend on other keys; Key("...", bounds="...") in {TABLE}')
        bounds = ranges.pop()
        return f"{bounds.low} to {bounds.high}", bounds.why


def join(parent: str, key: str) -> str:
    """The path of a key."""
    return f"{parent}.{key}" if parent else key


def _no_meaning(path: str) -> str:
    return f'{path}: has no meaning; add a line `"{path}": "...",` to {TABLE}'


def _written(value: object, forms: list[Form]) -> str | None:
    """A default as a file would have it; None if it says nothing by itself."""
    match value:
        case None:
            return None
        case Enum():
            return str(value.value)
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(str, value))}]"
    write = _WRITE.get(forms[0].kind, str) if forms else str
    return write(value)


_WRITE: Mapping[Kind, Callable[[Any], str]] = {
    Kind.DURATION: format_duration,
    Kind.SIZE: format_size,
    Kind.PERCENT: "{}%".format,
}
