"""Clients that closed their side before they could be mapped.

``printf ... | nc -N`` sends, half-closes and waits. The sockmap takes no such socket, but what it sent is
complete and fits its receive buffer, so user space carries this one exchange over one backend connection
that is not mapped either. It counts as ``path="userspace"``.
"""

import asyncio
import logging
import socket

from lb.backends import Backend
from lb.framing import Direction, Framer
from lb.server import faults
from lb.server.context import Listening, Relayed

_log = logging.getLogger(__name__)
_CHUNK = 256 * 1024


async def relay(
    listening: Listening, backend: Backend, client: socket.socket, upstream: socket.socket
) -> None:
    """Sends all whole messages of the client, then FIN, and gives back what comes until the backend's FIN.

    A malformed or incomplete message ends the exchange with RST after the messages before it.
    """
    loop = asyncio.get_running_loop()
    framing = listening.config.framing
    counts = listening.relayed.setdefault(backend.index, Relayed())
    try:
        async with asyncio.timeout(listening.timeouts.drain):
            requests = Framer(framing, Direction.REQUEST)
            while requests.error is None and (data := await loop.sock_recv(client, _CHUNK)):
                for message in requests.feed(data):
                    await loop.sock_sendall(upstream, message.data)
                    counts.requests += 1
                    counts.request_bytes += len(message.data)
            faults.send_fin(upstream)
            responses = Framer(framing, Direction.RESPONSE)
            while responses.error is None and (data := await loop.sock_recv(upstream, _CHUNK)):
                for message in responses.feed(data):
                    await loop.sock_sendall(client, message.data)
                    counts.responses += 1
                    counts.response_bytes += len(message.data)
    except TimeoutError:
        _refuse(listening, client, "half_message")
        return
    except OSError as error:
        _log.info("relay to %s: %s", backend, error)
        faults.reset_on_close(client)
        return
    if requests.error is not None:
        _refuse(listening, client, requests.error.reason)
    elif requests.pending:
        _refuse(listening, client, "half_message")
    elif responses.error is not None:
        _refuse(listening, client, f"backend_{responses.error.reason}")


def _refuse(listening: Listening, client: socket.socket, reason: str) -> None:
    listening.protocol_errors[reason] += 1
    faults.reset_on_close(client)
