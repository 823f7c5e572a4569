"""Typed access to a tree of YAML nodes, which notes every mistake instead of stopping at the first.

A reader is a function from a `Value` to what it means, or to None after it has noted what is wrong. `Section`
applies readers to the keys of a mapping: a required key without a good value gives None, an optional one its
default, so that reading goes on. What was built on such a stand-in is never published: the log is not empty.

The reference is written by reading a file that has every key, with values that note what is asked of them:
`lb.config.reference`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Generic, Self, TypeVar

import yaml

from lb.config.document import ALIAS
from lb.config.errors import ErrorLog
from lb.config.forms import Form

T = TypeVar("T")

_YAML = "tag:yaml.org,2002:"
_NULL = _YAML + "null"
# Any plain word may serve as a text: `name: on` and `name: 7` mean what they say.
_TEXT_TAGS = frozenset(_YAML + tag for tag in ("str", "int", "float", "bool", "timestamp", "merge"))
# A name fits.
_SHOWN = 63


def printable(text: str) -> str:
    """Return a text of the file as it may stand in a message: one line, not long, no control characters."""
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def show(text: str) -> str:
    """Return a text of the file in code quotes."""
    return f"`{printable(text)}`"


def either(words: Sequence[object]) -> str:
    """Return words as an enumeration of choices."""
    *others, last = map(str, words)
    return f"{', '.join(others)} or {last}" if others else last


def suggest(word: str, known: Collection[str], kind: str) -> str:
    """Return the remedy for an unknown word: the nearest known one, else all of them."""
    near = get_close_matches(word, known, n=1)
    if near:
        return f"did you mean {show(near[0])}?"
    return f"known {kind}: {', '.join(map(printable, sorted(known))) or 'none'}"


@dataclass(frozen=True, slots=True)
class Value:
    """A YAML node, the path that leads to it, and the line of its key (in a list: of itself)."""

    node: yaml.Node
    path: str
    line: int
    log: ErrorLog

    @classmethod
    def at(cls, node: yaml.Node, path: str, log: ErrorLog) -> "Value":
        """Return a value that has no key."""
        return cls(node, path, _line(node), log)

    def child(self, node: yaml.Node, path: str, line: int) -> Self:
        """Return a value below this one."""
        return replace(self, node=node, path=path, line=line)

    def fail(self, problem: str, remedy: str) -> None:
        """Note a mistake at this value."""
        self.log.add(self.line, self.path, problem, remedy)

    def under(self, key: str) -> str:
        """Return the path of a key of this mapping."""
        return f"{self.path}.{printable(key)}" if self.path else printable(key)

    def expect(self, form: Form) -> None:
        """Hear what may stand here; those who only read need not know."""

    def text(self, wanted: str) -> str | None:
        """Return the characters of a scalar, quoted or not."""
        if isinstance(self.node, yaml.ScalarNode) and self.node.tag in _TEXT_TAGS:
            return str(self.node.value)
        self.refuse(wanted)
        return None

    def items(self, wanted: str) -> list[Self]:
        """Return the items of a list; none if it is empty or no list, which is a mistake."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.refuse(wanted)
            return []
        if not self.node.value:
            self.fail("is an empty list", f"write {wanted}")
        return [self.child(node, f"{self.path}[{i}]", _line(node)) for i, node in enumerate(self.node.value)]

    def entries(self, wanted: str) -> dict[str, Self] | None:
        """Return the values of a mapping by name."""
        return self._mapping(wanted)

    def _mapping(self, wanted: str) -> dict[str, Self] | None:
        """Return the values of a mapping by key, the first one where a key stands twice."""
        if not isinstance(self.node, yaml.MappingNode):
            self.refuse(wanted)
            return None
        entries: dict[str, Self] = {}
        for key_node, node in self.node.value:
            key = Value.at(key_node, self.path, self.log).text("a word as key")
            if key is None:
                continue
            value = self.child(node, self.under(key), _line(key_node))
            if key in entries:
                value.fail(f"is given twice, first at line {entries[key].line}", "keep one of them")
            else:
                entries[key] = value
        return entries

    def section(self, *known: str) -> "Section | None":
        """Return the keys of a mapping that may have the `known` ones only."""
        entries = self._mapping(f"a mapping with the keys {', '.join(known)}")
        if entries is None:
            return None
        for key, value in entries.items():
            if key not in known:
                value.fail("unknown key", suggest(key, known, "keys"))
        return Section(self, entries)

    def peek(self, key: str) -> Self | None:
        """Return the scalar under a key of this mapping, if there is one; notes nothing."""
        if isinstance(self.node, yaml.MappingNode):
            for key_node, node in self.node.value:
                if key_node.value == key and node.tag in _TEXT_TAGS:
                    return self.child(node, self.under(key), _line(key_node))
        return None

    def refuse(self, wanted: str) -> None:
        """Note that this value is of another kind than wanted."""
        node = self.node
        if node.tag == ALIAS:
            self.fail(f"is an alias of {show(node.value)}", "write the value itself")
        elif node.tag == _NULL:
            self.fail("is empty", f"write {wanted}")
        elif isinstance(node, yaml.MappingNode):
            self.fail("is a mapping", f"write {wanted}")
        elif isinstance(node, yaml.SequenceNode):
            self.fail("is a list", f"write {wanted}")
        elif isinstance(node, yaml.ScalarNode) and node.tag in _TEXT_TAGS:
            self.fail(f"is {'the text ' if node.style else ''}{show(node.value)}", f"write {wanted}")
        else:
            self.fail(f"has the tag {show(node.tag)}", f"write {wanted}")


Reader = Callable[[Value], T | None]


@dataclass(frozen=True, slots=True)
class Scalar(Generic[T]):
    """A reader of one scalar, which says what it takes."""

    form: Form
    read: Reader[T]

    def __call__(self, value: Value) -> T | None:
        """Read a value."""
        value.expect(self.form)
        return self.read(value)


def scalar(form: Form) -> Callable[[Reader[T]], Scalar[T]]:
    """Make a function the reader of a scalar."""
    return lambda read: Scalar(form, read)


@dataclass(frozen=True, slots=True)
class Section:
    """The keys of one mapping."""

    value: Value
    entries: Mapping[str, Value]

    def required(self, key: str, read: Reader[T], example: str) -> T | None:
        """Return what a key means, None if it is missing or wrong."""
        if key in self.entries:
            return read(self.entries[key])
        self.value.log.add(self.value.line, self.value.under(key), "is missing", f"add `{key}: {example}`")
        return None

    def optional(self, key: str, read: Reader[T], default: T) -> T:
        """Return what a key means, the default if it is missing or wrong."""
        if key not in self.entries:
            return default
        found = read(self.entries[key])
        return default if found is None else found

    def off(self, key: str) -> bool:
        """Return whether a key holds the word `none`."""
        value = self.value.peek(key)
        return value is not None and value.node.value == "none"


def refuse_duplicates(items: list[Value], key: str) -> None:
    """Note each mapping in a list whose scalar under a key is that of an earlier one."""
    first: dict[str, Value] = {}
    for item in items:
        value = item.peek(key)
        if value is None:
            continue
        earlier = first.setdefault(value.node.value, value)
        if earlier is not value:
            value.fail(
                f"{show(value.node.value)} is taken by {earlier.path} (line {earlier.line})",
                f"choose another {key}",
            )


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
