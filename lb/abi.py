"""The Python mirror of ``bpf/lb_abi.h``.

Every struct and enum here has the name that it has in C, in CamelCase. The mirror is compared with the BTF
of the object at every start (:func:`check`), so a difference is an error before the first socket is
inserted, not a corrupted field.
"""

import ctypes
import enum
from struct import Struct
from typing import TypeAlias

from lb.libbpf import Btf, check_enum, check_struct

U8, U16, U32 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32
U64, S64 = ctypes.c_uint64, ctypes.c_int64

MAX_UPSTREAMS = 32
MAX_BATCH = 64
MAX_WINDOW = 56
MAX_BACKENDS = 1024
MAX_POOLS = 64
NEAR = 16
NEAR_WAYS = 4
MARKS = 32
BUCKETS = 128
STRIDE = 1 << 20
WEIGHT = 1 << 8
MAX_HEAD = 288
MAX_KEY = 255
TABLE = 65521
MAX_TABLE = 1 << 16
MAX_EDITS = 4
WORDS = 4
MAX_TESTS = 1024
LOAD_UNIT = 1024
MAX_TAPS = 4
SAMPLE = 64
VACANT = 0x7FFFFFFF


class Role(enum.IntEnum):
    """What the socket in a slot is."""

    FREE = 0
    CLIENT = 1
    UPSTREAM = 2
    POST = 3
    CANARY = 4
    SHARED = 5


class Pause(enum.IntEnum):
    """Why a source stands still."""

    RUNNING = 0
    PAUSED_FULL = 1
    PAUSED_LIMIT = 2
    PAUSED_NO_UPSTREAM = 3
    PAUSED_HELD = 4
    PAUSED_RATE = 5
    PAUSED_ORDER = 6
    PAUSED_CONNECT = 7


class PostKind(enum.IntEnum):
    """What a message of the post channel is."""

    FORWARD = 0
    REPLY = 1
    CHARGE = 2


class FlightState(enum.IntEnum):
    """Whether a place in the table of a shared upstream is in use."""

    FREE = 0
    TAKEN = 1
    ANSWERED = 2


class Balance(enum.IntEnum):
    """How the verdict chooses among a client's upstreams."""

    ROUND_ROBIN = 0
    LEAST_OUTSTANDING = 1
    RANDOM = 2
    HASH = 3


class Denial(enum.IntEnum):
    """Why a message is denied."""

    NOT_DENIED = 0
    DENIED_RATE = 1
    DENIED_TRANSFER = 2
    DENIED_RULE = 3


class Key(enum.IntEnum):
    """What a message is hashed by."""

    NONE = 0
    FIELD = 1
    STRING = 2
    DNS_NAME = 3
    CLIENT = 4


class Routed(enum.IntFlag):
    """Why a client's messages are looked into."""

    HASH = 1
    RULES = 2


class Subject(enum.IntEnum):
    """What a test of a rule looks at."""

    NONE = 0
    MESSAGE = 1
    NAME = 2
    LABEL = 3
    CLIENT = 4


class FramingFlag(enum.IntFlag):
    """Which parts a framing declares."""

    HAS_ID = 1
    HAS_RESPONSE = 2
    HAS_NO_RESPONSE = 4
    HAS_MAGIC = 8
    FIFO = 16
    MANY_RESPONSES = 32
    KEEP_HEADS = 64
    ID_AFTER = 128
    NO_RESPONSE_SET = 256
    ANY_RESPONSES = 512
    DNS_TRANSFERS = 1024
    HAS_ERROR = 2048


class Counter(enum.IntEnum):
    """Index of ``lb_counters``; the unit is messages."""

    PASSED_NO_UPSTREAM = 0
    PASSED_NO_FLIGHT = 1
    DROPPED_CLIENT_GONE = 2
    DROPPED_UNSOLICITED = 3
    DROPPED_UPSTREAM_GONE = 4
    DROPPED_LATE = 5
    DROPPED_UNKNOWN_SOURCE = 6
    FORWARDED = 7
    REPLIES = 8
    PAUSES_FULL = 9
    PAUSES_LIMIT = 10
    PAUSES_NO_UPSTREAM = 11
    PAUSES_HELD = 12
    PAUSES_RATE = 13
    PAUSES_ORDER = 14
    PAUSES_CONNECT = 15
    DROPPED_RATE_LIMITED = 16
    DROPPED_TRANSFER = 17
    DROPPED_RULE = 18
    REFUSALS = 19
    COUNTERS = 20


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


