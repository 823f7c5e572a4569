"""Clients send at full speed to a backend that does not read: how much memory does that take?

``python -m tests.e2e.chaos.slow_backend --seconds 30``, as root. The senders must be slowed down, so that
what waits stays below the budget of each upstream and the buffers of the sockets; when the backend reads
again, every byte arrives, once and in order.
"""

import argparse
import re
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.balancer import Balancer, configuration
from tests.e2e.chaos.footprint import Memory, memory
from tests.e2e.chaos.history import ClientHistory, UpstreamHistory
from tests.e2e.chaos.model import Verdict, judge
from tests.e2e.chaos.program import run_in_lab, say
from tests.e2e.chaos.wire import protocol
from tests.e2e.chaos.worker import Worker
from tests.e2e.lab import Lab
from tests.e2e.namespaces import Endpoint, Namespace
from tests.e2e.processes import run

CLIENTS = 100
BUDGET = 512 << 10  # bytes an upstream
SIZE = 16 << 10  # bytes a message
BATCH = 8  # messages that travel together, and by which a budget may be exceeded
_MOST_BUFFER = 512 << 10  # bytes: to what autotuning may raise the buffers of the sockets
# Bytes of memory by which a machine's figure moves while others use it too.
_NOISE = 384 << 20
# A buffer is charged by the memory that its bytes take; the budget counts the bytes.
_OVERHEAD = 2
_INTERVAL = 0.05  # seconds between two looks
_REST = 120.0  # seconds for everything to arrive


@dataclass(frozen=True, slots=True)
class Bound:
    """The most bytes that may wait: in sockets, as the kernel limits them, and between them."""

    sockets: int
    budget: int

    @property
    def waiting(self) -> int:
        """Bytes between the sockets: a sender is paused in front of what finds the budget used up."""
        return self.budget + CLIENTS * BATCH * SIZE

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        return self.sockets + _OVERHEAD * self.waiting


@dataclass(slots=True)
class Report:
    """What was seen. Bytes, but for the verdict."""

    before: Memory
    least_available: int
    most_tcp: int
    most_buffered: int
    bound: Bound
    sent: int
    verdict: Verdict
    unordered: int  # clients whose messages did not arrive in the order in which they were sent

    @property
    def growth(self) -> int:
        """By how much the machine's free memory shrank."""
        return self.before.available - self.least_available

    @property
    def objections(self) -> list[str]:
        """What must not be."""
        found = [f"{count} {wrong}" for wrong, count in self.verdict.objections.items()]
        if self.unordered:
            found.append(f"the messages of {self.unordered} clients came in another order")
        if self.most_buffered > self.bound.waiting:
            found.append(
                f"{_mib(self.most_buffered)} waited between sockets, the bound is {_mib(self.bound.waiting)}"
            )
        if self.growth > self.bound.memory + _NOISE:
            found.append(f"memory grew by {_mib(self.growth)}, the bound is {_mib(self.bound.memory)}")
        return found

    def __str__(self) -> str:
        return "\n".join(
            f"{title:44}{_mib(count):>12}"
            for title, count in (
                ("sent by the end of the stall", self.sent),
                ("free memory of the machine shrank by", self.growth),
                ("memory of TCP grew by", self.most_tcp - self.before.tcp),
                ("sockmap_lb_buffered_bytes, most", self.most_buffered),
                ("bound: buffers of the sockets", self.bound.sockets),
                (f"bound: budget of {CLIENTS} upstreams, and a batch", self.bound.waiting),
                ("bound: memory", self.bound.memory),
            )
        )


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def measure(lab: Lab, *, seconds: float, most: int) -> Report:
    """Stall the backend for some seconds; each client sends at most ``most`` bytes."""
    _limit_buffers(lab.here)
    with ExitStack() as stack:
        backends, flood = Worker("backends", lab.here), Worker("flood", lab.here)
        stack.callback(backends.close)
        stack.callback(flood.close)
        (backend,) = backends.call("open", ["a"])
        balancer = lab.balancer(
            configuration(
                [backend],
                protocol="chaos",
                protocols={"chaos": protocol("any") | {"max_message": "64KiB"}},
                runtime={"buffer_budget": f"{BUDGET >> 10}KiB"},
                timeouts={"drain": "60s"},
                batch=BATCH,
            )
        ).wait_ready()
        flood.call("open", balancer.listeners["rpc"], CLIENTS)
        backends.call("stall", seconds)
        before = memory(lab.here)
        flood.call("pour", SIZE, most)
        report = _watch(balancer, backend, before, seconds)
        report.sent = SIZE * flood.call("sent")
        dropped = balancer.metrics().value("dropped_messages_total")
        clients: list[ClientHistory] = flood.call("stop", limit=_REST)
        upstreams: list[UpstreamHistory]
        upstreams, _ = backends.call("collect", 10.0, limit=_REST)
        report.verdict = judge(clients, upstreams, int(dropped))
        report.unordered = _count_unordered(clients, upstreams)
        return report


def _limit_buffers(where: Namespace) -> None:
    with where.entered():
        for name in ("tcp_rmem", "tcp_wmem"):
            Path(f"/proc/sys/net/ipv4/{name}").write_text(f"4096 131072 {_MOST_BUFFER}", encoding="ascii")


def _watch(balancer: Balancer, backend: Endpoint, before: Memory, seconds: float) -> Report:
    report = Report(before, before.available, before.tcp, 0, Bound(0, 0), 0, Verdict(), 0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = memory(balancer.where)
        report.least_available = min(report.least_available, now.available)
        report.most_tcp = max(report.most_tcp, now.tcp)
        buffered = int(balancer.metrics().value("buffered_bytes"))
        report.most_buffered = max(report.most_buffered, buffered)
        time.sleep(_INTERVAL)
    sockets = socket_limits(balancer.where, balancer.listeners["rpc"], backend)
    report.bound = Bound(sockets, CLIENTS * BUDGET)
    return report


def socket_limits(where: Namespace, listener: Endpoint, backend: Endpoint) -> int:
    """The limits of all buffers on the way from the clients to the backend; see skmem in ss(8)."""
    total = 0
    text = run(["ss", "-tnmOH", "state", "established"], where).out
    for line in text.splitlines():
        ports = re.findall(r"127\.0\.0\.1:(\d+)", line)
        limits = re.search(r"rb(\d+),t\d+,tb(\d+)", line)
        if len(ports) != 2 or limits is None:
            continue
        local, peer = map(int, ports)
        receives = local in {listener[1], backend[1]}
        sends = peer in {listener[1], backend[1]}
        total += receives * int(limits[1]) + sends * int(limits[2])
    assert total, f"no socket in:\n{text}"
    return total


def _count_unordered(clients: list[ClientHistory], upstreams: list[UpstreamHistory]) -> int:
    came: dict[int, list[int]] = {history.client: [] for history in clients}
    for upstream in upstreams:
        for client, sequence in upstream.reads:
            came[client].append(sequence)
    return sum(came[history.client] != list(range(len(history.sent))) for history in clients)


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long nobody reads; default: 30")
    parser.add_argument("--most", type=int, default=32, help="MiB that a client sends; default: 32")
    options = parser.parse_args()
    report = run_in_lab(lambda lab: measure(lab, seconds=options.seconds, most=options.most << 20))
    say(str(report))
    say("; ".join(report.objections) or "every byte arrived, once, in order, within the bound")
    return 1 if report.objections else 0


if __name__ == "__main__":
    sys.exit(main())
