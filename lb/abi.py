"""The Python mirror of ``bpf/lb_abi.h``.

Every struct and enum here has the name that it has in C, in CamelCase. The mirror is compared with the BTF
of the object at every start (:func:`check`), so a difference is an error before the first socket is
inserted, not a corrupted field.
"""

import ctypes
import enum

from lb.libbpf import Btf, check_enum, check_struct

U8, U32, U64, S64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64

MAX_UPSTREAMS = 32
MAX_BATCH = 64
MAX_WINDOW = 56
MAX_BACKENDS = 1024
MAX_POOLS = 64
MARKS = 32
BUCKETS = 128
STRIDE = 1 << 20


class Role(enum.IntEnum):
    """What the socket in a slot is."""

    FREE = 0
    CLIENT = 1
    UPSTREAM = 2


class Balance(enum.IntEnum):
    """How the verdict chooses among a client's upstreams."""

    ROUND_ROBIN = 0
    LEAST_OUTSTANDING = 1
    RANDOM = 2


class FramingFlag(enum.IntFlag):
    """Which parts a framing declares."""

    HAS_ID = 1
    HAS_RESPONSE = 2
    HAS_NO_RESPONSE = 4
    HAS_MAGIC = 8
    FIFO = 16


class Counter(enum.IntEnum):
    """Index of ``lb_counters``; the unit is messages."""

    PASSED_NO_UPSTREAM = 0
    PASSED_HELD = 1
    DROPPED_CLIENT_GONE = 2
    DROPPED_UNSOLICITED = 3
    DROPPED_UNKNOWN_SOURCE = 4
    COUNTERS = 5


REASONS = tuple(counter for counter in Counter if counter is not Counter.COUNTERS)


class Field(ctypes.Structure):
    """An unsigned integer in a message."""

    _fields_ = (
        ("offset", U32),
        ("shift", U32),
        ("little", U32),
        ("pad", U32),
        ("mask", U64),
        ("value", U64),
    )


class Framing(ctypes.Structure):
    """How messages of one protocol are measured."""

    _fields_ = (
        ("flags", U32),
        ("window", U32),
        ("min_message", U32),
        ("max_message", U32),
        ("adjust", S64),
        ("length", Field),
        ("id", Field),
        ("response", Field),
        ("no_response", Field),
        ("magic", Field),
    )


class Pool(ctypes.Structure):
    """What the verdict needs of a pool."""

    _fields_ = (("balance", U32), ("pad", U32))


class Backend(ctypes.Structure):
    """Weight and outstanding requests of one backend, over all its upstreams."""

    _fields_ = (
        ("weight", U32),
        ("stride", U32),
        ("written_off", U64),
        ("pad0", U64 * 6),
        ("sent", U64),
        ("answered", U64),
        ("pad1", U64 * 6),
    )
    weight: int
    stride: int
    written_off: int
    sent: int
    answered: int


class Slot(ctypes.Structure):
    """One socket of the sockmap: its identity, and what the programs count for it."""

    _fields_ = (
        ("generation", U32),
        ("role", U32),
        ("framing", U32),
        ("pool", U32),
        ("batch", U32),
        ("backend", U32),
        ("traffic", U32),
        ("client", U32),
        ("client_generation", U32),
        ("hold", U32),
        ("pad0", U64 * 3),
        ("consumed_bytes", U64),
        ("passed_messages", U64),
        ("passed_bytes", U64),
        ("batched", U32),
        ("expecting", U32),
        ("chosen", U32),
        ("pad1", U32),
        ("window", U8 * 64),
        ("pad2", U64 * 3),
        ("redirected_bytes", U64),
        ("sent", U64),
        ("answered", U64),
        ("pad3", U64 * 5),
    )
    generation: int
    role: int
    framing: int
    pool: int
    batch: int
    backend: int
    traffic: int
    client: int
    client_generation: int
    hold: int
    consumed_bytes: int
    passed_messages: int
    passed_bytes: int
    redirected_bytes: int
    sent: int
    answered: int


class Upstream(ctypes.Structure):
    """A client's reference to one of its upstreams; generation 0: not in use."""

    _fields_ = (("slot", U32), ("generation", U32), ("backend", U32), ("pad", U32))
    slot: int
    generation: int
    backend: int


class Route(ctypes.Structure):
    """The upstreams of one client."""

    _fields_ = (("upstreams", Upstream * MAX_UPSTREAMS),)
    upstreams: "ctypes.Array[Upstream]"


class Marks(ctypes.Structure):
    """When outstanding requests left; programs only, mirrored for its size."""

    _fields_ = (("times", U64 * MARKS), ("tags", U32 * MAX_BATCH))


class Conn(ctypes.Structure):
    """The slot of a socket, by its cookie."""

    _fields_ = (("slot", U32), ("generation", U32))


class Traffic(ctypes.Structure):
    """Per CPU: messages and bytes of one (listener, backend)."""

    _fields_ = (
        ("requests", U64),
        ("responses", U64),
        ("request_bytes", U64),
        ("response_bytes", U64),
    )
    requests: int
    responses: int
    request_bytes: int
    response_bytes: int


class Duration(ctypes.Structure):
    """Per CPU: message durations of one backend, in microseconds."""

    _fields_ = (("sum", U64), ("buckets", U64 * BUCKETS))
    sum: int
    buckets: "ctypes.Array[ctypes.c_uint64]"


class Turns(ctypes.Structure):
    """Per CPU: virtual times; programs only, mirrored for its size."""

    _fields_ = (("floor", U64 * MAX_POOLS), ("times", U64 * MAX_BACKENDS))


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "lb_field": Field,
    "lb_framing": Framing,
    "lb_pool": Pool,
    "lb_backend": Backend,
    "lb_slot": Slot,
    "lb_upstream": Upstream,
    "lb_route": Route,
    "lb_marks": Marks,
    "lb_conn": Conn,
    "lb_traffic": Traffic,
    "lb_duration": Duration,
    "lb_turns": Turns,
}

# With what the names in C have before them.
ENUMS: dict[str, tuple[type[enum.IntEnum | enum.IntFlag], str]] = {
    "lb_role": (Role, "LB_ROLE_"),
    "lb_balance": (Balance, "LB_"),
    "lb_framing_flag": (FramingFlag, "LB_"),
    "lb_counter": (Counter, "LB_"),
}


def check(btf: Btf) -> None:
    """Compares the mirror with the object's BTF.

    Raises:
        lb.libbpf.LayoutError: naming the first struct and field, or enum, that differs.
    """
    for name, struct in STRUCTS.items():
        check_struct(btf, struct, name)
    for name, (mirror, prefix) in ENUMS.items():
        check_enum(btf, mirror, name, prefix)


def conn(slot: int, generation: int) -> bytes:
    """A value of ``lb_conns``."""
    return bytes(Conn(slot, generation))
