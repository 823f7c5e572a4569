"""Rules as the programs read them (``bpf/lb_rules.h``).

The tests of a listener's rules stand side by side in ``lb_tests``; where they start is one word in
``lb_rules``, so that other rules take their place in one store. A program that runs at that moment may still
follow the old ones: they are freed after a grace period.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lb import abi
from lb.libbpf import ArrayMap, Object
from lb.ranges import Ranges
from lb.rules import Action, Bytes, Rule, Suffix, Test

MAX_TESTS = abi.MAX_TESTS
_DECIDED, _DENY = 1 << 56, 1 << 57
_INCOMPLETE = _ONES = (1 << 64) - 1
_WORD = 8
_VERSION = 2  # the number of the word of an address that says which version of IP it is of
DENY = _DECIDED | _DENY


def to_pool(pool: int, backend: int | None = None) -> int:
    """The decision for a pool, or for one backend of it, by their indices (``bpf/lb_decide.h``)."""
    return _DECIDED | pool << 48 | (0 if backend is None else backend + 1) << 32


def address_words(address: bytes) -> tuple[int, int, int]:
    """An address in network byte order as the programs compare it; b"" is of no version."""
    whole = address.ljust(2 * _WORD, b"\0")
    first, second = (int.from_bytes(part, "little") for part in (whole[:_WORD], whole[_WORD:]))
    return first, second, {4: 4, 16: 6}.get(len(address), 0)


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided on a message."""

    pool: int
    backend: int | None = None  # None: whichever of the pool
    denied: bool = False
    undecided: bool = False  # its first bytes have not all arrived

    @classmethod
    def of(cls, word: int) -> "Decision | None":
        """Reads what programs keep; None: nothing was decided yet."""
        if word == _INCOMPLETE:
            return cls(0, undecided=True)
        if not word & _DECIDED:
            return None
        backend = word >> 32 & 0xFFFF
        return cls(word >> 48 & 0xFF, backend - 1 if backend else None, denied=bool(word & _DENY))


@dataclass(frozen=True, slots=True)
class Range:
    """Where the tests of some rules stand."""

    first: int
    count: int


class Rules:
    """Publishes what the rules of listeners are, by number; 0 stands for none."""

    def __init__(self, loaded: Object) -> None:
        self._rules = loaded.map("lb_rules", ArrayMap).view(abi.Rules)
        self._tests = loaded.map("lb_tests", ArrayMap).view(abi.Test)
        self._numbers = Ranges("listeners with rules", len(self._rules) - 1)
        self._ranges = Ranges("tests of rules", len(self._tests))
        self._current: dict[int, Range] = {}

    def publish(self, tests: Sequence[abi.Test]) -> int:
        """Makes the rules of a listener known; returns their number.

        Args:
            tests: from :func:`encode`.

        Raises:
            lb.ranges.TableFullError: the maps were not loaded for so many.
        """
        range_ = self.reserve(tests)
        try:
            number = 1 + self._numbers.acquire()
        except RuntimeError:
            self.free(range_)
            raise
        self._current[number] = range_
        self._rules[number].first = range_.first
        return number

    def replace(self, number: int, tests: Sequence[abi.Test]) -> Range:
        """Puts other rules in the place of those of a number, in one step.

        Returns:
            Where the old ones stand; to be given to :meth:`free` after a grace period.

        Raises:
            lb.ranges.TableFullError: as for :meth:`publish`; the old rules stay.
        """
        return self.switch(number, self.reserve(tests))

    def switch(self, number: int, to: Range) -> Range:
        """The second half of :meth:`replace`, with what :meth:`reserve` gave; cannot fail."""
        old, self._current[number] = self._current[number], to
        self._rules[number].first = to.first
        return old

    def withdraw(self, number: int) -> None:
        """No client has a number any more, and no program runs that knew one."""
        self.free(self._current.pop(number))
        self._numbers.release(number - 1)

    def free(self, old: Range) -> None:
        """No program follows these any more."""
        self._ranges.release(old.first, old.count)

    def reserve(self, tests: Sequence[abi.Test]) -> Range:
        """Puts tests where nobody follows them yet.

        Raises:
            lb.ranges.TableFullError: there is no room.
        """
        first = self._ranges.acquire(len(tests))
        for place, test in enumerate(tests, first):
            entry = abi.Test.from_buffer_copy(test)
            entry.then += first
            entry.otherwise += first
            self._tests[place] = entry
        return Range(first, len(tests))


