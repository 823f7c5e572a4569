"""Which backends a client is connected to.

The choice for each message is the verdict program's; here is what user space decides once per client: its
subset of a pool that has more backends than a client can have upstreams.
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
