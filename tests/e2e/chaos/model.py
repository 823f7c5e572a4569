"""What is allowed. Pure: histories in, objections out.

A request reaches backends at most once; an answer reaches its asker only, and once unless its backend said
it twice; all arrive as they were made. What a client that did nothing wrong asked is answered, or its
connection is ended by the balancer. What it said without asking for an answer arrives, or the counter of
dropped messages grows. Nobody is told of an error unless one of its backends failed in its time.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.e2e.chaos.history import ClientHistory, End, UpstreamHistory
from tests.e2e.chaos.wire import AGAIN, FIRST, FORGED, NO_SEQUENCE

# Seconds by which a failure may precede or follow the life of a client that it concerns: the balancer hears
# of it later than the backend that caused it, and the client later still.
_SLACK = 1.0
# The same for a client that was not let in: a backend that died stays away for 1.5 s, and is then found.
_ABSENCE = 3.0
_TOLD = {End.RESET, End.EOF, End.REFUSED}
_SHOWN = 20  # objections that are spelled out


@dataclass(slots=True)
class Verdict:
    """Counts of messages, and what must not be; see :meth:`objections`."""

    clients: int = 0
    sent: int = 0
    silent: int = 0
    arrived: int = 0
    answered: int = 0
    reported: int = 0  # unanswered, and the connection was ended by the balancer
    dropped: int = 0  # by the balancer's own count
    extra: int = 0  # second and forged answers that reached the client whose upstream they came on
    silent_missing: int = 0  # at no backend, of clients that were told nothing
    unread: int = 0  # messages that the kernel of a dead backend had, so that nobody can know of them
    ends: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    doubled: int = 0
    astray: int = 0
    corrupted: int = 0
    reordered: int = 0
    unearned: int = 0  # errors of clients whose messages touched no backend that failed
    tolerated: int = 0  # malformed clients that were not shut out
    leaks: int = 0  # found by others: what is not back at base
    texts: list[str] = field(default_factory=list)

    WRONGS = ("missing", "doubled", "astray", "corrupted", "reordered", "unearned", "tolerated", "leaks")

    def object(self, wrong: str, count: int, text: str) -> None:
        """Note what must not be."""
        if count:
            setattr(self, wrong, getattr(self, wrong) + count)
            if len(self.texts) < _SHOWN:
                self.texts.append(f"{wrong}: {text}")

    @property
    def objections(self) -> dict[str, int]:
        """What must not be, how often."""
        return {wrong: count for wrong in self.WRONGS if (count := getattr(self, wrong))}

    def add(self, other: "Verdict") -> None:
        """Sum up two rounds."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, list):
                mine.extend(theirs[: _SHOWN - len(mine)])
            elif isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, name, mine + theirs)


class Touch:
    """Which clients a failure of a backend concerns."""

    def __init__(self, upstreams: Iterable[UpstreamHistory]) -> None:
        self._failed: set[int] = set()
        self._deceived: set[int] = set()
        self._alone: set[int] = set()
        # When backends failed: a message may have waited for the one that died, or found none alive.
        self._failures: list[float] = []
        for upstream in upstreams:
            owners = {client for client, _ in (*upstream.reads, *upstream.unread)}
            if len(owners) == 1:
                self._alone |= owners
            if upstream.deceived:
                self._deceived |= owners
            if upstream.failed is None:
                continue
            self._failed |= owners
            self._failures.append(upstream.failed)

    def deceived(self, history: ClientHistory) -> bool:
        """Whether one of its backends said what nobody had asked."""
        return history.client in self._deceived

    def shares(self, history: ClientHistory) -> bool:
        """Whether all its upstreams carried messages of others too: it gets answers that it asked for only.

        One that closed its side at once is relayed by a connection of its own.
        """
        return history.shared and history.client not in self._alone

    def failed(self, history: ClientHistory) -> bool:
        """Whether an error of this client may be a backend's fault."""
        slack = _ABSENCE if history.end is End.REFUSED else _SLACK
        since, until = history.began - slack, history.ended + slack
        return (
            history.client in self._failed
            or history.client in self._deceived
            or any(since <= when <= until for when in self._failures)
        )


