"""A backend, healthy clients and mutating ones, in one process, so that each knows what the others sent.

What a stream of mutated bytes means is said by the framing's oracle: which messages are whole, and whether
one of them is none. The kernel must come to the same answer.
"""

import asyncio
import contextlib
import random
import socket
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from lb.framing import Direction, Framer, Framing, FramingError, Message, error_reply
from tests.e2e.chaos.mutation import body_of, build, mutate, split
from tests.e2e.chaos.stream import Stream
from tests.e2e.namespaces import Endpoint

_AT_ONCE = 48  # mutating clients
_LIMIT = 20.0  # seconds for whatever must happen
_QUIET = 0.2  # seconds after which answers that were mutated are not waited for any more
_HEALTHY = b"well"  # how the bodies of healthy clients start
_SHOWN = 10
_SIZES = (0, 10, 100, 3000)


@dataclass(slots=True)
class Findings:
    """Counts of a phase; they add up to what the balancer must have counted."""

    mutated: int = 0  # messages that the parser came to see
    connections: int = 0
    errors: Counter[str] = field(
        default_factory=Counter
    )  # streams that are malformed, by the oracle's reason
    unclosed: int = 0  # of these: still open
    harmed: int = 0  # streams that are well-formed, and yet were cut off or not answered
    foreign: int = 0  # answers that nobody sent to that client
    lost: int = 0  # whole messages that did not reach the backend
    invented: int = 0  # messages that reached it and were not sent
    healthy: int = 0  # answers of the healthy client
    hurt: int = 0  # that were wrong or missing, or connections of its that ended
    texts: list[str] = field(default_factory=list)

    WRONGS = ("unclosed", "harmed", "foreign", "lost", "invented", "hurt")

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


def answer_to(framing: Framing, asked: Message) -> bytes:
    """The right answer: the same id, and the request's start and checksum."""
    body = body_of(framing, asked.data)[:16] + zlib.crc32(asked.data).to_bytes(4, "big")
    return build(framing, asked.id or 0, body, response=True)


