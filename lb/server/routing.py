"""Where the programs would send messages, for the few that user space carries."""

from collections.abc import Collection, Sequence

from lb import maglev
from lb.backends import Backend
from lb.framing import Message
from lb.routing import key_hash
from lb.server.context import Listening


class SeveralBackendsError(Exception):
    """Not all of the messages are for the same backend."""


def backend_of(
    listening: Listening, messages: Sequence[Message], address: bytes, among: Collection[Backend]
) -> Backend:
    """The backend of those given that has all of the messages.

    Args:
        listening: where the messages came in; its pool is hashed.
        messages: whole ones.
        address: of their client, in network byte order.
        among: the backends that can be sent to.

    Raises:
        SeveralBackendsError: no single one has them.
    """
    pool = listening.pool
    by = pool.config.hash
    assert by is not None
    if not pool.table:  # a name has brought the first backends a moment ago
        raise SeveralBackendsError
    wanted = set()
    for message in messages:
        first = maglev.place(key_hash(by.key.of(message.data, address)))
        members = (pool.table[place] for place in maglev.walk(first))
        its = (pool.members.at(member) for member in members)
        wanted.add(next((backend for backend in its if backend in among), None))
    (backend, *others) = wanted
    if others or backend is None:
        raise SeveralBackendsError
    return backend
