# ruff: noqa: T201
"""Many idle clients: how long a balancer takes to splice and to let go of them, and what each one costs.

Each client gets a connection to each of three backends, so N clients are 4 N sockets of the balancer. Nothing
here passes or fails by its speed; a wrong or missing answer fails, and so does a socket that is never spliced
or never let go.
"""

import argparse
import contextlib
import json
import os
import selectors
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.backends import BACKENDS, EchoBackends
from tests.bench.errors import ProgramError
from tests.bench.network import Loopback, congestion_control
from tests.bench.peers import Balancer, Scene
from tests.bench.processes import compile_c, cpu_seconds, number, raise_descriptor_limit, resident_bytes

_SOCKETS_A_CLIENT = 1 + len(BACKENDS)
_RESERVED = 256  # descriptors and slots that are not clients' or upstreams'
_LIMIT = 120.0
_PERIOD = 0.02  # between two looks at /status, which cost the balancer time too


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds and bytes."""

    clients: int
    connected: float
    spliced: float
    spliced_cpu: float
    answered: float
    released: float
    released_cpu: float
    resident_before: int
    resident_after: int
    resident_at_end: int


def main() -> int:
    """Measures and prints; 1 if an answer was wrong or a socket is left."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.clients", description="Connects idle clients. Needs root and gcc."
    )
    parser.add_argument("--clients", type=number(1, 20_000), default=1000)
    parser.add_argument(
        "--size", type=number(8, 1 << 16), default=64, help="of the one message that each client sends"
    )
    parser.add_argument(
        "--rounds",
        type=number(1, 100),
        default=2,
        help="of the same balancer: what it keeps shows in the second",
    )
    parser.add_argument("--congestion", help="TCP congestion control (default: the machine's)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    try:
        raise_descriptor_limit(options.clients * _SOCKETS_A_CLIENT + _RESERVED)
        with contextlib.closing(Loopback(options.congestion)) as network:
            figures = _measure(options, network)
            congestion = congestion_control(network.balancer)
    except (ProgramError, OSError) as error:
        print(f"clients: {error}", file=sys.stderr)
        return 1
    print(
        f"Linux {os.uname().release}, congestion {congestion}, {options.clients} clients,"
        f" {options.clients * _SOCKETS_A_CLIENT} sockets of the balancer"
    )
    for round_ in figures:
        _print(round_)
    if options.json is not None:
        options.json.write_text(
            json.dumps([asdict(round_) for round_ in figures], indent=2) + "\n", encoding="utf-8"
        )
    return 0


def _measure(options: argparse.Namespace, network: Loopback) -> list[Figures]:
    count: int = options.clients
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)  # the balancer reads its file as another user
        backends = EchoBackends(compile_c(directory, "echo"), network.backends, stack)
        sockets = count * _SOCKETS_A_CLIENT + _RESERVED // 2
        scene = Scene(network.balancer, directory, backends.addresses, max_connections=sockets)
        balancer = Balancer(scene, {}, stack)
        _await_sockets(balancer, 0)  # the first answer of the admin address costs memory of its own
        figures = [_measure_round(network, balancer, count, options.size) for _ in range(options.rounds)]
        if (received := sum(backends.stop().values())) != count * options.rounds:
            raise ProgramError(
                f"the backends got {received} messages, and {count * options.rounds} were sent"
            )
    return figures


def _measure_round(network: Loopback, balancer: Balancer, count: int, size: int) -> Figures:
    before = resident_bytes(balancer.pid)
    with contextlib.ExitStack() as stack:
        cpu, start = cpu_seconds(balancer.pid), time.monotonic()
        clients = connect(stack, network, balancer.targets, count)
        connected = time.monotonic() - start
        _await_sockets(balancer, count * _SOCKETS_A_CLIENT)
        spliced, spliced_cpu = time.monotonic() - start, cpu_seconds(balancer.pid) - cpu
        after = resident_bytes(balancer.pid)

        start = time.monotonic()
        exchange(clients, size)
        answered = time.monotonic() - start

        cpu, start = cpu_seconds(balancer.pid), time.monotonic()
    _await_sockets(balancer, 0)
    return Figures(
        clients=count,
        connected=connected,
        spliced=spliced,
        spliced_cpu=spliced_cpu,
        answered=answered,
        released=time.monotonic() - start,
        released_cpu=cpu_seconds(balancer.pid) - cpu,
        resident_before=before,
        resident_after=after,
        resident_at_end=resident_bytes(balancer.pid),
    )


def connect(
    stack: contextlib.ExitStack, network: Loopback, targets: Sequence[str], count: int
) -> list[socket.socket]:
    """So many clients, spread over the targets; the stack closes them."""
    clients = []
    with network.clients.entered():
        for index in range(count):
            host, _, port = targets[index % len(targets)].rpartition(":")
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=_LIMIT))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients.append(client)
    return clients


def _await_sockets(balancer: Balancer, wanted: int) -> None:
    """Waits until the balancer's sockmap holds so many sockets.

    Raises:
        ProgramError: it does not come to that.
    """
    deadline = time.monotonic() + _LIMIT
    while (sockets := balancer.status()["sockets"]) != wanted:
        if time.monotonic() > deadline:
            raise ProgramError(f"the balancer has {sockets} sockets and should have {wanted}")
        time.sleep(_PERIOD)


def exchange(clients: Sequence[socket.socket], size: int) -> None:
    """Sends a message on each connection, then checks the answers.

    Raises:
        ProgramError: one is wrong or missing.
    """
    with selectors.DefaultSelector() as selector:
        for index, client in enumerate(clients):
            expected = _message(index, size)
            client.sendall(expected)
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ, (client, bytearray(expected)))
        missing = len(clients)
        while missing:
            ready = selector.select(_LIMIT)
            if not ready:
                raise ProgramError(f"{missing} answers did not come")
            for key, _ in ready:
                waiting: tuple[socket.socket, bytearray] = key.data
                client, left = waiting
                received = client.recv(len(left))
                if not received or not left.startswith(received):
                    raise ProgramError(f"a wrong answer: {received[:16].hex(' ') or 'the connection ended'}")
                del left[: len(received)]
                if not left:
                    selector.unregister(client)
                    missing -= 1


def _message(index: int, size: int) -> bytes:
    body = (f"client {index} " * (size // 9)).encode()[: size - 8]
    return (len(body) + 4).to_bytes(4, "big") + index.to_bytes(4, "big") + body


def _print(figures: Figures) -> None:
    each = (figures.resident_after - figures.resident_before) / figures.clients
    per_second = figures.clients / figures.spliced
    print(
        f"connected   {figures.connected:7.3f} s\n"
        f"spliced     {figures.spliced:7.3f} s   {per_second:,.0f} clients/s,"
        f" {figures.spliced_cpu:.2f} s of the balancer's processor time\n"
        f"answered    {figures.answered:7.3f} s   one message of each\n"
        f"let go      {figures.released:7.3f} s   {figures.released_cpu:.2f} s of processor time\n"
        f"resident    {figures.resident_before / 2**20:.1f} MiB before, {figures.resident_after / 2**20:.1f}"
        f" MiB with them ({each / 1024:.1f} KiB a client), {figures.resident_at_end / 2**20:.1f} MiB after"
    )


if __name__ == "__main__":
    sys.exit(main())
