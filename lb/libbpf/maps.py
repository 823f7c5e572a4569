"""BPF maps of a loaded object, one class for each kind that can be used in its own way.

A map does not own its descriptor: the object does, and makes every map forget it before it is closed. Then
calls fail with EBADF.

Keys and values pass through buffers that a map object allocates once, so one map object is for one thread.
"""

import ctypes
import enum
import mmap
from collections.abc import Sequence
from typing import Final, TypeVar

from lb.libbpf._prototypes import MapPointer, libbpf, libc

BPF_F_MMAPABLE: Final = 1 << 10

_MAP_SHARED_FIXED: Final = mmap.MAP_SHARED | 0x10  # MAP_FIXED of asm-generic/mman-common.h

S = TypeVar("S", bound=ctypes.Structure)


class MapType(enum.IntEnum):
    """The map types with a class of their own; numbers of ``enum bpf_map_type``."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    ARRAY_OF_MAPS = 12
    SOCKMAP = 15


class UpdateFlag(enum.IntEnum):
    """What an update may do; the kernel's BPF_ANY, BPF_NOEXIST and BPF_EXIST."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2


class Map:
    """A map of any type: its descriptor and its measures.

    `fd` is -1 once the object is closed. Sizes are in bytes, `type` is a number of ``enum bpf_map_type``.
    """

    def __init__(self, pointer: MapPointer) -> None:
        """Describe a map whose object is loaded."""
        bpf = libbpf()
        self.name: str = bpf.bpf_map__name(pointer).decode()
        self.fd: int = bpf.bpf_map__fd(pointer)
        self.type: int = bpf.bpf_map__type(pointer)
        self.key_size: int = bpf.bpf_map__key_size(pointer)
        self.value_size: int = bpf.bpf_map__value_size(pointer)
        self.max_entries: int = bpf.bpf_map__max_entries(pointer)
        self.flags: int = bpf.bpf_map__map_flags(pointer)

    def forget(self) -> None:
        """Forget the descriptor; for its owner, who is about to close it."""
        self.fd = -1


class _Elements(Map):
    """A map whose elements are read and written by key."""

    def __init__(self, pointer: MapPointer) -> None:
        super().__init__(pointer)
        bpf = libbpf()
        self._update_elem = bpf.bpf_map_update_elem
        self._lookup_elem = bpf.bpf_map_lookup_elem
        self._delete_elem = bpf.bpf_map_delete_elem
        self._key = (ctypes.c_char * self.key_size)()
        self._value = (ctypes.c_char * self._transfer_size())()
        self._key_ref = ctypes.byref(self._key)
        self._value_ref = ctypes.byref(self._value)

    def _transfer_size(self) -> int:
        """Bytes that the kernel copies for one element."""
        return self.value_size

    def _put_value(self, value: bytes) -> None:
        size = self._transfer_size()
        if len(value) != size:
            raise ValueError(f"map {self.name}: a value has {size} bytes, not {len(value)}")
        self._value.raw = value


class _Indexed(_Elements):
    """A map whose keys are u32 numbers."""

    def __init__(self, pointer: MapPointer) -> None:
        super().__init__(pointer)
        self._index = ctypes.c_uint32.from_buffer(self._key)

    def _put_index(self, index: int) -> None:
        # ctypes would cut off the upper bits.
        if index >> 32:
            raise ValueError(f"map {self.name}: {index} is no u32")
        self._index.value = index


