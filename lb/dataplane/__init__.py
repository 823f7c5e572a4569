"""The data plane: loading, checking and feeding the programs. Knows the kernel's order and no event loop."""

from lb.dataplane.answers import Answers
from lb.dataplane.counters import Durations, Traffic, bucket_limit
from lb.dataplane.errors import NO_MEMORY, MachineError
from lb.dataplane.flights import Flight, FlightTable, table_size
from lb.dataplane.loader import Sizes, load
from lb.dataplane.mapped import MappedSocket
from lb.dataplane.plane import DataPlane, PeerGoneError, Policy
from lb.dataplane.post import PostChannel
from lb.dataplane.taps import Answer, NoTapError, Sample, Taps

__all__ = [
    "NO_MEMORY",
    "Answer",
    "Answers",
    "DataPlane",
    "Durations",
    "Flight",
    "FlightTable",
    "MachineError",
    "MappedSocket",
    "NoTapError",
    "PeerGoneError",
    "Policy",
    "PostChannel",
    "Sample",
    "Sizes",
    "Taps",
    "Traffic",
    "bucket_limit",
    "load",
    "table_size",
]
