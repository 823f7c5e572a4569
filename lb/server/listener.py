"""Listeners: each accepted connection becomes a client."""

import socket

from lb.server import faults
from lb.server.accepting import Acceptor
from lb.server.client import Client
from lb.server.context import Listening
from lb.slots import SlotsExhaustedError


class Listener:
    """Hands each connection to a :class:`Client`."""

    def __init__(self, listening: Listening, sock: socket.socket) -> None:
        self._listening = listening
        self._acceptor = Acceptor(f"listener {listening.config.name}", sock, self._admit)

    @property
    def address(self) -> str:
        """Where it listens (or did, after close()), with the port that the kernel chose for port 0."""
        return self._acceptor.address

    def open(self) -> None:
        """Starts to accept."""
        self._acceptor.open(self._listening.services.loop)

    def close(self) -> None:
        """Stops to accept; clients stay."""
        self._acceptor.close()

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        listening = self._listening
        listening.accepted += 1
        reason = listening.over_limit(peer[0])
        if reason is not None:
            self._refuse(sock, reason)
            return
        try:
            ref = listening.services.plane.reserve()
        except SlotsExhaustedError:
            self._refuse(sock, "max_connections")
            return
        sock.setblocking(False)
        client = Client(listening, sock, peer, ref)
        with client.guard:
            client.start()

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        """Turns a client away with RST."""
        self._listening.refused[reason] += 1
        faults.reset_on_close(sock)
        sock.close()
