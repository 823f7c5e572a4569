"""What the readers of a file ask of it: every place with its keys, kinds, bounds and defaults.

A place is written as the path of a value without numbers and names: `pools[].backends[].weight`,
`protocols.NAME.length`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import yaml

from lb.config.document import compose
from lb.config.errors import ErrorLog
from lb.config.forms import Form, Kind
from lb.config.parse import read_config
from lb.config.value import Reader, Section, Value

T = TypeVar("T")


@dataclass(slots=True)
class Place:
    """What may stand at one place; what is empty or false was never asked for.

    `forms`: of scalars. `keys`: of a mapping, `named` if its keys are names. `listed`: a list.
    `none`: the word may stand there. `mappings`: how often it was one; of these, `needed` is how many had to
    have the key, and `defaults` are those of the others.
    """

    forms: list[Form] = field(default_factory=list)
    keys: dict[str, None] = field(default_factory=dict)
    named: bool = False
    listed: bool = False
    none: bool = False
    needed: int = 0
    defaults: list[object] = field(default_factory=list)
    mappings: int = 0


@dataclass(slots=True)
class Trace:
    """All places of a file, and at which path which scalar was read."""

    places: dict[str, Place] = field(default_factory=dict)
    scalars: dict[str, Form] = field(default_factory=dict)

    def __getitem__(self, pattern: str) -> Place:
        return self.places.setdefault(pattern, Place())


# `super()` does not know the class that `slots=True` makes: base classes are named.
@dataclass(frozen=True, slots=True)
class _Traced(Value):
    """A value that notes what is asked of it."""

    trace: Trace
    pattern: str

    @property
    def place(self) -> Place:
        return self.trace[self.pattern]

    def child(self, node: yaml.Node, path: str, line: int) -> "_Traced":
        step = path.removeprefix(self.path)
        pattern = self.pattern + ("[]" if step.startswith("[") else step)
        return replace(self, node=node, path=path, line=line, pattern=pattern)

    def expect(self, form: Form) -> None:
        if form not in self.place.forms:
            self.place.forms.append(form)
        self.trace.scalars[self.path] = form

    def text(self, wanted: str) -> str | None:
        if self.path not in self.trace.scalars:
            self.expect(Form(Kind.TEXT, wanted=wanted))
        return Value.text(self, wanted)

    def items(self, wanted: str) -> "list[_Traced]":
        self.place.listed = True
        return Value.items(self, wanted)

    def entries(self, wanted: str) -> "dict[str, _Traced] | None":
        self.place.named = True
        found = Value.entries(self, wanted)
        if found is None:
            return None
        pattern = f"{self.pattern}.NAME"
        return {name: replace(value, pattern=pattern) for name, value in found.items()}

    def section(self, *known: str) -> "_TracedSection | None":
        self.place.keys.update(dict.fromkeys(known))
        self.place.mappings += 1
        found = Value.section(self, *known)
        return None if found is None else _TracedSection(self, found.entries, self.trace, self.pattern)


@dataclass(frozen=True, slots=True)
class _TracedSection(Section):
    """The keys of a mapping, which note by whom they are asked for."""

    trace: Trace
    pattern: str

    def _place(self, key: str) -> Place:
        return self.trace[f"{self.pattern}.{key}" if self.pattern else key]

    def required(self, key: str, read: Reader[T], example: str) -> T | None:
        self._place(key).needed += 1
        return Section.required(self, key, read, example)

    def optional(self, key: str, read: Reader[T], default: T) -> T:
        self._place(key).defaults.append(default)
        return Section.optional(self, key, read, default)

    def off(self, key: str) -> bool:
        self._place(key).none = True
        return Section.off(self, key)


def trace(text: str, source: str) -> Trace:
    """Read a file that has every key; raises ConfigErrors."""
    log = ErrorLog(source)
    found = Trace()
    root = compose(text, log)
    if root is not None:
        read_config(_Traced(root, "", 1, log, found, ""))
    if log:
        raise log.refusal()
    return found


def missing(places: Mapping[str, Place]) -> list[str]:
    """The keys that nothing was read from: the file did not have them."""
    return [
        pattern
        for parent, place in places.items()
        for key in place.keys
        if not _was_read(places.get(pattern := f"{parent}.{key}" if parent else key))
    ]


def _was_read(place: Place | None) -> bool:
    return place is not None and bool(place.forms or place.keys or place.named or place.listed)
