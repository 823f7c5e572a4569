"""How connections end, and in which order.

* The client sends FIN, and all is answered (:func:`at_once`): every connection is closed, and FIN goes on to
  each backend. This is the rule.
* The client sends FIN before that (:func:`after_peer`): what it sent gets its verdict, each upstream's
  backlog runs empty, FIN goes on to each backend, their answers come until they end too, and the client gets
  its FIN last.
* We want it to end (:func:`after_outstanding`): the client is paused for good, what is outstanding is
  answered, and the client gets FIN, and RST if it had sent more.
* The client is reset, or sends what is no message (:func:`abandon`): its own connection ends at once; whole
  messages that it had sent before still reach the backends. Their answers are dropped, and counted by the
  verdict.
* A backend ends or is reset (:func:`lose`): if requests were outstanding there, their answers cannot come
  any more. Each is answered by an error where the protocol has one; else a reset of the client's connection
  is how it is told. If none were outstanding, the upstream is replaced.

A source that is paused when its peer's FIN comes cannot go back to the kernel: user space forwards what waits
on it (:mod:`lb.server.takeover`).

The kernel gives no event when a backlog has run empty, hence the waits. They end when nothing has moved for
the pool's drain timeout; what is cut off is closed with RST, because closing a socket that has a backlog
sends a clean FIN.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from lb.framing import Direction, error_reply
from lb.server import faults, takeover
from lb.server.upstream import Upstream
from lb.server.waiting import patience, until
from lb.session import Event, State, step

if TYPE_CHECKING:
    from lb.server.client import Client

_log = logging.getLogger(__name__)

_FIN = 1  # counts as a byte received


def at_once(client: "Client") -> bool:
    """The client has sent FIN, and as a rule all is answered by then: nothing has to be waited for.

    Returns:
        Whether it was so; the client is closed then.
    """
    mapped = client.mapped
    if (
        mapped is None
        or client.state is not State.SPLICED
        or mapped.paused
        or mapped.passed_messages
        or not mapped.all_answered
        or not all(upstream.at_rest for upstream in client.upstreams.values() if upstream.mapped)
    ):
        return False
    client.state = step(client.state, Event.ENDING)
    client.close(Event.ENDED)
    return True


async def after_peer(client: "Client") -> None:
    """The client has sent FIN."""
    mapped = client.mapped
    assert mapped is not None
    try:
        async with patience(client.listening.timeouts.drain, client.progress):
            # An incomplete last message ends this wait too: the strparser gives it up with an error.
            await until(_closed(client, lambda: mapped.undecided <= _FIN or bool(mapped.paused)))
            if mapped.paused and client.state is not State.CLOSED:
                reason = await takeover.forward(
                    client.listening.services,
                    mapped,
                    client.listening.config.framing,
                    Direction.REQUEST,
                    room=client.may_send,
                    ended=lambda: client.state is State.CLOSED or mapped.passed_messages > 0,
                    alone=client.listening.one_at_a_time,
                )
                if mapped.passed_messages:
                    client.fail("no_backend")
                elif reason is not None:
                    client.malformed(reason)
            if client.bundle is not None:
                await until(_closed(client, lambda: mapped.outstanding == 0))
            async with asyncio.TaskGroup() as group:
                for upstream in list(client.upstreams.values()):
                    group.create_task(upstream.finish(), name=f"finish {upstream}")
            await until(_closed(client, lambda: mapped.backlog == 0))
    except TimeoutError:
        _cut(client)
        return
    if client.state is not State.CLOSED:
        if mapped.outstanding:
            # Backends ended without an answer: the client must not take that for a good end.
            client.fail("backend_closed")
        else:
            client.close(Event.ENDED)


async def after_outstanding(client: "Client") -> None:
    """The balancer wants the client to leave."""
    mapped = client.mapped
    assert mapped is not None
    mapped.hold()
    try:
        async with asyncio.timeout(client.listening.timeouts.drain):
            await client.listening.services.quiescence.wait()
            await until(_closed(client, lambda: mapped.outstanding == 0))
            await until(_closed(client, lambda: mapped.backlog == 0))
            if client.state is not State.CLOSED:
                faults.send_fin(client.sock)
            await until(_closed(client, lambda: mapped.delivered))
    except TimeoutError:
        _cut(client)
        return
    if client.state is not State.CLOSED:
        lost = mapped.passed_messages + client.take_waiting()
        client.listening.services.losses.add("shutdown", lost)
        client.close(Event.ENDED, reset=lost > 0)


def _closed(client: "Client", condition: Callable[[], bool]) -> Callable[[], bool]:
    """The condition, or the client's end."""
    return lambda: client.state is State.CLOSED or condition()


