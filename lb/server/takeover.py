"""Messages of a paused source, carried by user space.

The sockmap takes a socket only while its peer has not closed its side. A source that was paused when the
peer's FIN came can therefore not go back, and what waits on it - at most a receive buffer - is read here like
from any socket, and goes on through the post channel, behind what the kernel sent before.
"""

import socket
from collections.abc import Callable

from lb.dataplane import MappedSocket, PostChannel
from lb.framing import Direction, Framer, Framing, FramingError, Message, measure
from lb.server.context import Services
from lb.server.waiting import until

_FEWEST = 64 * 1024  # bytes looked at at once
_POSTED = 256 * 1024  # bytes in the channel that have no verdict yet


def look(
    sock: socket.socket, framing: Framing, direction: Direction, *, everything: bool = False
) -> list[Message]:
    """The whole messages at the head of the receive queue, or all in it, which stay there.

    Empty if there is none. Raises FramingError if there is no message in front of what is none; OSError if
    the connection was reset.
    """
    size = max(_FEWEST, framing.max_message)
    if everything:
        size = max(size, sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
    try:
        data = sock.recv(size, socket.MSG_PEEK)
    except BlockingIOError:
        return []
    end = 0
    try:
        while (length := measure(framing, data, end, direction)) is not None and end + length <= len(data):
            end += length
    except FramingError:
        if not end:
            raise
    return Framer(framing, direction).feed(data[:end])


def take(sock: socket.socket, messages: list[Message]) -> None:
    """Takes messages that :func:`look` has shown from the receive queue."""
    left = sum(len(message.data) for message in messages)
    while left:
        left -= len(sock.recv(left))


def count_waiting(sock: socket.socket, framing: Framing, direction: Direction) -> int:
    """Takes all messages that wait on a socket whose owner is about to close it; their number."""
    count = 0
    try:
        while messages := look(sock, framing, direction):
            take(sock, messages)
            count += len(messages)
    except (FramingError, OSError):
        pass  # what follows is no message, or the kernel has thrown it away
    return count


async def forward(
    services: Services,
    mapped: MappedSocket,
    framing: Framing,
    direction: Direction,
    *,
    room: Callable[[bytes], bool],
    ended: Callable[[], bool],
    alone: bool = False,
) -> str | None:
    """Posts everything that waits on a paused source whose peer has sent FIN.

    Args:
        services: of the process.
        mapped: the source.
        framing: its framing.
        direction: of its messages.
        room: whether a message may be sent on.
        ended: whether the source has been closed meanwhile.
        alone: a message waits for the verdict of the one before.

    Returns:
        The reason if the stream does not end with a whole message; None if it does.
    """
    services.plane.take_over(mapped)
    posted = mapped.consumed_bytes
    most = 0 if alone else _POSTED
    while not ended():
        try:
            messages = look(mapped.sock, framing, direction)
        except FramingError as error:
            return error.reason.value
        except OSError:
            return None  # reset: the owner is told of it
        if not messages:
            break
        for message in messages:
            await until(lambda: ended() or (posted - mapped.consumed_bytes <= most and room(message.data)))  # noqa: B023
            if ended():
                return None
            # Only now: what is not sent on is counted by whoever closes the socket.
            take(mapped.sock, [message])
            await services.poster.send(PostChannel.forward(mapped.ref, message.data))
            posted += len(message.data)
    await until(lambda: ended() or mapped.consumed_bytes >= posted)
    return "half_message" if not ended() and mapped.undecided > 1 else None
