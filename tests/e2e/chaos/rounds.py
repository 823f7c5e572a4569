"""Rounds of chaos against one balancer: each begins and ends with nobody there, and is judged by itself."""

import random
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.balancer import Balancer, Tree, show
from tests.e2e.chaos.clients import PATIENCE
from tests.e2e.chaos.footprint import Footprint, nothing, settle
from tests.e2e.chaos.history import ClientHistory, UpstreamHistory
from tests.e2e.chaos.mixes import ASKING, MIXES, Behaviour, Mood
from tests.e2e.chaos.model import Verdict, judge
from tests.e2e.chaos.wire import protocol
from tests.e2e.chaos.worker import Worker
from tests.e2e.lab import Lab

WILD = ("a", "b", "c")  # have moods
CALM = ("d", "e")  # are always well, and so must be all of their clients
# The same, of clients that share their upstreams.
WILD_SHARED = ("p", "q", "r")
CALM_SHARED = ("s", "t")
_POOLS = {"wild": WILD, "calm": CALM, "wildshared": WILD_SHARED, "calmshared": CALM_SHARED}
_LISTENERS = ("wild-any", "wild-fifo", "calm-any", "calm-fifo", "wildshared-any", "calmshared-any")
_DRAIN = 10  # seconds
_SHARED_EACH = 2  # connections to a backend
_BALANCES = ("round_robin", "least_outstanding", "random")
# Seconds that the last client, and then the balancer, may take after a round.
_REST = 2 * PATIENCE + 30
Endpoint = tuple[str, int]


def configuration(backends: dict[str, Endpoint], source: random.Random) -> Tree:
    """Two pools, with a listener of each ordering for both; and two whose clients share connections."""
    return {
        "admin": {"address": "127.0.0.1:0"},
        "runtime": {"max_connections": 16384, "buffer_budget": "1MiB"},
        "protocols": {name: protocol(name) for name in ("any", "fifo")},
        "listeners": [
            {"name": name, "address": "127.0.0.1:0", "protocol": ordering, "pool": pool}
            for name in _LISTENERS
            for pool, ordering in [name.split("-")]
        ],
        "pools": [
            {
                "name": pool,
                "balance": source.choice(_BALANCES),
                "batch": source.choice([1, 8, 64]),
                "backends": [{"name": name, "address": show(backends[name])} for name in names],
                "timeouts": {"connect": "5s", "drain": f"{_DRAIN}s", "half_message": "5s"} | patience,
            }
            | sharing
            for pool, names in _POOLS.items()
            for sharing, patience in [_sharing(source) if "shared" in pool else _owning(source)]
        ],
    }


def _owning(source: random.Random) -> tuple[Tree, Tree]:
    """When each client's own connections are made."""
    return {"connect": source.choice(["eager", "on_demand"])}, {}


def _sharing(source: random.Random) -> tuple[Tree, Tree]:
    """How clients share; they may read as slowly as others do."""
    sharing = {
        "connections": "shared",
        "connections_per_backend": _SHARED_EACH,
        "max_in_flight": source.choice([16, 256, 1024]),
    }
    return sharing, {"slow_client": f"{PATIENCE:g}s"}


@dataclass(frozen=True, slots=True)
class Round:
    """What is played: a mix, for some seconds, with so many clients at each listener."""

    mix: str
    seed: int
    seconds: float
    clients: int = 10


class Chaos:
    """A balancer, its backends and its clients, in a namespace of their own. To be used in a with block."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.total = Verdict()
        self._stack = ExitStack()
        try:
            lab = Lab(folder, self._stack)
            self._backends, self._clients = Worker("backends", lab.here), Worker("clients", lab.here)
            for worker in (self._backends, self._clients):
                self._stack.callback(worker.close)
            names = [name for pool in _POOLS.values() for name in pool]
            shared = {*WILD_SHARED, *CALM_SHARED}
            endpoints = dict(zip(names, self._backends.call("open", names, shared), strict=True))
            self._nothing = nothing(_SHARED_EACH * len(shared))
            self.balancer: Balancer = lab.balancer(configuration(endpoints, random.Random(seed)))
            self.balancer.wait_ready()
            self._play(Round("calm", seed, 0.3))  # opens what stays
            self.base: Footprint = self._empty()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything; what the balancer logged is judged too."""
        self._stack.close()

    def _empty(self) -> Footprint:
        return settle(self.balancer, self._nothing, limit=3 * _DRAIN)

    def _play(self, what: Round) -> tuple[dict[str, list[ClientHistory]], list[UpstreamHistory], int]:
        mix = MIXES[what.mix]
        moods: dict[str, tuple[Mood, ...]] = dict.fromkeys((*WILD, *WILD_SHARED), mix.moods)
        calm = mix.behaviours if what.mix != "forget" else ASKING
        if Behaviour.FORGET in mix.behaviours:
            # Who is refused because nobody is there has sent nothing that the balancer ever had, and does not
            # hear of it after it has closed: one backend stays.
            for last in (WILD[-1], WILD_SHARED[-1]):
                moods[last] = tuple(mood for mood in mix.moods if mood is not Mood.DIE)
        behaviours = {name: mix.behaviours if name.startswith("wild") else calm for name in _LISTENERS}
        self._backends.call("play", moods, what.seed, what.seconds)
        lives = self._clients.call(
            "live",
            {name: self.balancer.listeners[name] for name in _LISTENERS},
            behaviours,
            what.seed,
            what.seconds,
            what.clients,
            limit=what.seconds + _REST,
        )
        self._empty()
        upstreams, left = self._backends.call("collect", 3.0 * _DRAIN, limit=_REST)
        pools: dict[str, list[ClientHistory]] = {name: [] for name in _POOLS}
        for listener, histories in lives.items():
            pools[listener.partition("-")[0]] += histories
        return pools, upstreams, left

    def play(self, what: Round) -> Verdict:
        """Play a round and judge it."""
        before = self.balancer.metrics().value("dropped_messages_total")
        pools, upstreams, left = self._play(what)
        after = settle(self.balancer, self.base, limit=3 * _DRAIN)
        dropped = int(self.balancer.metrics().value("dropped_messages_total") - before)
        wild = [entry for entry in upstreams if entry.backend in {*WILD, *WILD_SHARED}]
        verdict = judge(pools["wild"] + pools["wildshared"], wild, dropped)
        # No drop excuses anything where no backend failed.
        calm = [entry for entry in upstreams if entry.backend in {*CALM, *CALM_SHARED}]
        verdict.add(judge(pools["calm"] + pools["calmshared"], calm, 0))
        over = after.over(self.base)
        verdict.object("leaks", len(over), "; ".join(over))
        verdict.object("leaks", left, f"{left} connections to backends were not ended")
        self.after = after
        self.total.add(verdict)
        return verdict
