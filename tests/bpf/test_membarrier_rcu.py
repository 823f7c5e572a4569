"""membarrier(MEMBARRIER_CMD_GLOBAL) waits until programs that were running have ended.

A verdict program is kept busy for 50 ms on one CPU, by a send() to a mapped socket. Meanwhile another CPU
calls membarrier; when that returns the program must have ended. The same with a system call that waits for
nothing shows that the measurement can tell.
"""

import ctypes
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from lb.libbpf import ArrayMap, AttachType, Object, SockMap, membarrier_global

SOURCE = Path(__file__).parent / "fixtures/sample.bpf.c"
CPUS = sorted(os.sched_getaffinity(0))
SPIN = 0.05  # seconds
TIMEOUT = 20
ATTEMPTS = 20  # on a busy machine the program may have ended before this test gets a CPU

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("clang") is None, reason="needs root and clang"),
    pytest.mark.skipif(
        len(CPUS) < 2, reason="with one CPU the kernel does not wait, and nothing runs meanwhile"
    ),
]


class State(ctypes.Structure):
    _fields_ = (("spin_ns", ctypes.c_uint64), ("started", ctypes.c_uint32), ("finished", ctypes.c_uint32))


class Rig:
    """A connection whose receiving end runs the busy program."""

    def __init__(self, loaded: Object, client: socket.socket, accepted: socket.socket) -> None:
        self.state = loaded.map("states", ArrayMap).view(State)[0]
        self.client, self.accepted = client, accepted
        socks = loaded.map("socks", SockMap)
        loaded.program("parser").attach_sockmap(socks, AttachType.SK_SKB_STREAM_PARSER)
        loaded.program("verdict").attach_sockmap(socks, AttachType.SK_SKB_STREAM_VERDICT)
        socks.insert(0, accepted.fileno())

    def _send(self) -> None:
        # On loopback the receiver's programs run on the CPU that sends.
        os.sched_setaffinity(0, CPUS[-1:])
        self.client.sendall(b"x")

    def _call(self, system_call: Callable[[], object]) -> tuple[bool, bool, float]:
        os.sched_setaffinity(0, CPUS[:1])
        deadline = time.monotonic() + TIMEOUT
        while not self.state.started:
            assert time.monotonic() < deadline, "the program did not start"
        before = bool(self.state.finished)
        start = time.monotonic()
        system_call()
        return before, bool(self.state.finished), time.monotonic() - start

    def measure(self, system_call: Callable[[], object]) -> tuple[bool, float]:
        """Whether a call that began while the program ran returned after its end, and its seconds."""
        for _ in range(ATTEMPTS):
            self.state.started = self.state.finished = 0
            self.state.spin_ns = int(SPIN * 1e9)
            with ThreadPoolExecutor(2) as pool:
                called = pool.submit(self._call, system_call)
                pool.submit(self._send).result(TIMEOUT)
                before, after, seconds = called.result(TIMEOUT)
            assert self.accepted.recv(16) == b"x"
            if not before:
                return after, seconds
        pytest.fail(f"the program had ended before the call in each of {ATTEMPTS} attempts")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    target = tmp_path / "sample.bpf.o"
    # -I: asm/types.h is where the machine's own compiler looks for it, and that is not BPF's.
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-I/usr/include/{platform.machine()}-linux-gnu"]
    subprocess.run(["clang", *flags, "-c", SOURCE, "-o", target], check=True, timeout=120)
    with ExitStack() as stack:
        loaded = stack.enter_context(Object.open(target).load())
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(server.getsockname(), TIMEOUT))
        server.settimeout(TIMEOUT)
        accepted = stack.enter_context(server.accept()[0])
        accepted.settimeout(TIMEOUT)
        yield Rig(loaded, client, accepted)


def test_membarrier_waits_for_running_programs(rig: Rig) -> None:
    for _ in range(5):
        finished, seconds = rig.measure(membarrier_global)
        assert finished, f"membarrier returned after {seconds * 1e3:.1f} ms, while the program ran"


def test_another_system_call_does_not(rig: Rig) -> None:
    for _ in range(ATTEMPTS):
        finished, _ = rig.measure(os.getppid)
        if not finished:
            return
    pytest.fail("the program ended during every call: the measurement proves nothing")
