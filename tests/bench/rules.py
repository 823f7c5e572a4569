# ruff: noqa: T201
"""What rules cost: nanoseconds of the programs for each message, as the kernel measures them.

    python -m tests.bench.rules            as root

Messages of one client go through parser and verdict one by one (`batch: 1`) and match no rule, which is the
longest way through all of them. The kernel's own clock of BPF programs (`kernel.bpf_stats_enabled`) adds some
nanoseconds to each run, to all of them alike. Every set of rules has its turn in every round, so that what
else the machine does meets all of them; medians are shown. A message that does not arrive fails.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from lb import abi
from lb.cli.table import render
from lb.dataplane import DataPlane, Policy, Sizes, load
from lb.dataplane.rules import DENY, encode, to_pool
from lb.framing import PRESETS, Framing
from lb.rules import Client, Deny, Rule, Suffix, number
from tests.bpf.rig import LARGEST, PREFIXED, Rig, expect, one_cpu

_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_PROGRAMS = ("lb_parser", "lb_verdict")
_ADDRESS = ip_address("192.0.2.1").packed
_CHUNK = 64  # messages that are sent at once


@dataclass(frozen=True, slots=True)
class Work:
    """Rules, and messages that match none of them."""

    name: str
    rules: tuple[Rule, ...] | None
    message: bytes
    framing: Framing


def _denies(*tests: Client | Suffix) -> Rule:
    return Rule(tuple((test,) for test in tests), Deny())


def _field(place: int, value: int) -> Rule:
    return Rule(((number(8 + 4 * place, 4, 0xFFFFFFFF, value),),), Deny())


def _domain(place: int) -> Rule:
    return _denies(Suffix(b"\3d%02d\7example\4test" % place))


def works() -> list[Work]:
    """What is compared; the first one has no rules."""
    plain = (60).to_bytes(4, "big") + bytes(60)
    name = b"\3www\3abc\7example\4test\0"
    query = bytes(2) + b"\1\0\0\1\0\0\0\0\0\0" + name + b"\0\1\0\1"
    query = len(query).to_bytes(2, "big") + query
    dns = replace(PRESETS["dns"], name="dns-without-transfers", transfers=None)

    def many(label: str, rules: Sequence[Rule]) -> Work:
        return Work(label, tuple(rules), plain, PREFIXED)

    return [
        Work("no rules", None, plain, PREFIXED),
        many("0 rules", []),
        many("8 rules on one field", [_field(0, value) for value in range(1, 9)]),
        many("64 rules on one field", [_field(0, value) for value in range(1, 65)]),
        many("8 rules on several fields", [_field(place, 1) for place in range(8)]),
        many("64 rules on several fields", [_field(place % 13, 1 + place) for place in range(64)]),
        many("64 rules on the client", [_denies(Client(ip_network(f"10.{n}.0.0/16"))) for n in range(64)]),
        Work("dns, no rules", None, query, dns),
        Work("dns, 8 domains", tuple(map(_domain, range(8))), query, dns),
        Work("dns, 64 domains", tuple(map(_domain, range(64))), query, dns),
    ]


class _Meter:
    """Run times of the programs, from their descriptors (``proc(5)``, fdinfo)."""

    def __init__(self, plane: DataPlane) -> None:
        programs = [plane._object.program(name) for name in _PROGRAMS]
        self._paths = [Path(f"/proc/self/fdinfo/{program.fd}") for program in programs]

    def nanoseconds(self) -> int:
        """Of all programs, so far."""
        return sum(self._read(path) for path in self._paths)

    @staticmethod
    def _read(path: Path) -> int:
        fields = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines())
        return int(fields["run_time_ns"])


@contextmanager
def _statistics() -> Iterator[None]:
    before = _STATS.read_text(encoding="ascii")
    _STATS.write_text("1", encoding="ascii")
    try:
        yield
    finally:
        _STATS.write_text(before, encoding="ascii")


class _Lane:
    """A client and a backend for one work."""

    def __init__(self, rig: Rig, work: Work) -> None:
        pool = rig.plane.publish_pool(abi.Balance.LEAST_OUTSTANDING)
        backend = rig.backend(pool=pool)
        rules = 0
        if work.rules is not None:
            rules = rig.plane.rules.publish(encode(work.rules, lambda _: DENY, to_pool(pool)))
        policy = Policy(rig.plane.publish_framing(work.framing), pool, 1, rules=rules)
        self.work = work
        self._client = rig.client(policy, backend, mapped=False)
        self._client.map(policy, address=_ADDRESS)

    def send(self, messages: int) -> None:
        """Through the programs, to the backend and back, without waiting for any but the last of a chunk."""
        upstream = self._client.upstreams[0].far
        for _ in range(messages // _CHUNK):
            chunk = self.work.message * _CHUNK
            self._client.far.sendall(chunk)
            expect(upstream, chunk)


def measure(rounds: int, messages: int) -> dict[str, list[float]]:
    """Nanoseconds for each message, by work, of each round."""
    lanes = works()
    sizes = Sizes(
        connections=128,
        framings=len(lanes),
        backends=len(lanes),
        traffic_rows=len(lanes),
        max_message=LARGEST,
        rules=len(lanes),
        tests=4096,
    )
    found: dict[str, list[float]] = {work.name: [] for work in lanes}
    with closing(load(sizes)) as plane, ExitStack() as stack, one_cpu(), _statistics():
        rig = Rig(plane, stack)
        ready = [_Lane(rig, work) for work in lanes]
        meter = _Meter(plane)
        for _ in range(rounds):
            for lane in ready:
                before = meter.nanoseconds()
                lane.send(messages)
                found[lane.work.name].append((meter.nanoseconds() - before) / messages)
    return found


def main() -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--messages", type=int, default=6400, help="of each set of rules in each round")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("needs root, as it loads BPF programs", file=sys.stderr)
        return 1
    found = measure(options.rounds, options.messages)
    rows = [
        (name, round(statistics.median(times)), round(min(times)), round(max(times)))
        for name, times in found.items()
    ]
    print(render(("RULES", "NS A MESSAGE", "LOWEST", "HIGHEST"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
