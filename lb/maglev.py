"""Lookup tables for consistent hashing: which backend has a key.

Maglev hashing (Eisenbud et al.: Maglev, NSDI 2016, section 3.4): each backend has an order of its own of all
places in the table, and they take turns, in which each takes the first place of its order that is free. So
each has its share almost exactly, and when one comes or goes few places of the others change hands. A turn
takes as many places as the weight allows.

A table follows from names and weights alone: two balancers with the same file send the same key to the same
backend.
"""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lb.balance import Weighted

# A prime, so that every step visits all places, and below 2**16, so that the programs can mask a place.
PLACES = 65521
WALK = 4096  # places that are tried for one message: with one backend of 1000, in vain once in 60
_JUMP = 30011
_KEY = b"sockmap-lb"


class Share(NamedTuple):
    """A backend as a table sees it."""

    name: str
    weight: int


def table(backends: Sequence[Weighted]) -> bytes:
    """Who has each of the :data:`PLACES`, as an index into `backends`, of which there are 256 at most.

    A backend of weight 0 has none. Empty if no backend has a weight.
    """
    places = bytearray(PLACES)
    free = bytearray(b"\1" * PLACES)
    # Whose next turn is earliest, as (places taken + 1/2) / weight, with ties by name.
    turns = [
        (0.5 / backend.weight, backend.name, index)
        for index, backend in enumerate(backends)
        if backend.weight
    ]
    if not turns:
        return b""
    heapq.heapify(turns)
    orders = [_order(backend.name) for backend in backends]
    taken = [0] * len(backends)
    for _ in range(PLACES):
        _, name, index = turns[0]
        place, step = orders[index]
        while not free[place]:
            place = (place + step) % PLACES
        free[place] = 0
        places[place] = index
        orders[index] = (place, step)
        taken[index] += 1
        heapq.heapreplace(turns, ((taken[index] + 0.5) / backends[index].weight, name, index))
    return bytes(places)


def walk(place: int) -> Iterator[int]:
    """The places that a key is tried at, one after the other, from its own on.

    Not side by side: where the table goes on with whom is much the same for all places of one backend, whose
    keys would not spread over all others.
    """
    for attempt in range(WALK):
        yield place
        place = (place * _JUMP + attempt + 1) % PLACES


def place(key_hash: int) -> int:
    """The place of a key with this hash of 64 bits."""
    return (key_hash >> 32) * PLACES >> 32


def _order(name: str) -> tuple[int, int]:
    """Where a backend's order begins, and how far it is from one place to the next."""
    digest = hashlib.blake2b(name.encode(), digest_size=16, key=_KEY).digest()
    first, step = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    return first % PLACES, 1 + step % (PLACES - 1)
