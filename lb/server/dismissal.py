"""Upstreams that are not needed any more: their backend leaves, is taken out, or its level does not serve.

They are closed, and not kept for the next time: a client has room for 32, and those of the level that does
serve may need it.
"""

from typing import TYPE_CHECKING

from lb import abi
from lb.server.ending import finish_alone, lose
from lb.server.upstream import Upstream
from lb.server.waiting import patience, until
from lb.session import State

if TYPE_CHECKING:
    from lb.backends import Backend
    from lb.server.client import Client


async def part(client: "Client", backend: "Backend") -> None:
    """Ends a client's upstream to a backend that has left the pool, if there is one.

    As :func:`dismiss`, but it does not wait for ever: when nothing has moved for ``timeouts.drain``, what is
    outstanding is lost, and told.
    """
    client.forget_attempts(backend)
    if backend not in client.upstreams:
        client.vacancies.withdraw(backend)
    upstream = client.upstreams.get(backend)
    if upstream is None:
        return
    if upstream.mapped is None:
        upstream.close()
        client.upstream_failed(upstream)
        return
    try:
        async with patience(client.timeouts.drain, upstream.progress):
            await dismiss(client, upstream)
    except TimeoutError:
        if client.upstreams.get(backend) is upstream and upstream.state is State.SPLICED:
            upstream.leave_route()
            await lose(client, upstream, "drain_timeout")


async def dismiss(client: "Client", upstream: Upstream) -> None:
    """Ends an upstream in good order when it owes nothing, unless its backend serves again by then.

    No program may still see that its backend had a weight (:meth:`Quiescence.wait`): then an upstream without
    outstanding requests gets no more.
    """
    backend, mapped = upstream.backend, upstream.mapped

    def ended() -> bool:
        return client.upstreams.get(backend) is not upstream or backend.serving

    if client.state is not State.SPLICED or mapped is None:
        return  # it ends with its client, or is an attempt, which is not repeated
    await until(lambda: ended() or mapped.outstanding == 0)
    if not ended() and upstream.state is State.SPLICED:
        client.forget(upstream)
        upstream.leave_route()
        if len(client.upstreams) == abi.MAX_UPSTREAMS - 1:
            client.complete()  # one that came found no room, perhaps
        await finish_alone(upstream)
