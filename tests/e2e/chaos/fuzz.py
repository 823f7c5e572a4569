"""Mutated messages, from clients and from a backend, with healthy ones beside them.

``python -m tests.e2e.chaos.fuzz --messages 1000000 --seed N``, as root. The process lives; who sends what is
no message is cut off, and counted, and nobody else notices.
"""

import argparse
import random
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

from lb.config import parse
from lb.framing import Framing
from tests.e2e.balancer import Balancer, Tree, dump, show
from tests.e2e.chaos.footprint import Footprint, nothing, settle
from tests.e2e.chaos.fuzzers import Findings
from tests.e2e.chaos.program import run_in_lab, say
from tests.e2e.chaos.worker import Worker
from tests.e2e.lab import Lab
from tests.e2e.namespaces import Endpoint

FRAMINGS = ("length-prefixed", "dns", "marked")
SIDES = ("listener", "backend")
_ROUND = 20_000  # messages; what was sent is compared with what came after each
_MARKED: Tree = {
    "length": {"offset": 4, "width": 4, "endian": "little", "mask": 0x7FFFFFFF, "adjust": 16},
    "id": {"offset": 8, "width": 8},
    "response": {"offset": 1, "width": 1, "mask": 0x80, "value": 0x80},
    "no_response": {"offset": 1, "width": 1, "mask": 0x01, "value": 0x01},
    "magic": {"offset": 0, "width": 1, "value": 0xAC},
    "max_message": "64KiB",
    "min_message": 16,
}


def _tree(backends: dict[str, Endpoint]) -> Tree:
    timeouts = {"connect": "10s", "drain": "5s", "half_message": "2s"}
    return {
        "admin": {"address": "127.0.0.1:0"},
        "runtime": {"max_connections": 4096},
        "protocols": {"marked": _MARKED},
        "listeners": [
            {"name": name, "address": "127.0.0.1:0", "protocol": name, "pool": name} for name in backends
        ],
        "pools": [
            {"name": name, "backends": [{"name": "a", "address": show(endpoint)}], "timeouts": timeouts}
            for name, endpoint in backends.items()
        ],
    }


@dataclass(slots=True)
class Total:
    """Sums over all rounds."""

    messages: Counter[str] = field(default_factory=Counter)  # by framing and side
    connections: int = 0
    healthy: int = 0
    objections: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)

    def object(self, wrong: str, text: str, count: int = 1) -> None:
        """Note what must not be."""
        self.objections[wrong] += count
        self.texts.append(f"{wrong}: {text}")

    def add(self, name: str, findings: Findings) -> None:
        """One more round."""
        self.messages[name] += findings.mutated
        self.connections += findings.connections
        self.healthy += findings.healthy
        self.objections.update(findings.objections)
        self.texts += [f"{name}: {text}" for text in findings.texts]


def fuzz(lab: Lab, *, messages: int, seed: int, progress: bool = False) -> Total:
    """Send that many mutated messages, the same share of them for each framing and side."""
    total = Total()
    framings = _framings()
    with ExitStack() as stack:
        worker = Worker("fuzz", lab.here)
        stack.callback(worker.close)
        endpoints = worker.call("open", list(framings.values()))
        balancer = lab.balancer(_tree(dict(zip(framings, endpoints, strict=True)))).wait_ready()
        share = max(1, messages // (len(FRAMINGS) * len(SIDES)))
        base: Footprint | None = None
        for number in range(0, share, _ROUND):
            for name, framing in framings.items():
                for side in SIDES:
                    count = min(_ROUND, share - number)
                    since = time.monotonic()
                    findings = _round(balancer, worker, framing, side, count, seed + number, total)
                    base = _judge_footprint(balancer, base, total)
                    if progress:
                        say(
                            f"{name:16}{side:9} {findings.mutated:7,} messages {findings.connections:6,}"
                            f" connections {time.monotonic() - since:5.1f} s {dict(findings.errors)}"
                            f" {findings.objections or 'fine'}"
                        )
    return total


def _framings() -> dict[str, Framing]:
    nowhere: dict[str, Endpoint] = dict.fromkeys(FRAMINGS, ("127.0.0.1", 1))
    return {entry.name: entry.framing for entry in parse(dump(_tree(nowhere)), "fuzz").listeners}


def _round(
    balancer: Balancer, worker: Worker, framing: Framing, side: str, count: int, seed: int, total: Total
) -> Findings:
    before = _errors(balancer, framing.name)
    target = balancer.listeners[framing.name]
    findings: Findings = worker.call("fuzz", framing, target, side, count, seed, limit=60 + count / 100)
    total.add(f"{framing.name} {side}", findings)
    if findings.objections:
        metrics = balancer.metrics()
        for name in ("refused_connections_total", "backend_connect_failures_total", "dropped_messages_total"):
            total.texts.append(f"  {name} by now: {metrics.seen('reason', name)}")
    counted = _errors(balancer, framing.name) - before
    if side == "listener" and counted != findings.errors:
        total.object(
            "counters", f"{framing.name}: {dict(counted)} counted, {dict(findings.errors)} were sent"
        )
    if side == "backend" and findings.errors and not counted:
        total.object("counters", f"{framing.name}: nothing counted, {dict(findings.errors)} were sent")
    return findings


def _errors(balancer: Balancer, listener: str) -> Counter[str]:
    """Protocol errors by reason; what ended in the middle of a message depends on who is faster."""
    seen = balancer.metrics().seen("reason", "protocol_errors_total", listener=listener)
    return Counter({reason: int(count) for reason, count in seen.items() if "half_message" not in reason})


def _judge_footprint(balancer: Balancer, base: Footprint | None, total: Total) -> Footprint:
    now = settle(balancer, base or nothing())
    for text in now.over(base or now):
        total.object("leaks", text)
    return base or now


def main() -> int:
    """Fuzz, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31), help="default: any")
    options = parser.parse_args()
    say(f"seed {options.seed}")
    total = run_in_lab(lambda lab: fuzz(lab, messages=options.messages, seed=options.seed, progress=True))
    for text in total.texts[:40]:
        say(f"    {text}")
    say(f"{total.messages.total():,} mutated messages on {total.connections:,} connections")
    say(f"{total.healthy:,} answers of healthy clients, all right" if not total.objections else "")
    say(f"seed {options.seed}: {dict(total.objections) or 'nothing to object to'}")
    return 1 if total.objections else 0


if __name__ == "__main__":
    sys.exit(main())
