"""The keys `hash` and `max_load` of a pool."""

import re

import yaml

from lb.config.forms import Form, Kind, Range
from lb.config.scalars import choice, integer
from lb.config.value import Reader, Value, scalar, show
from lb.framing import Endian
from lb.routing import MAX_KEY, MAX_OFFSET, Key, KeyKind

MOST_HASHED = 32  # backends: the upstreams of one client
_WORDS = (KeyKind.DNS_NAME, KeyKind.CLIENT_ADDRESS)
_PLACES = (KeyKind.FIELD, KeyKind.STRING)
_WANTED = "dns-name, client-address, {field: {offset: 4, width: 8}} or {string: {offset: 4, width: 4}}"
_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})?")
_LEAST, _MOST = 1.0, 100.0
_BOUNDS = Range("1", "100", "0.999", "100.001", "a multiple of the mean, which some have to reach")

_read_offset = integer(0, MAX_OFFSET, "the parser waits for all bytes in front of a key")
_read_field_width = integer(1, MAX_KEY, "the bytes of a key")
_read_length_width = integer(1, 4, "the bytes of an integer")


def read_key(value: Value) -> Key | None:
    """Read what a message is hashed by."""
    if isinstance(value.node, yaml.ScalarNode):
        return _word(value)
    section = value.section(*_PLACES)
    if section is None:
        return None
    if len(section.entries) != 1:
        value.fail(f"names {len(section.entries)} things to hash by", f"write {_WANTED}")
        return None
    for kind in _PLACES:
        if kind in section.entries:
            return _place(kind)(section.entries[kind])
    return None  # an unknown key, which has been noted


@scalar(Form(Kind.WORD, choices=_WORDS))
def _word(value: Value) -> Key | None:
    text = value.text(_WANTED)
    if text in _WORDS:
        return Key(KeyKind(text))
    if text is not None:
        value.fail(f"{show(text)} is nothing to hash by", f"write {_WANTED}")
    return None


def _place(kind: KeyKind) -> Reader[Key]:
    def read(value: Value) -> Key | None:
        string = kind is KeyKind.STRING
        section = value.section("offset", "width", *(["endian"] if string else []))
        if section is None:
            return None
        offset = section.required("offset", _read_offset, "4")
        width = section.required("width", _read_length_width if string else _read_field_width, "4")
        endian = section.optional("endian", choice(Endian), Endian.BIG) if string else Endian.BIG
        return None if offset is None or width is None else Key(kind, offset, width, endian)

    return read


@scalar(Form(Kind.NUMBER, _BOUNDS))
def read_max_load(value: Value) -> float | None:
    """Read a multiple of the mean load."""
    wanted = "a number, such as 1.25, or none"
    text = value.text(wanted)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        value.fail(f"is {show(text)}", f"write {wanted}")
        return None
    number = float(text)
    if not _LEAST <= number <= _MOST:
        value.fail(
            f"{text} is outside {_LEAST:g}..{_MOST:g} ({_BOUNDS.why})",
            f"use {_LEAST:g} or more" if number < _LEAST else "write none for no limit",
        )
        return None
    return number
