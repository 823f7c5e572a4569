# ruff: noqa: T201
"""Throughput and latency of messages: directly to backends, through sockmap-lb, and through HAProxy.

Every target does every work in turn, for some rounds, so that what else the machine does meets all of them
alike. Nothing here passes or fails by its speed; a wrong, missing or doubled answer fails.

The balancer's processor time is that of its process. Messages that the kernel carries cost it nothing: their
cost shows in the processor time of the machine, which includes load, backends and whoever else runs.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from lb.cli.status import fetch
from lb.cli.table import render
from tests.bench.programs import (
    Balancer,
    EchoBackends,
    HAProxy,
    ProgramError,
    Settings,
    compile_c,
    congestion_control,
    cpu_seconds,
    enter_network,
    load,
    machine_cpu_seconds,
    number,
    raise_descriptor_limit,
)

_WORKS = "64x16x16,64x16x1,4096x16x4,65536x4x4"
_BATCHES = "sockmap-lb:least_outstanding:64,sockmap-lb:least_outstanding:1"
_POLICIES = "sockmap-lb:least_outstanding:64,sockmap-lb:round_robin:64,sockmap-lb:random:64"
_SHARING = ",".join(f"sockmap-lb:least_outstanding:64{shared}" for shared in ("", ":4", ":1"))
_TARGETS = """\
targets:
  direct                     connections spread over the backends, nothing between
  sockmap-lb:BALANCE:BATCH   e.g. sockmap-lb:round_robin:64; the first of these is what ratios refer to
  sockmap-lb:BALANCE:BATCH:N as above, with N connections to each backend that all clients share
  haproxy:THREADS            mode tcp, roundrobin