def _cut(client: "Client") -> None:
    mapped = client.mapped
    if client.state is State.CLOSED or mapped is None:
        return
    if mapped.passed_messages or mapped.outstanding or mapped.backlog or mapped.paused:
        _log.info("%s: closed: not drained in time", client)
        client.fail("drain_timeout")
    else:  # a backend, or the client, keeps its side open for no message
        client.close(Event.ENDED)


def abandon(client: "Client") -> None:
    """The client is gone."""
    if client.state is State.CLOSED:
        return
    upstreams = list(client.upstreams.values())
    client.upstreams.clear()
    if client.mapped is not None:
        client.listening.services.losses.add(
            "client_gone", client.mapped.passed_messages + client.take_waiting()
        )
    client.close(Event.FAILED, reset=True)
    for upstream in upstreams:
        if upstream.mapped is None:
            upstream.close()
        else:
            upstream.leave_route()
            client.run("abandoned upstream", finish_alone(upstream))


async def finish_alone(upstream: Upstream) -> None:
    """Ends an upstream that its client has nothing to do with any more, in good order if that can be."""
    try:
        async with patience(upstream.owner.timeouts.drain, upstream.progress):
            await upstream.finish()
    except TimeoutError:
        _log.info("%s: closed: not drained in time", upstream)
    finally:
        upstream.close("drain_timeout", reset=True)


async def lose(client: "Client", upstream: Upstream, reason: str) -> None:
    """An upstream that has left the route is at its end: finds out what was lost with it, and tells."""
    mapped = upstream.mapped
    assert mapped is not None
    services = client.listening.services
    await services.quiescence.wait()
    if reason == "backend_closed":
        try:
            async with patience(client.listening.timeouts.drain, client.progress):
                await upstream.settle()
        except TimeoutError:
            _log.info("%s: closed: its answers were not taken in time", upstream)
            client.fail("drain_timeout")
            return
    lost = mapped.outstanding
    if client.state is not State.CLOSED and lost:
        upstream.backend.lost(reason.removeprefix("backend_"))
    replies = await _error_replies(client, upstream, lost)
    if upstream.state is State.CLOSED:
        return
    upstream.close(reason)
    if client.state is State.CLOSED:
        services.losses.add(reason, lost)
        return
    if lost and not replies:
        _log.info("%s: closed: %d messages were outstanding there (%s)", upstream, lost, reason)
        client.fail(reason)
        return
    if lost:
        assert client.mapped is not None
        services.losses.add(reason, lost)
        await client.answer(replies)
        client.mapped.write_off(lost)
    if client.wants_upstreams:
        client.replace(upstream)


async def _error_replies(client: "Client", upstream: Upstream, lost: int) -> list[bytes]:
    """An answer to each request that was outstanding there; nothing unless each can have one."""
    framing = client.listening.config.framing
    mapped = upstream.mapped
    if framing.error_reply is None or mapped is None or not lost or mapped.ambiguous:
        return []
    services = client.listening.services
    idents = await services.inquest.requests(mapped.ref)
    heads = [services.plane.requests.head(mapped.ref, ident) for ident in idents]
    replies = [error_reply(framing, head) for head in heads if head is not None]
    known = [reply for reply in replies if reply is not None]
    return known if len(known) == lost else []
