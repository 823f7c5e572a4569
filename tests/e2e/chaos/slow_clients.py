"""Clients that do not read their answers: what do the others notice?

``python -m tests.e2e.chaos.slow_clients --seconds 10``, as root. Others send at a steady rate (an open loop,
so that every delay shows) before the slow ones come, while they fill what there is to fill, and while nothing
of theirs moves any more. When they read at last, every answer comes.
"""

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import compile_c
from tests.e2e.balancer import Balancer, configuration, read_endpoint, show
from tests.e2e.chaos.program import run_in_lab, say
from tests.e2e.chaos.worker import Worker
from tests.e2e.lab import Lab

SLOW = OTHERS = 100  # clients
RATE = 2000  # messages a second of all others together
SIZE = 4096  # bytes of a slow client's message, and of its answer
# By how much, and to how many microseconds, the others' p99 may rise: a client that waits behind a slow one
# waits for seconds, while two processors that others use too make tens of milliseconds.
_FACTOR, _ANYWAY = 5.0, 200_000.0
_QUIET = 0.5  # seconds without progress, after which the slow ones are taken as stuck


@dataclass(frozen=True, slots=True)
class Report:
    """Microseconds; and how many of the slow clients got everything in the end."""

    undisturbed: float
    filling: float
    stalled: float
    waiting: int  # messages of the slow clients that were sent when they were stuck
    blocked: int  # slow clients that could not send all that they wanted
    most_buffered: int
    served: int

    @property
    def objections(self) -> list[str]:
        """What must not be."""
        found = []
        if self.stalled > max(_FACTOR * self.undisturbed, _ANYWAY):
            found.append(f"the others' p99 rose to {self.stalled:.0f} us")
        if self.served < SLOW:
            found.append(f"{SLOW - self.served} of {SLOW} slow clients did not get every answer")
        return found

    def __str__(self) -> str:
        return (
            f"p99 of {OTHERS} others: {self.undisturbed:.0f} us undisturbed\n"
            f"  {self.filling:.0f} us while {SLOW} others fill their buffers"
            f" (x {self.filling / self.undisturbed:.2f})\n"
            f"  {self.stalled:.0f} us while these are stuck (x {self.stalled / self.undisturbed:.2f})\n"
            f"{self.waiting} messages of slow clients were sent, {self.blocked} of them were slowed down,"
            f" at most {self.most_buffered / (1 << 20):.1f} MiB waited between sockets\n"
            f"{self.served} of {SLOW} slow clients got every answer when they read"
        )


def measure(lab: Lab, *, seconds: float, most: int) -> Report:
    """Measure the others for ``seconds`` three times; a slow client sends at most ``most`` bytes."""
    echo, load = compile_c(lab.folder, "echo"), compile_c(lab.folder, "load")
    backends = [read_endpoint(lab.start(str(echo)).stdout.wait_for(r"^\S+:\d+$")[0]) for _ in "abc"]
    balancer = lab.balancer(
        configuration(backends, runtime={"max_connections": 4096}, timeouts={"drain": "60s"})
    ).wait_ready()
    with ExitStack() as stack:
        hoard = Worker("hoard", lab.here)
        stack.callback(hoard.close)
        undisturbed = _p99(lab, load, balancer, seconds)
        hoard.call("open", balancer.listeners["rpc"], SLOW)
        hoard.call("ask", SIZE, most)
        filling = _p99(lab, load, balancer, seconds)
        waiting, blocked = hoard.call("fill", _QUIET, 30.0, limit=40.0)
        buffered = balancer.metrics().value("buffered_bytes")
        stalled = _p99(lab, load, balancer, seconds)
        served = hoard.call("read", limit=90.0)
    return Report(undisturbed, filling, stalled, waiting, blocked, int(buffered), served)


def _p99(lab: Lab, load: Path, balancer: Balancer, seconds: float) -> float:
    target = show(balancer.listeners["rpc"])
    done = lab.run(
        str(load),
        *("--connections", str(OTHERS), "--rate", str(RATE), "--seconds", str(seconds), "--warmup", "0.3"),
        target,
    )
    assert done.code == 0, done.err or done.out
    p99: float = json.loads(done.out)["latency_us"]["p99"]
    return p99


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement; default: 10")
    parser.add_argument("--most", type=int, default=8, help="MiB that a slow client sends; default: 8")
    options = parser.parse_args()
    since = time.monotonic()
    report = run_in_lab(lambda lab: measure(lab, seconds=options.seconds, most=options.most << 20))
    say(str(report))
    say(f"{'; '.join(report.objections) or 'nothing to object to'} ({time.monotonic() - since:.0f} s)")
    return 1 if report.objections else 0


if __name__ == "__main__":
    sys.exit(main())
