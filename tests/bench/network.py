"""Where the measured programs run: a network and a CPU for each role.

``loopback``: all in one namespace on all CPUs, as on a machine that runs everything.

``veth``: clients, balancer and backends have a namespace each, joined by veth pairs as by cables. Clients and
backends share the first CPU, and so does the processing of what they receive; the balancer has the second
one for its process and for what it receives (``rps_cpus``). So the time that the second CPU was busy is what
the balancer costs, in user space and in the kernel. What the balancer sends is processed on its own CPU up to
the far end of the cable, as far as a network card would take it.

``direct`` connections have a cable of their own, past the balancer; they leave the second CPU idle.
"""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.errors import ProgramError
from tests.e2e.namespaces import Namespace, ip

_IPV4 = Path("/proc/sys/net/ipv4")
_CONGESTION = _IPV4 / "tcp_congestion_control"
# Many short connections need many ports, each again after a second; below are those of servers.
_SYSCTLS = {"ip_local_port_range": "10240 65535", "tcp_tw_reuse": "1"}
# Everything that a busy CPU does; idle and waiting are the fourth and fifth. Source: proc(5).
_BUSY = (0, 1, 2, 5, 6)
# Of 198.18.0.0/15, which is set aside for benchmarks (RFC 2544).
_SERVICE = "198.18.3.1"


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace, and the CPUs for what runs there."""

    namespace: Namespace
    host: str
    cpus: frozenset[int]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is there; the processes that it starts stay there."""
        before = os.sched_getaffinity(0)
        with self.namespace.entered():
            os.sched_setaffinity(0, self.cpus)
            try:
                yield
            finally:
                os.sched_setaffinity(0, before)


class Network(Protocol):
    """A topology that has been set up."""

    clients: Place
    balancer: Place
    backends: Place
    offloads: str
    routes: str

    def acknowledge_at_once(self) -> None:
        """The balancer's machine acknowledges each segment: ``quickack`` of its routes."""

    def balancer_seconds(self) -> float | None:
        """Time that the balancer's CPU has been busy so far; None if it has none of its own."""

    def close(self) -> None:
        """Gives the namespaces back; what runs inside has ended."""


class Loopback:
    """One namespace for all."""

    offloads = "those of the loopback device"
    routes = "plain"

    def __init__(self, congestion: str | None) -> None:
        with contextlib.ExitStack() as stack:
            namespace = _namespace("bench", congestion, stack)
            self._stack = stack.pop_all()
        here = Place(namespace, "127.0.0.1", frozenset(os.sched_getaffinity(0)))
        self.clients = self.balancer = self.backends = here

    def acknowledge_at_once(self) -> None:
        """Cannot be had: the balancer's routes are everybody's."""
        raise ProgramError("over loopback the balancer has no routes of its own; use --topology veth")

    def balancer_seconds(self) -> float | None:
        """None: the balancer shares its CPUs."""
        return None

    def close(self) -> None:
        """Gives the namespace back."""
        self._stack.close()


