"""Programs that a test runs: their output is read all the time, and each is ended by its owner."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import IO

from tests.e2e.namespaces import Namespace
from tests.e2e.polling import LIMIT

ROOT = Path(__file__).parents[2]
SOCKMAP_LB = (sys.executable, "-m", "lb")


class Output:
    """The lines of a stream, read by a thread so that the program never waits for us."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def text(self) -> str:
        """All lines so far."""
        with self._news:
            return "\n".join(self._lines)

    def wait_for(self, pattern: str, *, limit: float = LIMIT) -> re.Match[str]:
        """Return the first line that matches, past or to come."""
        seen = 0
        end = time.monotonic() + limit
        with self._news:
            while True:
                for line in self._lines[seen:]:
                    if match := re.search(pattern, line):
                        return match
                seen = len(self._lines)
                left = end - time.monotonic()
                if left <= 0 or self._ended:
                    raise AssertionError(f"no {pattern!r} in:\n" + "\n".join(self._lines))
                self._news.wait(left)

    def close(self) -> None:
        """Wait for the end of the stream: its last writer has ended."""
        self._thread.join(LIMIT)
        assert not self._thread.is_alive(), "a child of the program still holds its output open"
        self._stream.close()


class Process:
    """A running program, perhaps inside a namespace."""

    def __init__(self, arguments: Sequence[str], where: Namespace | None = None) -> None:
        command = where.command(*arguments) if where else list(arguments)
        self.arguments = arguments
        self._popen = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self.stdout = Output(self._popen.stdout)
        self.stderr = Output(self._popen.stderr)

    @property
    def pid(self) -> int:
        """Of the program itself."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def signal(self, number: Signals) -> None:
        """Send a signal; none to a stranger, as the process is not reaped before wait()."""
        self._popen.send_signal(number)

    def wait(self, limit: float = LIMIT) -> int:
        """Return the exit code; all output is there then."""
        try:
            code = self._popen.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} did not end within {limit:g} s:\n{self.stderr.text}") from None
        self.stdout.close()
        self.stderr.close()
        return code

    def close(self) -> None:
        """End it, the hard way if it does not listen."""
        if self.running:
            self.signal(Signals.SIGCONT)
            self.signal(Signals.SIGTERM)
            try:
                self._popen.wait(LIMIT)
            except subprocess.TimeoutExpired:
                self.signal(Signals.SIGKILL)
        self.wait()

    def __str__(self) -> str:
        return " ".join(self.arguments)


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on stderr of a program that printed nothing else."""
        assert not self.out, self.out
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


def run(arguments: Sequence[str], where: Namespace | None = None, *, limit: float = 3 * LIMIT) -> Done:
    """Run a program to its end."""
    process = Process(arguments, where)
    try:
        code = process.wait(limit)
    finally:
        process.close()
    return Done(code, process.stdout.text, process.stderr.text)
