"""Reloads under load: weights, a backend that comes and goes, rules, a listener.

``python -m tests.e2e.chaos.reloads``, as root. Clients keep asking, and look at every answer; no reload
concerns their connections, so none may be closed, and no message may be lost.
"""

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.e2e.balancer import Balancer, Tree, configuration, show
from tests.e2e.chaos.program import run_in_lab, say
from tests.e2e.lab import Lab
from tests.e2e.namespaces import Endpoint
from tests.e2e.traffic import traffic

KINDS: dict[str, dict[str, Any]] = {
    "per_client": {"balance": "round_robin"},
    "shared": {"balance": "round_robin", "connections": "shared"},
    "hash": {"balance": "hash", "hash": {"field": {"offset": 8, "width": 4}}},
}
_CLIENTS = 16
_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Report:
    """Of one kind of pool."""

    kind: str
    reloads: int
    messages: int
    errors: list[str]
    dropped: dict[str, float]
    by: dict[str, int]
    slowest: float  # reload, in seconds

    @property
    def objections(self) -> list[str]:
        """What must not be."""
        found = list(self.errors)
        if self.dropped:
            found.append(f"dropped: {self.dropped}")
        if len(self.by) < 3:
            found.append(f"only {sorted(self.by)} have answered")
        return found

    def __str__(self) -> str:
        return (
            f"{self.kind:10} {self.reloads:3} reloads, {self.messages:10,} messages,"
            f" {len(self.errors)} broken, {sum(self.dropped.values()):.0f} dropped,"
            f" the slowest reload {self.slowest * 1e3:.0f} ms, answers: {self.by}"
        )


def files(tree: Tree, newcomer: Endpoint) -> Iterator[Tree]:
    """One change after the other, for ever."""
    tree = copy.deepcopy(tree)
    backends, listeners = tree["pools"][0]["backends"], tree["listeners"]
    for turn in itertools.count():
        backends[0]["weight"] = 1 + (turn + 1) % 4
        yield copy.deepcopy(tree)
        backends.append({"name": "c", "address": show(newcomer), "weight": 2})
        yield copy.deepcopy(tree)
        listeners[0]["rules"] = [_deny(200 + turn % 50)]
        yield copy.deepcopy(tree)
        listeners.append({"name": "more", "address": "127.0.0.1:0", "pool": "workers"})
        yield copy.deepcopy(tree)
        backends.pop()
        listeners.pop()
        yield copy.deepcopy(tree)


def _deny(byte: int) -> Tree:
    """A rule for messages that no client sends."""
    return {"match": {"offset": 8, "width": 1, "equals": byte}, "then": "deny"}


def measure(lab: Lab, kind: str, *, seconds: float, reloads: int) -> Report:
    """Reload so often within this time."""
    *endpoints, newcomer = [lab.demo_backend(name)[1] for name in "abc"]
    tree = configuration(endpoints, **KINDS[kind])
    tree["listeners"][0]["rules"] = [_deny(255)]
    balancer: Balancer = lab.balancer(tree).wait_ready()
    socks = [balancer.where.connect(balancer.listeners["rpc"]) for _ in range(_CLIENTS)]
    slowest = 0.0
    errors: list[str] = []
    with traffic(socks, depth=_DEPTH, strict=False) as running:
        begin = time.monotonic()
        for number, file in zip(range(1, reloads + 1), files(tree, newcomer), strict=False):
            since = time.monotonic()
            code, answer = balancer.reload(file)
            slowest = max(slowest, time.monotonic() - since)
            if code != 200:
                errors.append(f"reload {number}: {answer}")
            running.sleep(max(0.0, begin + number * seconds / reloads - time.monotonic()))
    dropped = balancer.metrics().seen("reason", "dropped_messages_total")
    errors += running.errors
    return Report(kind, reloads, running.answers, errors, dropped, dict(running.by), slowest)


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for each kind of pool; default: 60")
    parser.add_argument("--reloads", type=int, default=20, help="within them; default: 20")
    parser.add_argument("--kind", choices=KINDS, help="default: all")
    options = parser.parse_args()
    failed = False
    for kind in KINDS if options.kind is None else (options.kind,):
        report = run_in_lab(
            lambda lab, kind=kind: measure(lab, kind, seconds=options.seconds, reloads=options.reloads)  # type: ignore[misc]
        )
        say(f"{report}\n  {'; '.join(report.objections[:5]) or 'nothing to object to'}")
        failed = failed or bool(report.objections)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