class Edit(ctypes.Structure):
    """A byte that changes: ``byte & keep | set``."""

    _fields_ = (("offset", U32), ("keep", U8), ("set", U8), ("pad", U16))


class Framing(ctypes.Structure):
    """How messages of one protocol are measured."""

    _fields_ = (
        ("flags", U32),
        ("window", U32),
        ("min_message", U32),
        ("max_message", U32),
        ("adjust", S64),
        ("id_width", U32),
        ("edits", U32),
        ("length", Field),
        ("id", Field),
        ("response_id", Field),
        ("id_after", Field),
        ("response", Field),
        ("no_response", Field),
        ("magic", Field),
        ("error", Field),
        ("no_response_set", U64 * 4),
        ("refusal", Edit * MAX_EDITS),
    )
    edits: int
    no_response_set: "ctypes.Array[ctypes.c_uint64]"
    refusal: "ctypes.Array[Edit]"


class Pool(ctypes.Structure):
    """What the verdict needs of a pool."""

    _fields_ = (("balance", U32), ("max_in_flight", U32), ("route", U32), ("pad", U32))


class Backend(ctypes.Structure):
    """Weight and outstanding requests of one backend, over all its upstreams."""

    _fields_ = (
        ("weight", U32),
        ("stride", U32),
        ("written_off", U64),
        ("max_outstanding", U64),
        ("pool", U32),
        ("pad", U32),
        ("pad0", U64 * 4),
        ("sent", U64),
        ("answered", U64),
        ("errors", U64),
        ("forgiven", U64),
        ("pad1", U64 * 4),
    )
    weight: int
    stride: int
    written_off: int
    max_outstanding: int
    pool: int
    sent: int
    answered: int
    errors: int
    forgiven: int


class Rate(ctypes.Structure):
    """A token bucket; times in nanoseconds."""

    _fields_ = (
        ("interval", U64),
        ("burst", U64),
        ("deny", U32),
        ("pad0", U32),
        ("full", U64),
        ("pad1", U64 * 4),
    )
    interval: int
    burst: int
    deny: int
    full: int


class Post(ctypes.Structure):
    """What stands before each message of the post channel."""

    _fields_ = (("length", U32), ("kind", U32), ("slot", U32), ("generation", U32))


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
        ("budget", U32),
        ("hold", U32),
        ("route", U32),
        ("written_off", U64),
        ("flights", U32),
        ("flight_mask", U32),
        ("consumed_bytes", U64),
        ("passed_messages", U64),
        ("id", U64),
        ("paused", U32),
        ("started", U32),
        ("batched", U32),
        ("expecting", U32),
        ("chosen", U32),
        ("target", U32),
        ("target_generation", U32),
        ("answers", U32),
        ("post", Post),
        ("window", U8 * 64),
        ("open", U32),
        ("opening", U32),
        ("late", U32),
        ("denied", U32),
        ("rate_full", U64),
        ("address_full", U64),
        ("allowed", U32),
        ("rate", U32),
        ("address_rate", U32),
        ("routed", U32),
        ("to_pool", U32),
        ("to_route", U32),
        ("listener", U32),
        ("sample", U32),
        ("wanted", U32),
        ("charged", U32),
        ("vacant", U32),
        ("pad2", U32 * 11),
        ("redirected_bytes", U64),
        ("base", U64),
        ("sent", U64),
        ("answered", U64),
        ("ambiguous", U64),
        ("disambiguated", U64),
        ("quiet", U64),
        ("delivered_quiet", U64),
        ("mark_bytes", U64),
        ("mark_quiet", U64),
        ("cursor", U64),
        ("far", U64),
        ("pad3", U64 * 4),
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
    budget: int
    hold: int
    route: int
    written_off: int
    flights: int
    flight_mask: int
    rate: int
    address_rate: int
    routed: int
    listener: int
    wanted: int
    charged: int
    vacant: int
    to_pool: int
    to_route: int
    consumed_bytes: int
    passed_messages: int
    paused: int
    started: int
    chosen: int
    target: int
    open: int
    target_generation: int
    redirected_bytes: int
    sent: int
    answered: int
    ambiguous: int
    far: int
    disambiguated: int
    quiet: int
    delivered_quiet: int
    mark_bytes: int
    mark_quiet: int


