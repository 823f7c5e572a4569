"""Clients that closed their side before they could be mapped.

``printf ... | nc -N`` sends, half-closes and waits. The sockmap takes no such socket, but what it sent is
complete and fits its receive buffer, so user space carries this one exchange over one backend connection
that is not mapped either. It counts as ``path="userspace"``.

Requests and responses travel at the same time: a backend that answers before it reads on would otherwise
wait for us, and we for it.
"""

import asyncio
import logging
import socket

from lb.backends import Backend, connect_failure
from lb.dataplane import PostChannel, sockets
from lb.framing import Direction, Framer, Message, refusal
from lb.server import faults, routing
from lb.server.context import Listening, Relayed
from lb.server.rates import Throttle
from lb.server.waiting import until

_log = logging.getLogger(__name__)
_CHUNK = 256 * 1024


async def connect(backend: Backend, seconds: float, preface: bytes = b"") -> socket.socket | None:
    """A connection to a backend, not blocking; None if there was none within so many seconds.

    ``preface``: what the backend is told first.
    """
    address = backend.config.address
    sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_connect(sock, address.sockaddr)
            if preface:
                await asyncio.get_running_loop().sock_sendall(sock, preface)
    except OSError as error:  # TimeoutError is one
        sock.close()
        backend.failed("timeout" if isinstance(error, TimeoutError) else connect_failure(error.errno or 0))
        return None
    except asyncio.CancelledError:
        sock.close()
        raise
    return sock


async def relay(
    listening: Listening,
    backend: Backend,
    client: socket.socket,
    upstream: socket.socket,
    throttle: Throttle,
    address: bytes,
) -> None:
    """Sends all whole messages of the client, then FIN, and gives back what comes until the backend's FIN.

    A client that does not get all its answers, or sent what is no message, is reset when its socket is
    closed. The sockets stay the caller's. ``address``: of the client, in network byte order.
    """
    exchange = _Exchange(listening, backend, client, upstream, throttle, address)
    try:
        async with asyncio.timeout(listening.timeouts.drain), asyncio.TaskGroup() as group:
            group.create_task(exchange.send(), name=f"requests to {backend}")
            group.create_task(exchange.receive(), name=f"responses of {backend}")
    except TimeoutError:
        exchange.lost = "drain_timeout"
    exchange.conclude()


class _Exchange:
    def __init__(
        self,
        listening: Listening,
        backend: Backend,
        client: socket.socket,
        upstream: socket.socket,
        throttle: Throttle,
        address: bytes,
    ) -> None:
        self.lost = "backend_closed"  # why answers that are missing at the end did not come
        self._listening = listening
        self._backend = backend
        self._throttle = throttle
        self._address = address
        self._client = client
        self._upstream = upstream
        self._requests = Framer(listening.config.framing, Direction.REQUEST)
        self._responses = Framer(listening.config.framing, Direction.RESPONSE)
        self._counts = listening.relayed.setdefault(backend, Relayed())
        self._outstanding = 0
        self._quiet: list[int] = []  # where the messages without a response end in what was written
        self._written = 0
        self._written_before = sockets.written(upstream)
        self._client_gone = False
        self._to_client = asyncio.Lock()  # both directions have something to say to it

    async def send(self) -> None:
        """The client's messages, then FIN."""
        while self._requests.error is None and (data := await self._read_client()):
            for message in self._requests.feed(data):
                if routing.denies(self._listening, message.data, self._address):
                    await self._deny(message, "rule")
                    continue
                if not await self._allowed():
                    await self._deny(message, "rate_limited")
                    continue
                self._outstanding += message.wants_response
                self._written += len(message.data)
                if not message.wants_response:
                    self._quiet.append(self._written)
                if await self._write(self._upstream, message.data):
                    self._counts.requests += 1
                    self._counts.request_bytes += len(message.data)
                else:
                    self.lost = "backend_reset"
        faults.send_fin(self._upstream)

    async def receive(self) -> None:
        """The backend's messages. A client that is gone does not end this: its requests are still sent."""
        while self._responses.error is None and (data := await self._read_upstream()):
            for message in self._responses.feed(data):
                self._outstanding -= message.is_response
                if await self._write_client(message.data):
                    self._counts.responses += 1
                    self._counts.response_bytes += len(message.data)
                else:
                    self._listening.services.losses.add("client_gone", 1)

    def conclude(self) -> None:
        """Counts what went wrong, and makes sure that the client notices."""
        reasons: list[str] = []
        if self._requests.error is not None:
            reasons.append(self._requests.error.reason)
        elif self._requests.pending:
            reasons.append("half_message")
        if self._responses.error is not None:
            reasons.append(f"backend_{self._responses.error.reason}")
            self.lost = "backend_malformed"
        for reason in reasons:
            self._listening.protocol_errors[reason] += 1
        self._listening.services.losses.add(self.lost, self._outstanding + self._undelivered_quiet())
        if reasons or self._outstanding > 0:
            _log.info(
                "relay to %s: %s, %d messages outstanding",
                self._backend,
                reasons or self.lost,
                self._outstanding,
            )
            faults.reset_on_close(self._client)

    def _undelivered_quiet(self) -> int:
        """Messages without a response that the backend did not acknowledge."""
        acknowledged = sockets.progress(self._upstream).acknowledged - self._written_before
        return sum(end > acknowledged for end in self._quiet)

    async def _allowed(self) -> bool:
        """Waits for the client's rates, and charges them; False if the message is denied."""
        throttle, services = self._throttle, self._listening.services
        if not throttle.rate and not throttle.address_rate:
            return True
        while not services.buckets.ready(throttle):  # noqa: ASYNC110 - tokens come by themselves
            await asyncio.sleep(services.buckets.turn(throttle))
        services.buckets.go_on(throttle)
        if services.buckets.denies(throttle):
            return False
        charged = services.buckets.charged(throttle)
        await services.poster.send(PostChannel.charge(throttle.rate, throttle.address_rate))
        await until(lambda: services.buckets.charged(throttle) != charged)
        return True

    async def _deny(self, message: Message, reason: str) -> None:
        """Drops a message of the client, and answers it if the protocol has a word for that."""
        losses = self._listening.services.losses
        losses.add(reason, 1)
        reply = refusal(self._listening.config.framing, message.data)
        if reply is not None and await self._write_client(reply):
            losses.refused += 1

    async def _read_client(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._client, _CHUNK)
        except OSError:  # reset, after all that it had sent was read
            self._client_gone = True
            return b""

    async def _read_upstream(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._upstream, _CHUNK)
        except OSError:
            self.lost = "backend_reset"
            return b""

    async def _write_client(self, data: bytes) -> bool:
        """False if the client is gone."""
        async with self._to_client:
            if not self._client_gone and not await self._write(self._client, data):
                self._client_gone = True
            return not self._client_gone

    async def _write(self, sock: socket.socket, data: bytes) -> bool:
        """False if the peer is gone."""
        try:
            await asyncio.get_running_loop().sock_sendall(sock, data)
        except OSError:
            return False
        return True