def judge(clients: Sequence[ClientHistory], upstreams: Sequence[UpstreamHistory], dropped: int) -> Verdict:
    """Judge a time at whose end nothing was on its way any more.

    Args:
        clients: every connection that was tried.
        upstreams: every connection that a backend accepted.
        dropped: by how much the counter of dropped messages grew.
    """
    verdict = Verdict(clients=len(clients), dropped=dropped)
    known = {history.client: history for history in clients}
    reads = _judge_reads(verdict, known, upstreams)
    touch = Touch(upstreams)
    for history in clients:
        _judge_answers(verdict, history, touch)
        _judge_promises(verdict, history, touch, reads[history.client])
    verdict.object(
        "missing",
        max(0, verdict.silent_missing - dropped),
        f"{verdict.silent_missing} messages without a response did not arrive, {dropped} were counted",
    )
    return verdict


def _judge_reads(
    verdict: Verdict, known: dict[int, ClientHistory], upstreams: Iterable[UpstreamHistory]
) -> dict[int, set[int]]:
    """The sequences that reached a backend, by client."""
    reads: dict[int, set[int]] = defaultdict(set)
    for upstream in upstreams:
        verdict.object(
            "corrupted", upstream.corrupted, f"{upstream.corrupted} requests at {upstream.backend}"
        )
        verdict.unread += len(upstream.unread)
        for client, sequence in upstream.unread:
            reads[client].add(sequence)
        for client, sequence in upstream.reads:
            verdict.arrived += 1
            if client not in known or sequence >= len(known[client].sent):
                verdict.object("astray", 1, f"{upstream.backend} read {client}/{sequence}, which nobody sent")
            elif sequence in reads[client]:
                verdict.object("doubled", 1, f"{upstream.backend} read {client}/{sequence} once more")
            reads[client].add(sequence)
    return reads


def _judge_answers(verdict: Verdict, history: ClientHistory, touch: Touch) -> None:
    """What came is what was asked."""
    who = f"{history.behaviour} client {history.client}"
    verdict.object("corrupted", history.corrupted, f"{history.corrupted} answers at {who}")
    verdict.object("astray", len(history.foreign), f"{who} got answers for {history.foreign[:5]}")
    seen: set[tuple[int, int]] = set()
    latest = -1
    shares = touch.shares(history)
    for sequence, copy in history.answers:
        if copy == FORGED and sequence == NO_SEQUENCE:
            verdict.extra += 1
            verdict.object("astray", shares, f"{who} got what was made up, by a shared upstream")
        elif sequence >= len(history.sent) or history.sent[sequence]:
            verdict.object("astray", 1, f"{who} got an answer to {sequence}, which it did not ask")
        elif (sequence, copy) in seen:
            verdict.object("doubled", 1, f"{who} got the answer to {sequence} once more")
        elif copy != FIRST:
            verdict.extra += 1
            twice = shares and (sequence, FIRST) in seen
            verdict.object("doubled", twice, f"{who} got both answers to {sequence} by a shared upstream")
        else:
            # A backend that says too much moves the count by which first comes first served is kept.
            if history.fifo and sequence < latest and not touch.deceived(history):
                verdict.object("reordered", 1, f"{who} got the answer to {sequence} after {latest}")
            latest = max(latest, sequence)
            twice = shares and (sequence, AGAIN) in seen
            verdict.object("doubled", twice, f"{who} got both answers to {sequence} by a shared upstream")
        seen.add((sequence, copy))


def _judge_promises(verdict: Verdict, history: ClientHistory, touch: Touch, arrived: set[int]) -> None:
    """What was asked is answered, or the client knows that it is not."""
    who = f"{history.behaviour} client {history.client} ({history.end.value})"
    silent = sum(history.sent)
    verdict.sent += len(history.sent)
    verdict.silent += silent
    verdict.ends[history.end.value] += 1
    answers = {sequence for sequence, _ in history.answers if sequence != NO_SEQUENCE}
    verdict.answered += len(answers)
    if not history.well:
        shut_out = history.end in _TOLD or history.end is End.GONE
        verdict.object("tolerated", not shut_out, f"{who} went on after what was no message")
        return
    unanswered = len(history.sent) - silent - len(answers)
    if history.end in _TOLD:
        verdict.reported += max(0, unanswered)
        verdict.object("unearned", not touch.failed(history), f"{who} touched no backend that failed")
        return
    if history.end is End.GONE:
        return
    verdict.object("missing", unanswered, f"{unanswered} of {len(history.sent)} requests of {who}")
    if history.end is End.WAITING and not unanswered:
        verdict.object("missing", 1, f"{who} got all its answers, but no end")
    if history.complete:
        verdict.silent_missing += sum(
            1 for sequence, mark in enumerate(history.sent) if mark and sequence not in arrived
        )
