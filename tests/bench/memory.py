# ruff: noqa: T201
"""What an idle client costs: memory of the balancer's process, and of the kernel for the balancer's sockets.

Each client has sent one message and has its answer. Of the kernel counts all that grows with sockets, maps or
processes: slab, page tables, per-CPU memory and vmalloc (/proc/meminfo). That is of the whole machine, so it
should do nothing else. Every connection has one end that is the balancer's and one that is a client's or a
backend's; what the latter cost is known from connections with nothing between, and taken off. Nothing here
passes or fails by its figures; a wrong or missing answer fails.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lb.cli.table import render
from tests.bench import peers
from tests.bench.backends import BACKENDS, EchoBackends
from tests.bench.clients import connect, exchange
from tests.bench.environment import describe
from tests.bench.errors import ProgramError
from tests.bench.network import Loopback
from tests.bench.peers import Scene
from tests.bench.processes import compile_c, number, raise_descriptor_limit, resident_bytes

_DIRECT = "direct"
_TARGETS = ("sockmap-lb", "sockmap-lb/shared=2", "haproxy", "nginx")
_FIELDS = ("Slab", "PageTables", "Percpu", "VmallocUsed")
_SLABS = Path("/sys/kernel/slab")
_SOCKETS_A_CLIENT = 1 + len(BACKENDS)
_RESERVED = 256  # descriptors that are not clients' or upstreams'
_SIZE = 64
_PERIOD = 0.3
_STEADY = 64 * 1024  # bytes between two readings that are called the same


@dataclass(frozen=True, slots=True)
class Reading:
    """Memory in bytes, and the TCP sockets of the namespace, both ends of its connections."""

    process: int
    kernel: int
    sockets: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one target, bytes: of each client, medians of the rounds, and what it takes with no client."""

    target: str
    sockets: float  # a client, the balancer's own
    process: float
    kernel: float
    idle_process: int
    idle_kernel: int


def main() -> int:
    """Measures and prints; 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--targets", default=",".join(_TARGETS), help="those of tests.bench.bench")
    parser.add_argument("--clients", type=number(1, 10_000), default=1000)
    parser.add_argument("--rounds", type=number(1, 20), default=3, help="each with a new balancer")
    parser.add_argument("--settle", type=float, default=6.0, help="seconds at most, before each reading")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    try:
        raise_descriptor_limit(options.clients * _SOCKETS_A_CLIENT + _RESERVED)
        with contextlib.closing(Loopback(None)) as network:
            environment = describe(network)
            figures = _compare(network, options)
    except (ProgramError, ValueError) as error:
        print(f"memory: {error}", file=sys.stderr)
        return 1
    print(f"Linux {environment['Linux']}, {options.clients} clients, {options.rounds} rounds")
    print(_table(figures))
    if options.json is not None:
        result = {
            "environment": environment,
            "clients": options.clients,
            "rounds": options.rounds,
            "memory": [asdict(each) for each in figures],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _table(figures: Sequence[Figures]) -> str:
    headings = (
        "TARGET",
        "SOCKETS",
        "PROCESS KiB",
        "KERNEL KiB",
        "TOGETHER",
        "PROCESS AT START MiB",
        "KERNEL",
    )
    return render(
        headings,
        [
            (
                each.target,
                round(each.sockets, 1),
                round(each.process / 1024, 1),
                round(each.kernel / 1024, 1),
                round((each.process + each.kernel) / 1024, 1),
                round(each.idle_process / 2**20, 1),
                round(each.idle_kernel / 2**20, 1),
            )
            for each in figures
        ],
    )


def _compare(network: Loopback, options: argparse.Namespace) -> list[Figures]:
    targets = (_DIRECT, *options.targets.split(","))
    found: dict[str, list[tuple[Reading, Reading, Reading]]] = {name: [] for name in targets}
    for _ in range(options.rounds):
        for name, readings in found.items():
            readings.append(_measure(network, name, options.clients, options.settle))
    plain = statistics.median(
        (busy.kernel - idle.kernel) / (busy.sockets - idle.sockets) for _, idle, busy in found.pop(_DIRECT)
    )
    return [_figures(name, readings, options.clients, plain) for name, readings in found.items()]


def _figures(
    target: str, readings: Sequence[tuple[Reading, Reading, Reading]], clients: int, plain: float
) -> Figures:
    """From readings before the start, with no clients and with all; a plain socket has so many bytes."""
    sockets = [(busy.sockets - idle.sockets) / 2 for _, idle, busy in readings]
    kernel = [
        (busy.kernel - idle.kernel - count * plain) / clients
        for (_, idle, busy), count in zip(readings, sockets, strict=True)
    ]
    return Figures(
        target=target,
        sockets=statistics.median(sockets) / clients,
        process=statistics.median((busy.process - idle.process) / clients for _, idle, busy in readings),
        kernel=statistics.median(kernel),
        idle_process=round(statistics.median(idle.process for _, idle, _ in readings)),
        idle_kernel=round(statistics.median(idle.kernel - nothing.kernel for nothing, idle, _ in readings)),
    )


def _measure(network: Loopback, target: str, count: int, patience: float) -> tuple[Reading, Reading, Reading]:
    """Readings before the start, with no clients and with all of them.

    Raises:
        ProgramError: something did not start, or an answer was wrong.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)  # the balancer reads its file as another user
        backends = EchoBackends(compile_c(directory, "echo"), network.backends, stack)
        with contextlib.ExitStack() as peer_stack:
            nothing = _settled(network, None, patience)
            scene = Scene(
                network.balancer,
                directory,
                backends.addresses,
                max_connections=count * _SOCKETS_A_CLIENT + _RESERVED // 2,
            )
            peer = peers.start(target, scene, peer_stack)
            # What the first client costs is not what each costs.
            with contextlib.ExitStack() as first:
                exchange(connect(first, network, peer.targets, len(peer.targets)), _SIZE)
            idle = _settled(network, peer.pid, patience)
            with contextlib.ExitStack() as all_stack:
                exchange(connect(all_stack, network, peer.targets, count), _SIZE)
                busy = _settled(network, peer.pid, patience)
        if (received := sum(backends.stop().values())) != count + len(peer.targets):
            raise ProgramError(
                f"the backends got {received} messages, and {count + len(peer.targets)} were sent"
            )
    return nothing, idle, busy


def _settled(network: Loopback, pid: int | None, patience: float) -> Reading:
    """What is used once it does not change any more, or at the end of so many seconds."""
    deadline = time.monotonic() + patience
    now = _read(network, pid)
    while True:
        before = now
        time.sleep(_PERIOD)
        now = _read(network, pid)
        moved = max(abs(now.kernel - before.kernel), abs(now.process - before.process))
        if (moved < _STEADY and now.sockets == before.sockets) or time.monotonic() > deadline:
            return now


def _read(network: Loopback, pid: int | None) -> Reading:
    _shrink_slabs()
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    with network.balancer.entered():
        sockets = Path("/proc/thread-self/net/sockstat").read_text(encoding="ascii")
    return Reading(
        process=0 if pid is None else resident_bytes(pid),
        kernel=sum(int(fields[name].split()[0]) for name in _FIELDS) * 1024,
        sockets=int(sockets.partition("TCP: inuse ")[2].split()[0]),
    )


def _shrink_slabs() -> None:
    """Gives back what is kept for the next objects, where the kernel lets one ask for it."""
    for cache in _SLABS.glob("*/shrink"):
        cache.write_text("1", encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
