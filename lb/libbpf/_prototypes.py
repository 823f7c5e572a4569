"""Every C function that this package calls, in one table, and the errors that each of them can report.

A row names the function, its types and its error convention. There is no default convention: who adds a row
has to look it up. Nothing outside the table can be called.

Both libraries are loaded on first use, so that what needs no BPF runs on a machine without libbpf.
"""

import ctypes
import enum
import functools
import os
import threading
from collections import deque
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_long, c_size_t, c_uint, c_uint32, c_uint64, c_ulong, c_void_p
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, TypeAlias

SONAME: Final = "libbpf.so.1"

# The verifier says why it refuses in its last lines; a long walk through the program precedes them.
LOG_LINES: Final = 1000


class LibbpfMissingError(ImportError):
    """This machine has no libbpf of the major version 1."""


class Convention(enum.Enum):
    """How a C function reports that it failed."""

    NEGATIVE_ERRNO = enum.auto()  # an int below 0 is -errno (libbpf 1.x)
    NULL_ERRNO = enum.auto()  # a NULL pointer; errno says why (libbpf 1.x)
    SYSCALL = enum.auto()  # -1; errno says why
    NONE = enum.auto()  # cannot fail, or what it returns then is no error


class BpfObject(ctypes.Structure):
    """``struct bpf_object``, opaque."""


class BpfMap(ctypes.Structure):
    """``struct bpf_map``, opaque."""


class BpfProgram(ctypes.Structure):
    """``struct bpf_program``, opaque."""


class BtfHandle(ctypes.Structure):
    """``struct btf``, opaque."""


class OpenOpts(ctypes.Structure):
    """The head of ``struct bpf_object_open_opts``; `sz` tells libbpf how much of it there is."""

    _fields_ = (("sz", c_size_t), ("object_name", c_char_p))


class RingBuffer(ctypes.Structure):
    """``struct ring_buffer``, opaque."""


class RingBufferOpts(ctypes.Structure):
    """``struct ring_buffer_opts``, never given: NULL stands for the defaults."""


class BpfMapBatchOpts(ctypes.Structure):
    """``struct bpf_map_batch_opts``, never given: NULL stands for the defaults."""


class CapHeader(ctypes.Structure):
    """``struct __user_cap_header_struct`` of linux/capability.h."""

    _fields_ = (("version", c_uint32), ("pid", c_int))


class CapData(ctypes.Structure):
    """``struct __user_cap_data_struct``: 32 capabilities of each set."""

    _fields_ = (("effective", c_uint32), ("permitted", c_uint32), ("inheritable", c_uint32))


# typeshed has no public name for what POINTER() returns.
ObjectPointer: TypeAlias = "ctypes._Pointer[BpfObject]"
MapPointer: TypeAlias = "ctypes._Pointer[BpfMap]"
ProgramPointer: TypeAlias = "ctypes._Pointer[BpfProgram]"
RingPointer: TypeAlias = "ctypes._Pointer[RingBuffer]"

_OBJECT = ctypes.POINTER(BpfObject)
_MAP = ctypes.POINTER(BpfMap)
_PROGRAM = ctypes.POINTER(BpfProgram)
_BTF = ctypes.POINTER(BtfHandle)
_RING = ctypes.POINTER(RingBuffer)

# Where a va_list is an array (x86) or a struct above 16 bytes (Arm), the ABI passes its address.
PrintFn = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
# context, data, size; negative ends the reading
RecordFn = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)


class Prototype(NamedTuple):
    """One C function."""

    name: str
    restype: Any
    argtypes: tuple[Any, ...]
    errors: Convention


_NEG, _NULL, _SYS, _NONE = (
    Convention.NEGATIVE_ERRNO,
    Convention.NULL_ERRNO,
    Convention.SYSCALL,
    Convention.NONE,
)

LIBBPF: Final = (
    Prototype("libbpf_version_string", c_char_p, (), _NONE),
    Prototype("libbpf_set_print", PrintFn, (PrintFn,), _NONE),
    # Reports a number that it does not know, but has then written one that can be shown.
    Prototype("libbpf_strerror", c_int, (c_int, c_char_p, c_size_t), _NONE),
    Prototype("libbpf_num_possible_cpus", c_int, (), _NEG),
    Prototype("bpf_object__open_mem", _OBJECT, (c_void_p, c_size_t, ctypes.POINTER(OpenOpts)), _NULL),
    Prototype("bpf_object__load", c_int, (_OBJECT,), _NEG),
    Prototype("bpf_object__close", None, (_OBJECT,), _NONE),
    Prototype("bpf_object__btf", _BTF, (_OBJECT,), _NONE),  # NULL: the object has none
    Prototype("bpf_object__next_map", _MAP, (_OBJECT, _MAP), _NONE),  # NULL: that was the last
    Prototype("bpf_object__next_program", _PROGRAM, (_OBJECT, _PROGRAM), _NONE),  # as above
    Prototype("bpf_map__name", c_char_p, (_MAP,), _NULL),
    Prototype("bpf_map__fd", c_int, (_MAP,), _NEG),
    Prototype("bpf_map__type", c_int, (_MAP,), _NONE),
    Prototype("bpf_map__key_size", c_uint32, (_MAP,), _NONE),
    Prototype("bpf_map__value_size", c_uint32, (_MAP,), _NONE),
    Prototype("bpf_map__max_entries", c_uint32, (_MAP,), _NONE),
    Prototype("bpf_map__map_flags", c_uint32, (_MAP,), _NONE),
    Prototype("bpf_map__is_internal", ctypes.c_bool, (_MAP,), _NONE),
    Prototype("bpf_map__set_max_entries", c_int, (_MAP, c_uint32), _NEG),
    Prototype("bpf_program__name", c_char_p, (_PROGRAM,), _NONE),
    Prototype("bpf_program__fd", c_int, (_PROGRAM,), _NEG),
    Prototype("bpf_map_update_elem", c_int, (c_int, c_void_p, c_void_p, c_uint64), _NEG),
    Prototype("bpf_map_lookup_elem", c_int, (c_int, c_void_p, c_void_p), _NEG),
    Prototype("bpf_map_delete_elem", c_int, (c_int, c_void_p), _NEG),
    Prototype(
        "bpf_map_delete_batch",
        c_int,
        (c_int, c_void_p, ctypes.POINTER(c_uint32), ctypes.POINTER(BpfMapBatchOpts)),
        _NEG,
    ),
    Prototype(
        "bpf_map_lookup_batch",
        c_int,
        (
            c_int,
            c_void_p,
            c_void_p,
            c_void_p,
            c_void_p,
            ctypes.POINTER(c_uint32),
            ctypes.POINTER(BpfMapBatchOpts),
        ),
        _NEG,
    ),
    Prototype("bpf_prog_attach", c_int, (c_int, c_int, c_int, c_uint), _NEG),
    Prototype("bpf_prog_detach2", c_int, (c_int, c_int, c_int), _NEG),
    Prototype("ring_buffer__new", _RING, (c_int, RecordFn, c_void_p, ctypes.POINTER(RingBufferOpts)), _NULL),
    Prototype("ring_buffer__epoll_fd", c_int, (_RING,), _NEG),
    Prototype("ring_buffer__consume", c_int, (_RING,), _NEG),
    Prototype("ring_buffer__free", None, (_RING,), _NONE),
    Prototype("btf__raw_data", c_void_p, (_BTF, ctypes.POINTER(c_uint32)), _NULL),
)