class _Talk:
    """A socket, a framer, and events."""

    def __init__(self, sock: socket.socket, framing: Framing, direction: Direction) -> None:
        self.messages: list[Message] = []
        self.error: OSError | None = None
        self.over = asyncio.Event()
        self.news = asyncio.Event()
        self.framer = Framer(framing, direction)
        self.said = Framer(framing, Direction.RESPONSE)  # of what a backend says here
        self.stream = Stream(sock, self._take, self._over)
        self.hear: Callable[[list[Message]], None] = self.messages.extend

    def _take(self, data: bytes) -> None:
        with contextlib.suppress(FramingError):
            self.hear(self.framer.feed(data))
        self.news.set()

    def _over(self, error: OSError | None) -> None:
        self.error = error
        self.over.set()
        self.news.set()

    async def wait(self, ready: Callable[[], bool], limit: float) -> bool:
        """Wait until something is true, the connection is over, or time is up; whether it is true."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while not (ready() or self.over.is_set()):
                    self.news.clear()
                    await self.news.wait()
        return ready()

    async def send(self, data: bytes, source: random.Random) -> None:
        """In segments."""
        for piece in split(data, source):
            self.stream.write(piece)
            await asyncio.sleep(0)


class _Backend:
    """Answers rightly, or with mutated messages to all but healthy clients."""

    def __init__(self, framing: Framing, sock: socket.socket) -> None:
        self.received: Counter[int] = Counter()  # checksums of messages of clients that are not healthy
        self.said: dict[int, list[bytes]] = {}  # what the bytes said to a client are, by its number
        self.errors: Counter[str] = Counter()
        self.mutated = 0
        self.mutating: random.Random | None = None
        self._framing = framing
        self._sock = sock
        self._talks: set[_Talk] = set()
        asyncio.get_running_loop().add_reader(sock, self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, _ = self._sock.accept()
            sock.setblocking(False)
            talk = _Talk(sock, self._framing, Direction.REQUEST)
            talk.hear = lambda messages: self._answer(talk, messages)
            self._talks.add(talk)
            asyncio.get_running_loop().create_task(self._end(talk))

    async def _end(self, talk: _Talk) -> None:
        await talk.over.wait()
        talk.stream.finish()
        await talk.stream.drain()
        talk.stream.close()
        self._talks.discard(talk)

    def _answer(self, talk: _Talk, messages: list[Message]) -> None:
        answers = []
        for asked in messages:
            healthy = body_of(self._framing, asked.data).startswith(_HEALTHY)
            if not healthy:
                self.received[zlib.crc32(asked.data)] += 1
            if not asked.wants_response:
                continue
            answer = answer_to(self._framing, asked)
            if not healthy and self.mutating is not None:
                answer = mutate(self._framing, answer, self.mutating)
            answers.append(answer)
        if messages and self.mutating is not None:
            body = body_of(self._framing, messages[0].data)
            if not body.startswith(_HEALTHY):
                self._note(talk, int.from_bytes(body[4:8], "big"), b"".join(answers))
        talk.stream.write(b"".join(answers))

    def _note(self, talk: _Talk, client: int, answers: bytes) -> None:
        """What the oracle makes of answers that were mutated."""
        with contextlib.suppress(FramingError):  # it has said what is no message before
            said = talk.said.feed(answers)
            self.said.setdefault(client, []).extend(message.data for message in said)
            error = talk.said.error
            self.mutated += len(said) + (error is not None)
            if error is not None:
                self.errors[error.reason.value] += 1

    async def empty(self) -> None:
        """Wait until every connection is over."""
        for talk in list(self._talks):
            async with asyncio.timeout(_LIMIT):
                await talk.over.wait()


class Fuzzers:
    """What the process does, on call."""

    def __init__(self) -> None:
        self._backends: dict[str, _Backend] = {}
        self._numbers = iter(range(1, 1 << 31))

    async def open(self, framings: list[Framing]) -> list[Endpoint]:
        """Listen, once for each framing; return where."""
        endpoints: list[Endpoint] = []
        for framing in framings:
            sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
            sock.setblocking(False)
            self._backends[framing.name] = _Backend(framing, sock)
            endpoints.append(sock.getsockname()[:2])
        return endpoints

    async def fuzz(self, framing: Framing, endpoint: Endpoint, side: str, count: int, seed: int) -> Findings:
        """Send ``count`` mutated messages, as clients (side ``listener``) or as a backend (``backend``)."""
        findings = Findings()
        backend = self._backends[framing.name]
        backend.received.clear()
        backend.said.clear()
        backend.errors.clear()
        backend.mutated = 0
        backend.mutating = random.Random(seed) if side == "backend" else None
        expected: Counter[int] = Counter()
        stop = asyncio.Event()
        healthy = asyncio.create_task(self._be_healthy(framing, endpoint, findings, stop))

        async def go_on(number: int) -> None:
            source = random.Random(seed * 1009 + number)
            while findings.mutated < count:
                if side == "listener":
                    await self._mutate_requests(framing, endpoint, source, findings, expected)
                else:
                    await self._hear_mutated_answers(framing, endpoint, source, findings)
                    findings.mutated = backend.mutated

        await asyncio.gather(*(go_on(number) for number in range(_AT_ONCE)))
        stop.set()
        await healthy
        await backend.empty()
        if side == "listener":
            findings.object("lost", (expected - backend.received).total(), "whole messages, at the backend")
            findings.object("invented", (backend.received - expected).total(), "messages at the backend")
        else:
            findings.errors = backend.errors.copy()
        return findings

    async def _connect(self, framing: Framing, endpoint: Endpoint) -> _Talk:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        async with asyncio.timeout(_LIMIT):
            await asyncio.get_running_loop().sock_connect(sock, endpoint)
        return _Talk(sock, framing, Direction.RESPONSE)

    def _requests(self, framing: Framing, client: int, count: int, source: random.Random) -> list[bytes]:
        return [
            build(
                framing,
                sequence,
                b"fuzz"
                + client.to_bytes(4, "big")
                + source.randbytes(source.randrange(source.choice(_SIZES) + 1)),
            )
            for sequence in range(count)
        ]

    async def _mutate_requests(
        self,
        framing: Framing,
        endpoint: Endpoint,
        source: random.Random,
        findings: Findings,
        expected: Counter[int],
    ) -> None:
        client = next(self._numbers)
        requests = self._requests(framing, client, source.randint(1, 40), source)
        data = b"".join(mutate(framing, request, source) for request in requests)
        oracle = Framer(framing, Direction.REQUEST)
        whole = oracle.feed(data)
        due = Counter(answer_to(framing, asked) for asked in whole if asked.wants_response)
        expected.update(zlib.crc32(asked.data) for asked in whole)
        findings.connections += 1
        findings.mutated += len(whole) + (oracle.error is not None or oracle.pending > 0)
        talk = await self._connect(framing, endpoint)
        await talk.send(data, source)
        if oracle.error is not None:
            findings.errors[oracle.error.reason.value] += 1
            closed = await talk.wait(talk.over.is_set, _LIMIT)
            findings.object(
                "unclosed", not closed, f"client {client}: {oracle.error.reason} in {data[:40].hex()}"
            )
        else:
            got_all = await talk.wait(lambda: len(talk.messages) >= due.total(), _LIMIT)
            findings.object(
                "harmed",
                not got_all,
                f"client {client}: {len(talk.messages)} of {due.total()} answers, {talk.error}",
            )
            if not oracle.pending or source.random() < 0.1:
                talk.stream.finish()
                await talk.wait(talk.over.is_set, _LIMIT)
            # Else the rest of a message never comes, and the client goes.
        talk.stream.close()
        got = Counter(message.data for message in talk.messages)
        findings.object("foreign", (got - due).total(), f"answers at client {client}")

    async def _hear_mutated_answers(
        self, framing: Framing, endpoint: Endpoint, source: random.Random, findings: Findings
    ) -> None:
        client = next(self._numbers)
        requests = self._requests(framing, client, source.randint(1, 40), source)
        findings.connections += 1
        talk = await self._connect(framing, endpoint)
        await talk.send(b"".join(requests), source)
        await talk.wait(lambda: len(talk.messages) >= len(requests), _QUIET)
        talk.stream.finish()
        closed = await talk.wait(talk.over.is_set, _LIMIT)
        findings.object("unclosed", not closed, f"client {client} after FIN")
        talk.stream.close()
        said = Counter(self._backends[framing.name].said.get(client, []))
        got = Counter(message.data for message in talk.messages)
        # What a backend did not live to answer the balancer answers, where the protocol has a word for it.
        got -= Counter(reply for request in requests if (reply := error_reply(framing, request)))
        findings.object("foreign", (got - said).total(), f"answers at client {client}")

    async def _be_healthy(
        self, framing: Framing, endpoint: Endpoint, findings: Findings, stop: asyncio.Event
    ) -> None:
        """Ask a few questions at a time on one connection, until all is over; every answer is checked."""
        source = random.Random(0)
        talk = await self._connect(framing, endpoint)
        number = 0
        while not stop.is_set():
            bodies = [_HEALTHY + bytes(4) + source.randbytes(50) for _ in range(4)]
            asked = [build(framing, number + place, body) for place, body in enumerate(bodies)]
            number += len(asked)
            messages = Framer(framing, Direction.REQUEST).feed(b"".join(asked))
            due = Counter(answer_to(framing, message) for message in messages)
            talk.messages.clear()
            talk.stream.write(b"".join(asked))
            await talk.wait(lambda: len(talk.messages) >= 4, _LIMIT)
            got = Counter(message.data for message in talk.messages)
            findings.healthy += len(talk.messages)
            if got != due:
                findings.object("hurt", 1, f"after {findings.healthy} answers: {talk.error}")
                break
        talk.stream.finish()
        ended = await talk.wait(talk.over.is_set, _LIMIT)
        findings.object("hurt", not ended or talk.error is not None, f"at its end: {talk.error}")
        talk.stream.close()
