"""As many clients at once as descriptors allow, and very many one after the other.

``python -m tests.e2e.chaos.many``, as root. Afterwards the balancer holds what it held before.
"""

import argparse
import resource
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from tests.bench.processes import compile_c, resident_bytes
from tests.e2e.balancer import configuration, read_endpoint
from tests.e2e.chaos.footprint import Footprint, look, nothing, settle
from tests.e2e.chaos.program import run_in_lab, say
from tests.e2e.chaos.worker import Worker
from tests.e2e.lab import Lab

AT_ONCE = 100  # of those that come and go
_SPARE = 200  # descriptors of the balancer that are not its clients'
_EACH = 2  # descriptors, and slots, of a client with one backend
_REST = 60.0  # seconds for everything to be given back


@dataclass(frozen=True, slots=True)
class Report:
    """Clients; bytes; seconds."""

    held: int
    served: int
    resident: int  # of the balancer's process, a client
    holding: float
    churned: int
    outcomes: dict[str, int]
    churning: float
    base: Footprint
    between: Footprint
    after: Footprint

    @property
    def objections(self) -> list[str]:
        """What must not be."""
        found = [*self.between.over(self.base), *self.after.over(self.base)]
        if self.served < self.held:
            found.append(f"{self.held - self.served} of {self.held} clients were not served")
        if self.outcomes != {"answered": self.churned}:
            found.append(f"of {self.churned} clients {self.outcomes}")
        return found

    def __str__(self) -> str:
        return (
            f"{self.held} clients at once, {self.served} served, {self.holding:.1f} s,"
            f" {self.resident / 1024:.1f} KiB of the process each\n"
            f"{self.churned} clients, {AT_ONCE} at a time: {self.outcomes}, {self.churning:.1f} s,"
            f" {self.churned / self.churning:.0f} a second\n"
            f"before:  {self.base}\nbetween: {self.between}\nafter:   {self.after}"
        )


def most_clients() -> int:
    """What the limit of descriptors allows."""
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _SPARE) // _EACH


def measure(lab: Lab, *, held: int, churned: int) -> Report:
    """Hold so many at once, then let so many come and go."""
    backend = read_endpoint(lab.start(str(compile_c(lab.folder, "echo"))).stdout.wait_for(r"^\S+:\d+$")[0])
    runtime = {"max_connections": _EACH * (held + AT_ONCE) + _SPARE}
    balancer = lab.balancer(configuration([backend], runtime=runtime)).wait_ready()
    target = balancer.listeners["rpc"]
    with ExitStack() as stack:
        crowd = Worker("crowd", lab.here)
        stack.callback(crowd.close)
        assert held <= crowd.call("room")
        crowd.call("churn", target, 3 * AT_ONCE, AT_ONCE)  # opens what stays
        base = settle(balancer, nothing())
        small = resident_bytes(balancer.pid)
        since = time.monotonic()
        served = crowd.call("hold", target, held, limit=120.0)
        holding = time.monotonic() - since
        assert look(balancer).slots == _EACH * held
        resident = (resident_bytes(balancer.pid) - small) // held
        crowd.call("leave", limit=60.0)
        between = settle(balancer, base, limit=_REST)
        since = time.monotonic()
        outcomes = crowd.call("churn", target, churned, AT_ONCE, limit=churned / 100 + 60)
        churning = time.monotonic() - since
        after = settle(balancer, base, limit=_REST)
    return Report(held, served, resident, holding, churned, outcomes, churning, base, between, after)


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    most = most_clients()
    parser.add_argument("--held", type=int, default=most, help=f"clients at once; default: {most}")
    parser.add_argument("--churned", type=int, default=100_000, help="that come and go; default: 100000")
    options = parser.parse_args()
    report = run_in_lab(lambda lab: measure(lab, held=options.held, churned=options.churned))
    say(str(report))
    say("; ".join(report.objections) or "nothing to object to")
    return 1 if report.objections else 0


if __name__ == "__main__":
    sys.exit(main())
