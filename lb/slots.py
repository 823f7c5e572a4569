"""Slot numbers and their generations.

A slot is a number in the sockmap. Numbers are reused, so a number alone may mean a stranger: every
reference is a (number, generation) pair, and no pair is ever given out twice in 2**32 reuses of a slot.

A retired slot is not free yet: a program that compared the generation before it changed may still be about
to redirect to the number. It becomes free with :meth:`SlotTable.reclaim`, which the owner calls once no
such program can be running (an RCU grace period later).
"""

from collections import deque
from typing import NamedTuple

_GENERATION_LIMIT = 1 << 32


class SlotRef(NamedTuple):
    """A slot in one of its lives."""

    number: int
    generation: int


class SlotsExhaustedError(Exception):
    """Every slot is in use."""


class SlotTable:
    """Gives out the slots ``0 .. size - 1``, the longest unused first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._generations = [0] * size
        self._free = deque(range(size))
        self._retired: list[SlotRef] = []

    @property
    def in_use(self) -> int:
        """Slots that nobody can have now; those that wait to be reclaimed are among them."""
        return self.size - len(self._free)

    def acquire(self) -> SlotRef:
        """A slot of one's own, in a new generation (never 0).

        Raises:
            SlotsExhaustedError: none is free.
        """
        if not self._free:
            raise SlotsExhaustedError
        number = self._free.popleft()
        generation = (self._generations[number] + 1) % _GENERATION_LIMIT or 1
        self._generations[number] = generation
        return SlotRef(number, generation)

    def retire(self, ref: SlotRef) -> None:
        """Ends this life of the slot; its number stays taken until it is reclaimed."""
        assert self._generations[ref.number] == ref.generation, f"{ref} is not the current life of its slot"
        self._retired.append(ref)

    def take_retired(self) -> list[SlotRef]:
        """The slots retired since the last call: wait until no program refers to them, then reclaim them."""
        retired, self._retired = self._retired, []
        return retired

    def reclaim(self, refs: list[SlotRef]) -> None:
        """Makes slots that :meth:`take_retired` gave free again."""
        self._free.extend(ref.number for ref in refs)