class ArrayMap(_Indexed):
    """BPF_MAP_TYPE_ARRAY: `max_entries` values that always exist."""

    def update(self, index: int, value: bytes, flags: int = UpdateFlag.ANY) -> None:
        """Replace a value, which has `value_size` bytes.

        Raises OSError: E2BIG for an index out of range, EEXIST for NOEXIST.
        """
        self._put_index(index)
        self._put_value(value)
        self._update_elem(self.fd, self._key_ref, self._value_ref, flags)

    def lookup(self, index: int) -> bytes:
        """A copy of a value. Raises OSError: ENOENT for an index out of range."""
        self._put_index(index)
        self._lookup_elem(self.fd, self._key_ref, self._value_ref)
        return self._value.raw

    def lookup_into(self, index: int, target: ctypes.Structure) -> None:
        """Copy a value into a structure of `value_size` bytes. Raises OSError: ENOENT, index out of range."""
        # The kernel writes value_size bytes there, however large the structure is.
        if ctypes.sizeof(target) != self.value_size:
            raise ValueError(
                f"map {self.name}: a value has {self.value_size} bytes, "
                f"not the {ctypes.sizeof(target)} of {type(target).__name__}"
            )
        self._put_index(index)
        self._lookup_elem(self.fd, self._key_ref, ctypes.byref(target))

    def view(self, struct_type: type[S]) -> "ctypes.Array[S]":
        """The memory of the map itself, as an array of `max_entries` structures; for BPF_F_MMAPABLE maps.

        Stores are seen by programs at once and the other way round; a store to one aligned field of up to
        8 bytes is one machine store. Memory and map live as long as any reference to the array or to one of
        its elements, also when the object is closed.

        Raises ValueError if the map is not mappable or the structure does not fill its elements, OSError if
        it cannot be mapped. Source: array_map_mmap() in kernel/bpf/arraymap.c.
        """
        size = ctypes.sizeof(struct_type)
        if not self.flags & BPF_F_MMAPABLE:
            raise ValueError(f"map {self.name} is not BPF_F_MMAPABLE")
        # Elements lie value_size rounded up to 8 apart.
        if size != self.value_size or size % 8:
            raise ValueError(
                f"map {self.name}: {struct_type.__name__} has {size} bytes, a value {self.value_size}; "
                "a view needs the same multiple of 8"
            )
        # mmap.mmap(fd) would keep a duplicate of the descriptor: it owns the addresses, the map fills them.
        memory = mmap.mmap(-1, size * self.max_entries)
        view = (struct_type * self.max_entries).from_buffer(memory)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        libc().mmap(ctypes.addressof(view), len(memory), protection, _MAP_SHARED_FIXED, self.fd, 0)
        return view


