"""The system's resolver, asked beside the event loop.

``getaddrinfo`` is what the rest of the machine goes by: /etc/hosts, /etc/resolv.conf, nsswitch. It tells no
TTL, and takes as long as its own time-outs add up to. Each question has a thread of its own: those of the
loop are for grace periods, which must not wait for a name server. A thread whose answer nobody waits for any
more cannot be stopped; until it ends, the same question is not asked again, so a name has two of them at
most. They are daemons: the end of the process does not wait for them.
"""

import asyncio
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

Host = IPv4Address | IPv6Address


class Result(StrEnum):
    """How a question went, as in the label of a metric."""

    FOUND = "found"
    NO_NAME = "no_name"  # NXDOMAIN
    NO_ADDRESS = "no_address"  # of this family, or none that a backend can have
    UNAVAILABLE = "unavailable"  # SERVFAIL, or no server answers
    TIMEOUT = "timeout"  # within our own limit
    FAILED = "failed"  # anything else: no memory, no thread


_RESULTS = {
    socket.EAI_NONAME: Result.NO_NAME,
    socket.EAI_NODATA: Result.NO_ADDRESS,
    socket.EAI_ADDRFAMILY: Result.NO_ADDRESS,
    socket.EAI_AGAIN: Result.UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The addresses that a name has in one family: sorted, and some of them if it was found."""

    result: Result
    hosts: tuple[Host, ...] = ()

    @property
    def certain(self) -> bool:
        """Whether this is what the name has, rather than that nobody could say."""
        return self.result in (Result.FOUND, Result.NO_NAME, Result.NO_ADDRESS)


_Question = tuple[str, socket.AddressFamily]


class Lookups:
    """Asks questions, each at most once at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asked: dict[_Question, asyncio.Future[Answer]] = {}

    async def ask(self, host: str, family: socket.AddressFamily, limit: float) -> Answer:
        """The addresses of a name; waits no longer than ``limit`` seconds."""
        question = host, family
        answer = self._asked.get(question)
        if answer is None:
            answer = self._asked[question] = self._loop.create_future()
            thread = threading.Thread(
                target=self._run, args=(question, answer), name=f"name {host}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no memory, or too many of them
                self._tell(question, answer, Answer(Result.FAILED))
        try:
            async with asyncio.timeout(limit):
                return await asyncio.shield(answer)
        except TimeoutError:
            return Answer(Result.TIMEOUT)

    def _run(self, question: _Question, answer: "asyncio.Future[Answer]") -> None:
        found = look_up(*question)
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._tell, question, answer, found)

    def _tell(self, question: _Question, answer: "asyncio.Future[Answer]", found: Answer) -> None:
        del self._asked[question]
        if not answer.done():
            answer.set_result(found)


def look_up(host: str, family: socket.AddressFamily) -> Answer:
    """Asks, and blocks."""
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    except socket.gaierror as error:
        return Answer(_RESULTS.get(error.errno or 0, Result.FAILED))
    except (OSError, UnicodeError, MemoryError):
        return Answer(Result.FAILED)
    # An address with a zone is none without it; the other ones mean anybody, or many.
    texts = {str(sockaddr[0]) for *_, sockaddr in found}
    hosts = {ip_address(text) for text in texts if "%" not in text}
    usable = sorted(host for host in hosts if not (host.is_unspecified or host.is_multicast))
    return Answer(Result.FOUND, tuple(usable)) if usable else Answer(Result.NO_ADDRESS)
