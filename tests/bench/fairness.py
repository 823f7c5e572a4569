# ruff: noqa: T201
"""How evenly messages spread over backends when there are few connections, and how soon a new backend helps.

The share of a backend is what it answered, by its own count: 1 is the mean of all. The newcomer starts to
listen under load, at an address that was configured from the start, with health checks every 200 ms; it has
its share once it is asked for 80 % of a third of all messages.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from lb.cli.table import render
from tests.bench import peers
from tests.bench.backends import BACKENDS, EchoBackends, Newcomer
from tests.bench.environment import describe
from tests.bench.errors import ProgramError
from tests.bench.generators import Load, load
from tests.bench.network import TOPOLOGIES, Network
from tests.bench.peers import Scene
from tests.bench.processes import compile_c, number, raise_descriptor_limit

_TARGETS = ("sockmap-lb", "sockmap-lb/shared=2", "haproxy", "nginx")
_CONNECTIONS = (1, 4, 16)
_CHECK_MS = 200
_CHECKED = 1.5  # seconds after which everybody has found that the newcomer is down: three checks and some
_BEFORE = 1.0  # seconds of load before the newcomer starts
_ENOUGH = 0.8
_WINDOW = 5  # counts of the newcomer that its rate is taken over


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one target: the largest share by connections, and seconds until a newcomer has its share."""

    target: str
    largest_share: dict[int, float]
    newcomer: float | None  # None: not while the load lasted


def main() -> int:
    """Measures and prints; 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fairness", description=__doc__)
    parser.add_argument("--targets", default=",".join(_TARGETS), help="those of tests.bench.bench")
    parser.add_argument("--topology", choices=TOPOLOGIES, default="veth")
    parser.add_argument("--seconds", type=number(1, 60), default=3)
    parser.add_argument("--congestion", help="TCP congestion control (default: the machine's)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    network: Network | None = None
    try:
        raise_descriptor_limit(4096)
        network = TOPOLOGIES[options.topology](options.congestion)
        environment = describe(network)
        figures = [_measure(network, target, options.seconds) for target in options.targets.split(",")]
    except (ProgramError, ValueError) as error:
        print(f"fairness: {error}", file=sys.stderr)
        return 1
    finally:
        if network is not None:
            network.close()
    print(_table(figures, options.seconds))
    if options.json is not None:
        result = {
            "environment": environment,
            "topology": options.topology,
            "seconds": options.seconds,
            "fairness": [asdict(each) for each in figures],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _table(figures: Sequence[Figures], seconds: int) -> str:
    rows = [
        (
            each.target,
            *(f"{each.largest_share[connections]:.2f}" for connections in _CONNECTIONS),
            f"{each.newcomer * 1000:.0f} ms" if each.newcomer is not None else f"not in {seconds} s",
        )
        for each in figures
    ]
    headings = [f"MAX/MEAN, {connections} CONNECTIONS" for connections in _CONNECTIONS]
    return render(("TARGET", *headings, "A NEW BACKEND HAS ITS SHARE"), rows)


def _measure(network: Network, target: str, seconds: int) -> Figures:
    shares = {connections: _share(network, target, connections, seconds) for connections in _CONNECTIONS}
    return Figures(target, shares, _newcomer(network, target, seconds))


def _share(network: Network, target: str, connections: int, seconds: int) -> float:
    with contextlib.ExitStack() as stack:
        directory, generator = _prepare(stack)
        backends = EchoBackends(compile_c(directory, "echo"), network.backends, stack)
        with contextlib.ExitStack() as peer_stack:
            peer = peers.start(target, Scene(network.balancer, directory, backends.addresses), peer_stack)
            _load(generator, network, peer.targets, connections, seconds)
        answered = backends.stop().values()
        return max(answered) / (sum(answered) / len(answered))


def _newcomer(network: Network, target: str, seconds: int) -> float | None:
    with contextlib.ExitStack() as stack:
        directory, generator = _prepare(stack)
        echo = compile_c(directory, "echo")
        backends = EchoBackends(echo, network.backends, stack)
        newcomer = Newcomer(echo, network.backends)
        addresses = {**backends.addresses, BACKENDS[-1]: newcomer.address}
        scene = Scene(network.balancer, directory, addresses, check_ms=_CHECK_MS)
        peer = peers.start(target, scene, stack)
        time.sleep(_CHECKED)
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        loading = pool.submit(_load, generator, network, peer.targets, 16, seconds + _BEFORE)
        # From this thread: a backend ends with the thread that started it (PR_SET_PDEATHSIG).
        time.sleep(_BEFORE)
        newcomer.start(stack)
        found = loading.result()
        counts = newcomer.stop()
    enough = found.messages_per_second / len(BACKENDS) * _ENOUGH
    for (since, before), (until, after) in zip(counts, counts[_WINDOW:], strict=False):
        if (after - before) / (until - since) >= enough:
            return since
    return None


def _prepare(stack: contextlib.ExitStack) -> tuple[Path, Path]:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    directory.chmod(0o755)  # the balancer reads its file as another user
    return directory, compile_c(directory, "load")


def _load(
    generator: Path, network: Network, targets: Sequence[str], connections: int, seconds: float
) -> Load:
    arguments = (
        "--size=64",
        "--depth=4",
        "--warmup=0",
        f"--connections={connections}",
        f"--seconds={seconds}",
    )
    return load(generator, network.clients, targets, arguments)


if __name__ == "__main__":
    sys.exit(main())
