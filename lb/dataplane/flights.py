"""The requests that are outstanding on shared upstreams (``bpf/lb_flight.h``).

An upstream has a table in ``lb_flights``. Programs take a place for a request and free it with its response;
user space looks, and marks requests that it has given up. It never frees a place as long as programs may use
the table.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from lb import abi
from lb.slots import SlotRef

_FLIGHT = struct.Struct("=IIQQIIQ8x")
_FEWEST = 64
assert _FLIGHT.size == abi.FLIGHT_SIZE


@dataclass(frozen=True, slots=True)
class Flight:
    """A request as it stands in the table."""

    place: int
    id: int  # that the backend sees
    client: SlotRef
    time: int  # microseconds, 32 bits of the monotonic clock
    given_up: bool


def table_size(max_in_flight: int) -> int:
    """Places for a limit: a power of two, and twice as many, as requests that were given up keep theirs.

    So do messages that had begun to come in when the limit was reached.
    """
    return max(_FEWEST, 1 << (2 * max_in_flight - 1).bit_length())


class FlightTable:
    """The places of one upstream at a time."""

    def __init__(self, flights: abi.Flights, first: int, size: int) -> None:
        self.first = first
        self.size = size
        self._flights = flights
        width = _FLIGHT.size
        self._bytes = memoryview(flights).cast("B")[first * width : (first + size) * width]

    def taken(self, start: int = 0, end: int | None = None) -> Iterator[Flight]:
        """The requests in some of the places, all of them by default; a copy, made when it is asked for."""
        end = self.size if end is None else end
        copy = bytes(self._bytes[start * _FLIGHT.size : end * _FLIGHT.size])
        for place, flight in enumerate(_FLIGHT.iter_unpack(copy), start):
            state, time, ident, _, client, generation, given_up = flight
            if state != abi.FlightState.FREE:
                yield Flight(place, ident, SlotRef(client, generation), time, given_up == ident + 1)

    def give_up(self, flight: Flight) -> None:
        """Makes the response to a request a late one. If it came meanwhile, this means nobody."""
        self._flights[self.first + flight.place].given_up = flight.id + 1

    def holds(self, flight: Flight) -> bool:
        """Whether the request is still there."""
        entry = self._flights[self.first + flight.place]
        return entry.state != abi.FlightState.FREE and entry.id == flight.id

    def clear(self) -> None:
        """Frees all places; no program may know the table any more."""
        self._bytes[:] = bytes(len(self._bytes))
