"""Numbers of a table: given out once, and found again when they come back."""

import random

import pytest

from lb.ranges import Ranges, TableFullError


def test_the_lowest_come_first_and_a_full_table_says_so() -> None:
    numbers = Ranges("backends", 3)
    assert [numbers.acquire() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TableFullError, match="the maps were loaded for 3 backends"):
        numbers.acquire()
    numbers.release(1)
    assert numbers.used == 2
    assert numbers.acquire() == 1


def test_several_stand_side_by_side() -> None:
    numbers = Ranges("rows", 8)
    assert (numbers.acquire(3), numbers.acquire(), numbers.acquire(3)) == (0, 3, 4)
    numbers.release(3)
    with pytest.raises(TableFullError):
        numbers.acquire(2)  # 3 and 7 are free
    numbers.release(0, 3)
    assert numbers.acquire(4) == 0


@pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 2), (0, 3), (-1, 1), (3, 2)])
def test_nothing_is_given_back_twice(first: int, count: int) -> None:
    numbers = Ranges("rows", 4)
    numbers.acquire(2)
    numbers.release(0)
    with pytest.raises(AssertionError):
        numbers.release(first, count)


@pytest.mark.parametrize("seed", range(20))
def test_nobody_gets_what_somebody_has_and_nothing_is_lost(seed: int) -> None:
    source = random.Random(seed)
    numbers = Ranges("places", 64)
    held: list[tuple[int, int]] = []
    taken: set[int] = set()
    for _ in range(500):
        if held and source.random() < 0.5:
            first, count = held.pop(source.randrange(len(held)))
            numbers.release(first, count)
            taken -= set(range(first, first + count))
        else:
            count = source.choice((1, 1, 2, 8))
            try:
                first = numbers.acquire(count)
            except TableFullError:
                continue
            mine = set(range(first, first + count))
            assert not mine & taken
            assert max(mine) < 64
            taken |= mine
            held.append((first, count))
        assert numbers.used == len(taken)
    for first, count in held:
        numbers.release(first, count)
    assert numbers.acquire(64) == 0
