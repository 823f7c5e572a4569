"""The live table: on a terminal, in a pipe, for machines."""

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals

import pytest

from tests.e2e.balancer import Balancer, show
from tests.e2e.crowd import Crowd
from tests.e2e.lab import Lab
from tests.e2e.polling import LIMIT, PATIENCE, eventually_equal
from tests.e2e.processes import ROOT, SOCKMAP_LB

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """A program on a terminal of 24 lines of 100."""

    def __init__(self, command: list[str]) -> None:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.before = termios.tcgetattr(self._theirs)
        self.seen = b""
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "", "LINES": ""},
        )

    def wait_for(self, text: bytes, count: int = 1) -> None:
        """Read until it has been written so many times."""
        end = time.monotonic() + 3 * LIMIT
        while self.seen.count(text) < count:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen[-2000:]!r}"
            self.seen += os.read(self._ours, 1 << 16)

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def settings(self) -> list[int | list[bytes | int]]:
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def top(lab: Lab, balancer: Balancer, *arguments: str) -> Iterator[Terminal]:
    command = lab.here.command(*SOCKMAP_LB, "top", "--admin", show(balancer.admin), *arguments)
    terminal = Terminal(command)
    try:
        yield terminal
    finally:
        terminal.close()


def test_on_a_terminal_until_q(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a"), lab.backend("b")])
    with Crowd(balancer, 4), top(lab, balancer, "--interval", "0.2") as terminal:
        terminal.wait_for(b"workers/b", 3)
        assert terminal.seen.startswith(ENTER)
        assert b"P99" in terminal.seen
        assert not terminal.settings()[3] & termios.ECHO, "keys are not echoed"  # type: ignore[operator]
        terminal.press(b"x")
        terminal.wait_for(b"workers/b", 5)
        terminal.press(b"q")
        terminal.wait_for(LEAVE)
        assert terminal.process.wait(3 * LIMIT) == 0
        assert terminal.settings() == terminal.before


@pytest.mark.parametrize(("number", "code"), [(Signals.SIGINT, 0), (Signals.SIGTERM, 128 + Signals.SIGTERM)])
def test_a_signal_gives_the_terminal_back(lab: Lab, number: Signals, code: int) -> None:
    balancer = lab.serve([lab.backend("a")])
    with top(lab, balancer, "--interval", "0.2") as terminal:
        terminal.wait_for(b"workers/a")
        terminal.process.send_signal(number)
        terminal.wait_for(LEAVE)
        assert terminal.process.wait(3 * LIMIT) == code
        assert terminal.settings() == terminal.before


def test_a_balancer_that_goes_away(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    with top(lab, balancer, "--interval", "0.2") as terminal:
        terminal.wait_for(b"workers/a")
        assert balancer.stop().code == 0
        terminal.wait_for(b"nobody answers")
        terminal.press(b"q")
        assert terminal.process.wait(3 * LIMIT) == 0


def test_for_machines(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a", delay=0.002), lab.backend("b", delay=0.002)])
    with Crowd(balancer, 4):
        eventually_equal(lambda: balancer.metrics().value("responses_total") > 0, wanted=True)
        done = lab.run(*SOCKMAP_LB, "top", "--once", "--json", "--admin", show(balancer.admin))
    assert (done.code, done.err) == (0, "")
    rates = json.loads(done.out)
    assert rates["clients"] == 4
    assert rates["messages_per_second"] > 0
    for backend in rates["backends"]:
        assert 0.002 <= backend["p50"] <= backend["p99"] < LIMIT
        assert backend["connections"] == 4


def test_without_a_terminal(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    arguments = ("top", "--once", "--interval", "0.1", "--admin", show(balancer.admin))
    done = lab.run(*SOCKMAP_LB, *arguments)
    assert (done.code, done.err) == (0, "")
    assert "workers/a" in done.out
    assert "\x1b" not in done.out


def test_nobody_answers(lab: Lab) -> None:
    done = lab.run(*SOCKMAP_LB, "top", "--admin", "127.0.0.1:1")
    assert done.code == 1
    assert done.complaint.startswith("sockmap-lb: nobody answers at 127.0.0.1:1: ")


def test_the_interval_is_kept(lab: Lab) -> None:
    balancer = lab.serve([lab.backend("a")])
    since = time.monotonic()
    arguments = ("top", "--once", "--json", "--interval", "0.5", "--admin", show(balancer.admin))
    rates = json.loads(lab.run(*SOCKMAP_LB, *arguments).out)
    assert 0.45 <= rates["seconds"] < 0.5 + LIMIT * PATIENCE
    assert time.monotonic() - since >= 0.5
