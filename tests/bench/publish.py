# ruff: noqa: T201
"""Writes docs/BENCHMARKS.md and its plots from the JSON files of the measurements.

What is worse than a peer stands first.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from tests.bench.processes import ROOT
from tests.bench.report import SHARES, Row, Run, base, rows

_DOCUMENT = ROOT / "docs" / "BENCHMARKS.md"
_IMAGES = ROOT / "docs" / "images"
_PROSE = Path(__file__).with_name("BENCHMARKS.in.md")
_FAIRNESS = """\
The largest share of three backends of equal weight, in multiples of the mean (1 is even, 3 is all on one),
with long connections; and how long after a backend has begun to listen it is asked for 80 % of its share."""
_MEMORY = """\
Memory of an idle client that has sent one message and has its answer: of the process, and of the kernel for
the balancer's ends of its connections; and what a balancer takes without clients, maps for all included."""
_OURS = "sockmap-lb"
_NO_PEERS = (_OURS, "direct", "bare")
_COLOURS = {
    _OURS: "#0b6e4f",
    "haproxy": "#1f77b4",
    "nginx": "#7fb069",
    "dnsdist": "#e07a5f",
    "direct": "#9aa0a6",
    "bare": "#5f6368",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of tests.bench.bench has written."""

    name: str
    document: Mapping[str, Any]

    @property
    def runs(self) -> list[Run]:
        """All measurements."""
        return [Run(**run) for run in self.document["runs"]]

    @property
    def works(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(run.work for run in self.runs))


def main() -> int:
    """Writes the files; fails if a result cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.publish", description=__doc__)
    parser.add_argument("results", nargs="+", metavar="NAME=FILE", help="results of tests.bench.bench")
    parser.add_argument("--fairness", type=Path, help="result of tests.bench.fairness")
    parser.add_argument("--memory", type=Path, help="result of tests.bench.memory")
    options = parser.parse_args()
    results = []
    for item in options.results:
        name, _, file = item.partition("=")
        results.append(Result(name, json.loads(Path(file).read_text(encoding="utf-8"))))
    sections = [_PROSE.read_text(encoding="utf-8").rstrip(), "## Worse than a peer", _losses(results)]
    if options.fairness is not None:
        fairness = json.loads(options.fairness.read_text(encoding="utf-8"))
        sections += ["## Fairness", _fairness(fairness)]
    if options.memory is not None:
        sections += ["## Memory", _memory(json.loads(options.memory.read_text(encoding="utf-8")))]
    for result in results:
        sections += [f"## {result.name}", _environment(result), *_plots(result), *_tables(result)]
    _DOCUMENT.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print(_DOCUMENT)
    return 0


def _losses(results: Sequence[Result]) -> str:
    lines = [
        f"| {result.name}: {work} | {ours.target} | {peer.target} | {_of(ours.rate, peer.rate)} |"
        f" {_of(_tail(ours), _tail(peer))} | {_of(_cost(ours), _cost(peer))} |"
        for result in results
        for work in result.works
        for ours, peer in _pairs(rows(result.runs, work))
        if _slower(ours, peer) or _cost(ours) > _cost(peer)
    ]
    if not lines:
        return "Nothing, in the tables below."
    heading = (
        "| work | | peer | of its rate | of its p99 | of its CPU a message |\n|---|---|---|---|---|---|\n"
    )
    return heading + "\n".join(lines)


def _pairs(found: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    for ours in found:
        for peer in found:
            if _kind(ours) == _OURS and _kind(peer) not in _NO_PEERS:
                yield ours, peer


def _slower(ours: Row, peer: Row) -> bool:
    """Whether it does less; or, where all do what is due, whether it takes longer."""
    return ours.rate < peer.rate if ours.due is None else _tail(ours) > _tail(peer)


def _tail(row: Row) -> float:
    return row.latency_us.get("p99", 0.0)


def _cost(row: Row) -> float:
    return row.machine_cpu_us if row.balancer_cpu_us is None else row.balancer_cpu_us


def _kind(row: Row) -> str:
    return row.target.partition("/")[0]


def _of(ours: float, other: float) -> str:
    return f"{ours / other:.2f}x" if other else "-"


def _fairness(document: Mapping[str, Any]) -> str:
    connections = list(document["fairness"][0]["largest_share"])
    heads = " | ".join(f"{count} connection{'s' if count != '1' else ''}" for count in connections)
    lines = [
        _FAIRNESS,
        "",
        f"| | {heads} | a new backend |",
        "|---" * (len(connections) + 2) + "|",
    ]
    for each in document["fairness"]:
        shares = " | ".join(f"{each['largest_share'][count]:.2f}" for count in connections)
        late = each["newcomer"]
        when = f"{late * 1000:.0f} ms" if late is not None else f"never (in {document['seconds']} s)"
        lines.append(f"| {each['target']} | {shares} | {when} |")
    return "\n".join(lines)


def _memory(document: Mapping[str, Any]) -> str:
    heads = ("connections of each", "process", "kernel", "together", "at start: process", "kernel")
    lines = [_MEMORY, "", f"| {document['clients']} clients | {' | '.join(heads)} |", "|---" * 7 + "|"]
    for each in document["memory"]:
        process, kernel = (each[part] / 1024 for part in ("process", "kernel"))
        lines.append(
            f"| {each['target']} | {each['sockets']:.1f} | {process:.1f} KiB | {kernel:.1f} KiB |"
            f" {process + kernel:.1f} KiB | {each['idle_process'] / 2**20:.1f} MiB |"
            f" {each['idle_kernel'] / 2**20:.1f} MiB |"
        )
    return "\n".join(lines)


def _environment(result: Result) -> str:
    environment = ", ".join(f"{key} {value}" for key, value in result.document["environment"].items())
    loads = [run.others for run in result.runs]
    document = result.document
    return (
        f"Topology {document['topology']}, {document['rounds']} rounds of {document['seconds']:g} s,"
        f" load average {min(loads):.1f} to {max(loads):.1f}. {environment}."
    )


def _tables(result: Result) -> Iterator[str]:
    for work in result.works:
        found = rows(result.runs, work)
        reference = base([row.target for row in found])
        heads = ("rate/s", "rounds", f"of {reference}'s", *(f"{share} us" for share in SHARES), "CPU us")
        lines = [
            f"| {work} | {' | '.join(heads)} | of {reference}'s |",
            "|---" * (len(heads) + 2) + "|",
        ]
        for row in sorted(found, key=lambda row: -row.rate if row.due is None else _tail(row)):
            latency = [
                f"{row.latency_us[share]:,.0f}" if share in row.latency_us else "-" for share in SHARES
            ]
            rate = f"{row.rate:,.0f}" + (f", {row.unsent:,} unsent" if row.unsent else "")
            name = f"**{row.target}**" if _kind(row) == _OURS else row.target
            lines.append(
                f"| {name} | {rate} | {row.lowest:,.0f} to {row.highest:,.0f} | {row.ratio:.2f}x |"
                f" {' | '.join(latency)} | {_cost(row):,.2f} | {row.cost:.2f}x |"
            )
        yield "\n".join(lines)


def _plots(result: Result) -> Iterator[str]:
    slug = "".join(letter if letter.isalnum() else "-" for letter in result.name.lower()).strip("-")
    # Where all send what is due, rates say nothing.
    first = _RATE if any(run.due is None for run in result.runs) else _TAIL
    for name, title, value in (first, _COST):
        path = _IMAGES / f"bench-{slug}-{name}.svg"
        _plot(path, title, [(work, rows(result.runs, work)) for work in result.works], value)
        yield f"![{title}](images/{path.name})"


def _tail_ratio(row: Row, found: Sequence[Row]) -> float:
    reference = base([each.target for each in found])
    return _tail(row) / next(_tail(each) for each in found if each.target == reference)


_RATE = ("rate", "messages (or connections) a second, in multiples of the peer's", lambda row, _: row.ratio)
_TAIL = ("tail", "p99 of the latency, in multiples of the peer's", _tail_ratio)
_COST = ("cost", "CPU a message, in multiples of the peer's", lambda row, _: row.cost)


def _plot(path: Path, title: str, works: Sequence[tuple[str, Sequence[Row]]], value: Any) -> None:
    mpl.rcParams.update({"svg.hashsalt": "sockmap-lb", "font.size": 9})
    bars = [(work, row) for work, found in works for row in found if _kind(row) != "direct"]
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.2 * len(bars) + 0.25 * len(works)))
    position, longest, ticks, labels = 0.0, 0.0, [], []
    for work, found in works:
        shown = [row for row in found if _kind(row) != "direct"]
        ticks.append(position + (len(shown) - 1) / 2)
        labels.append(work.replace(", ", "\n", 1))
        for row in shown:
            length = value(row, found)
            axes.barh(position, length, color=_COLOURS[_kind(row)])
            axes.text(length, position, f" {row.target} {length:.2f}", va="center", fontsize=7)
            longest = max(longest, length)
            position += 1
        position += 1
    axes.axvline(1, color="black", linewidth=0.6)
    axes.set_yticks(ticks, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.25)
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
