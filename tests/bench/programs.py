"""The programs that the measurements run: backends, load, the balancer, HAProxy; and a network of their own.

Everything lives in a network namespace that the measuring process enters first, so ports never collide and
the congestion control of the balancer's sockets can be chosen without touching the machine's.
"""

import argparse
import contextlib
import ctypes
import errno
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
_CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_START_LIMIT = 30.0
_STOP_LIMIT = 15.0
BACKENDS = ("a", "b", "c")


class ProgramError(Exception):
    """A program did not start, did not end well, or is not there."""


def enter_network(congestion: str | None) -> None:
    """Moves this process, and what it starts, into a network namespace of its own.

    Raises:
        ProgramError: not root, or the kernel has no such congestion control.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise ProgramError(f"unshare: {os.strerror(ctypes.get_errno())}; run it as root")
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    if congestion is not None:
        try:
            _CONGESTION.write_text(congestion)
        except OSError as error:
            raise ProgramError(
                f"congestion control {congestion}: {error.strerror}{_remedy(error)}"
            ) from error


def _remedy(error: OSError) -> str:
    # Only the first network namespace may use what the machine does not allow to everybody (tcp_cong.c).
    if error.errno != errno.EPERM:
        return ""
    return "; add it to the machine's net.ipv4.tcp_allowed_congestion_control"


def congestion_control() -> str:
    """The one that new sockets of this network get."""
    return _CONGESTION.read_text().strip()


def raise_descriptor_limit(needed: int) -> None:
    """Allows this process, and what it starts, the descriptors of that many connections.

    Raises:
        ProgramError: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ProgramError(
            f"{needed} descriptors are needed, {hard} are allowed: take fewer clients or raise `ulimit -Hn`"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def compile_c(directory: Path, name: str) -> Path:
    """Builds ``name``.c of this folder.

    Raises:
        ProgramError: there is no gcc, or it refuses.
    """
    binary = directory / name
    try:
        subprocess.run(("gcc", *_FLAGS, "-o", binary, _HERE / f"{name}.c"), check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ProgramError(f"{name}.c was not built: {error}") from error
    return binary


def number(least: int, most: int) -> Callable[[str], int]:
    """A type for argparse: an integer within bounds."""

    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}")
        return value

    return read


@contextlib.contextmanager
def _running(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ends the process with the block, by SIGKILL if SIGTERM does not."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class EchoBackends:
    """Three processes that answer each message with itself."""

    def __init__(self, binary: Path, stack: contextlib.ExitStack, congestion: str | None) -> None:
        arguments = () if congestion is None else ("--congestion", congestion)
        self._processes = []
        self.addresses: dict[str, str] = {}
        for name in BACKENDS:
            process = subprocess.Popen((binary, "--count", *arguments), stdout=subprocess.PIPE, text=True)
            stack.enter_context(_running(process))
            assert process.stdout is not None
            stack.enter_context(process.stdout)
            self._processes.append(process)
            self.addresses[name] = process.stdout.readline().strip()

    def stop(self) -> int:
        """Ends them; gives how many messages they answered.

        Raises:
            ProgramError: one of them met a malformed message, or crashed.
        """
        total = 0
        for name, process in zip(BACKENDS, self._processes, strict=True):
            process.terminate()
            output, _ = process.communicate(timeout=_STOP_LIMIT)
            if process.returncode:
                raise ProgramError(f"backend {name} ended with {process.returncode}")
            counts = json.loads(output)
            if counts["malformed"]:
                raise ProgramError(f"backend {name} got {counts['malformed']} malformed messages")
            total += counts["messages"]
        return total


@dataclass(frozen=True, slots=True)
class Settings:
    """What the measurements vary in the balancer's configuration."""

    balance: str = "least_outstanding"
    batch: int = 64
    shared: int = 0  # connections to each backend that all clients share; 0: each has its own
    max_connections: int = 4096


class Balancer:
    """`sockmap-lb run` with a configuration of its own, in front of the backends."""

    def __init__(
        self, directory: Path, stack: contextlib.ExitStack, settings: Settings, backends: dict[str, str]
    ) -> None:
        """Waits until it serves.

        Raises:
            ProgramError: it did not start.
        """
        self.log: list[str] = []
        self.target = self.admin = ""
        self._serving = threading.Event()
        configuration = directory / f"{settings.balance}-{settings.batch}-{settings.shared}.yaml"
        configuration.write_text(_balancer_yaml(settings, backends), encoding="utf-8")
        self._process = subprocess.Popen(
            (sys.executable, "-m", "lb", "run", "-c", configuration),
            cwd=_ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        reader = threading.Thread(target=self._read_log, name="log of the balancer")
        stack.callback(reader.join)
        stack.enter_context(_running(self._process))
        reader.start()
        if not self._serving.wait(_START_LIMIT) or not self.admin:
            raise ProgramError(f"the balancer did not start: {''.join(self.log[-3:]).strip()}")

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                self.log.append(line)
                if " listener bench: " in line:
                    self.target = line.split(" listener bench: ")[1].split(",")[0]
                elif " admin: http://" in line:
                    self.admin = line.split(" admin: http://")[1].strip()
                    self._serving.set()
        self._serving.set()


def _balancer_yaml(settings: Settings, backends: dict[str, str]) -> str:
    shared = f"    connections: shared\n    connections_per_backend: {settings.shared}\n"
    listed = "".join(f"      - {{name: {name}, address: {address}}}\n" for name, address in backends.items())
    return (
        "admin: {address: 127.0.0.1:0}\n"
        f"runtime: {{max_connections: {settings.max_connections}}}\n"
        "listeners:\n"
        "  - {name: bench, address: 127.0.0.1:0, protocol: length-prefixed, pool: bench}\n"
        "pools:\n"
        "  - name: bench\n"
        f"    balance: {settings.balance}\n"
        f"    batch: {settings.batch}\n"
        f"{shared if settings.shared else ''}"
        "    backends:\n" + listed
    )


class HAProxy:
    """HAProxy in tcp mode, which spreads connections where sockmap-lb spreads messages."""

    def __init__(
        self, directory: Path, stack: contextlib.ExitStack, threads: int, backends: dict[str, str]
    ) -> None:
        # Its clients connect to a socket that is there before it starts, so nothing has to wait for it.
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        servers = "".join(f"  server {name} {address}\n" for name, address in backends.items())
        configuration = directory / f"haproxy-{threads}.cfg"
        configuration.write_text(
            f"global\n  nbthread {threads}\n  maxconn 4096\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"listen bench\n  bind fd@{listener.fileno()}\n  balance roundrobin\n{servers}",
            encoding="utf-8",
        )
        process = subprocess.Popen(
            ("haproxy", "-db", "-q", "-f", configuration), pass_fds=(listener.fileno(),), text=True
        )
        stack.enter_context(_running(process))
        self.pid = process.pid
        self.target = f"127.0.0.1:{listener.getsockname()[1]}"

    @staticmethod
    def version() -> str | None:
        """Its version; None if it is not installed."""
        if shutil.which("haproxy") is None:
            return None
        output = subprocess.run(("haproxy", "-v"), check=True, capture_output=True, text=True).stdout
        return output.split()[2]


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, in user space and in its system calls. Source: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_cpu_seconds() -> float:
    """Processor time that the whole machine has spent so far, interrupts included. Source: proc(5)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM. Source: proc(5), VmRSS."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nVmRSS:")[2].split(maxsplit=1)[0]) * 1024


@dataclass(frozen=True, slots=True)
class Load:
    """What the load generator prints."""

    messages_per_second: float
    messages: int  # answered in the measured time
    answers: int  # with those before and after it
    missing: int
    unsent: int
    latency_us: dict[str, float]


def load(binary: Path, targets: Sequence[str], arguments: Sequence[str]) -> Load:
    """Runs the load generator to its end.

    Raises:
        ProgramError: an answer was wrong or missing.
    """
    process = subprocess.run((binary, *arguments, *targets), capture_output=True, text=True, check=False)
    if process.returncode:
        why = process.stderr.strip() or process.stdout.strip()
        raise ProgramError(f"load on {' '.join(targets)}: {why}")
    return Load(**json.loads(process.stdout))
