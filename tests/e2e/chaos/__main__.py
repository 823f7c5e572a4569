"""Rounds of chaos from a seed, then a table: ``python -m tests.e2e.chaos --seconds 600 --seed N`` as root."""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.chaos.mixes import MIXES
from tests.e2e.chaos.model import Verdict
from tests.e2e.chaos.program import say
from tests.e2e.chaos.rounds import Chaos, Round

_ROUND = 10.0  # seconds
_TABLE = (
    ("connections", "clients"),
    ("messages sent", "sent"),
    ("  of these without a response", "silent"),
    ("read by a backend", "arrived"),
    ("answered", "answered"),
    ("reported lost", "reported"),
    ("counted as dropped", "dropped"),
    ("without response: not read by a backend", "silent_missing"),
    ("  in the kernel of a dead backend", "unread"),
    ("second and forged answers delivered", "extra"),
    ("missing without report", "missing"),
    ("doubled", "doubled"),
    ("astray", "astray"),
    ("corrupted", "corrupted"),
    ("out of order (fifo)", "reordered"),
    ("errors without a failed backend", "unearned"),
    ("malformed clients not shut out", "tolerated"),
    ("not given back", "leaks"),
)


def table(verdict: Verdict) -> str:
    """All counts of a verdict."""
    return "\n".join(f"{title:42}{getattr(verdict, name):>12,}" for title, name in _TABLE)


def main() -> int:
    """Play rounds until the time is up; 0 if nothing was objected to."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="default: 600")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31), help="default: any")
    parser.add_argument("--round", type=float, default=_ROUND, help=f"seconds a round, default: {_ROUND:g}")
    parser.add_argument("--mix", choices=MIXES, help="default: `all` every other round, the others in turn")
    parser.add_argument("--clients", type=int, default=10, help="at each of six listeners, default: 10")
    options = parser.parse_args()
    say(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder, Chaos(Path(folder), options.seed) as chaos:
        end = time.monotonic() + options.seconds
        for number, mix in enumerate(_mixes(options.mix)):
            if time.monotonic() >= end:
                break
            since = time.monotonic()
            what = Round(mix, options.seed + number, options.round, options.clients)
            verdict = chaos.play(what)
            say(
                f"round {number:3} {mix:8} seed {what.seed}  {time.monotonic() - since:5.1f} s "
                f" {verdict.clients:6,} connections {verdict.sent:9,} sent {verdict.answered:9,} answered"
                f" {verdict.reported:7,} reported lost"
                f" {verdict.dropped:7,} dropped  {verdict.objections or 'fine'}"
            )
            for text in verdict.texts:
                say(f"    {text}")
        say("")
        say(table(chaos.total))
        say(f"connections ended: {dict(chaos.total.ends)}")
        say(f"before: {chaos.base}")
        say(f"after:  {chaos.after}")
        objections = chaos.total.objections
    say(f"seed {options.seed}: {objections or 'nothing to object to'}")
    return 1 if objections else 0


def _mixes(only: str | None) -> Iterator[str]:
    others = [name for name in MIXES if name != "all"]
    turn = 0
    while True:
        yield only or "all"
        yield only or others[turn % len(others)]
        turn += 1


if __name__ == "__main__":
    sys.exit(main())
