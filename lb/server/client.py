"""A client's session: its connection and its upstreams.

User space hears only of changes of state; between them the kernel carries the messages. What each change
means for the client, its upstreams and its messages stands in :mod:`lb.server.ending`.
"""

import asyncio
import itertools
import logging
import select
import socket
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from lb import proxy
from lb.abi import Pause
from lb.backends import Backend, backoff
from lb.config import Timeouts
from lb.dataplane import NO_MEMORY, MappedSocket, PeerGoneError, PostChannel, sockets
from lb.dataplane.rules import Decision
from lb.framing import Direction, Framing, FramingError, Message, error_reply
from lb.server import ending, faults, routing, takeover
from lb.server.admission import Admission
from lb.server.context import Listening, Services
from lb.server.guard import Guard
from lb.server.poller import SPACE, STATE
from lb.server.proxy import endpoints
from lb.server.relay import connect, relay
from lb.server.upstream import Upstream
from lb.server.vacancies import Vacancies
from lb.session import Event, State, step
from lb.slots import SlotRef, SlotsExhaustedError

if TYPE_CHECKING:
    from lb.server.bundle import Bundle

_log = logging.getLogger(__name__)

_BROKEN = select.EPOLLERR | select.EPOLLHUP
_numbers = itertools.count(1)


