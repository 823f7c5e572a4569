import pytest
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from lb.slots import SlotRef, SlotsExhaustedError, SlotTable

SIZE = 4


def test_a_retired_slot_is_not_free_until_it_is_reclaimed() -> None:
    table = SlotTable(1)
    first = table.acquire()
    table.retire(first)
    with pytest.raises(SlotsExhaustedError):
        table.acquire()
    table.reclaim(table.take_retired())
    second = table.acquire()
    assert second.number == first.number
    assert second.generation != first.generation


def test_the_longest_unused_number_comes_first() -> None:
    table = SlotTable(3)
    first = table.acquire()
    table.retire(first)
    table.reclaim(table.take_retired())
    assert [table.acquire().number for _ in range(3)] == [1, 2, first.number]


def test_a_generation_that_wraps_is_never_zero() -> None:
    table = SlotTable(1)
    table._generations[0] = 2**32 - 1
    assert table.acquire().generation == 1


def test_retiring_twice_is_a_bug() -> None:
    table = SlotTable(1)
    old = table.acquire()
    table.retire(old)
    table.reclaim(table.take_retired())
    table.acquire()
    with pytest.raises(AssertionError, match="not the current life"):
        table.retire(old)


class Lives(RuleBasedStateMachine):
    """No two holders ever have the same number, and no reference comes twice."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(SIZE)
        self.alive: set[SlotRef] = set()
        self.seen: set[SlotRef] = set()
        self.retired = 0

    @rule(target=held)
    def acquire(self) -> SlotRef | None:
        try:
            ref = self.table.acquire()
        except SlotsExhaustedError:
            assert len(self.alive) + self.retired == SIZE
            return None
        assert ref not in self.seen
        assert ref.number not in {other.number for other in self.alive}
        self.seen.add(ref)
        self.alive.add(ref)
        return ref

    @rule(ref=consumes(held))
    def retire(self, ref: SlotRef | None) -> None:
        if ref is not None:
            self.table.retire(ref)
            self.alive.remove(ref)
            self.retired += 1

    @rule()
    def reclaim(self) -> None:
        taken = self.table.take_retired()
        self.counts()
        self.table.reclaim(taken)
        self.retired -= len(taken)

    @invariant()
    def counts(self) -> None:
        assert self.table.in_use == len(self.alive) + self.retired


TestLives = Lives.TestCase
