"""One check of one backend: a connection of its own, and perhaps a message that has to be answered."""

import asyncio
import socket
from dataclasses import dataclass

from lb import config
from lb.backends import connect_failure
from lb.framing import Direction, Framer

_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check ended: why it failed, None for success; whether there was a connection; its duration."""

    failure: str | None
    connected: bool
    seconds: float


async def probe(
    address: config.Address, limit: float, ping: config.Ping | None = None, preface: bytes = b""
) -> Outcome:
    """Connects, sends the preface and the ping, if there is one, and waits for its response.

    All of it within ``limit`` seconds. A connection without an answer is a failure, as are its end
    (``closed``), a response that does not say what it should (``unexpected``), and bytes that are no message
    (``malformed``).
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    connected = False
    try:
        with socket.socket(address.family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            async with asyncio.timeout(limit):
                await loop.sock_connect(sock, address.sockaddr)
                connected = True
                await loop.sock_sendall(sock, preface)
                failure = None if ping is None else await _ask(loop, sock, ping)
    except TimeoutError:
        failure = "no_answer" if connected else "timeout"
    except OSError as error:
        failure = connect_failure(error.errno or 0)
    return Outcome(failure, connected, loop.time() - began)


async def _ask(loop: asyncio.AbstractEventLoop, sock: socket.socket, ping: config.Ping) -> str | None:
    """What is wrong with the response, None if nothing is. Holds less than one message beside a chunk."""
    framing = ping.framing
    wanted = framing.read_id(ping.request)
    framer = Framer(framing, Direction.RESPONSE)
    await loop.sock_sendall(sock, ping.request)
    while True:
        data = await loop.sock_recv(sock, _CHUNK)
        if not data:
            return "closed"
        for message in framer.feed(data):
            if message.is_response and message.id == wanted:
                return None if _is_expected(ping, message.data) else "unexpected"
        if framer.error is not None:
            return "malformed"


def _is_expected(ping: config.Ping, response: bytes) -> bool:
    expect = ping.expect
    return expect is None or (len(response) >= expect.field.end and expect.matches(response))
