"""Tables of what was measured."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lb.cli.table import render

LEGEND = """
RATE: messages (or connections) a second, median of the rounds; LOWEST, HIGHEST: of a round; p50, p99, p99.9:
microseconds, medians; BALANCER: time that the balancer's CPU was busy, microseconds a message; PROCESS:
of it, the process; MACHINE: of all CPUs; RATIO, COST: rate and balancer CPU beside those of one peer
(haproxy, or dnsdist for DNS), medians of the rounds' ratios; UNSENT: messages that were due and could not
be sent, where a rate is given"""
SHARES = ("p50", "p99", "p99.9")
_PEERS = ("dnsdist", "haproxy", "nginx")


@dataclass(frozen=True, slots=True)
class Run:
    """What one target did of one work in one round; processor times in microseconds a message."""

    work: str
    target: str
    rate: float
    unsent: int
    latency_us: dict[str, float]
    process_cpu_us: float
    balancer_cpu_us: float | None  # of the balancer's CPU; None if it has none of its own
    machine_cpu_us: float
    others: float  # processes that wanted a CPU when it started: the load average of the last minute
    due: float | None = None  # messages a second; None: as many as went


@dataclass(frozen=True, slots=True)
class Row:
    """What one target did of one work in all rounds."""

    target: str
    rate: float
    lowest: float
    highest: float
    latency_us: dict[str, float]
    process_cpu_us: float
    balancer_cpu_us: float | None
    machine_cpu_us: float
    ratio: float
    cost: float
    unsent: int
    due: float | None


def base(targets: Sequence[str]) -> str:
    """The target that ratios refer to."""
    for kind in _PEERS:
        for target in targets:
            if target.partition("/")[0] == kind:
                return target
    return targets[0]


def rows(runs: Sequence[Run], work: str) -> list[Row]:
    """One for each target that did this work, in the order of the first round."""
    targets = list(dict.fromkeys(run.target for run in runs if run.work == work))
    chosen = {name: [run for run in runs if run.work == work and run.target == name] for name in targets}
    reference = chosen[base(targets)]
    return [_row(name, chosen[name], reference) for name in sorted(targets)]


def _row(target: str, runs: Sequence[Run], reference: Sequence[Run]) -> Row:
    rates = [run.rate for run in runs]
    shares = runs[0].latency_us
    balancers = [run.balancer_cpu_us for run in runs if run.balancer_cpu_us is not None]
    # Within a round: what else the machine did then slowed both.
    pairs = list(zip(runs, reference, strict=True))
    return Row(
        target=target,
        rate=statistics.median(rates),
        lowest=min(rates),
        highest=max(rates),
        latency_us={share: statistics.median(run.latency_us[share] for run in runs) for share in shares},
        process_cpu_us=statistics.median(run.process_cpu_us for run in runs),
        balancer_cpu_us=statistics.median(balancers) if balancers else None,
        machine_cpu_us=statistics.median(run.machine_cpu_us for run in runs),
        ratio=statistics.median(_quotient(run.rate, other.rate) for run, other in pairs),
        cost=statistics.median(_quotient(_cost(run), _cost(other)) for run, other in pairs),
        unsent=sum(run.unsent for run in runs),
        due=runs[0].due,
    )


def _cost(run: Run) -> float:
    return run.machine_cpu_us if run.balancer_cpu_us is None else run.balancer_cpu_us


def _quotient(above: float, below: float) -> float:
    return above / below if below else 0.0


def text(runs: Sequence[Run], environment: dict[str, str]) -> str:
    """For a terminal."""
    lines = [", ".join(f"{key} {value}" for key, value in environment.items())]
    loads = [run.others for run in runs]
    lines.append(f"load average {min(loads):.1f} to {max(loads):.1f}")
    works = dict.fromkeys(run.work for run in runs)
    lines.extend(f"\n{work}\n{_table(rows(runs, work))}" for work in works)
    return "\n".join(lines)


def _table(found: Sequence[Row]) -> str:
    headings = ("TARGET", "RATE", "LOWEST", "HIGHEST", *SHARES, "PROCESS", "BALANCER", "MACHINE")
    return render(
        (*headings, "RATIO", "COST", "UNSENT"),
        [
            (
                row.target,
                round(row.rate),
                round(row.lowest),
                round(row.highest),
                *(round(row.latency_us[share]) if share in row.latency_us else "-" for share in SHARES),
                round(row.process_cpu_us, 2),
                round(row.balancer_cpu_us, 2) if row.balancer_cpu_us is not None else "-",
                round(row.machine_cpu_us, 2),
                round(row.ratio, 2),
                round(row.cost, 2),
                row.unsent,
            )
            for row in found
        ],
    )