@dataclass(slots=True)
class _Step:
    """A test, and the labels of those that follow it."""

    test: abi.Test
    then: int
    otherwise: int


class _Program:
    """Tests under construction: labels become places when all are known."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._places: list[int] = []  # by label

    def label(self) -> int:
        """A place that is not known yet."""
        self._places.append(-1)
        return len(self._places) - 1

    def here(self, label: int) -> None:
        """A label stands for the test that comes next."""
        self._places[label] = len(self._steps)

    def add(self, test: abi.Test, then: int, otherwise: int) -> None:
        """One test more; both are labels."""
        self._steps.append(_Step(test, then, otherwise))

    def finish(self) -> list[abi.Test]:
        """The tests, with the places relative to the first."""
        for step in self._steps:
            step.test.then = self._places[step.then]
            step.test.otherwise = self._places[step.otherwise]
        return [step.test for step in self._steps]


def encode(rules: Sequence[Rule], decisions: Callable[[Action], int], default: int) -> list[abi.Test]:
    """The tests of rules, in their order.

    Args:
        rules: of a listener.
        decisions: what an action means: :data:`DENY`, or :func:`to_pool`.
        default: what becomes of a message that no rule matches.
    """
    program = _Program()
    for rule in rules:
        _encode_rule(program, rule, decisions(rule.action))
    end = program.label()
    program.here(end)
    program.add(abi.Test(subject=abi.Subject.NONE, decision=default), end, end)
    tests = program.finish()
    names = (abi.Subject.NAME, abi.Subject.LABEL)
    tests[0].names = any(test.subject in names for test in tests)
    return tests


def count(rules: Sequence[Rule]) -> int:
    """How many tests rules are made of."""
    return len(encode(rules, lambda _: DENY, DENY))


def _encode_rule(program: _Program, rule: Rule, decision: int) -> None:
    fails = program.label()
    conditions = rule.conditions or ((),)
    for place, alternatives in enumerate(conditions, 1):
        last = place == len(conditions)
        holds = program.label()
        for number, test in enumerate(alternatives, 1):
            otherwise = fails if number == len(alternatives) else program.label()
            *parts, final = _parts(test)
            for part in parts:
                follows = program.label()
                program.add(part, follows, otherwise)
                program.here(follows)
            final.decision = decision if last else 0
            program.add(final, holds, otherwise)
            if otherwise != fails:
                program.here(otherwise)
        if not alternatives:
            program.add(abi.Test(subject=abi.Subject.NONE, decision=decision), holds, fails)
        program.here(holds)
    program.here(fails)


def _parts(test: Test) -> Iterator[abi.Test]:
    """What has to hold one after the other, at least one."""
    if isinstance(test, Bytes):
        for at in range(0, len(test.mask), _WORD):
            mask, value = test.mask[at : at + _WORD], test.value[at : at + _WORD]
            yield _test(abi.Subject.MESSAGE, test.offset + at, mask, value)
    elif isinstance(test, Suffix):
        # From the end: where it starts depends on the name. What stands in front of a name that is too short
        # is compared too, but no label starts there.
        labels = test.labels
        for end in range(len(labels), 0, -_WORD):
            value = labels[max(0, end - _WORD) : end]
            mask = b"\xff" * len(value)
            back = len(labels) - end + _WORD
            yield _test(abi.Subject.NAME, back, mask.rjust(_WORD, b"\0"), value.rjust(_WORD, b"\0"))
        yield abi.Test(subject=abi.Subject.LABEL, offset=len(labels))
    else:
        network = test.network
        masks, values = address_words(network.netmask.packed), address_words(network.network_address.packed)
        for word, (ones, wanted) in enumerate(zip(masks, values, strict=True)):
            if word == _VERSION:
                yield abi.Test(mask=_ONES, value=wanted, subject=abi.Subject.CLIENT, offset=word)
            elif ones:
                yield abi.Test(mask=ones, value=wanted, subject=abi.Subject.CLIENT, offset=word)


def _test(subject: abi.Subject, offset: int, mask: bytes, value: bytes) -> abi.Test:
    return abi.Test(
        mask=int.from_bytes(mask, "little"),
        value=int.from_bytes(value, "little"),
        subject=subject,
        offset=offset,
        width=len(mask),
    )
