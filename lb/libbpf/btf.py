"""The types of a BPF object, from its BTF: layouts of structs and values of enums.

The mirror of a C struct in Python is compared with the BTF of the object that is being loaded, not trusted.

Source: Documentation/bpf/btf.rst of the kernel.
"""

import ctypes
import enum
import struct
from collections.abc import Iterator
from itertools import zip_longest
from typing import Final, NamedTuple

POINTER_SIZE: Final = 8  # BPF is a 64-bit machine, whatever the host

_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("=HBBIIIII")  # magic, version, flags, header length, types, strings
_TYPE: Final = struct.Struct("=III")  # name, info, size or type
_MEMBER: Final = struct.Struct("=III")  # name, type, offset
_ARRAY: Final = struct.Struct("=III")  # element type, index type, number of elements


class Kind(enum.IntEnum):
    """BTF_KIND_*."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Bytes that follow a type: a fixed number, and a number for each of its elements.
_FIXED: Final = {Kind.INT: 4, Kind.ARRAY: _ARRAY.size, Kind.VAR: 4, Kind.DECL_TAG: 4}
_EACH: Final = {
    Kind.STRUCT: _MEMBER.size,
    Kind.UNION: _MEMBER.size,
    Kind.ENUM: 8,
    Kind.FUNC_PROTO: 8,
    Kind.DATASEC: 12,
    Kind.ENUM64: 12,
}
_SIZED: Final = frozenset({Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.FLOAT, Kind.ENUM64})
_ALIASES: Final = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})


class LayoutError(Exception):
    """A C type is not what its mirror says, or the BTF does not describe it."""


class Field(NamedTuple):
    """A member of a struct; offset and size in bytes."""

    name: str
    offset: int
    size: int


class StructLayout(NamedTuple):
    """A struct: its size in bytes and its members in order."""

    size: int
    fields: tuple[Field, ...]


class _Type(NamedTuple):
    kind: Kind
    name: str
    flag: bool
    length: int  # number of members, enumerators, ...
    value: int  # size in bytes, or the type that this one refers to
    data: int  # offset of what follows it


class Btf:
    """BTF, parsed once: a plain value that needs neither libbpf nor the object it came from."""

    def __init__(self, raw: bytes) -> None:
        """Parse a .BTF section in this machine's byte order.

        Raises LayoutError if it is none, or knows kinds of types that are newer than this code.
        """
        try:
            magic, _, _, header, types, types_size, strings, strings_size = _HEADER.unpack_from(raw)
            if magic != _MAGIC:
                raise LayoutError(f"not BTF of this machine's byte order: it starts with {magic:#x}")
            self._raw = raw
            self._strings = raw[header + strings : header + strings + strings_size]
            self._types = [_Type(Kind.VOID, "", flag=False, length=0, value=0, data=0)]
            self._types += self._parse(header + types, header + types + types_size)
        except (struct.error, ValueError) as error:
            raise LayoutError(f"cannot read the BTF: {error}") from error
        self._named: dict[tuple[Kind, str], _Type] = {}
        for found in self._types:
            self._named.setdefault((found.kind, found.name), found)

    def _parse(self, position: int, end: int) -> Iterator[_Type]:
        while position < end:
            name, info, value = _TYPE.unpack_from(self._raw, position)
            kind, length = Kind(info >> 24 & 0x1F), info & 0xFFFF
            position += _TYPE.size
            yield _Type(kind, self._string(name), bool(info >> 31), length, value, position)
            position += _FIXED.get(kind, 0) + _EACH.get(kind, 0) * length

    def _string(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _size(self, number: int) -> int:
        count = 1
        while True:
            found = self._types[number]
            if found.kind in _SIZED:
                return count * found.value
            if found.kind is Kind.PTR:
                return count * POINTER_SIZE
            if found.kind is Kind.ARRAY:
                number, _, elements = _ARRAY.unpack_from(self._raw, found.data)
                count *= elements
            elif found.kind in _ALIASES:
                number = found.value
            else:
                raise LayoutError(f"a {found.kind.name} type {found.name!r} has no size")

    def struct_layout(self, name: str) -> StructLayout:
        """The members of ``struct name`` with their offsets and sizes, in order.

        An unnamed member has the name "". Raises LayoutError if the BTF has no such struct, or it has
        bit fields.
        """
        found = self._named.get((Kind.STRUCT, name))
        if found is None:
            raise LayoutError(f"the BTF has no struct {name}")
        fields = []
        for member in range(found.length):
            position = found.data + member * _MEMBER.size
            name_offset, number, bits = _MEMBER.unpack_from(self._raw, position)
            field = self._string(name_offset)
            # With the flag set, the upper 8 bits of the offset are the width of a bit field.
            if (found.flag and bits >> 24) or bits % 8:
                raise LayoutError(f"struct {name}: {field} is a bit field")
            fields.append(Field(field, bits // 8, self._size(number)))
        return StructLayout(found.value, tuple(fields))

    def enum_values(self, name: str) -> dict[str, int]:
        """The enumerators of ``enum name`` in order.

        A compiler reports an enum only if it is the type of something, and clang before 15 reports
        negative values as unsigned. Raises LayoutError if the BTF has no such enum.
        """
        found = self._named.get((Kind.ENUM, name)) or self._named.get((Kind.ENUM64, name))
        if found is None:
            raise LayoutError(f"the BTF has no enum {name}: nothing has it as its type")
        values = {}
        for enumerator in range(found.length):
            position = found.data + enumerator * _EACH[found.kind]
            if found.kind is Kind.ENUM:
                name_offset, value = struct.unpack_from("=Ii" if found.flag else "=II", self._raw, position)
            else:
                name_offset, low, high = struct.unpack_from(
                    "=IIi" if found.flag else "=III", self._raw, position
                )
                value = high << 32 | low
            values[self._string(name_offset)] = value
        return values


def check_struct(btf: Btf, mirror: type[ctypes.Structure], name: str) -> None:
    """Compare a ctypes structure with ``struct name``: names, offsets and sizes of the fields, and the size.

    Structs inside it are compared by size only. Raises LayoutError that names the first difference.
    """
    theirs = btf.struct_layout(name)
    ours = (
        Field(field[0], getattr(mirror, field[0]).offset, getattr(mirror, field[0]).size)
        for field in mirror._fields_
    )
    for c_field, py_field in zip_longest(theirs.fields, ours):
        if c_field != py_field:
            raise LayoutError(
                f"struct {name}: {_describe(c_field)}, but in {mirror.__name__} {_describe(py_field)}"
            )
    if theirs.size != ctypes.sizeof(mirror):
        raise LayoutError(
            f"struct {name} has {theirs.size} bytes, but {mirror.__name__} {ctypes.sizeof(mirror)}"
        )


def _describe(field: Field | None) -> str:
    if field is None:
        return "there is no further field"
    return f"{field.name} is {field.size} bytes at offset {field.offset}"


def check_enum(btf: Btf, mirror: type[enum.IntEnum | enum.IntFlag], name: str, prefix: str = "") -> None:
    """Compare a Python enum with ``enum name``, whose enumerators start with `prefix`.

    Raises LayoutError that names the first difference.
    """
    theirs = btf.enum_values(name)
    ours = {prefix + member: int(value) for member, value in mirror.__members__.items()}
    for enumerator in theirs | ours:
        if theirs.get(enumerator) != ours.get(enumerator):
            raise LayoutError(
                f"enum {name}: {enumerator} is {theirs.get(enumerator, 'missing')}, "
                f"but in {mirror.__name__} {ours.get(enumerator, 'missing')}"
            )
