"""The programs that make the load, and what they say of it."""

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.errors import ProgramError
from tests.bench.network import Place

_PATIENCE = 30.0  # seconds for a generator to start and to end


@dataclass(frozen=True, slots=True)
class Load:
    """What a load generator has found."""

    messages_per_second: float
    messages: int  # answered in the measured time
    answers: int  # with those before and after it
    missing: int
    unsent: int
    latency_us: dict[str, float]


@dataclass(frozen=True, slots=True)
class Stream:
    """Connections that stay, each with messages of so many bytes, so many of them on their way.

    With a rate, so many messages of all connections are due each second, and each is measured from then.
    """

    size: int
    connections: int
    depth: int
    rate: float | None = None

    def __str__(self) -> str:
        size = f"{self.size} B" if self.size < 1024 else f"{self.size / 1024:g} KiB"
        size = size if self.size < 1 << 20 else f"{self.size / (1 << 20):g} MiB"
        due = "" if self.rate is None else f", {self.rate:,.0f} due a second"
        return f"{size}, {_connections(self.connections)}, {self.depth} deep{due}"


@dataclass(frozen=True, slots=True)
class Churn:
    """Connections that serve one message each; so many at a time."""

    connections: int

    def __str__(self) -> str:
        return f"new connections, one message of 64 B each, {self.connections} at a time"


@dataclass(frozen=True, slots=True)
class Queries:
    """DNS over TCP from dnsperf, so many clients with so many queries on their way each."""

    connections: int
    depth: int

    def __str__(self) -> str:
        return f"DNS over TCP, {_connections(self.connections)}, {self.depth} deep"


@dataclass(frozen=True, slots=True)
class Items:
    """Gets and sets of memcached's binary protocol from memcaslap; each connection waits for each answer."""

    connections: int

    def __str__(self) -> str:
        return f"memcached, 90 % gets of 64 B, {_connections(self.connections)}"


def _connections(count: int) -> str:
    return f"{count} connection{'' if count == 1 else 's'}"


Work = Stream | Churn | Queries | Items


def parse(text: str) -> Work:
    """What a work is called in the command line, SIZExCONNECTIONSxDEPTH for one; raises ValueError."""
    if match := re.fullmatch(r"(\d+)x(\d+)x(\d+)(?:@(\d+))?", text):
        size, connections, depth = map(int, match.groups()[:3])
        return Stream(size, connections, depth, None if match[4] is None else float(match[4]))
    if match := re.fullmatch(r"churn:(\d+)", text):
        return Churn(int(match[1]))
    if match := re.fullmatch(r"dns:(\d+)x(\d+)", text):
        return Queries(*map(int, match.groups()))
    if match := re.fullmatch(r"memcached:(\d+)", text):
        return Items(int(match[1]))
    raise ValueError(
        f"{text!r} is not SIZExCONNECTIONSxDEPTH[@RATE], churn:CONNECTIONS, dns:CONNECTIONSxDEPTH or"
        " memcached:CONNECTIONS"
    )


def load(
    binary: Path,
    place: Place,
    targets: Sequence[str],
    arguments: Sequence[str],
    congestion: str | None = None,
) -> Load:
    """Runs one of the generators of this folder to its end.

    Raises:
        ProgramError: an answer was wrong or missing.
    """
    extra = [] if congestion is None else [f"--congestion={congestion}"]
    with place.entered():
        process = subprocess.run(
            (binary, *arguments, *extra, *targets), capture_output=True, text=True, check=False
        )
    if process.returncode:
        why = process.stderr.strip() or process.stdout.strip()
        raise ProgramError(f"load on {' '.join(targets)}: {why}")
    return Load(**json.loads(process.stdout))


def dnsperf(place: Place, target: str, work: Queries, queries: Path, seconds: float) -> Load:
    """Asks over TCP.

    Raises:
        ProgramError: a query got no answer, or another one than NOERROR.
    """
    host, _, port = target.rpartition(":")
    with place.entered():
        process = subprocess.run(
            (
                *("dnsperf", "-m", "tcp", "-T", "1", "-s", host, "-p", port),
                *("-c", str(work.connections), "-q", str(work.connections * work.depth)),
                *("-l", f"{seconds:g}", "-d", str(queries)),
            ),
            capture_output=True,
            text=True,
            check=False,
        )
    text = process.stdout
    if process.returncode:
        raise ProgramError(f"dnsperf on {target}: {process.stderr.strip()}")
    completed, lost = int(_figure(text, "Queries completed")), int(_figure(text, "Queries lost"))
    if lost or not re.search(rf"Response codes:\s+NOERROR {completed} ", text):
        raise ProgramError(f"dnsperf on {target}: {lost} lost, {_line(text, 'Response codes')}")
    return Load(
        messages_per_second=_figure(text, "Queries per second"),
        messages=completed,
        answers=completed,
        missing=lost,
        unsent=0,
        latency_us={"mean": _figure(text, "Average Latency (s)") * 1e6},
    )


def memcaslap(place: Place, target: str, work: Items, seconds: float) -> Load:
    """Gets what it has set, and compares each tenth value.

    Raises:
        ProgramError: a value was not there, or another one.
    """
    whole = max(1, round(seconds))  # it takes no fractions
    with place.entered():
        process = subprocess.run(
            (
                *("memcaslap", "-s", target, "--binary", "-T", "1", "-c", str(work.connections)),
                *("-t", f"{whole}s", "-X", "64", "-v", "0.1", "-S", f"{2 * whole}s"),
            ),
            capture_output=True,
            text=True,
            check=False,
            timeout=whole + _PATIENCE,
        )
    text = process.stdout
    if process.returncode or process.stderr:
        raise ProgramError(f"memcaslap on {target}: {process.stderr.strip() or process.returncode}")
    wrong = {name: int(_figure(text, name)) for name in ("get_misses", "verify_misses", "verify_failed")}
    if any(wrong.values()):
        raise ProgramError(f"memcaslap on {target}: {wrong}")
    answers = int(_figure(text, "cmd_get") + _figure(text, "cmd_set"))
    return Load(
        messages_per_second=_figure(text, "TPS"),
        messages=answers,
        answers=answers,
        missing=0,
        unsent=0,
        latency_us={"mean": _figure(text.partition("Total Statistics")[2], "Avg")},
    )


def _line(text: str, name: str) -> str:
    match = re.search(rf"{re.escape(name)}:\s+(.+)", text)
    if match is None:
        raise ProgramError(f"a load generator does not say {name!r}")
    return match[1]


def _figure(text: str, name: str) -> float:
    return float(_line(text, name).split()[0])
