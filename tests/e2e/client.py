"""A client that says one thing at a time and never waits without a limit."""

import socket
import struct
from typing import Self

from lb.framing import PRESETS, Direction, Framer, Framing

_NOTHING = struct.pack("ii", 1, 0)


class Client:
    """A connection to a listener. Answers are cut by the framing's oracle."""

    def __init__(self, sock: socket.socket, framing: Framing = PRESETS["length-prefixed"]) -> None:
        self.sock = sock
        self._framer = Framer(framing, Direction.RESPONSE)
        self._answers: list[bytes] = []

    def send(self, *messages: bytes) -> None:
        """All of them in one go."""
        self.sock.sendall(b"".join(messages))

    def answers(self, count: int) -> list[bytes]:
        """The next answers, in the order of their arrival."""
        while len(self._answers) < count:
            data = self.sock.recv(1 << 18)
            assert data, f"EOF after {len(self._answers)} of {count} answers"
            self._take(data)
        taken, self._answers = self._answers[:count], self._answers[count:]
        return taken

    def ask(self, *messages: bytes) -> list[bytes]:
        """Send all, return as many answers."""
        self.send(*messages)
        return self.answers(len(messages))

    def answers_to_the_end(self) -> list[bytes]:
        """Every answer until EOF; a reset is an error, and so is half an answer."""
        while data := self.sock.recv(1 << 18):
            self._take(data)
        assert not self._framer.pending, "EOF inside of an answer"
        taken, self._answers = self._answers, []
        return taken

    def half_close(self) -> None:
        """Send FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOTHING)
        self.sock.close()

    def is_reset(self) -> bool:
        """Read until the end; say whether that was a reset (True) or EOF (False)."""
        try:
            while data := self.sock.recv(1 << 18):
                self._take(data)
        except ConnectionResetError:
            return True
        return False

    def close(self) -> None:
        """Close, if that has not happened."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, data: bytes) -> None:
        self._answers += [message.data for message in self._framer.feed(data)]
        assert self._framer.error is None, self._framer.error