class Veth:
    """Three namespaces joined by veth pairs."""

    offloads = "those of veth devices, and GRO; rps_cpus names the CPU of each end"
    routes = "plain"

    def __init__(self, congestion: str | None) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            raise ProgramError("the veth topology needs two CPUs; use --topology loopback")
        near, far = cpus[:2]
        with contextlib.ExitStack() as stack:
            clients, balancer, backends = (
                _namespace(role, congestion, stack) for role in ("clients", "balancer", "backends")
            )
            self._stack = stack.pop_all()
        _cable(clients, near, "198.18.0.1", balancer, far, "198.18.0.2")
        _cable(backends, near, "198.18.1.1", balancer, far, "198.18.1.2")
        _cable(clients, near, "198.18.2.1", backends, near, "198.18.2.2")
        backends.add_address(f"{_SERVICE}/32", "lo")
        ip("-n", clients.name, "route", "add", _SERVICE, "via", "198.18.2.2")
        ip("-n", balancer.name, "route", "add", _SERVICE, "via", "198.18.1.1")
        self._cpu = far
        self.clients = Place(clients, "198.18.0.1", frozenset({near}))
        self.balancer = Place(balancer, "198.18.0.2", frozenset({far}))
        self.backends = Place(backends, _SERVICE, frozenset({near}))
        # What measures must not run on the CPU that it measures.
        os.sched_setaffinity(0, {near})

    def acknowledge_at_once(self) -> None:
        """Sets ``quickack`` on each route of the balancer's."""
        name = self.balancer.namespace.name
        routes = subprocess.run(
            ("ip", "-n", name, "route"), capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for route in routes:
            ip("-n", name, "route", "change", *route.split(), "quickack", "1")
        self.routes = "quickack on the balancer's"

    def balancer_seconds(self) -> float | None:
        """Of the second CPU."""
        return busy_seconds(f"cpu{self._cpu}")

    def close(self) -> None:
        """Gives the namespaces back, with their cables."""
        self._stack.close()


TOPOLOGIES: dict[str, type[Loopback] | type[Veth]] = {"loopback": Loopback, "veth": Veth}


def _namespace(role: str, congestion: str | None, stack: contextlib.ExitStack) -> Namespace:
    if os.geteuid() != 0:
        raise ProgramError("network namespaces need root")
    namespace = Namespace(role)
    stack.callback(namespace.close)
    with namespace.entered():
        for name, value in _SYSCTLS.items():
            (_IPV4 / name).write_text(value)
    if congestion is not None:
        with namespace.entered():
            try:
                _CONGESTION.write_text(congestion)
            except OSError as error:
                problem = f"congestion control {congestion}: {error.strerror}{_remedy(error)}"
                raise ProgramError(problem) from error
    return namespace


def _remedy(error: OSError) -> str:
    # Only the first network namespace may use what the machine does not allow to everybody (tcp_cong.c).
    if error.errno != errno.EPERM:
        return ""
    return "; add it to the machine's net.ipv4.tcp_allowed_congestion_control"


def _cable(left: Namespace, left_cpu: int, here: str, right: Namespace, right_cpu: int, there: str) -> None:
    ends = f"to-{there}"[:15], f"to-{here}"[:15]
    ip("-n", left.name, "link", "add", ends[0], "type", "veth", "peer", ends[1], "netns", right.name)
    for namespace, name, address, cpu in (
        (left, ends[0], here, left_cpu),
        (right, ends[1], there, right_cpu),
    ):
        ip("-n", namespace.name, "address", "add", f"{address}/24", "dev", name)
        ip("-n", namespace.name, "link", "set", name, "up")
        _inside(namespace, "ethtool", "-K", name, "gro", "on")
        receive = f"/sys/class/net/{name}/queues/rx-0/rps_cpus"
        _inside(namespace, "sh", "-c", f"echo {1 << cpu:x} >{receive}")


def _inside(namespace: Namespace, *command: str) -> None:
    try:
        done = subprocess.run(namespace.command(*command), capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ProgramError(f"{command[0]} is not installed") from error
    if done.returncode:
        raise ProgramError(f"{' '.join(command)}: {done.stderr.strip()}")


def busy_seconds(cpu: str = "cpu") -> float:
    """Time that a CPU (``cpu1``), or all of them together, have been busy so far, interrupts included."""
    with Path("/proc/stat").open(encoding="ascii") as lines:
        for line in lines:
            name, *ticks = line.split()
            if name == cpu:
                return sum(int(ticks[field]) for field in _BUSY) / os.sysconf("SC_CLK_TCK")
    raise ProgramError(f"there is no {cpu} in /proc/stat")


def congestion_control(place: Place) -> str:
    """The one that new sockets get there."""
    with place.entered():
        return _CONGESTION.read_text().strip()
