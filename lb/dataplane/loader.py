"""Loading the programs: from the committed object to a data plane that takes sockets.

The order is the kernel's: maps get their sizes before the load, the mirror of the structs is checked before
anything is written, and the programs are attached before the first socket is inserted (one that was inserted
earlier would never be redirected). Only :func:`load` returns a :class:`~lb.dataplane.plane.DataPlane`.
"""

import errno
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources

from lb import abi
from lb.dataplane.errors import MachineError
from lb.dataplane.plane import OWN_SLOTS, DataPlane
from lb.libbpf import (
    AttachType,
    LibbpfMissingError,
    LoadError,
    Object,
    SockMap,
    effective_capabilities,
    seccomp_filters,
)

# BPF: loading; NET_ADMIN: programs for sockets; PERFMON: reading the strparser's control block.
_NEEDED = {"CAP_BPF": 39, "CAP_NET_ADMIN": 12, "CAP_PERFMON": 38}
_CAP_SYS_ADMIN = 21
CAP_ADD = ",".join(name.removeprefix("CAP_") for name in _NEEDED)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much the maps hold."""

    connections: int  # sockets, clients and upstreams together
    framings: int
    backends: int
    traffic_rows: int  # pairs of listener and backend
    max_message: int  # bytes, of any framing
    inflight: int = 1 << 16  # outstanding requests that are told apart by ids
    shared_routes: int = 0  # pools whose clients share their upstreams
    flights: int = 1  # places in the tables of these upstreams (flights.table_size)
    rates: int = 0  # token buckets
    hashed_pools: int = 0
    rules: int = 0  # listeners that may have rules
    tests: int = 0  # that all these rules are made of
    heads: bool = True  # whether any framing keeps their beginnings


def load(sizes: Sizes) -> DataPlane:
    """Loads the object, checks it against :mod:`lb.abi` and attaches the programs.

    Raises:
        MachineError: the kernel, its configuration or a privilege does not allow it.
    """
    image = resources.files("lb.dataplane").joinpath("lb.bpf.o").read_bytes()
    with ExitStack() as undo:
        try:
            opened = undo.enter_context(Object.open(image))
            sockets = sizes.connections + OWN_SLOTS
            for name in ("lb_socks", "lb_sources", "lb_conns", "lb_slots", "lb_marks"):
                opened.set_max_entries(name, sockets)
            opened.set_max_entries("lb_routes", sockets + sizes.shared_routes)
            opened.set_max_entries("lb_flights", sizes.flights)
            opened.set_max_entries("lb_inflight", sizes.inflight)
            opened.set_max_entries("lb_heads", sizes.inflight if sizes.heads else 1)
            opened.set_max_entries("lb_rates", sizes.rates + 1)  # 0 is none
            opened.set_max_entries("lb_tables", max(sizes.hashed_pools, 1))
            opened.set_max_entries("lb_rules", sizes.rules + 1)  # 0 is none
            opened.set_max_entries("lb_tests", max(sizes.tests, 1))
            if sizes.hashed_pools or sizes.rules:
                opened.set_max_entries("lb_routing", sockets)
            opened.set_max_entries("lb_framings", sizes.framings)
            opened.set_max_entries("lb_backends", sizes.backends)
            opened.set_max_entries("lb_durations", sizes.backends)
            opened.set_max_entries("lb_traffic", sizes.traffic_rows)
            abi.check(opened.btf())
            loaded = undo.enter_context(opened.load())
        except LoadError as error:
            raise _explain(error) from error
        except LibbpfMissingError as error:
            raise MachineError("libbpf.so.1 is not installed", "run `apt-get install libbpf1`") from error
        sources = loaded.map("lb_sources", SockMap)
        loaded.program("lb_parser").attach_sockmap(sources, AttachType.SK_SKB_STREAM_PARSER)
        loaded.program("lb_verdict").attach_sockmap(sources, AttachType.SK_SKB_STREAM_VERDICT)
        plane = DataPlane(loaded, sizes.connections, sizes.max_message)
        undo.pop_all()
        return plane


def missing_capabilities() -> list[str]:
    """What the process lacks to load the programs; CAP_SYS_ADMIN stands for two of them."""
    held = effective_capabilities()
    if _CAP_SYS_ADMIN in held:
        held |= {_NEEDED["CAP_BPF"], _NEEDED["CAP_PERFMON"]}
    return [name for name, number in _NEEDED.items() if number not in held]


def _explain(error: LoadError) -> MachineError:
    if error.errno in (errno.EPERM, errno.EACCES):
        if missing := missing_capabilities():
            return MachineError(
                f"loading BPF programs is not permitted: {', '.join(missing)} missing",
                f"run as root, or in a container with --cap-add {CAP_ADD}",
            )
        return MachineError(
            "loading BPF programs is not permitted, although no capability is missing",
            "let the seccomp profile allow bpf(2): --security-opt seccomp=deploy/seccomp.json"
            if seccomp_filters()
            else "leave the user namespace; read /sys/kernel/security/lockdown",
        )
    if error.errno == errno.ENOMEM:
        return MachineError(
            "there is no memory for the BPF maps",
            "lower runtime.max_connections (about 1.5 KiB of kernel memory each), or raise `ulimit -l`",
        )
    return MachineError(
        f"the kernel refuses the BPF programs: {error}",
        "run `sockmap-lb doctor`; the kernel needs CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT,"
        " CONFIG_BPF_STREAM_PARSER and CONFIG_DEBUG_INFO_BTF, version 6.1 or later",
    )
