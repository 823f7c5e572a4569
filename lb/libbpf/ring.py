"""BPF_MAP_TYPE_RINGBUF: records that programs send to user space."""

import ctypes

from lb.libbpf._prototypes import RecordFn, RingPointer, libbpf
from lb.libbpf.maps import Map


class RingReader:
    """Reads the records of a ring buffer; the only reader it may have.

    Owns libbpf's ``struct ring_buffer`` until `close`: two memory maps and an epoll descriptor. Needs no
    privilege once it is made, and the map may be closed before it.
    """

    def __init__(self, ring: Map) -> None:
        """Map the memory of `ring`, which is loaded. Raises OSError."""
        self._records: list[bytes] = []
        self._callback = RecordFn(self._take)  # libbpf keeps its address
        pointer = libbpf().ring_buffer__new(ring.fd, self._callback, None, None)
        self._pointer: RingPointer | None = pointer
        self._fd: int = libbpf().ring_buffer__epoll_fd(pointer)

    def fileno(self) -> int:
        """A descriptor that polls readable while records wait."""
        if self._pointer is None:
            raise ValueError("the ring buffer was closed")
        return self._fd

    def read(self) -> list[bytes]:
        """Copies of the records that wait, oldest first, whose room is free then."""
        self.fileno()
        libbpf().ring_buffer__consume(self._pointer)
        records, self._records = self._records, []
        return records

    def close(self) -> None:
        """Unmap the memory; a second time does nothing."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            libbpf().ring_buffer__free(pointer)

    # ctypes cannot raise what goes wrong in here, so nothing is done that could.
    def _take(self, _context: int, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        return 0