class PerCpuArray(_Indexed):
    """BPF_MAP_TYPE_PERCPU_ARRAY: each value exists once for every possible CPU.

    `cpus` is the number of possible CPUs, `stride` the distance of their values: value_size rounded up to 8.
    """

    def __init__(self, pointer: MapPointer) -> None:
        """Describe a map whose object is loaded."""
        self.cpus: int = libbpf().libbpf_num_possible_cpus()
        super().__init__(pointer)

    @property
    def stride(self) -> int:
        return -(-self.value_size // 8) * 8

    def _transfer_size(self) -> int:
        return self.stride * self.cpus

    def lookup(self, index: int) -> bytes:
        """The values of all CPUs, `cpus` times `stride` bytes. Raises OSError: ENOENT, index out of range."""
        self._put_index(index)
        self._lookup_elem(self.fd, self._key_ref, self._value_ref)
        return self._value.raw

    def update(self, index: int, values: bytes) -> None:
        """Replace the values of all CPUs, `cpus` times `stride` bytes.

        Raises OSError: E2BIG for an index out of range.
        """
        self._put_index(index)
        self._put_value(values)
        self._update_elem(self.fd, self._key_ref, self._value_ref, UpdateFlag.ANY)


class HashMap(_Elements):
    """BPF_MAP_TYPE_HASH and BPF_MAP_TYPE_LRU_HASH; keys and values are bytes of the exact size."""

    def _put_key(self, key: bytes) -> None:
        if len(key) != self.key_size:
            raise ValueError(f"map {self.name}: a key has {self.key_size} bytes, not {len(key)}")
        self._key.raw = key

    def update(self, key: bytes, value: bytes, flags: int = UpdateFlag.ANY) -> None:
        """Store a value. Raises OSError: E2BIG if the map is full, EEXIST and ENOENT as the flags say."""
        self._put_key(key)
        self._put_value(value)
        self._update_elem(self.fd, self._key_ref, self._value_ref, flags)

    def lookup(self, key: bytes) -> bytes:
        """A copy of a value. Raises OSError: ENOENT."""
        self._put_key(key)
        self._lookup_elem(self.fd, self._key_ref, self._value_ref)
        return self._value.raw

    def delete(self, key: bytes) -> None:
        """Remove a key. Raises OSError: ENOENT."""
        self._put_key(key)
        self._delete_elem(self.fd, self._key_ref)

    def delete_batch(self, keys: Sequence[bytes]) -> None:
        """Remove several keys at once.

        Raises OSError: ENOENT if one is not there; those behind it stay then.
        Source: generic_map_delete_batch() in kernel/bpf/syscall.c.
        """
        if any(len(key) != self.key_size for key in keys):
            raise ValueError(f"map {self.name}: a key has {self.key_size} bytes")
        if keys:
            count = ctypes.c_uint32(len(keys))
            libbpf().bpf_map_delete_batch(self.fd, b"".join(keys), ctypes.byref(count), None)

    def keys(self) -> list[bytes]:
        """A copy of all keys. Those that come or go meanwhile may be in it or not.

        Has buffers of its own: another thread may call it while one uses the other methods.
        Source: __htab_map_lookup_and_delete_batch() in kernel/bpf/hashtab.c.
        """
        size = self.key_size
        room = self.max_entries
        keys = (ctypes.c_char * (size * room))()
        values = (ctypes.c_char * (self.value_size * room))()
        # The position in the table: 32 bits of it are used, whatever the key's size.
        position = (ctypes.c_char * max(size, 4))()
        found: list[bytes] = []
        start = None
        while True:
            count = ctypes.c_uint32(room)
            try:
                libbpf().bpf_map_lookup_batch(
                    self.fd, start, position, keys, values, ctypes.byref(count), None
                )
                more = True
            except FileNotFoundError:  # that was the last
                more = False
            data = keys.raw[: count.value * size]
            found += [data[at : at + size] for at in range(0, len(data), size)]
            if not more:
                return found
            start = position


class ArrayOfMaps(_Indexed):
    """BPF_MAP_TYPE_ARRAY_OF_MAPS: places that hold other maps, all of one type and size."""

    def __init__(self, pointer: MapPointer) -> None:
        """Describe a map whose object is loaded."""
        super().__init__(pointer)
        self._inner = ctypes.c_int32.from_buffer(self._value)

    def insert(self, index: int, inner: Map) -> None:
        """Put a map into a place, and wait until every program that ran at the time of the call has ended.

        The place keeps the map alive. The wait is an RCU grace period, milliseconds, so call this in a
        thread of its own; it does not cover programs that may sleep. Needs no privilege.
        Raises OSError: E2BIG for an index out of range, EINVAL if the map's type, sizes or flags are not
        those that were declared.
        Source: bpf_fd_array_map_update_elem() in kernel/bpf/arraymap.c, maybe_wait_bpf_programs() in
        kernel/bpf/syscall.c.
        """
        self._put_index(index)
        self._inner.value = inner.fd
        self._update_elem(self.fd, self._key_ref, self._value_ref, UpdateFlag.ANY)


class SockMap(_Indexed):
    """BPF_MAP_TYPE_SOCKMAP: slots that hold sockets."""

    def __init__(self, pointer: MapPointer) -> None:
        """Describe a map whose object is loaded."""
        super().__init__(pointer)
        number = ctypes.c_uint64 if self.value_size == 8 else ctypes.c_uint32
        self._socket = number.from_buffer(self._value)

    def insert(self, slot: int, fd: int) -> None:
        """Put a socket into an empty slot. The map takes no reference: closing the socket empties the slot.

        Raises OSError: E2BIG, no such slot; EEXIST, the slot is taken; EBUSY, the socket is in another slot
        and runs programs; EOPNOTSUPP, it is neither connected nor listening; EINVAL, another protocol has
        its hooks (TLS). Source: sock_map_update_common() and sock_map_link() in net/core/sock_map.c.
        """
        self._put_index(slot)
        self._socket.value = fd
        self._update_elem(self.fd, self._key_ref, self._value_ref, UpdateFlag.NOEXIST)

    def remove(self, slot: int) -> None:
        """Take the socket out of a slot. Raises OSError: EINVAL if the slot is empty, or does not exist."""
        self._put_index(slot)
        self._delete_elem(self.fd, self._key_ref)


_CLASSES: Final[dict[int, type[Map]]] = {
    MapType.HASH: HashMap,
    MapType.ARRAY: ArrayMap,
    MapType.PERCPU_ARRAY: PerCpuArray,
    MapType.LRU_HASH: HashMap,
    MapType.ARRAY_OF_MAPS: ArrayOfMaps,
    MapType.SOCKMAP: SockMap,
}


def describe(pointer: MapPointer) -> Map:
    """The map object of the class that fits the map's type, `Map` itself if there is none."""
    return _CLASSES.get(libbpf().bpf_map__type(pointer), Map)(pointer)