works: SIZExCONNECTIONSxDEPTH, the size in bytes with its 8 of header, the depth in messages on their way
"""


_LEGEND = """
RATE: messages a second, median of the rounds; LOWEST, HIGHEST: of a round; RATIO: to the first sockmap-lb,
median of the rounds' ratios; p50, p99, p99.9: microseconds, medians; PROCESS, MACHINE: processor time,
microseconds a message; UNSENT: messages that were due and could not be sent, with --rate"""


class Target(Protocol):
    """What stands between load and backends."""

    pid: int
    target: str


@dataclass(frozen=True, slots=True)
class Work:
    """A load."""

    size: int
    connections: int
    depth: int

    def __str__(self) -> str:
        size = f"{self.size} B" if self.size < 1024 else f"{self.size / 1024:g} KiB"
        return f"{size}, {self.connections} connections, {self.depth} deep"


@dataclass(frozen=True, slots=True)
class Run:
    """What one target did of one work in one round; processor times in microseconds a message."""

    work: Work
    target: str
    rate: float
    messages: int
    unsent: int
    latency_us: dict[str, float]
    process_cpu_us: float
    machine_cpu_us: float
    others: float  # processes that wanted a CPU when it started: the load average of the last minute


def main() -> int:
    """Measures, prints a table for each work; 1 if an answer was wrong."""
    options = _options()
    try:
        raise_descriptor_limit(4096)
        enter_network(options.congestion)
        runs, notes = _measure(options)
    except ProgramError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    machine = _machine() | {
        "load average": " to ".join(f"{pick(run.others for run in runs):.1f}" for pick in (min, max))
    }
    print(f"\n{', '.join(f'{key} {value}' for key, value in machine.items())}")
    for work in options.works:
        print(f"\n{work}\n{_table(work, options.targets, runs)}")
    print(_LEGEND)
    for note in notes:
        print(note)
    if options.json is not None:
        document = {"machine": machine, "options": _plain(options), "runs": [asdict(run) for run in runs]}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    threads = "" if os.cpu_count() == 1 else f",haproxy:{os.cpu_count()}"
    haproxy = f",haproxy:1{threads}" if HAProxy.version() else ""
    sets = {"batches": f"{_BATCHES},direct{haproxy}", "policies": _POLICIES, "sharing": _SHARING}
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.bench",
        description="Compares ways for messages to reach three echo backends. Needs root and gcc.",
        epilog=_TARGETS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--compare", choices=sets, default="batches", help="targets that belong together")
    parser.add_argument("--targets", type=_targets, help="other targets than these, separated by commas")
    parser.add_argument("--works", type=_works, default=_works(_WORKS), help=f"default: {_WORKS}")
    parser.add_argument("--rounds", type=number(1, 100), default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run (default: 3)")
    parser.add_argument("--warmup", type=float, default=1.0, help="before each run (default: 1)")
    parser.add_argument(
        "--rate",
        type=float,
        help="messages a second, each measured from when it was due (default: as many as go)",
    )
    parser.add_argument("--congestion", help="TCP congestion control of all sockets (default: the machine's)")
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    options = parser.parse_args()
    options.targets = options.targets or _targets(sets[options.compare])
    return options


def _works(text: str) -> list[Work]:
    works = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", item)
        if match is None:
            raise argparse.ArgumentTypeError(f"{item!r} is not SIZExCONNECTIONSxDEPTH")
        works.append(Work(*map(int, match.groups())))
    return works


def _targets(text: str) -> list[str]:
    targets = text.split(",")
    for target in targets:
        if not re.fullmatch(r"direct|haproxy:\d+|sockmap-lb:[a-z_]+:\d+(:\d+)?", target):
            raise argparse.ArgumentTypeError(f"{target!r} is no target")
    return targets


def _plain(options: argparse.Namespace) -> dict[str, object]:
    plain = {**vars(options), "works": [asdict(work) for work in options.works]}
    return {key: str(value) if isinstance(value, Path) else value for key, value in plain.items()}


def _machine() -> dict[str, object]:
    return {
        "Linux": os.uname().release,
        "CPUs": os.cpu_count(),
        "congestion": congestion_control(),
        "HAProxy": HAProxy.version() or "not installed",
    }


def _measure(options: argparse.Namespace) -> tuple[list[Run], list[str]]:
    """All runs, and how each balancer spread the messages.

    Raises:
        ProgramError: something did not start, or an answer was wrong.
    """
    runs = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)  # the balancer reads its file as another user
        backends = EchoBackends(compile_c(directory, "echo"), stack, options.congestion)
        generator = compile_c(directory, "load")
        targets = {
            name: _start(name, directory, stack, backends.addresses)
            for name in options.targets
            if name != "direct"
        }
        for count in range(options.rounds):
            for work in options.works:
                for name in options.targets:
                    run = _run(options, generator, work, name, targets.get(name), backends)
                    runs.append(run)
                    print(f"round {count + 1}: {work}: {name}: {run.rate:,.0f}/s", file=sys.stderr)
        notes = [
            f"{name} sent {_spread(target.admin)}"
            for name, target in targets.items()
            if isinstance(target, Balancer)
        ]
        received, answered = backends.stop(), sum(run.messages for run in runs)
        if received != answered:
            raise ProgramError(f"the backends got {received} messages, and {answered} were answered")
    return runs, notes


def _start(name: str, directory: Path, stack: contextlib.ExitStack, backends: dict[str, str]) -> Target:
    kind, _, rest = name.partition(":")
    if kind == "haproxy":
        return HAProxy(directory, stack, int(rest), backends)
    balance, batch, *shared = rest.split(":")
    settings = Settings(balance, int(batch), int(shared[0]) if shared else 0)
    return Balancer(directory, stack, settings, backends)


def _run(
    options: argparse.Namespace,
    generator: Path,
    work: Work,
    name: str,
    target: Target | None,
    backends: EchoBackends,
) -> Run:
    arguments = [
        f"--size={work.size}",
        f"--connections={work.connections}",
        f"--depth={work.depth}",
        f"--seconds={options.seconds}",
        f"--warmup={options.warmup}",
    ]
    if options.rate is not None:
        arguments.append(f"--rate={options.rate}")
    if options.congestion is not None:
        arguments.append(f"--congestion={options.congestion}")
    others = os.getloadavg()[0]
    process = cpu_seconds(target.pid) if target else 0.0
    machine = machine_cpu_seconds()
    addresses = [target.target] if target else list(backends.addresses.values())
    result = load(generator, addresses, arguments)
    scale = 1e6 / max(1, result.answers)
    return Run(
        work=work,
        target=name,
        rate=result.messages_per_second,
        messages=result.answers,
        unsent=result.unsent,
        latency_us=result.latency_us,
        process_cpu_us=(cpu_seconds(target.pid) - process) * scale if target else 0.0,
        machine_cpu_us=(machine_cpu_seconds() - machine) * scale,
        others=others,
    )


def _spread(admin: str) -> str:
    backends = [backend for pool in fetch(admin)["pools"] for backend in pool["backends"]]
    total = sum(backend["requests"] for backend in backends) or 1
    return ", ".join(f"{backend['requests'] / total:.1%} to {backend['name']}" for backend in backends)


def _table(work: Work, targets: Sequence[str], runs: Sequence[Run]) -> str:
    chosen = {name: [run for run in runs if run.work == work and run.target == name] for name in targets}
    base = chosen[next((name for name in targets if name.startswith("sockmap-lb")), targets[0])]
    headings = ("TARGET", "RATE", "LOWEST", "HIGHEST", "RATIO", "p50", "p99", "p99.9", "PROCESS", "MACHINE")
    return render((*headings, "UNSENT"), [_row(name, chosen[name], base) for name in targets])


def _row(name: str, runs: Sequence[Run], base: Sequence[Run]) -> Sequence[object]:
    rates = [run.rate for run in runs]
    return (
        name,
        round(statistics.median(rates)),
        round(min(rates)),
        round(max(rates)),
        round(statistics.median(_ratios(runs, base)), 2),
        *(
            round(statistics.median(run.latency_us[share] for run in runs))
            for share in ("p50", "p99", "p99.9")
        ),
        round(statistics.median(run.process_cpu_us for run in runs), 2),
        round(statistics.median(run.machine_cpu_us for run in runs), 2),
        sum(run.unsent for run in runs),
    )


def _ratios(runs: Sequence[Run], base: Sequence[Run]) -> list[float]:
    # Within a round: what else the machine did then slowed both.
    return [run.rate / other.rate if other.rate else 0.0 for run, other in zip(runs, base, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
