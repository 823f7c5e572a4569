"""Who is connected to a listener."""

from collections import Counter
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from lb.slots import SlotRef


class Resident(Protocol):
    """Who is counted, once."""

    @property
    def address(self) -> str:
        """The IP address that it comes from; stays the same."""

    @property
    def ref(self) -> SlotRef:
        """Its own as long as it is there."""


R = TypeVar("R", bound=Resident)


class Census(Generic[R]):
    """The clients of a listener, and how many come from each address.

    Nothing is kept of an address that nobody comes from any more: there are more addresses than memory.
    """

    __slots__ = ("_addresses", "_clients")

    def __init__(self) -> None:
        self._clients: dict[SlotRef, R] = {}
        self._addresses: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[R]:
        return iter(self._clients.values())

    def add(self, client: R) -> None:
        """A client has come; one that is there already is not counted twice."""
        if client.ref not in self._clients:
            self._clients[client.ref] = client
            self._addresses[client.address] += 1

    def discard(self, client: R) -> None:
        """A client has left, if it was there."""
        if self._clients.pop(client.ref, None) is not None:
            self._addresses[client.address] -= 1
            if not self._addresses[client.address]:
                del self._addresses[client.address]

    def find(self, ref: SlotRef) -> R | None:
        """Whose slot that is."""
        return self._clients.get(ref)

    def at(self, address: str) -> int:
        """How many clients come from an address."""
        return self._addresses[address]

    @property
    def addresses(self) -> int:
        """How many addresses the clients come from."""
        return len(self._addresses)
