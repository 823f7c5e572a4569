"""Listeners: each accepted connection becomes a client."""

import logging
import socket

from lb import config, proxy
from lb.server import faults
from lb.server.accepting import Acceptor
from lb.server.client import Client
from lb.server.context import Listening
from lb.server.proxy import Introduction
from lb.slots import SlotRef, SlotsExhaustedError

_log = logging.getLogger(__name__)


class Listener:
    """Hands each connection to a :class:`Client`."""

    def __init__(self, listening: Listening, sock: socket.socket) -> None:
        self.listening = listening
        self._acceptor = Acceptor(f"listener {listening.config.name}", sock, self._admit)

    @property
    def address(self) -> str:
        """Where it listens (or did, after close()), with the port that the kernel chose for port 0."""
        return self._acceptor.address

    def open(self) -> None:
        """Starts to accept."""
        self._acceptor.open(self.listening.services.loop)

    def close(self) -> None:
        """Stops to accept; clients stay."""
        self._acceptor.close()
        for introduction in list(self.listening.introductions):
            introduction.close()

    def give_away(self) -> socket.socket:
        """Stops to accept; another listener goes on with the socket."""
        return self._acceptor.give_away()

    def prepare(self) -> None:
        """Clients to come get what the pool's timeouts say now."""
        self._acceptor.prepare(self.listening.max_message, self.listening.timeouts)

    def set_congestion(self, name: str) -> None:
        """Clients to come get a congestion control algorithm."""
        self._acceptor.set_congestion(name)

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        listening = self.listening
        listening.accepted += 1
        trusted = listening.config.trusted
        if trusted is not None and not config.within(trusted, peer[0]):
            _log.info("listener %s: a proxy at %s is not trusted", listening.config.name, peer[0])
            self._refuse(sock, "untrusted_proxy")
            return
        reason = listening.over_limit(peer[0] if trusted is None else None)
        if reason is not None:
            self._refuse(sock, reason)
            return
        try:
            ref = listening.services.plane.reserve()
        except SlotsExhaustedError:
            self._refuse(sock, "max_connections")
            return
        sock.setblocking(False)
        if trusted is None:
            self._serve(Client(listening, sock, peer, ref))
        else:
            introduction = Introduction(listening, sock, peer, ref, self._introduce)
            with introduction.guard:
                introduction.start()

    def _introduce(
        self, sock: socket.socket, peer: tuple[str, int], ref: SlotRef, header: proxy.Header
    ) -> None:
        """A proxy has said whose connection it is."""
        ends = header.endpoints
        if ends is not None:
            peer = str(ends.source.host), ends.source.port
        reason = self.listening.over_limit(peer[0])
        if reason is not None:
            services = self.listening.services
            services.plane.release(ref)
            services.quiescence.reclaim_soon()
            self._refuse(sock, reason)
            return
        self._serve(Client(self.listening, sock, peer, ref, header))

    @staticmethod
    def _serve(client: Client) -> None:
        with client.guard:
            client.start()

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        """Turns a client away with RST."""
        self.listening.refused[reason] += 1
        faults.reset_on_close(sock)
        sock.close()
