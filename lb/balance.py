"""Which backends take part, and which of them a client is connected to.

The choice for each message is the verdict program's; here is what user space decides: when a backend goes or
comes, which levels of a pool serve; once per client, its subset of a pool that has more backends than a
client can have upstreams.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Weighted(Protocol):
    """What a subset is made of."""

    @property
    def name(self) -> str:
        """Unique in its pool."""

    @property
    def weight(self) -> int:
        """Share of the messages, 0 for none."""


class Levelled(Protocol):
    """What levels are made of."""

    @property
    def weight(self) -> int:
        """Share of the messages, 0 for none."""

    @property
    def priority(self) -> int:
        """The level, 0 for the first."""

    @property
    def usable(self) -> bool:
        """Whether it is not known to be down."""


def last_level(backends: Sequence[Levelled], threshold: int) -> int:
    """The last level that serves; those before it do too, with what is left of them.

    Level by level, until one has enough: something, and at least ``threshold`` percent of its weight, is not
    known to be down. So 0 asks for the next level when a whole level is down, 100 when any of it is. When no
    level has enough, all serve.
    """
    levels = sorted({backend.priority for backend in backends}) or [0]
    for level in levels:
        members = [backend for backend in backends if backend.priority == level]
        usable = sum(backend.weight for backend in members if backend.usable)
        if usable and 100 * usable >= threshold * sum(backend.weight for backend in members):
            return level
    return levels[-1]


RAMP_STEPS = 40
_COLDEST = 0.05


def warmth(elapsed: float, slow_start: float) -> float:
    """The part of its weight that a backend has so many seconds after it came (back) up.

    Grows linearly over ``slow_start`` seconds, in :data:`RAMP_STEPS` steps, from 1/20 (it needs some messages
    to warm up by) to 1.
    """
    # Rounded: a timer may be a moment early, and a product of floats is.
    step = int(RAMP_STEPS * elapsed / slow_start + 1e-6) if slow_start else RAMP_STEPS
    if step >= RAMP_STEPS:
        return 1
    return _COLDEST + (1 - _COLDEST) * step / RAMP_STEPS


W = TypeVar("W", bound=Weighted)


def subset(backends: Sequence[W], client: int, size: int) -> list[W]:
    """At most ``size`` of the backends that have a weight, the same ones for the same client number.

    Weighted rendezvous hashing (Thaler and Ravishankar, 1998): over many clients each backend is chosen in
    proportion to its weight, and when one comes or goes only subsets that contain it change.
    """
    candidates = [backend for backend in backends if backend.weight > 0]
    if len(candidates) <= size:
        return candidates
    return sorted(candidates, key=lambda backend: _score(backend, client), reverse=True)[:size]


def _score(backend: Weighted, client: int) -> float:
    digest = hashlib.blake2b(backend.name.encode(), digest_size=8, key=client.to_bytes(8, "little")).digest()
    uniform = (int.from_bytes(digest, "little") + 0.5) / 2.0**64
    return backend.weight / -math.log(uniform)
