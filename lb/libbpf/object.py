"""BPF objects: an ELF file that is open, then loaded into the kernel.

Two types, because the two states allow different things: an `OpenObject` can be resized and has no
descriptors, an `Object` has descriptors and can no longer be resized.
"""

import ctypes
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

from lb.libbpf._prototypes import MapPointer, ObjectPointer, OpenOpts, clear_log, libbpf, read_log
from lb.libbpf.btf import Btf, LayoutError
from lb.libbpf.maps import Map, describe
from lb.libbpf.program import Program

M = TypeVar("M", bound=Map)


class LoadError(OSError):
    """An object could not be opened or loaded; `log` has what libbpf and the verifier said."""

    def __init__(self, cause: OSError, log: str) -> None:
        """Take the number, the text and the function from `cause`."""
        super().__init__(cause.errno, cause.strerror, cause.filename)
        self.log = log
        self.add_note(log)


class OpenObject:
    """An object that was read and not loaded. It owns libbpf's object until `load` or `close`."""

    def __init__(self, pointer: ObjectPointer) -> None:
        """Take over `pointer`."""
        self._pointer: ObjectPointer | None = pointer
        self._maps = _maps(pointer)

    def _open(self) -> ObjectPointer:
        if self._pointer is None:
            raise ValueError("the object was loaded or closed")
        return self._pointer

    def set_max_entries(self, name: str, entries: int) -> None:
        """Set the number of elements of a map. Raises KeyError if the object has no such map."""
        # ctypes would cut off the upper bits.
        if entries >> 32:
            raise ValueError(f"map {name}: {entries} entries are no u32")
        self._open()
        libbpf().bpf_map__set_max_entries(self._maps[name], entries)

    def btf(self) -> Btf:
        """A copy of the object's types. Raises LayoutError if it has none."""
        handle = libbpf().bpf_object__btf(self._open())
        if not handle:
            raise LayoutError("the object has no BTF: compile it with -g")
        size = ctypes.c_uint32()
        data = libbpf().btf__raw_data(handle, ctypes.byref(size))
        return Btf(ctypes.string_at(data, size.value))

    def load(self) -> "Object":
        """Create the maps and load the programs; what this object owned, the result owns.

        Raises LoadError; then everything is closed.
        """
        pointer = self._open()
        with ExitStack() as undo:
            undo.callback(self.close)
            clear_log()
            try:
                libbpf().bpf_object__load(pointer)
            except OSError as error:
                raise LoadError(error, read_log()) from None
            loaded = Object(pointer)
            undo.pop_all()
        self._pointer = None
        return loaded

    def close(self) -> None:
        """Release the object; does nothing once it is loaded or closed."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            libbpf().bpf_object__close(pointer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Object:
    """An object in the kernel. It owns the descriptors of its maps and programs until `close`.

    `maps` has the maps that the source declares, by name; those that the compiler makes for its sections
    (.rodata, .bss) are left out.
    """

    def __init__(self, pointer: ObjectPointer) -> None:
        """Take over `pointer`, which is loaded; `OpenObject.load` is the way here."""
        self.maps: Mapping[str, Map] = MappingProxyType(
            {name: describe(found) for name, found in _maps(pointer).items()}
        )
        self._programs: dict[str, Program] = {}
        bpf = libbpf()
        found = bpf.bpf_object__next_program(pointer, None)
        while found:
            program = Program(found)
            self._programs[program.name] = program
            found = bpf.bpf_object__next_program(pointer, found)
        self._pointer: ObjectPointer | None = pointer

    @staticmethod
    def open(source: Path | bytes, name: str = "object") -> OpenObject:
        """Read an object from a file, or from the bytes of one, which are called `name` in messages.

        Raises LoadError if it is no BPF object, OSError if the file cannot be read, LibbpfMissingError.
        """
        if isinstance(source, Path):
            name = source.name.partition(".")[0]
            source = source.read_bytes()
        options = OpenOpts(ctypes.sizeof(OpenOpts), name.encode())
        bpf = libbpf()
        clear_log()
        try:
            pointer = bpf.bpf_object__open_mem(source, len(source), ctypes.byref(options))
        except OSError as error:
            raise LoadError(error, read_log()) from None
        return OpenObject(pointer)

    def map(self, name: str, kind: type[M]) -> M:
        """A map that must be of a class. Raises KeyError if there is none, TypeError if it is another's."""
        found = self.maps[name]
        if not isinstance(found, kind):
            raise TypeError(f"map {name} is a {type(found).__name__}, not a {kind.__name__}")
        return found

    def program(self, name: str) -> Program:
        """A program by its function's name. Raises KeyError."""
        return self._programs[name]

    def close(self) -> None:
        """Close the descriptors; a second time does nothing. What the kernel still uses (views) stays."""
        pointer, self._pointer = self._pointer, None
        if pointer is None:
            return
        for found in self.maps.values():
            found.forget()
        for program in self._programs.values():
            program.forget()
        libbpf().bpf_object__close(pointer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _maps(pointer: ObjectPointer) -> dict[str, MapPointer]:
    bpf = libbpf()
    maps = {}
    found = bpf.bpf_object__next_map(pointer, None)
    while found:
        if not bpf.bpf_map__is_internal(found):
            maps[bpf.bpf_map__name(found).decode()] = found
        found = bpf.bpf_object__next_map(pointer, found)
    return maps
