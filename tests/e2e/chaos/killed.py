"""One of three backend processes is killed under load: who notices, and for how long?

``python -m tests.e2e.chaos.killed --seconds 5``, as root.
"""

import argparse
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from signal import Signals

from tests.e2e.balancer import configuration
from tests.e2e.chaos.program import run_in_lab, say
from tests.e2e.chaos.strikers import Outcome
from tests.e2e.chaos.worker import Worker
from tests.e2e.lab import Lab
from tests.e2e.polling import eventually

CLIENTS, DEPTH = 50, 8
# Seconds after which the other two must carry everything: the kernel resets the connections of a dead
# process at once; the rest is two busy processors.
_LIMIT = 2.0


@dataclass(frozen=True, slots=True)
class Report:
    """Requests, and seconds after the kill."""

    requests: int
    after: int  # requests that were asked after the kill, or had no answer then
    failed: int
    refused: int  # connections
    dropped: int
    first_second: int  # requests that were asked in the second after the kill
    last_failure: float
    noticed: float  # when the balancer took the backend out
    answered: dict[str, int]  # requests that were asked after the last failure, by backend

    @property
    def objections(self) -> list[str]:
        """What must not be."""
        found = []
        if self.failed > CLIENTS * DEPTH:
            found.append(f"{self.failed} requests failed, {CLIENTS * DEPTH} were on their way")
        if self.refused:
            found.append(f"{self.refused} connections were refused")
        if self.last_failure > _LIMIT:
            found.append(f"requests failed for {self.last_failure:.2f} s")
        if "a" in self.answered or not {"b", "c"} <= self.answered.keys():
            found.append(f"answers came from {self.answered}")
        return found

    def __str__(self) -> str:
        share = self.failed / max(1, self.first_second + self.failed)
        return (
            f"{self.requests} requests, {self.after} of them answered after the kill or never\n"
            f"{self.failed} failed ({share:.2%} of those of the first second),"
            f" {self.dropped} counted as dropped\n"
            f"the last failure was known {self.last_failure * 1e3:.0f} ms after the kill;"
            f" the backend was taken out after {self.noticed * 1e3:.0f} ms\n"
            f"from then on {self.answered}"
        )


def measure(lab: Lab, *, seconds: float) -> Report:
    """Load for ``seconds`` before the kill, and as long after it."""
    processes = [lab.demo_backend(name) for name in "abc"]
    balancer = lab.balancer(configuration([endpoint for _, endpoint in processes])).wait_ready()
    with ExitStack() as stack:
        strikers = Worker("strikers", lab.here)
        stack.callback(strikers.close)
        strikers.call("strike", balancer.listeners["rpc"], CLIENTS, DEPTH)
        time.sleep(seconds)  # of load: it is the measurement
        victim = processes[0][0]
        victim.signal(Signals.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: balancer.metrics().value("backend_up", backend="a") == 0)
        noticed = time.monotonic() - killed
        victim.wait()
        time.sleep(seconds)
        outcomes, refused = strikers.call("stop", limit=60.0)
        dropped = balancer.metrics().value("dropped_messages_total")
    return _report(outcomes, killed, refused, int(dropped), noticed)


def _report(outcomes: list[Outcome], killed: float, refused: int, dropped: int, noticed: float) -> Report:
    failures = [known for _, known, who in outcomes if not who]
    last = max(failures, default=killed)
    return Report(
        requests=len(outcomes),
        after=sum(known >= killed for _, known, _ in outcomes),
        failed=len(failures),
        refused=refused,
        dropped=dropped,
        first_second=sum(killed <= asked < killed + 1 for asked, _, _ in outcomes),
        last_failure=last - killed,
        noticed=noticed,
        answered=dict(Counter(who for asked, _, who in outcomes if asked > last)),
    )


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="before and after the kill; default: 5")
    options = parser.parse_args()
    report = run_in_lab(lambda lab: measure(lab, seconds=options.seconds))
    say(str(report))
    say("; ".join(report.objections) or "nothing to object to")
    return 1 if report.objections else 0


if __name__ == "__main__":
    sys.exit(main())