class Upstream(ctypes.Structure):
    """A client's reference to one of its upstreams; generation 0: not in use."""

    _fields_ = (("slot", U32), ("generation", U32), ("backend", U32), ("member", U32))
    slot: int
    generation: int
    backend: int
    member: int


class Route(ctypes.Structure):
    """The upstreams of one client, or of all clients that share them."""

    _fields_ = (("upstreams", Upstream * MAX_UPSTREAMS),)
    upstreams: "ctypes.Array[Upstream]"


class Near(ctypes.Structure):
    """A request that is outstanding."""

    _fields_ = (("id", U64), ("left", U64))
    id: int
    left: int


class Marks(ctypes.Structure):
    """What an upstream keeps of its outstanding requests."""

    _fields_ = (("requests", Near * NEAR), ("sampled", U64))
    requests: "ctypes.Array[Near]"


class InflightKey(ctypes.Structure):
    """Which request is outstanding."""

    _fields_ = (("slot", U32), ("generation", U32), ("id", U64))
    slot: int
    generation: int
    id: int


class Inflight(ctypes.Structure):
    """Since when a request is outstanding, in microseconds."""

    _fields_ = (("time", U32), ("sample", U32))


class Head(ctypes.Structure):
    """The start of an outstanding request."""

    _fields_ = (("length", U32), ("bytes", U8 * MAX_HEAD), ("pad", U32))
    length: int


class Flight(ctypes.Structure):
    """A request that is outstanding on a shared upstream."""

    _fields_ = (
        ("state", U32),
        ("time", U32),
        ("id", U64),
        ("original", U64),
        ("client", U32),
        ("client_generation", U32),
        ("given_up", U64),
        ("sample", U32),
        ("pad", U32),
    )
    state: int
    time: int
    id: int
    original: int
    client: int
    client_generation: int
    given_up: int


Slots: TypeAlias = "ctypes.Array[Slot]"
AllMarks: TypeAlias = "ctypes.Array[Marks]"
FLIGHT_SIZE = ctypes.sizeof(Flight)
Flights: TypeAlias = "ctypes.Array[Flight]"


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


class Hash(ctypes.Structure):
    """How the messages of a pool are hashed."""

    _fields_ = (
        ("key", U32),
        ("offset", U32),
        ("width", U32),
        ("little", U32),
        ("table", U32),
        ("max_load", U32),
    )


class Table(ctypes.Structure):
    """Who gets the messages of a hashed pool."""

    _fields_ = (("backends", U32 * MAX_UPSTREAMS), ("members", U8 * MAX_TABLE))
    backends: "ctypes.Array[ctypes.c_uint32]"
    members: "ctypes.Array[ctypes.c_uint8]"


class Routing(ctypes.Structure):
    """What is known of a client whose messages are looked into."""

    _fields_ = (
        ("hash", U64),
        ("address", U64 * 3),
        ("rules", U32),
        ("pad", U32),
        ("decision", U64),
        ("bound", U64),
        ("bound_mask", U64),
        ("words", U64 * WORDS),
        ("words_at", U32 * WORDS),
        ("next", U32),
        ("name_end", U32),
        ("name_missing", U32),
        ("pad2", U32),
        ("labels", U64 * 4),
    )
    hash: int
    address: "ctypes.Array[ctypes.c_uint64]"
    rules: int
    decision: int
    bound: int
    bound_mask: int


class RecordKind(enum.IntEnum):
    """What ``lb_samples`` carries."""

    SAMPLE = 0
    ANSWER = 1


class Fate(enum.IntEnum):
    """What becomes of a message that was sampled."""

    AWAITED = 0
    UNTIMED = 1
    QUIET = 2
    DENIED = 3


