"""The backends of a measurement: servers that answer each message, and count."""

import contextlib
import json
import subprocess
from pathlib import Path

from tests.bench.errors import ProgramError
from tests.bench.network import Place
from tests.bench.peers import await_port
from tests.bench.processes import STOP_LIMIT, running
from tests.e2e.nameserver import NAMES, ZONE, configuration, write_zone

BACKENDS = ("a", "b", "c")
_DNS_PORT = 5300
_MEMCACHED_PORT = 11211
_EVERY = 20  # milliseconds between two counts


class EchoBackends:
    """Three processes that answer each message with itself."""

    def __init__(
        self, binary: Path, place: Place, stack: contextlib.ExitStack, congestion: str | None = None
    ) -> None:
        arguments = () if congestion is None else ("--congestion", congestion)
        self._processes = []
        self.addresses: dict[str, str] = {}
        for name in BACKENDS:
            with place.entered():
                process = subprocess.Popen(
                    (binary, "--count", "--listen", f"{place.host}:0", *arguments),
                    stdout=subprocess.PIPE,
                    text=True,
                )
            stack.enter_context(running(process))
            assert process.stdout is not None
            stack.enter_context(process.stdout)
            self._processes.append(process)
            self.addresses[name] = process.stdout.readline().strip()

    def stop(self) -> dict[str, int]:
        """Ends them; gives how many messages each answered.

        Raises:
            ProgramError: one of them met a malformed message, or crashed.
        """
        answered = {}
        for name, process in zip(BACKENDS, self._processes, strict=True):
            process.terminate()
            output, _ = process.communicate(timeout=STOP_LIMIT)
            if process.returncode:
                raise ProgramError(f"backend {name} ended with {process.returncode}")
            counts = json.loads(output)
            if counts["malformed"]:
                raise ProgramError(f"backend {name} got {counts['malformed']} malformed messages")
            answered[name] = counts["messages"]
        return answered


class Newcomer:
    """A backend at an address that is known before it starts, and that says how fast it is asked."""

    def __init__(self, binary: Path, place: Place) -> None:
        self._binary = binary
        self._place = place
        self._process: subprocess.Popen[str] | None = None
        self.address = f"{place.host}:{place.namespace.reserve(place.host)}"

    def start(self, stack: contextlib.ExitStack) -> None:
        """Listens from now on."""
        with self._place.entered():
            self._process = subprocess.Popen(
                (self._binary, "--every", str(_EVERY), "--listen", self.address),
                stdout=subprocess.PIPE,
                text=True,
            )
        stack.enter_context(running(self._process))
        assert self._process.stdout is not None
        stack.enter_context(self._process.stdout)
        self._process.stdout.readline()

    def stop(self) -> list[tuple[float, int]]:
        """Ends it; gives the seconds since it listened, and the messages that it had answered by then."""
        assert self._process is not None
        self._process.terminate()
        output, _ = self._process.communicate(timeout=STOP_LIMIT)
        pairs = (line.split() for line in output.splitlines())
        return [(float(milliseconds) / 1000, int(messages)) for milliseconds, messages in pairs]


class NameServers:
    """Three times ``nsd``, with a zone of many names."""

    def __init__(self, directory: Path, place: Place, stack: contextlib.ExitStack) -> None:
        self.addresses: dict[str, str] = {}
        for index, name in enumerate(BACKENDS):
            folder = directory / f"nsd-{name}"
            folder.mkdir()
            write_zone(folder / "zone")
            settings = folder / "nsd.conf"
            settings.write_text(configuration(place.host, folder, _DNS_PORT + index), encoding="utf-8")
            with place.entered():
                process = subprocess.Popen(
                    ("nsd", "-d", "-c", settings), stderr=subprocess.PIPE, text=True, cwd=folder
                )
            stack.enter_context(running(process))
            assert process.stderr is not None
            stack.enter_context(process.stderr)
            log = []
            for line in process.stderr:
                log.append(line)
                if "nsd started" in line:
                    break
            else:
                raise ProgramError(f"nsd did not start: {''.join(log[-3:]).strip()}")
            self.addresses[name] = f"{place.host}:{_DNS_PORT + index}"


class Memcached:
    """One ``memcached``: what was set in one of several would be missed in the others."""

    def __init__(self, place: Place, stack: contextlib.ExitStack) -> None:
        self.addresses = {"a": f"{place.host}:{_MEMCACHED_PORT}"}
        with place.entered():
            process = subprocess.Popen(
                ("memcached", "-u", "nobody", "-l", place.host, "-p", str(_MEMCACHED_PORT), "-t", "1"),
                text=True,
            )
        stack.enter_context(running(process))
        await_port(place, self.addresses["a"])


def write_queries(path: Path) -> None:
    """What dnsperf asks: the address of each name."""
    path.write_text("".join(f"n{number}.{ZONE} A\n" for number in range(NAMES)), encoding="ascii")