class Client:
    """Owns its socket, its slot and its upstreams."""

    __slots__ = (
        "_admission",
        "_attempts",
        "_endpoints",
        "_peer",
        "_taken",
        "activity",
        "address",
        "listening",
        "mapped",
        "number",
        "ref",
        "sock",
        "state",
        "throttle",
        "upstreams",
        "vacancies",
    )

    def __init__(
        self,
        listening: Listening,
        sock: socket.socket,
        peer: tuple[str, int],
        ref: SlotRef,
        header: proxy.Header | None = None,
    ) -> None:
        """``header``: what a proxy in front has said, and what has been taken from the socket."""
        self.listening = listening
        self.address = peer[0]
        self.number = next(_numbers)
        self.sock = sock
        self.ref = ref
        self.state = State.ADMITTED
        self.mapped: MappedSocket | None = None
        self.upstreams: dict[Backend, Upstream] = {}
        self.activity = (0, 0.0)  # of the idle sweep: bytes seen, and when that was new
        self._peer = peer
        self._taken = header.length if header is not None else 0
        self._endpoints = header.endpoints if header is not None else None
        self._admission = Admission(self)
        self.vacancies = Vacancies(self)
        self._attempts: dict[Backend, int] = {}
        self.throttle = listening.services.buckets.join(listening.config, listening.policy.rate, self.address)
        listening.clients.add(self)
        for pool in listening.pools:
            pool.clients.add(self)

    def __str__(self) -> str:
        return f"client {self._peer} of {self.listening.config.name}"

    @property
    def guard(self) -> Guard:
        """Around everything that is done for it."""
        return Guard(self)

    @property
    def endpoint(self) -> str:
        """Where it comes from, as it, or the proxy in front, has said."""
        host, port = self._peer
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def _key(self) -> bytes:
        """Its address, by which its messages may be hashed."""
        return ip_address(self.address).packed

    @property
    def seen_bytes(self) -> int:
        """A number that changes whenever the client sends a message."""
        return self.mapped.consumed_bytes if self.mapped is not None else 0

    def take_waiting(self) -> int:
        """Takes the messages that wait on a paused client, which is about to be closed; their number."""
        mapped = self.mapped
        if mapped is None or not mapped.paused:
            return 0
        self.listening.services.plane.take_over(mapped)
        return takeover.count_waiting(mapped.sock, self.listening.config.framing, Direction.REQUEST)

    def progress(self) -> tuple[int, ...]:
        """Numbers that change while its messages, or their answers, move."""
        if self.mapped is None or self.state is State.CLOSED:
            return ()
        moved = (part for upstream in self.upstreams.values() for part in upstream.progress())
        return (self.mapped.consumed_bytes, self.mapped.acknowledged, self.mapped.outstanding, *moved)

    @property
    def buffered_bytes(self) -> int:
        """Bytes on their way to this client and to its upstreams that wait in the kernel."""
        if self.state is State.CLOSED or self.mapped is None:
            return 0
        return self.mapped.backlog + sum(upstream.backlog for upstream in self.upstreams.values())

    def start(self) -> None:
        """Connects to the client's share of the pool, then lets the messages flow."""
        self._admission.start()

    # Into the kernel

    def splice(self) -> None:
        """Maps the upstreams that are connected, then the client. From here on the kernel owns the bytes."""
        services = self.services
        for upstream in self.connected_upstreams():
            if upstream.backend.dismissed or not upstream.splice():
                self.forget(upstream)
                upstream.close()
        if self.bundle is None and not self.connected_upstreams() and not self.vacancies:
            self._admission.failed()
            return
        try:
            self.mapped = services.plane.insert_client(
                self.ref,
                self.sock,
                self.listening.policy,
                address=self._key if self.listening.policy.routed else b"",
                address_rate=self.throttle.address_rate,
                written=sockets.WRITTEN_BY_ACCEPTING,
                vacant=len(self.vacancies),
            )
            self.mapped.taken = self._taken
            services.poller.watch(self.sock.fileno(), self)
        except PeerGoneError:
            self._relay()
            return
        except OSError as error:
            if error.errno not in NO_MEMORY:
                raise
            _log.warning("%s: refused: %s", self, error)
            self.refuse("no_memory")
            return
        self.state = step(self.state, Event.INSERTED)

    def _relay(self) -> None:
        """The client closed its side before it could be mapped: what it sent is complete, and small."""
        if self.bundle is None:
            there = [upstream.backend for upstream in self.connected_upstreams()]
            there += self.vacancies.serving
        else:
            there = [backend for bundle in self.bundles for backend in bundle.usable_backends]
        try:
            backend = self._relay_by(there)
        except routing.SeveralBackendsError:
            self.refuse("half_closed")
            return
        if self.bundle is not None or (backend is not None and backend in self.vacancies):
            self.state = step(self.state, Event.ENDING)
            self.close_upstreams()
            self.run("relay", self._relay_alone(backend))
            return
        if backend is None:
            self.refuse("no_backend")
            return
        self.state = step(self.state, Event.ENDING)
        sock = self.upstreams[backend].unsplice()
        self.close_upstreams()
        self.run("relay", self._relay_to(backend, sock))

    def _relay_by(self, there: Sequence[Backend]) -> Backend | None:
        """Where all waiting messages go, of the backends that are there; None if none is."""
        if self.listening.policy.routed and there:
            try:
                messages = takeover.look(self.sock, self.framing, Direction.REQUEST, everything=True)
            except (FramingError, OSError):
                messages = []  # the relay says what is wrong
            there = routing.candidates(self.listening, messages, self._key, there)
        return there[self.number % len(there)] if there else None

    async def _relay_alone(self, backend: Backend | None) -> None:
        """By a connection of its own, as those that are shared are the kernel's."""
        sock = None
        if backend is not None:
            backend.connections += 1  # it does not lose its numbers meanwhile
            try:
                sock = await connect(backend, self.timeouts.connect, self.preface(backend))
            finally:
                backend.connections -= 1
        if self.state is State.CLOSED:
            if sock is not None:
                sock.close()
        elif backend is None or sock is None:
            self.refuse("no_backend")
        else:
            await self._relay_to(backend, sock)

    async def _relay_to(self, backend: Backend, sock: socket.socket) -> None:
        with sock:
            backend.connections += 1
            try:
                await relay(self.listening, backend, self.sock, sock, self.throttle, self._key)
            finally:
                backend.connections -= 1
        self.close(Event.ENDED)

    def refuse(self, reason: str) -> None:
        """Turns the client away before it was served."""
        self.listening.refused[reason] += 1
        if self.mapped is None:  # one that has closed its side hears of nothing: what it sent counts as lost
            framing = self.listening.config.framing
            waiting = takeover.count_waiting(self.sock, framing, Direction.REQUEST)
            self.listening.services.losses.add(reason, waiting)
        self.fail(reason)

    # What its upstreams want of it

    @property
    def services(self) -> Services:
        """Of the process."""
        return self.listening.services

    @property
    def timeouts(self) -> Timeouts:
        """Those of the pool."""
        return self.listening.timeouts

    @property
    def framing(self) -> Framing:
        """What it speaks."""
        return self.listening.config.framing

    @property
    def bundle(self) -> "Bundle | None":
        """The upstreams that it shares with others; None if it has its own."""
        return self.listening.pool.bundle

    @property
    def bundles(self) -> "list[Bundle]":
        """Those of all pools that its messages may go to."""
        return [pool.bundle for pool in self.listening.pools if pool.bundle is not None]

    def preface(self, backend: Backend) -> bytes:
        """The PROXY header that tells a backend whose connection it is, if its pool wants one."""
        pool = self.listening.pool_of(backend)
        version = None if pool is None else pool.config.send_proxy
        if version is None:
            return b""
        if self._endpoints is None:
            self._endpoints = endpoints(self.sock, self._peer)
        return proxy.build(version, self._endpoints)

    def map_upstream(self, upstream: Upstream, sock: socket.socket) -> MappedSocket:
        """Puts the socket of an upstream of its own into the maps."""
        listening = self.listening
        return self.services.plane.insert_upstream(
            upstream.ref,
            sock,
            listening.policy,
            client=self.ref,
            backend=upstream.backend.index,
            traffic=listening.traffic[upstream.backend.index],
            written=sockets.WRITTEN_BY_CONNECTING + upstream.said,
        )

    def route(self, upstream: Upstream) -> None:
        """Lets its messages be sent there."""
        backend = upstream.backend
        place = self.vacancies.take(backend)
        upstream.place = self.services.plane.route(self.ref, upstream.ref, backend.index, place)

    def unroute(self, upstream: Upstream) -> None:
        """Lets no further message be sent there, once a grace period has passed."""
        self.services.plane.unroute(self.ref, upstream.place)

    def takes(self, upstream: Upstream) -> bool:
        """Whether it would take a response now."""
        del upstream
        return self.mapped is None or self.state is State.CLOSED or self.mapped.has_room

    def watch_taker(self, upstream: Upstream) -> bool:
        """Hastens its upstreams when its connection has space."""
        del upstream
        return self.watch_space()

    def kept_waiting(self, upstream: Upstream, seconds: float) -> None:
        """It may take its time: nobody else waits for it."""

    def upstream_has_space(self, upstream: Upstream) -> None:
        """Its messages may go on."""
        del upstream
        self.services.pauses.hasten(self)

    def upstream_crashed(self, upstream: Upstream) -> None:
        """A bug of ours ends it."""
        del upstream
        self.crashed()

    def crashed(self) -> None:
        """A bug of ours ends it."""
        self.fail("bug")

    # Upstreams come and go

    def connected_upstreams(self) -> list[Upstream]:
        """Those that are more than an attempt."""
        return [upstream for upstream in self.upstreams.values() if upstream.connected]

    def new_upstream(self, backend: Backend) -> Upstream | None:
        """An upstream that does not connect yet; None if the sockmap is full."""
        try:
            ref = self.listening.services.plane.reserve()
        except SlotsExhaustedError:
            return None
        upstream = self.upstreams[backend] = Upstream(self, backend, ref)
        return upstream

    @property
    def wants_upstreams(self) -> bool:
        """Whether messages may still come from it, or wait although it has closed its side."""
        if self.state is State.DRAINING and self.mapped is not None:
            return self.mapped.paused not in (Pause.RUNNING, Pause.PAUSED_HELD)
        return self.state is State.SPLICED

    def add_backend(self, backend: Backend) -> None:
        """A backend has come (back): the client's messages may go there too."""
        if (
            self.bundle is not None
            or not self.wants_upstreams
            or not backend.serving
            or backend in self.upstreams
            or backend in self.vacancies
            or self.vacancies.full
        ):
            return
        if self.vacancies.concern(backend):
            self.vacancies.offer(backend)
            self.services.pauses.hasten(self)
            return
        upstream = self.new_upstream(backend)
        if upstream is not None:
            upstream.connect()
            self.later(self.listening.timeouts.connect, upstream.give_up)

    def complete(self) -> None:
        """Connects to those of the client's share of the pool that it has no upstream to."""
        for backend in self._admission.choose():
            self.add_backend(backend)

    def upstream_connected(self, upstream: Upstream) -> None:
        """An attempt to connect succeeded."""
        if self.state is State.ADMITTED:
            self._admission.connected()
            return
        if not self.wants_upstreams:
            upstream.close()
        elif not upstream.backend.serving:  # its level is not needed any more
            self.forget(upstream)
            upstream.close()
            self.vacancies.withdraw(upstream.backend)
        elif upstream.splice():
            self._attempts.pop(upstream.backend, None)
        else:
            upstream.close()
            self.replace(upstream)
        self.vacancies.settle()

    def upstream_failed(self, upstream: Upstream) -> None:
        """An attempt to connect failed; the upstream is closed."""
        if self.wants_upstreams:
            self.replace(upstream)
        else:
            self.forget(upstream)
            if self.state is State.ADMITTED:
                self._admission.failed()
        self.vacancies.settle()

    def upstream_broken(self, upstream: Upstream, malformed: str | None) -> None:
        """A mapped upstream was reset, timed out, or its backend sent what is no message."""
        self._lost(upstream)
        reason = "backend_reset"
        if malformed is not None:
            reason = "backend_malformed"
            self.listening.protocol_errors[f"backend_{malformed}"] += 1
            _log.warning("%s: closed: the backend sent a malformed message (%s)", upstream, malformed)
        self.run("lost upstream", ending.lose(self, upstream, reason))

    def upstream_ended(self, upstream: Upstream) -> None:
        """The backend of a mapped upstream sent FIN."""
        if upstream.state is State.SPLICED and self.state is not State.CLOSED:
            self._lost(upstream)
            self.run("ended upstream", ending.lose(self, upstream, "backend_closed"))

    def _lost(self, upstream: Upstream) -> None:
        upstream.leave_route()
        self.vacancies.rescue()
        self.listening.services.pauses.hasten(self)  # what waited for this one may go to another

    def replace(self, upstream: Upstream) -> None:
        """Connects to the upstream's backend again."""
        self.forget(upstream)
        self.vacancies.withdraw(upstream.backend)
        self.retry(upstream.backend)

    def retry(self, backend: Backend) -> None:
        """Connects to a backend in a moment, later each time that it fails."""
        if not any(backend in pool.backends for pool in self.listening.pools):
            self.forget_attempts(backend)
            return
        attempt = self._attempts.get(backend, 0)
        self._attempts[backend] = attempt + 1
        self.later(backoff(attempt), lambda: self.add_backend(backend))

    def forget_attempts(self, backend: Backend) -> None:
        """It has left the pool."""
        self._attempts.pop(backend, None)

    def forget(self, upstream: Upstream) -> None:
        """Makes room for another upstream to the same backend."""
        if self.upstreams.get(upstream.backend) is upstream:
            del self.upstreams[upstream.backend]

    def close_upstreams(self, reason: str = "backend_closed") -> None:
        """Closes all of them; what waits for them in the kernel is lost for the reason."""
        upstreams = list(self.upstreams.values())
        self.upstreams.clear()
        for upstream in upstreams:
            upstream.close(reason)

    # The client itself

    def on_events(self, mask: int) -> None:
        """Events of the socket, from the poller."""
        mapped = self.mapped
        assert mapped is not None
        services = self.listening.services
        if mask & select.EPOLLOUT:
            services.poller.change(self.sock.fileno(), STATE)
            services.pauses.hasten(self)
            for upstream in self.upstreams.values():
                services.pauses.hasten(upstream)
        if mask & _BROKEN and (code := faults.take_error(mapped)):
            reason = faults.malformed(self.sock, code)
            if reason is not None:
                self.malformed(reason)
            else:
                ending.abandon(self)
        elif self.state is not State.SPLICED:
            return
        elif mask & faults.PEER_ENDED:
            if not ending.at_once(self):
                self._end("half-close", ending.after_peer(self))
        elif mapped.passed_messages:
            _log.info("%s: closed: no backend for its messages", self)
            self.fail("no_backend")
        elif mapped.paused:
            self._paused(mapped.paused)

    def _paused(self, why: Pause) -> None:
        if why is Pause.PAUSED_CONNECT:
            self.vacancies.fill()
        else:
            self.services.pauses.add(self)

    def malformed(self, reason: str) -> None:
        """Ends the client because it sent what is no message."""
        self.listening.protocol_errors[reason] += 1
        _log.info("%s: closed: %s", self, reason)
        ending.abandon(self)

    # While its messages wait

    def may_resume(self) -> bool:
        """Whether the message at its head may go on now, as far as that is known."""
        assert self.mapped is not None
        return self._may_go_on(self.mapped, self.services.plane.decision(self.mapped))

    def may_send(self, message: bytes) -> bool:
        """The same of a message that user space has taken over."""
        assert self.mapped is not None
        rules = self.listening.config.rules
        decision = routing.decide(self.listening, message, self._key) if rules else None
        return self.vacancies.prepare() and self._may_go_on(self.mapped, decision)

    def _may_go_on(self, mapped: MappedSocket, decision: Decision | None) -> bool:
        """Whether an upstream would take a message, and the rates allow it; or a refusal has room."""
        lacks_room = self._lacks_room(mapped, decision)
        if lacks_room or (decision is not None and decision.denied):
            return not lacks_room
        services = self.services
        if not services.buckets.ready(self.throttle):
            return False
        plane = services.plane
        only = plane.bound_to(mapped) if self.bundle is None else None
        there = False
        alone = self.state is State.DRAINING and self.listening.one_at_a_time
        if only is not None and (alone or mapped.paused is Pause.PAUSED_ORDER) and mapped.outstanding:
            return False
        if decision is not None and decision.undecided:
            return self.bundle is None or mapped.has_room
        if self.bundle is not None:
            bundle = routing.pool_of(self.listening, decision).bundle
            backend = None if decision is None else decision.backend
            return mapped.has_room and bundle is not None and bundle.has_room(backend)
        if only is None and self.state is State.SPLICED:
            there = self.vacancies.accept(decision)
        return there or any(
            upstream.has_room and plane.accepts(upstream.backend.index, bound=only is not None)
            for upstream in self._destinations(decision)
            if only is None or upstream.ref.number == only
        )

    def _lacks_room(self, mapped: MappedSocket, decision: Decision | None) -> bool:
        """Whether the refusal of a message, if it is or may be denied, has to wait for it to read."""
        if not self.framing.refusal or mapped.has_room:
            return False
        return bool(self.throttle.denied_by) or (decision is not None and decision.denied)

    def _destinations(self, decision: Decision | None) -> list[Upstream]:
        """The upstreams that a message may go to, as far as rules say."""
        if self.bundle is None:
            upstreams = list(self.upstreams.values())
        else:
            upstreams = [upstream for bundle in self.bundles for upstream in bundle.upstreams.values()]
        return [up for up in upstreams if routing.fits(self.listening, decision, up.backend)]

    def resume(self) -> None:
        """Lets the programs look at its messages again."""
        assert self.mapped is not None
        self.listening.services.buckets.go_on(self.throttle)
        try:
            self.listening.services.plane.resume(self.mapped)
        except PeerGoneError:
            return  # its FIN, or RST, is on the way to us as an event
        except OSError as error:
            _log.warning("%s: cannot go on yet: %s", self, error)
            self.listening.services.pauses.add(self)

    def waited(self, seconds: float) -> None:
        """Gives its messages up if they have waited too long for a backend."""
        assert self.mapped is not None
        if max(seconds, self.vacancies.waited()) < self.listening.timeouts.queue:
            return
        pause = self.mapped.paused
        decision = self.services.plane.decision(self.mapped)
        if decision is not None and (decision.denied or decision.undecided):
            return  # it waits for its own room, or its own answers
        lonely = pause is Pause.PAUSED_NO_UPSTREAM or not (
            any(up.serves for up in self._destinations(decision)) or self.vacancies.serve(decision)
        )
        if lonely or (pause is Pause.PAUSED_ORDER and self._waits_for_the_dead):
            reason = "no_backend"
        elif pause is Pause.PAUSED_LIMIT:
            reason = "max_outstanding"
        else:  # a backend may take its time to read
            return
        self.listening.services.pauses.discard(self)
        self._give_up(self.mapped, reason)

    @property
    def _waits_for_the_dead(self) -> bool:
        """Whether the answers that its next message has to wait for are due from a backend that is down."""
        assert self.mapped is not None
        only = self.services.plane.bound_to(self.mapped)
        return any(up.backend.down for up in self.upstreams.values() if up.ref.number == only)

    def due_in(self) -> float | None:
        """How long its rates let it wait, if that is what it waits for."""
        buckets = self.listening.services.buckets
        return None if buckets.ready(self.throttle) else buckets.turn(self.throttle)

    def await_space(self) -> bool:
        """Asks for events when connections to backends have space; False if it waits for something else."""
        assert self.mapped is not None
        if self.mapped.paused is not Pause.PAUSED_FULL:
            return False
        decision = self.services.plane.decision(self.mapped)
        if self._lacks_room(self.mapped, decision):
            return self.watch_space()
        if self.bundle is not None:
            return False
        return sum(upstream.watch_space() for upstream in self._destinations(decision)) > 0

    def watch_space(self) -> bool:
        """Hastens the upstreams when the connection has space; False if there is no connection."""
        if self.mapped is None or self.state is State.CLOSED:
            return False
        self.listening.services.poller.change(self.sock.fileno(), SPACE)
        return True

    def _give_up(self, mapped: MappedSocket, reason: str) -> None:
        self.vacancies.start_anew()
        framing = self.listening.config.framing
        if framing.error_reply is None:
            _log.info("%s: closed: its messages waited too long (%s)", self, reason)
            self.fail(reason)
            return
        services = self.listening.services
        services.plane.take_over(mapped)
        try:
            messages = self._alike(takeover.look(self.sock, framing, Direction.REQUEST))
            takeover.take(self.sock, messages)
        except FramingError as error:
            self.malformed(error.reason.value)
            return
        services.losses.add(reason, len(messages))
        replies = [error_reply(framing, message.data) for message in messages]
        self.run("error replies", self.answer([reply for reply in replies if reply is not None]))
        services.pauses.add(self)

    def _alike(self, messages: list[Message]) -> list[Message]:
        """The first of them, and those behind it that go where it does."""
        if not self.listening.config.rules or not messages:
            return messages
        decided = [routing.decide(self.listening, message.data, self._key) for message in messages]
        return [
            message
            for message, _ in itertools.takewhile(
                lambda it: it[1] == decided[0], zip(messages, decided, strict=True)
            )
        ]

    async def answer(self, replies: list[bytes]) -> None:
        """Sends the client what no backend will send it."""
        for reply in replies:
            await self.listening.services.poster.send(PostChannel.reply(self.ref, reply))

    def shut_down(self) -> None:
        """Ends the session: nothing new is accepted, what is outstanding is answered."""
        if self.state is State.ADMITTED:
            self.fail(None)
        elif self.state is State.SPLICED:
            self._end("drain", ending.after_outstanding(self))

    def _end(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self.state = step(self.state, Event.ENDING)
        self.listening.services.pauses.discard(self)
        self.run(name, work)

    def fail(self, reason: str | None) -> None:
        """Closes everything now, with RST; what was passed or is outstanding is lost for this reason."""
        if self.state is State.CLOSED:
            return
        if reason is not None and self.mapped is not None:
            lost = self.mapped.passed_messages + self.take_waiting()
            if self.bundle is None:  # else the answers come, and are counted as dropped then
                lost += self.mapped.outstanding
            self.listening.services.losses.add(reason, lost)
            self.close_upstreams(reason)
        self.close(Event.FAILED, reset=True)

    def close(self, event: Event, *, reset: bool = False) -> None:
        """Takes the socket out of the map and closes it, and all upstreams."""
        if self.state is State.CLOSED:
            return
        self.state = step(self.state, event)
        services = self.listening.services
        self._admission.cancel()
        self.close_upstreams()
        if reset:
            faults.reset_on_close(self.sock)
        self.vacancies.clear()
        if self.mapped is None:
            services.plane.release(self.ref)
            self.sock.close()
        else:
            services.pauses.discard(self)
            services.poller.forget(self.sock.fileno())
            services.plane.close_socket(self.mapped)
        services.quiescence.reclaim_soon()
        services.buckets.leave(self.throttle)
        self.listening.clients.discard(self)
        for pool in self.listening.pools:
            pool.clients.discard(self)

    # Work that takes time

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs a task of this client's; a bug in it ends the client, not the process."""
        self.listening.services.spawn(f"{name} of {self}", self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        with self.guard:
            await work

    def later(self, delay: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        """Calls back after ``delay`` seconds, unless the client is closed then."""

        def run() -> None:
            if self.state is not State.CLOSED:
                with self.guard:
                    action()

        return self.listening.services.loop.call_later(delay, run)
