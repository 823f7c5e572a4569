"""Clients by address: nobody is counted twice, forgotten, or remembered."""

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lb.server.census import Census
from lb.slots import SlotRef

ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::1")
PEOPLE = st.integers(0, 8)


class Person:
    def __init__(self, number: int) -> None:
        self.address = ADDRESSES[number % len(ADDRESSES)]
        self.ref = SlotRef(number % 5, number)


class Comings(RuleBasedStateMachine):
    """Anybody may come or leave at any time, more than once too."""

    def __init__(self) -> None:
        super().__init__()
        self.people = [Person(number) for number in range(9)]
        self.here: set[Person] = set()
        self.census: Census[Person] = Census()

    @rule(number=PEOPLE)
    def come(self, number: int) -> None:
        self.census.add(self.people[number])
        self.here.add(self.people[number])

    @rule(number=PEOPLE)
    def leave(self, number: int) -> None:
        self.census.discard(self.people[number])
        self.here.discard(self.people[number])

    @invariant()
    def counts(self) -> None:
        wanted = Counter(person.address for person in self.here)
        assert set(self.census) == self.here
        assert len(self.census) == len(self.here)
        assert {person for person in self.people if self.census.find(person.ref) is person} == self.here
        assert {address: self.census.at(address) for address in ADDRESSES} == {
            address: wanted[address] for address in ADDRESSES
        }

    @invariant()
    def nothing_is_kept_of_addresses_that_are_empty(self) -> None:
        assert self.census.addresses == len({person.address for person in self.here})
        assert set(self.census._addresses) == {person.address for person in self.here}


TestComings = Comings.TestCase
