"""Who has which rate, and when those that wait for one go on.

The programs take the tokens (``bpf/lb_rate.h``); here a bucket is assigned to each listener, and to each
address that clients of a listener come from. An address keeps its bucket when its last client has left, so
that coming back does not fill it. When all numbers are taken, the address that has been away longest loses
its own: its bucket is new, and full, when it comes back. There is a number for each client that can be
connected and as many again, so one that is connected never lacks any.

A client that waits for a rate is looked at when there is a token for it: those that wait for the same one get
turns, an interval apart.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from lb import config
from lb.dataplane.rates import Rates
from lb.ranges import TableFullError

_SECOND = 1e9
_NOBODY = frozenset[int]()

Key = tuple[str, str]  # listener, IP address


@dataclass(slots=True, eq=False)
class Throttle:
    """What holds a client back: its numbers, and those of them for which its messages wait."""

    rate: int = 0
    address_rate: int = 0
    waits_for: frozenset[int] = _NOBODY
    denied_by: frozenset[int] = _NOBODY  # those over which they are dropped
    key: Key | None = None


@dataclass(slots=True)
class _Queue:
    """Clients that wait for one rate, and when the last of them has its turn."""

    waiting: set[Throttle] = field(default_factory=set)
    last: int = 0


class Buckets:
    """Assigns the numbers of rates."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._next = 1
        self._spare: list[int] = []
        self._set_to: dict[Key, config.Rate] = {}
        self._numbers: dict[Key, int] = {}
        self._clients: dict[Key, int] = {}  # how many of an address are connected
        self._away: OrderedDict[Key, None] = OrderedDict()  # the one that left first is first
        self._queues: dict[int, _Queue] = {}

    def change(self, number: int, rate: config.Rate) -> None:
        """Another rate for those who have a number; they begin with a full bucket."""
        self._set(number, rate)

    def release(self, number: int) -> None:
        """Takes back a number of :meth:`new` that no program can mean any more."""
        self._spare.append(number)

    def new(self, rate: config.Rate) -> int:
        """A number of a listener's own.

        Raises:
            TableFullError: there is none.
        """
        number = self._new_number()
        self._set(number, rate)
        return number

    def join(self, listener: config.Listener, number: int, address: str) -> Throttle:
        """A client comes; ``number`` is the listener's rate, 0 for none."""
        limits = listener.limits
        throttle = Throttle(number)
        if limits.rate is None and limits.rate_per_address is None:
            return throttle
        numbers: dict[config.Over, set[int]] = {config.Over.WAIT: set(), config.Over.DENY: set()}
        if limits.rate is not None:
            numbers[limits.rate.over].add(number)
        if limits.rate_per_address is not None:
            throttle.key = (listener.name, address)
            throttle.address_rate = self._acquire(throttle.key, limits.rate_per_address)
            numbers[limits.rate_per_address.over].add(throttle.address_rate)
        throttle.waits_for = frozenset(numbers[config.Over.WAIT])
        throttle.denied_by = frozenset(numbers[config.Over.DENY])
        return throttle

    def leave(self, throttle: Throttle) -> None:
        """A client has left."""
        self.go_on(throttle)
        key = throttle.key
        if key is None:
            return
        self._clients[key] -= 1
        if not self._clients[key]:
            del self._clients[key]
            self._away[key] = None

    def ready(self, throttle: Throttle) -> bool:
        """Whether one message of a client need not wait now."""
        return self._have_token(throttle.waits_for)

    def denies(self, throttle: Throttle) -> bool:
        """Whether one message of a client would be denied now."""
        return not self._have_token(throttle.denied_by)

    def _have_token(self, numbers: frozenset[int]) -> bool:
        now = self._rates.now()
        return all(self._rates.ready_at(number) <= now for number in numbers)

    def charged(self, throttle: Throttle) -> list[int]:
        """Numbers that change when its rates are charged."""
        numbers = (throttle.rate, throttle.address_rate)
        return [self._rates.ready_at(number) for number in numbers if number]

    def turn(self, throttle: Throttle) -> float:
        """Seconds until there should be a token for a client that waits."""
        now = self._rates.now()
        return max((self._turn(number, throttle, now) for number in throttle.waits_for), default=0) / _SECOND

    def go_on(self, throttle: Throttle) -> None:
        """A client waits no more."""
        for number in throttle.waits_for:
            queue = self._queues.get(number)
            if queue is not None:
                queue.waiting.discard(throttle)
                if not queue.waiting:
                    del self._queues[number]

    def _turn(self, number: int, throttle: Throttle, now: int) -> int:
        queue = self._queues.setdefault(number, _Queue())
        queue.waiting.add(throttle)
        interval = self._rates.interval(number)
        first = max(self._rates.ready_at(number), now)
        # Behind the others; but turns that nobody took do not count.
        queue.last = min(max(queue.last + interval, first), first + interval * (len(queue.waiting) - 1))
        return queue.last - now

    def _acquire(self, key: Key, rate: config.Rate) -> int:
        self._clients[key] = self._clients.get(key, 0) + 1
        self._away.pop(key, None)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._new_number()
        if self._set_to.get(key) != rate:
            self._set_to[key] = rate
            self._set(number, rate)
        return number

    def _new_number(self) -> int:
        if self._spare:
            return self._spare.pop()
        if self._next < self._rates.size:
            self._next += 1
            return self._next - 1
        if not self._away:
            raise TableFullError("rates", self._rates.size)
        key, _ = self._away.popitem(last=False)
        del self._set_to[key]
        return self._numbers.pop(key)

    def _set(self, number: int, rate: config.Rate) -> None:
        self._rates.set(
            number,
            messages_per_second=rate.messages_per_second,
            burst=rate.burst,
            deny=rate.over is config.Over.DENY,
        )
