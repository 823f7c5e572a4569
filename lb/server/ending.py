"""How connections end, and in which order.

* The client sends FIN (:func:`after_peer`): what it sent before gets its verdict, each upstream's backlog
  runs empty, FIN goes on to each backend, their answers come until they end too, and the client gets its
  FIN last.
* We want it to end (:func:`after_outstanding`): the verdict leaves what the client still sends on its
  socket, what is outstanding is answered, and the client gets FIN.
* The client is reset, or sends what is no message (:func:`abandon`): its own connection ends at once; whole
  messages that it had sent before still reach the backends. Their answers are dropped, and counted by the
  verdict.
* A backend ends or is reset (:func:`lose`): if requests were outstanding there, their answers cannot come
  any more, and a reset of the client's connection is how it is told. If none were, the upstream is replaced.

The kernel gives no event when a backlog has run empty, hence the waits. Each is limited by the pool's drain
timeout; what it cuts off is closed with RST, because closing a socket that has a backlog sends a clean FIN.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from lb.server import faults
from lb.server.upstream import Upstream
from lb.server.waiting import until
from lb.session import Event, State

if TYPE_CHECKING:
    from lb.server.client import Client

_log = logging.getLogger(__name__)

_FIN = 1  # counts as a byte received


async def after_peer(client: "Client") -> None:
    """The client has sent FIN."""
    mapped = client.mapped
    assert mapped is not None
    try:
        async with asyncio.timeout(client.listening.timeouts.drain):
            # An incomplete last message ends this wait too: the strparser gives it up with an error.
            await until(lambda: client.state is State.CLOSED or mapped.undecided <= _FIN)
            async with asyncio.TaskGroup() as group:
                for upstream in list(client.upstreams.values()):
                    group.create_task(upstream.finish(), name=f"finish {upstream}")
            await until(lambda: client.state is State.CLOSED or mapped.backlog == 0)
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
            await until(lambda: client.state is State.CLOSED or mapped.outstanding == 0)
            await until(lambda: client.state is State.CLOSED or mapped.backlog == 0)
            if client.state is not State.CLOSED:
                faults.send_fin(client.sock)
            await until(lambda: client.state is State.CLOSED or mapped.delivered)
    except TimeoutError:
        _cut(client)
        return
    if client.state is not State.CLOSED:
        client.listening.services.losses.add("shutdown", mapped.passed_messages)
        client.close(Event.ENDED)


def _cut(client: "Client") -> None:
    mapped = client.mapped
    if client.state is State.CLOSED or mapped is None:
        return
    if mapped.passed_messages or mapped.outstanding or mapped.backlog:
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
        client.listening.services.losses.add("client_gone", client.mapped.passed_messages)
    client.close(Event.FAILED, reset=True)
    for upstream in upstreams:
        if upstream.mapped is None:
            upstream.close()
        else:
            upstream.leave_route()
            client.run("abandoned upstream", _finish_abandoned(upstream))


async def _finish_abandoned(upstream: Upstream) -> None:
    try:
        async with asyncio.timeout(upstream.client.listening.timeouts.drain):
            await upstream.finish()
    except TimeoutError:
        _log.info("%s: closed: not drained in time after its client had left", upstream)
    finally:
        upstream.close(reset=True)


async def lose(client: "Client", upstream: Upstream, reason: str) -> None:
    """An upstream that has left the route is at its end: finds out whether anything was lost with it."""
    mapped = upstream.mapped
    assert mapped is not None
    await client.listening.services.quiescence.wait()
    if reason == "backend_closed":
        await upstream.settle()
    if upstream.state is State.CLOSED:
        return
    lost = mapped.outstanding
    upstream.close()
    if client.state is State.SPLICED and not lost:
        client.replace(upstream)
        return
    if client.state is State.CLOSED:
        client.listening.services.losses.add(reason, lost)
    elif lost:
        _log.info("%s: closed: %d messages were outstanding there (%s)", upstream, lost, reason)
        client.fail(reason)
