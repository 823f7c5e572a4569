"""What a balancer holds (descriptors, slots, connections, entries of maps), and what the kernel does."""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.balancer import Balancer
from tests.e2e.namespaces import Namespace
from tests.e2e.polling import LIMIT

# Hash maps whose entries come and go with connections and messages.
_MAPS = ("lb_conns", "lb_inflight")
_PAGE = 4096
_INTERVAL = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class Footprint:
    """Numbers that must be what they were when everybody has left."""

    descriptors: int
    slots: int
    connections: int  # to backends
    outstanding: int
    buffered: int  # bytes
    entries: dict[str, int]  # of hash maps; those that do not exist are absent

    def over(self, base: "Footprint") -> list[str]:
        """What there is more of than at ``base``; nothing may be outstanding or on its way at all."""
        pairs = [
            ("descriptors", self.descriptors, base.descriptors),
            ("slots", self.slots, base.slots),
            ("connections", self.connections, base.connections),
            *((name, count, base.entries.get(name, 0)) for name, count in self.entries.items()),
        ]
        over = [f"{now} {what}, {then} before" for what, now, then in pairs if now > then]
        over += [f"{self.outstanding} outstanding"] if self.outstanding else []
        return over + ([f"{self.buffered} bytes buffered"] if self.buffered else [])

    def __str__(self) -> str:
        maps = "".join(f"  {name} {count}" for name, count in self.entries.items())
        return f"fds {self.descriptors}  slots {self.slots}  upstreams {self.connections}{maps}"


def nothing(upstreams: int = 0) -> Footprint:
    """Of a balancer that serves nobody, but keeps so many connections to backends."""
    return Footprint(sys.maxsize, upstreams, upstreams, 0, 0, {"lb_conns": sys.maxsize})


def look(balancer: Balancer, *, maps: bool = True) -> Footprint:
    """The footprint of this moment; ``maps`` costs two programs a map."""
    metrics = balancer.metrics()
    return Footprint(
        descriptors=len(list(Path(f"/proc/{balancer.pid}/fd").iterdir())),
        slots=balancer.status()["sockets"],
        connections=int(metrics.value("backend_connections")),
        outstanding=int(metrics.value("backend_outstanding_messages")),
        buffered=int(metrics.value("buffered_bytes")),
        entries=_entries(balancer.pid) if maps else {},
    )


def settle(balancer: Balancer, base: Footprint, *, limit: float = LIMIT) -> Footprint:
    """Wait until the footprint is no larger than it was; return the last one."""
    end = time.monotonic() + limit
    while (now := look(balancer, maps=False)).over(base) and time.monotonic() < end:
        time.sleep(_INTERVAL)
    while (now := look(balancer)).over(base) and time.monotonic() < end:
        time.sleep(_INTERVAL)
    return now


def _entries(pid: int) -> dict[str, int]:
    """How many entries the hash maps have that a process holds open."""
    identifiers = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = info.read_text(encoding="ascii")
        except OSError:  # closed meanwhile
            continue
        if found := re.search(r"^map_id:\s*(\d+)$", text, re.MULTILINE):
            identifiers.add(found[1])
    entries = {}
    for identifier in sorted(identifiers):
        shown = _bpftool("show", "id", identifier)
        if isinstance(shown, dict) and shown.get("name") in _MAPS and "hash" in str(shown.get("type")):
            dumped = _bpftool("dump", "id", identifier)
            entries[str(shown["name"])] = len(dumped) if isinstance(dumped, list) else 0
    return entries


def _bpftool(*arguments: str) -> object:
    command = ["bpftool", "-j", "map", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, of the machine and of a namespace."""

    available: int
    tcp: int  # that TCP has in this namespace's sockets; see sockstat in proc(5)


def memory(where: Namespace) -> Memory:
    """The memory of this moment."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    assert found
    with where.entered():
        sockets = Path("/proc/thread-self/net/sockstat").read_text(encoding="ascii")
    pages = re.search(r"^TCP:.* mem (\d+)$", sockets, re.MULTILINE)
    assert pages
    return Memory(int(found[1]) * 1024, int(pages[1]) * _PAGE)