LIBC: Final = (
    Prototype("vasprintf", c_int, (ctypes.POINTER(c_char_p), c_char_p, c_void_p), _SYS),
    Prototype("free", None, (c_void_p,), _NONE),
    Prototype("mmap", c_long, (c_void_p, c_size_t, c_int, c_int, c_int, c_long), _SYS),
    Prototype("prctl", c_int, (c_int, c_ulong, c_ulong, c_ulong, c_ulong), _SYS),
    Prototype("capset", c_int, (ctypes.POINTER(CapHeader), ctypes.POINTER(CapData)), _SYS),
)


def _failure(number: int, function: Any) -> OSError:
    message = os.strerror(number)
    if number >= 4000:  # enum libbpf_errno
        text = ctypes.create_string_buffer(128)
        libbpf().libbpf_strerror(number, text, len(text))
        message = text.value.decode(errors="replace")
    return OSError(number, message, function.__name__)


def _check_negative_errno(result: int, function: Any, _arguments: tuple[Any, ...]) -> int:
    if result < 0:
        raise _failure(-result, function)
    return result


def _check_null_errno(result: Any, function: Any, _arguments: tuple[Any, ...]) -> Any:
    if not result:
        raise _failure(ctypes.get_errno(), function)
    return result


def _check_syscall(result: int, function: Any, _arguments: tuple[Any, ...]) -> int:
    if result == -1:
        raise _failure(ctypes.get_errno(), function)
    return result


_CHECKS: Final[dict[Convention, Callable[..., Any] | None]] = {
    Convention.NEGATIVE_ERRNO: _check_negative_errno,
    Convention.NULL_ERRNO: _check_null_errno,
    Convention.SYSCALL: _check_syscall,
    Convention.NONE: None,
}


def _bind(library: ctypes.CDLL, table: tuple[Prototype, ...]) -> SimpleNamespace:
    bound = SimpleNamespace()
    for row in table:
        function = getattr(library, row.name)
        function.restype = row.restype
        function.argtypes = row.argtypes
        check = _CHECKS[row.errors]
        if check is not None:
            function.errcheck = check
        setattr(bound, row.name, function)
    return bound


@functools.cache
def libc() -> SimpleNamespace:
    """The functions of `LIBC`: from the C library that Python itself runs on."""
    return _bind(ctypes.CDLL(None, use_errno=True), LIBC)


@functools.cache
def libbpf() -> SimpleNamespace:
    """The functions of `LIBBPF`; a failed call raises OSError with the function's name.

    Raises LibbpfMissingError.
    """
    try:
        library = ctypes.CDLL(SONAME, use_errno=True)
    except OSError as error:
        raise LibbpfMissingError(f"cannot load {SONAME} ({error}): apt-get install libbpf1") from error
    functions = _bind(library, LIBBPF)
    functions.libbpf_set_print(_print)
    return functions


def libbpf_version() -> str:
    """The version of the libbpf that is loaded, as "1.1"."""
    text: bytes = libbpf().libbpf_version_string()
    return text.decode().removeprefix("v")


class _Log(threading.local):
    """What libbpf said in this thread: the last `LOG_LINES` lines."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=LOG_LINES)


_log: Final = _Log()


def clear_log() -> None:
    """Forget what libbpf has said in this thread."""
    _log.lines.clear()


def read_log() -> str:
    """What libbpf has warned of in this thread since `clear_log`, the verifier's log with it."""
    return "\n".join(_log.lines)


def _capture(level: int, text: bytes, arguments: int) -> int:
    if level == 0:  # LIBBPF_WARN
        # One pass over the va_list: it is spent afterwards.
        line = c_char_p()
        libc().vasprintf(ctypes.byref(line), text, arguments)
        _log.lines.extend((line.value or b"").decode(errors="replace").splitlines())
        libc().free(line)
    return 0


_print: Final = PrintFn(_capture)  # libbpf keeps its address for as long as the process lives
