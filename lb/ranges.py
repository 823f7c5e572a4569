"""Numbers of places in tables that were sized once, given out one by one or several side by side.

The lowest free ones first: what is free stays together, so a table that has room for many finds them side by
side. A number that comes back is free at once: who gives it back has made sure that nobody refers to it.
"""

from bisect import bisect


class TableFullError(RuntimeError):
    """A table has no room for what is asked for."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__(f"the maps were loaded for {size} {kind}")
        self.kind = kind
        self.size = size


class Ranges:
    """Gives out the numbers ``0 .. size - 1`` of a table."""

    def __init__(self, kind: str, size: int) -> None:
        """``kind``: what the numbers stand for, in the plural."""
        self.kind = kind
        self.size = size
        self._free = [(0, size)] if size else []  # (first, one past the last), in order, never adjacent

    @property
    def used(self) -> int:
        """How many somebody has."""
        return self.size - sum(end - first for first, end in self._free)

    def acquire(self, count: int = 1) -> int:
        """The first of ``count`` numbers side by side.

        Raises:
            TableFullError: there are none.
        """
        for place, (first, end) in enumerate(self._free):
            if end - first >= count:
                self._free[place : place + 1] = [(first + count, end)] if end - first > count else []
                return first
        raise TableFullError(self.kind, self.size)

    def release(self, first: int, count: int = 1) -> None:
        """Gives numbers back."""
        end = first + count
        place = bisect(self._free, (first, end))
        assert 0 <= first < end <= self.size, f"{self.kind}: {first} to {end} do not exist"
        if place < len(self._free):
            assert end <= self._free[place][0], f"{self.kind}: {first} to {end} are free already"
            if end == self._free[place][0]:
                end = self._free.pop(place)[1]
        if place:
            before = self._free[place - 1]
            assert before[1] <= first, f"{self.kind}: {first} to {end} are free already"
            if before[1] == first:
                place -= 1
                first = self._free.pop(place)[0]
        self._free.insert(place, (first, end))
