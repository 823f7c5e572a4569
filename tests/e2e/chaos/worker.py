"""A process of actors: ``python -m tests.e2e.chaos.worker clients`` does what it is called to do.

Calls and results are pickles on its standard input and output, each behind its length.
"""

import asyncio
import os
import pickle
import resource
import select
import struct
import subprocess
import sys
import time
from typing import Any, BinaryIO

from tests.e2e.chaos.backends import Backends
from tests.e2e.chaos.clients import Clients
from tests.e2e.chaos.crowd import Crowd
from tests.e2e.chaos.flood import Flood
from tests.e2e.chaos.fuzzers import Fuzzers
from tests.e2e.chaos.hoard import Hoard
from tests.e2e.chaos.strikers import Strikers
from tests.e2e.namespaces import Namespace
from tests.e2e.processes import ROOT

_LENGTH = struct.Struct(">I")
_SERVICES = {
    "backends": Backends,
    "clients": Clients,
    "flood": Flood,
    "hoard": Hoard,
    "strikers": Strikers,
    "crowd": Crowd,
    "fuzz": Fuzzers,
}
_STOP = 10.0


class Worker:
    """The caller's side. Its owner closes it."""

    def __init__(self, service: str, where: Namespace) -> None:
        command = where.command(sys.executable, "-m", "tests.e2e.chaos.worker", service)
        self._service = service
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, name: str, *arguments: Any, limit: float = 30.0) -> Any:
        """Call a method and wait for its result at most ``limit`` seconds."""
        self.begin(name, *arguments)
        return self.result(limit)

    def begin(self, name: str, *arguments: Any) -> None:
        """Call a method; :meth:`result` returns what it returned."""
        assert self._process.stdin is not None
        data = pickle.dumps((name, arguments))
        self._process.stdin.write(_LENGTH.pack(len(data)) + data)
        self._process.stdin.flush()

    def result(self, limit: float) -> Any:
        """Wait for the result of the last call."""
        end = time.monotonic() + limit
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, end))
        return pickle.loads(self._read(length, end))

    def _read(self, count: int, end: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        data = bytearray()
        while len(data) < count:
            ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the {self._service} did not answer in time"
            piece = os.read(fd, count - len(data))
            assert piece, f"the {self._service} crashed"
            data += piece
        return bytes(data)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


async def _serve(service: object, output: BinaryIO) -> None:
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    while True:
        try:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        except asyncio.IncompleteReadError:
            return
        name, arguments = pickle.loads(await reader.readexactly(length))
        data = pickle.dumps(await getattr(service, name)(*arguments))
        output.write(_LENGTH.pack(len(data)) + data)
        output.flush()


def main() -> None:
    """Serve until the caller goes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Not uvloop: libuv stops to watch a descriptor that has an error, so add_reader() never hears of a reset.
    asyncio.run(_serve(_SERVICES[sys.argv[1]](), sys.stdout.buffer))


if __name__ == "__main__":
    main()
