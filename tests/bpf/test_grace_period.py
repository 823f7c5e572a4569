"""Putting a map into a map of maps waits until programs that were running have ended.

A verdict program is kept busy for 50 ms on one CPU, by a send() to a mapped socket. Meanwhile another CPU
makes the update; when that returns the program must have ended. The same with a system call that waits for
nothing shows that the measurement can tell.

With one CPU there is nothing to see: a program that serves a send() on loopback is not preempted, so no
other thread runs meanwhile.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from lb.dataplane import DataPlane
from lb.libbpf import ArrayMap, ArrayOfMaps, AttachType, Object, SockMap, clear_capabilities

ROOT = Path(__file__).parents[2]
CPUS = sorted(os.sched_getaffinity(0))
SPIN = 0.05  # seconds
TIMEOUT = 20
ATTEMPTS = 20  # on a busy machine the program may have ended before this test gets a CPU

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("clang") is None, reason="needs root and clang"
)
two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="with one CPU nothing runs while a program does")


class State(ctypes.Structure):
    _fields_ = (("spin_ns", ctypes.c_uint64), ("started", ctypes.c_uint32), ("finished", ctypes.c_uint32))


class Rig:
    """A connection whose receiving end runs the busy program."""

    def __init__(self, loaded: Object, client: socket.socket, accepted: socket.socket) -> None:
        self.state = loaded.map("states", ArrayMap).view(State)[0]
        self.outer, self.inner = loaded.map("outer", ArrayOfMaps), loaded.map("inner", ArrayMap)
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
def rig(sample: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        loaded = stack.enter_context(Object.open(sample).load())
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(server.getsockname(), TIMEOUT))
        server.settimeout(TIMEOUT)
        accepted = stack.enter_context(server.accept()[0])
        accepted.settimeout(TIMEOUT)
        yield Rig(loaded, client, accepted)


@two_cpus
def test_an_update_of_a_map_of_maps_waits_for_running_programs(rig: Rig) -> None:
    for _ in range(5):
        finished, seconds = rig.measure(partial(rig.outer.insert, 0, rig.inner))
        assert finished, f"the update returned after {seconds * 1e3:.1f} ms, while the program ran"


@two_cpus
def test_it_waits_without_any_capability(rig: Rig) -> None:
    def insert() -> None:
        clear_capabilities()  # of this thread, which ends with the measurement
        rig.outer.insert(0, rig.inner)

    finished, seconds = rig.measure(insert)
    assert finished, f"the update returned after {seconds * 1e3:.1f} ms, while the program ran"


@two_cpus
def test_another_system_call_does_not(rig: Rig) -> None:
    for _ in range(ATTEMPTS):
        finished, _ = rig.measure(os.getppid)
        if not finished:
            return
    pytest.fail("the program ended during every call: the measurement proves nothing")


def test_the_data_plane_waits_in_another_thread_again_and_again(plane: DataPlane) -> None:
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            pool.submit(plane.wait_for_programs).result(TIMEOUT)


def test_the_data_plane_waits_after_it_gave_up_every_privilege() -> None:
    code = """if True:
        import os
        from lb.dataplane import Sizes, load
        from lb.libbpf import clear_capabilities, drop_bounding_set, effective_capabilities, set_no_new_privs
        plane = load(Sizes(connections=4, framings=1, backends=1, traffic_rows=1, max_message=1))
        drop_bounding_set()
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        clear_capabilities()
        set_no_new_privs()
        assert not effective_capabilities()
        plane.wait_for_programs()
        plane.wait_for_programs()
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=TIMEOUT)
