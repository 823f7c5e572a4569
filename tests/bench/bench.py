# ruff: noqa: T201
"""Messages a second, latency and what they cost: through sockmap-lb, beside its peers, and directly.

Every target does every work in turn, for some rounds, so that what else the machine does meets all of them
alike. Nothing here passes or fails by its speed; a wrong, missing or doubled answer fails.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tests.bench import generators, peers
from tests.bench.backends import EchoBackends, Memcached, NameServers, write_queries
from tests.bench.environment import describe
from tests.bench.errors import ProgramError
from tests.bench.generators import Churn, Items, Load, Queries, Stream, Work
from tests.bench.network import TOPOLOGIES, Network, busy_seconds
from tests.bench.peers import Peer, Scene
from tests.bench.processes import compile_c, cpu_seconds, number, raise_descriptor_limit
from tests.bench.report import LEGEND, Run, text

_TARGETS = """\
targets, separated by commas; settings follow a slash, as in sockmap-lb/batch=1/shared=2:
  direct        connections spread over the backends, nothing between
  bare          the least that a proxy in a sockmap can do, for messages of this benchmark only; needs clang
  sockmap-lb    balance=least_outstanding, batch=64, rules=0 (of the listener; only the last one matches),
                shared=0 (connections to each backend that clients share), connect=eager,
                congestion=- (control algorithm of its connections; -: the machine's)
  haproxy       mode tcp, threads=1
  nginx         stream, workers=1
  dnsdist       for dns only, threads=1

works, separated by commas:
  SIZExCONNECTIONSxDEPTH   bytes with the 8 of the header, connections, messages on their way on each; with
                           @RATE so many are due a second, and each is measured from when it was due
  churn:CONNECTIONS        each connection serves one message; so many at a time
  dns:CONNECTIONSxDEPTH    dnsperf over TCP, nsd behind
  memcached:CONNECTIONS    memcaslap, one memcached behind; not with shared
"""
_DESCRIPTORS = 16_384  # of a peer with the most connections, one to each backend for each of them
_PROTOCOLS: dict[type, str] = {Queries: peers.DNS, Items: peers.MEMCACHED}  # of others: STREAM
_STREAMS = ("64x1x1", "64x16x1", "64x64x1", "64x16x16", "4096x16x4", "65536x4x4")


@dataclass(frozen=True, slots=True)
class Preset:
    """Works and targets that belong together."""

    works: tuple[str, ...]
    targets: tuple[str, ...]


PRESETS = {
    "peers": Preset(
        (*_STREAMS, "churn:16", "dns:16x16"),
        ("direct", "bare", "sockmap-lb", "sockmap-lb/shared=2", "haproxy", "nginx", "dnsdist"),
    ),
    "sizes": Preset(
        ("64x16x4", "1024x16x4", "4096x16x4", "65536x16x4", "1048576x4x1"),
        ("direct", "sockmap-lb", "haproxy", "nginx"),
    ),
    "connections": Preset(
        ("64x1x1", "64x16x1", "64x64x1", "64x1000x1", "64x1x16", "64x16x16", "64x64x16", "64x1000x16"),
        ("direct", "sockmap-lb", "haproxy", "nginx"),
    ),
    "floor": Preset(_STREAMS, ("bare", "sockmap-lb", "haproxy")),
    # A fifth, a half and four fifths of what HAProxy does at 64x16x1, on the machine of docs/BENCHMARKS.md.
    "latency": Preset(
        ("64x16x64@13000", "64x16x64@32000", "64x16x64@52000"), ("direct", "sockmap-lb", "haproxy")
    ),
    "batches": Preset(_STREAMS, ("sockmap-lb", "sockmap-lb/batch=1", "haproxy")),
    "policies": Preset(
        _STREAMS, ("sockmap-lb", "sockmap-lb/balance=round_robin", "sockmap-lb/balance=random")
    ),
    "sharing": Preset(_STREAMS, ("sockmap-lb", "sockmap-lb/shared=4", "sockmap-lb/shared=1")),
    "rules": Preset((*_STREAMS, "dns:16x16"), ("sockmap-lb", "sockmap-lb/rules=64", "haproxy")),
    "memcached": Preset(
        ("memcached:1", "memcached:16", "memcached:64"), ("direct", "sockmap-lb", "haproxy", "nginx")
    ),
    # Every kind of work and of peer once, in seconds: whether the benchmark itself works.
    "smoke": Preset(
        ("64x4x4", "64x4x4@2000", "65536x2x1", "churn:4", "dns:2x4"),
        ("direct", "bare", "sockmap-lb", "sockmap-lb/shared=2/rules=8", "haproxy", "nginx", "dnsdist"),
    ),
}


def main() -> int:
    """Measures, prints a table for each work; 1 if an answer was wrong."""
    options = _options()
    network: Network | None = None
    try:
        raise_descriptor_limit(_DESCRIPTORS)
        network = TOPOLOGIES[options.topology](options.congestion)
        if options.quickack:
            network.acknowledge_at_once()
        environment = describe(network)
        runs = _measure(options, network)
    except ProgramError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if network is not None:
            network.close()
    result = {
        "environment": environment,
        "topology": options.topology,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "runs": [asdict(run) for run in runs],
    }
    print(text(runs, environment))
    print(LEGEND)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.bench",
        description="Compares ways for messages to reach three backends. Needs root and gcc.",
        epilog=_TARGETS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--compare", choices=PRESETS, default="peers", help="works and targets (default: peers)"
    )
    parser.add_argument("--targets", type=_list(peers.parse), help="other targets than these")
    parser.add_argument("--works", type=_list(generators.parse), help="other works than these")
    parser.add_argument("--topology", choices=TOPOLOGIES, default="veth")
    parser.add_argument("--rounds", type=number(1, 100), default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run (default: 3)")
    parser.add_argument("--warmup", type=float, default=1.0, help="before each run (default: 1)")
    parser.add_argument(
        "--rate",
        type=float,
        help="the same for all works that name none (default: as many as go)",
    )
    parser.add_argument("--congestion", help="TCP congestion control of all sockets (default: the machine's)")
    parser.add_argument(
        "--quickack", action="store_true", help="the balancer's routes acknowledge each segment (veth only)"
    )
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    options = parser.parse_args()
    preset = PRESETS[options.compare]
    works = [generators.parse(work) for work in options.works or preset.works]
    options.works = [_due(work, options.rate) for work in works]
    options.targets = options.targets or [
        name for name in preset.targets if peers.KINDS[peers.parse(name)[0]].version() is not None
    ]
    return options


def _due(work: Work, rate: float | None) -> Work:
    return replace(work, rate=rate) if isinstance(work, Stream) and work.rate is None else work


def _list(read: Callable[[str], object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        try:
            for item in text.split(","):
                read(item)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text.split(",")

    return parse


@dataclass(slots=True)
class _Stage:
    """Backends of one protocol, the peers in front of them, and how many answers went through."""

    backends: EchoBackends | NameServers | Memcached
    peers: dict[str, Peer] = field(default_factory=dict)
    answers: int = 0


class _Bench:
    """Stages that are set up when the first work needs them."""

    def __init__(self, options: argparse.Namespace, network: Network, stack: contextlib.ExitStack) -> None:
        self._options = options
        self._network = network
        self._stack = stack
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._directory.chmod(0o755)  # the balancer reads its file as another user
        self._programs = {name: compile_c(self._directory, name) for name in ("load", "churn", "echo")}
        self._queries = self._directory / "queries"
        write_queries(self._queries)
        self._stages: dict[str, _Stage] = {}

    def run(self, work: Work, target: str) -> Run | None:
        """One measurement; None if the target cannot do this work.

        Raises:
            ProgramError: something did not start, or an answer was wrong.
        """
        protocol = _PROTOCOLS.get(type(work), peers.STREAM)
        kind, _ = peers.parse(target)
        if protocol not in peers.KINDS[kind].protocols:
            return None
        stage = self._stages.get(protocol) or self._stages.setdefault(protocol, self._set_up(protocol))
        if target not in stage.peers:
            scene = Scene(self._network.balancer, self._directory, stage.backends.addresses, protocol)
            stage.peers[target] = peers.start(target, scene, self._stack)
        peer = stage.peers[target]
        others = os.getloadavg()[0]
        process = cpu_seconds(peer.pid) if peer.pid else 0.0
        machine, balancer = busy_seconds(), self._network.balancer_seconds()
        found = self._generate(work, peer)
        stage.answers += found.answers
        scale = 1e6 / max(1, found.answers)
        after = self._network.balancer_seconds()
        return Run(
            work=str(work),
            target=target,
            due=work.rate if isinstance(work, Stream) else None,
            rate=found.messages_per_second,
            unsent=found.unsent,
            latency_us=found.latency_us,
            process_cpu_us=(cpu_seconds(peer.pid) - process) * scale if peer.pid else 0.0,
            balancer_cpu_us=(after - balancer) * scale
            if after is not None and balancer is not None
            else None,
            machine_cpu_us=(busy_seconds() - machine) * scale,
            others=others,
        )

    def _set_up(self, protocol: str) -> _Stage:
        place = self._network.backends
        if protocol == peers.DNS:
            return _Stage(NameServers(self._directory, place, self._stack))
        if protocol == peers.MEMCACHED:
            return _Stage(Memcached(place, self._stack))
        return _Stage(EchoBackends(self._programs["echo"], place, self._stack))

    def _generate(self, work: Work, peer: Peer) -> Load:
        options, place = self._options, self._network.clients
        if isinstance(work, Queries):
            return generators.dnsperf(place, peer.targets[0], work, self._queries, options.seconds)
        if isinstance(work, Items):
            return generators.memcaslap(place, peer.targets[0], work, options.seconds)
        arguments = [
            f"--connections={work.connections}",
            f"--seconds={options.seconds}",
            f"--warmup={options.warmup}",
        ]
        if isinstance(work, Churn):
            return generators.load(self._programs["churn"], place, peer.targets, arguments)
        assert isinstance(work, Stream)
        arguments += [f"--size={work.size}", f"--depth={work.depth}"]
        if work.rate is not None:
            arguments.append(f"--rate={work.rate}")
        return generators.load(self._programs["load"], place, peer.targets, arguments)

    def check(self) -> None:
        """Ends the echo backends, and compares what they got with what was answered.

        Raises:
            ProgramError: it is not the same.
        """
        for stage in self._stages.values():
            if isinstance(stage.backends, EchoBackends):
                received = sum(stage.backends.stop().values())
                if received != stage.answers:
                    raise ProgramError(
                        f"the backends got {received} messages, and {stage.answers} were answered"
                    )


def _measure(options: argparse.Namespace, network: Network) -> list[Run]:
    """All runs.

    Raises:
        ProgramError: something did not start, or an answer was wrong.
    """
    runs: list[Run] = []
    with contextlib.ExitStack() as stack:
        bench = _Bench(options, network, stack)
        for count in range(options.rounds):
            for work in options.works:
                for target in _turned(options.targets, count):
                    run = bench.run(work, target)
                    if run is not None:
                        runs.append(run)
                        print(f"round {count + 1}: {work}: {target}: {run.rate:,.0f}/s", file=sys.stderr)
        bench.check()
    return runs


def _turned(targets: Sequence[str], count: int) -> Sequence[str]:
    """In each round somebody else is first, so that nobody always comes after the same one."""
    turn = count % len(targets)
    return [*targets[turn:], *targets[:turn]]


if __name__ == "__main__":
    sys.exit(main())
