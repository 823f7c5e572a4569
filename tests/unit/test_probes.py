"""Checks: what they find, of servers that do one thing."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from ipaddress import ip_address

import pytest

from lb import config
from lb.framing import PRESETS, Direction, Field, Framer, Match
from lb.health import Outcome, probe
from lb.health.monitor import pause

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]
FRAMING = PRESETS["length-prefixed"]
REQUEST = bytes.fromhex("0000000500000007aa")
LIMIT = 5.0


def ping(expect: Match | None = None) -> config.Ping:
    return config.Ping(FRAMING, REQUEST, expect)


def ask(serve: Serve, how: config.Ping | None, limit: float = LIMIT, preface: bytes = b"") -> Outcome:
    """A check of a server that treats its only connection like this."""
    return asyncio.run(_ask(serve, how, limit, preface))


async def _ask(serve: Serve, how: config.Ping | None, limit: float, preface: bytes) -> Outcome:
    done = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
            writer.close()
        finally:
            done.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        outcome = await probe(config.Address(ip_address(host), port), limit, how, preface)
        async with asyncio.timeout(LIMIT):
            await done.wait()
    return outcome


def answer(data: bytes) -> Serve:
    """A server that reads a request and sends these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(REQUEST)) == REQUEST
        writer.write(data)
        await writer.drain()

    return serve


async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del writer
    while await reader.read(1024):
        pass


async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del writer
    await reader.readexactly(len(REQUEST))


RIGHT = bytes.fromhex("0000000500000007bb")
OTHER = bytes.fromhex("0000000500000008bb")


@pytest.mark.parametrize(
    ("serve", "expect", "failure"),
    [
        (answer(RIGHT), None, None),
        (answer(OTHER + RIGHT), None, None),
        (answer(OTHER), None, "closed"),
        (answer(RIGHT[:-1]), None, "closed"),
        (answer(RIGHT), Match(Field(8, 1), 0xFF, 0xBB), None),
        (answer(RIGHT), Match(Field(8, 1), 0xFF, 0xCC), "unexpected"),
        (answer(RIGHT), Match(Field(8, 2), 0xFF, 0xBB), "unexpected"),
        (answer(bytes.fromhex("ffffffff00000007")), None, "malformed"),
        (end, None, "closed"),
    ],
)
def test_responses(serve: Serve, expect: Match | None, failure: str | None) -> None:
    outcome = ask(serve, ping(expect))
    assert (outcome.failure, outcome.connected) == (failure, True)
    assert 0 < outcome.seconds < LIMIT


def test_a_server_that_does_not_answer() -> None:
    outcome = ask(wait, ping(), limit=0.05)
    assert (outcome.failure, outcome.connected) == ("no_answer", True)
    assert outcome.seconds >= 0.04


def test_a_connection_is_enough_if_nothing_is_asked() -> None:
    outcome = ask(wait, None, limit=LIMIT)
    assert (outcome.failure, outcome.connected) == (None, True)


def _probe(address: config.Address, limit: float) -> Outcome:
    return asyncio.run(probe(address, limit))


def test_a_server_that_does_not_accept() -> None:
    """Its kernel does, up to a number; the next one gets no answer to its SYN."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        host, port = door.getsockname()
        address = config.Address(ip_address(host), port)
        outcome = _probe(address, LIMIT)
        assert (outcome.failure, outcome.connected) == ("refused", False)
        door.listen(0)
        with socket.create_connection(address.sockaddr):
            outcome = _probe(address, 0.05)
            while outcome.connected:  # the queue holds one more than it is said to
                outcome = _probe(address, 0.05)
    assert (outcome.failure, outcome.connected) == ("timeout", False)


def test_a_preface_comes_before_everything() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(5 + len(REQUEST)) == b"hello" + REQUEST
        writer.write(RIGHT)
        await writer.drain()

    assert ask(serve, ping(), preface=b"hello").failure is None


def test_a_reset_is_a_reset() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    assert ask(serve, ping()).failure == "reset"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_pings_are_requests_with_an_answer(name: str) -> None:
    framing = PRESETS[name]
    if framing.ping is None:
        assert name == "diameter"
        return
    framer = Framer(framing, Direction.REQUEST)
    (message,) = framer.feed(framing.ping)
    assert message.wants_response
    assert not framer.pending
    assert message.id not in (None, 0)


@pytest.mark.parametrize(
    ("changing", "spent", "stray", "seconds"),
    [
        (False, 0.0, 0.0, 2.0),
        (False, 0.5, 0.0, 1.5),
        (False, 0.0, 1.0, 2.2),
        (False, 0.0, -1.0, 1.8),
        (True, 0.0, 0.0, 0.5),
        (True, 0.5, 0.0, 0.0),
        (True, 1.0, 0.0, 0.0),
    ],
)
def test_pauses_between_checks(changing: bool, spent: float, stray: float, seconds: float) -> None:
    check = config.HealthCheck(interval=2.0, jitter=10, fast_interval=0.5)
    assert pause(check, changing, spent, stray) == pytest.approx(seconds)
