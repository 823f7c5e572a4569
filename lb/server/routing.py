"""Where the programs would send messages, for the few that user space carries."""

from collections.abc import Callable, Collection, Mapping, Sequence

from lb import maglev, rules
from lb.backends import Backend
from lb.dataplane.rules import DENY, Decision, to_pool
from lb.framing import Message
from lb.routing import key_hash
from lb.rules import Action, Deny, Target
from lb.server.context import Listening, Pool


class SeveralBackendsError(Exception):
    """Not all of the messages are for the same backend."""


_NOBODY: Mapping[str, Sequence[Backend]] = {}


def decisions(
    pools: Mapping[str, Pool], coming: Mapping[str, Sequence[Backend]] = _NOBODY
) -> Callable[[Action], int]:
    """What the actions of rules mean to the programs.

    Args:
        pools: by name.
        coming: backends that are about to join them, by pool; one of the same name leaves.
    """

    def decision(action: Action) -> int:
        if isinstance(action, Deny):
            return DENY
        assert isinstance(action, Target)
        pool = pools[action.pool]
        if action.backend is None:
            return to_pool(pool.index)
        backends = (*coming.get(action.pool, ()), *pool.backends)
        index = next(backend.index for backend in backends if backend.name == action.backend)
        return to_pool(pool.index, index)

    return decision


def decide(listening: Listening, message: bytes, address: bytes) -> Decision:
    """What the programs decide on a whole message.

    Args:
        listening: where it came in.
        message: all of it.
        address: of its client, in network byte order.
    """
    action = rules.decide(listening.config.rules, message, address)
    if action is None:
        return Decision(listening.pool.index)
    word = decisions({pool.config.name: pool for pool in listening.pools})(action)
    decision = Decision.of(word)
    assert decision is not None
    return decision


def denies(listening: Listening, message: bytes, address: bytes) -> bool:
    """Whether a rule denies a whole message of a client."""
    return bool(listening.config.rules) and decide(listening, message, address).denied


def pool_of(listening: Listening, decision: Decision | None) -> Pool:
    """The pool that a message is for; None: there are no rules."""
    if decision is None:
        return listening.pool
    return next(pool for pool in listening.pools if pool.index == decision.pool)


def fits(listening: Listening, decision: Decision | None, backend: Backend) -> bool:
    """Whether a message may go to a backend, by the rules; None: there are none."""
    if decision is not None and decision.backend is not None:
        return backend.index == decision.backend
    return backend.pool == pool_of(listening, decision).config.name


def candidates(
    listening: Listening, messages: Sequence[Message], address: bytes, among: Sequence[Backend]
) -> list[Backend]:
    """The backends of those given to each of which all of the messages may go; none if it is not there.

    Args:
        listening: where the messages came in.
        messages: whole ones; those that rules deny go nowhere.
        address: of their client, in network byte order.
        among: the backends that can be sent to.

    Raises:
        SeveralBackendsError: there are some for each message, but none for all.
    """
    found = list(among)
    for message in messages:
        decision = decide(listening, message.data, address)
        if decision.denied:
            continue
        its = _candidates(listening, decision, message.data, address, among)
        if not its:
            return []
        found = [backend for backend in found if backend in its]
    if among and not found:
        raise SeveralBackendsError
    return found


def _candidates(
    listening: Listening, decision: Decision, message: bytes, address: bytes, among: Collection[Backend]
) -> list[Backend]:
    its = [backend for backend in among if fits(listening, decision, backend)]
    pool = pool_of(listening, decision)
    by = pool.config.hash
    if by is None or decision.backend is not None:
        return its
    if not pool.table:  # a name has brought the first backends a moment ago
        raise SeveralBackendsError
    first = maglev.place(key_hash(by.key.of(message, address)))
    members = (pool.members.at(pool.table[place]) for place in maglev.walk(first))
    owner = next((backend for backend in members if backend in its), None)
    return [] if owner is None else [owner]
