"""Network namespaces: every test has networks of its own, so ports, addresses and leftovers never meet."""

import ctypes
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from tests.e2e.polling import LIMIT

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()

Endpoint = tuple[str, int]


def ip(*arguments: str) -> None:
    """Run iproute2; its complaint is part of the error."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def family(host: str) -> socket.AddressFamily:
    """The address family of a literal address."""
    return socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET


class Namespace:
    """A network namespace with its loopback up. Its owner closes it, after the processes inside."""

    def __init__(self, role: str = "lab") -> None:
        self.name = f"lb-{os.getpid()}-{next(_numbers)}-{role}"
        self._etc = Path("/etc/netns") / self.name  # see ip-netns(8)
        ip("netns", "add", self.name)
        try:
            ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the namespace; the kernel keeps it while a socket is left inside."""
        shutil.rmtree(self._etc, ignore_errors=True)
        ip("netns", "del", self.name)

    def write_etc(self, name: str, text: str) -> None:
        """Give the programs that are started inside from here on a file of their own in /etc."""
        self._etc.mkdir(parents=True, exist_ok=True)
        (self._etc / name).write_text(text, encoding="ascii")

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs a program inside; the process is the program itself."""
        return ["ip", "netns", "exec", self.name, *arguments]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread inside: sockets that it opens stay there."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            inside = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
            try:
                _setns(inside)
            finally:
                os.close(inside)
            try:
                yield
            finally:
                _setns(outside)
        finally:
            os.close(outside)

    def open(self, host: str) -> socket.socket:
        """A TCP socket inside for addresses like this one, with a timeout on every call."""
        with self.entered():
            sock = socket.socket(family(host), socket.SOCK_STREAM)
        sock.settimeout(LIMIT)
        return sock

    def connect(self, endpoint: Endpoint) -> socket.socket:
        """A connection from inside."""
        sock = self.open(endpoint[0])
        try:
            sock.connect(endpoint)
        except BaseException:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def listen(self, host: str, port: int = 0) -> socket.socket:
        """A listening socket inside."""
        sock = self.open(host)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(1024)
        except BaseException:
            sock.close()
            raise
        return sock

    def reserve(self, host: str) -> int:
        """A port at which nobody listens."""
        with self.listen(host) as sock:
            port: int = sock.getsockname()[1]
        return port

    def add_address(self, address: str, interface: str) -> None:
        """One more address, as 10.2.0.3/24."""
        ip("-n", self.name, "address", "add", address, "dev", interface)


def join(left: Namespace, right: Namespace, network: int) -> None:
    """Join two namespaces by a veth pair: 10.N.0.1 and fd00:N::1 on the left, .2 on the right."""
    ends = f"to-r{network}", f"to-l{network}"
    ip("-n", left.name, "link", "add", ends[0], "type", "veth", "peer", ends[1], "netns", right.name)
    for end, namespace, host in ((ends[0], left, 1), (ends[1], right, 2)):
        ip("-n", namespace.name, "address", "add", f"10.{network}.0.{host}/24", "dev", end)
        ip("-n", namespace.name, "address", "add", f"fd00:{network}::{host}/64", "dev", end, "nodad")
        ip("-n", namespace.name, "link", "set", end, "up")
