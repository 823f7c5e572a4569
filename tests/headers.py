"""The pure headers of ``bpf/``, built by this machine's compiler and called through ctypes.

They are built with the sanitizers for addresses and undefined behaviour. A finding ends the process: run
pytest with ``-s`` to read it.
"""

import ctypes
import subprocess
from pathlib import Path
from typing import NamedTuple

from lb import abi
from lb.framing import Direction

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests/unit/fixtures/headers.c"
WARNINGS = ("-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-fsanitize=undefined,address", "-fno-sanitize-recover=all")


class _Stream(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_uint32))


class _Batch(ctypes.Structure):
    _fields_ = (
        ("length", ctypes.c_int32),
        ("messages", ctypes.c_uint32),
        ("expecting", ctypes.c_uint32),
        ("answers", ctypes.c_uint32),
        ("open", ctypes.c_uint32),
        ("errors", ctypes.c_uint32),
        ("id", ctypes.c_uint64),
    )
    length: int
    messages: int
    expecting: int
    answers: int
    open: int
    errors: int


class Batch(NamedTuple):
    """What ``lb_measure`` found: ``struct lb_batch``, and the ids of which it took note."""

    length: int
    messages: int
    expecting: int
    ids: tuple[int, ...]


class Headers:
    """The functions of the headers.

    `open` is what the batch that was measured last says of its last message, `errors` how many error
    responses it has, how many of them stand at its end, and whether the first message is one.
    """

    open = False
    errors = (0, 0, False)

    def __init__(self, directory: Path) -> None:
        """Build the library in a directory and load it; it stays loaded. Needs gcc."""
        target = directory / "headers.so"
        command = [
            "gcc",
            "-std=gnu11",
            "-O1",
            "-g",
            *WARNINGS,
            *SANITIZERS,
            "-shared",
            "-fPIC",
            f"-I{ROOT}/bpf",
        ]
        subprocess.run([*command, SOURCE, "-o", target], check=True, timeout=120)
        library = ctypes.CDLL(str(target))
        self._measure = library.measure
        self._measure.restype = _Batch
        self._measure.argtypes = (
            ctypes.POINTER(abi.Framing),
            ctypes.POINTER(_Stream),
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.POINTER(ctypes.c_uint64),
            ctypes.POINTER(ctypes.c_uint32),
        )
        self._await_only = library.await_only
        self._await_only.restype = None
        self._await_only.argtypes = (ctypes.c_int, ctypes.c_uint64)
        self._id_offset = library.id_offset
        self._id_offset.restype = ctypes.c_int32
        self._id_offset.argtypes = (ctypes.POINTER(abi.Framing), ctypes.c_char_p, ctypes.c_uint32)
        self._bucket = library.bucket
        self._bucket.restype = ctypes.c_uint32
        self._bucket.argtypes = (ctypes.c_uint32,)

    def measure(
        self,
        framing: abi.Framing,
        data: bytes,
        offset: int,
        limit: int,
        direction: Direction,
        *,
        awaited: int | None = None,
    ) -> Batch:
        """``lb_measure`` of what stands at an offset; every response is awaited, or those with one id."""
        ids = (ctypes.c_uint64 * abi.MAX_BATCH)()
        count = ctypes.c_uint32()
        stream = _Stream(data, len(data))
        self._await_only(awaited is None, awaited or 0)
        found = self._measure(
            framing, stream, offset, limit, direction is Direction.REQUEST, ids, ctypes.byref(count)
        )
        self.open = bool(found.open)
        self.errors = (found.errors & 0xFF, found.errors >> 16, bool(found.errors & 0x100))
        if direction is Direction.RESPONSE:
            assert found.answers == count.value
        return Batch(found.length, found.messages, found.expecting, tuple(ids[: count.value]))

    def id_offset(self, framing: abi.Framing, data: bytes, direction: Direction) -> int:
        """``lb_id_offset`` of the message that the data start with, of which the window is there."""
        return int(self._id_offset(framing, data, direction is Direction.REQUEST))

    def bucket(self, us: int) -> int:
        """``lb_bucket``."""
        return int(self._bucket(us))
