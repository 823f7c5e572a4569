"""The terminal, taken over for a live picture and given back whatever happens.

The picture has the alternate screen, so that what was there before comes back; keys come one by one and
unechoed. Both are undone at the end, for a signal that ends the program, and while it is suspended (Ctrl-Z).
"""

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from types import FrameType, TracebackType
from typing import Self

_ENTER = "\x1b[?1049h\x1b[?25l"  # alternate screen, no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"


class Screen:
    """To be used as a context; standard output must be a terminal."""

    def __init__(self) -> None:
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before: list[int | list[bytes | int]] | None = None
        self._lines: list[str] = []
        self._handlers: dict[signal.Signals, signal.Handlers | object] = {}

    def __enter__(self) -> Self:
        for number, handler in (
            (signal.SIGTERM, self._end),
            (signal.SIGHUP, self._end),
            (signal.SIGTSTP, self._suspend),
            (signal.SIGWINCH, lambda *_: self.draw(self._lines)),
        ):
            self._handlers[number] = signal.signal(number, handler)
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def draw(self, lines: list[str]) -> None:
        """Shows these lines, as many and as much of them as there is room for."""
        self._lines = lines
        columns, rows = shutil.get_terminal_size()
        shown = [line[:columns] for line in lines[:rows]]
        self._write(_HOME + "\r\n".join(line + _REST_OF_LINE for line in shown) + _REST)

    def wait(self, seconds: float) -> str:
        """The next key; "" if none is pressed for so long."""
        end = time.monotonic() + seconds
        while self._keys is not None and (left := end - time.monotonic()) > 0:
            if not select.select([self._keys], [], [], left)[0]:
                break
            if pressed := os.read(self._keys, 1):
                return pressed.decode("ascii", "replace")
            self._keys = None  # the terminal has no more
        time.sleep(max(0.0, end - time.monotonic()))
        return ""

    def _take(self) -> None:
        if self._keys is not None:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys, termios.TCSADRAIN)
        self._write(_ENTER)

    def _give_back(self) -> None:
        self._write(_LEAVE)
        if self._keys is not None and self._before is not None:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def _suspend(self, number: int, _: FrameType | None) -> None:
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Here again when it is continued.
        signal.signal(number, self._suspend)
        self._take()
        self.draw(self._lines)

    def _end(self, number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)  # through __exit__

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