class Tap(ctypes.Structure):
    """What somebody sees of a listener's messages; times in nanoseconds."""

    _fields_ = (
        ("listener", U32),
        ("life", U32),
        ("interval", U64),
        ("burst", U64),
        ("full", U64),
        ("lost", U64),
        ("pad", U64 * 3),
    )
    listener: int
    life: int
    interval: int
    burst: int
    full: int
    lost: int


class Taps(ctypes.Structure):
    """All taps."""

    _fields_ = (
        ("open", U32),
        ("pad0", U32),
        ("pad1", U64 * 7),
        ("samples", U64),
        ("pad2", U64 * 7),
        ("taps", Tap * MAX_TAPS),
    )
    open: int
    samples: int
    taps: "ctypes.Array[Tap]"


class Record(ctypes.Structure):
    """The head of what ``lb_samples`` carries; an answer is no more than this."""

    _fields_ = (("kind", U32), ("number", U32), ("time", U64))
    kind: int
    number: int
    time: int


class Sample(ctypes.Structure):
    """A record of a message that was sampled."""

    _fields_ = (
        ("record", Record),
        ("tap", U32),
        ("life", U32),
        ("fate", U32),
        ("backend", U32),
        ("length", U32),
        ("batch", U32),
        ("client", U32),
        ("client_generation", U32),
        ("port", U32),
        ("family", U32),
        ("address", U32 * 4),
        ("shown", U32),
        ("pad", U32),
        ("bytes", U8 * SAMPLE),
    )
    record: Record
    tap: int
    life: int
    fate: int
    backend: int
    length: int
    batch: int
    client: int
    client_generation: int
    port: int
    family: int
    address: "ctypes.Array[ctypes.c_uint32]"
    shown: int
    bytes: "ctypes.Array[ctypes.c_uint8]"


class Test(ctypes.Structure):
    """A test of a rule."""

    _fields_ = (
        ("mask", U64),
        ("value", U64),
        ("subject", U32),
        ("offset", U32),
        ("width", U32),
        ("then", U32),
        ("otherwise", U32),
        ("names", U32),
        ("decision", U64),
    )
    mask: int
    value: int
    subject: int
    offset: int
    width: int
    then: int
    otherwise: int
    names: int
    decision: int


class Rules(ctypes.Structure):
    """The rules of a listener."""

    _fields_ = (("first", U32), ("pad", U32))
    first: int


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "lb_field": Field,
    "lb_edit": Edit,
    "lb_framing": Framing,
    "lb_pool": Pool,
    "lb_backend": Backend,
    "lb_rate": Rate,
    "lb_slot": Slot,
    "lb_upstream": Upstream,
    "lb_route": Route,
    "lb_near": Near,
    "lb_marks": Marks,
    "lb_inflight_key": InflightKey,
    "lb_inflight": Inflight,
    "lb_head": Head,
    "lb_post": Post,
    "lb_flight": Flight,
    "lb_conn": Conn,
    "lb_traffic": Traffic,
    "lb_duration": Duration,
    "lb_turns": Turns,
    "lb_hash": Hash,
    "lb_table": Table,
    "lb_routing": Routing,
    "lb_tap": Tap,
    "lb_taps": Taps,
    "lb_record": Record,
    "lb_sample": Sample,
    "lb_test": Test,
    "lb_rules": Rules,
}

# With what the names in C have before them.
ENUMS: dict[str, tuple[type[enum.IntEnum | enum.IntFlag], str]] = {
    "lb_role": (Role, "LB_ROLE_"),
    "lb_pause": (Pause, "LB_"),
    "lb_post_kind": (PostKind, "LB_POST_"),
    "lb_denial": (Denial, "LB_"),
    "lb_balance": (Balance, "LB_"),
    "lb_key": (Key, "LB_KEY_"),
    "lb_routed": (Routed, "LB_ROUTED_"),
    "lb_subject": (Subject, "LB_SUBJECT_"),
    "lb_flight_state": (FlightState, "LB_FLIGHT_"),
    "lb_record_kind": (RecordKind, "LB_RECORD_"),
    "lb_fate": (Fate, "LB_FATE_"),
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


_CONN = Struct("=II")
assert _CONN.size == ctypes.sizeof(Conn)


def conn(slot: int, generation: int) -> bytes:
    """A value of ``lb_conns``."""
    return _CONN.pack(slot, generation)
