"""What a service manager is told: on real sockets of both kinds, and when it does not read."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lb.notify import Notifier


@pytest.fixture(name="manager", params=["path", "abstract"])
def _manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket of a service manager, and what NOTIFY_SOCKET says."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@sockmap-lb-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(5)
        yield sock, address


def test_the_life_of_a_service(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    with closing(Notifier.from_environment({"NOTIFY_SOCKET": address})) as notifier:
        notifier.ready()
        before = time.monotonic_ns() // 1000
        notifier.reloading()
        after = time.monotonic_ns() // 1000
        notifier.ready()
        notifier.status("one")
        notifier.status("one")
        notifier.stopping(30.5)
        assert sock.recv(100) == b"READY=1"
        lines = sock.recv(100).decode().splitlines()
        assert lines[0] == "RELOADING=1"
        assert before <= int(lines[1].removeprefix("MONOTONIC_USEC=")) <= after
        assert sock.recv(100) == b"READY=1"
        assert sock.recv(100) == b"STATUS=one"
        assert sock.recv(100) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=30500000"


def test_signs_of_life_come_from_the_loop(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())}

    async def live(notifier: Notifier) -> None:
        telling = asyncio.create_task(notifier.keep_telling(lambda: "well"))
        heard = await asyncio.to_thread(lambda: [sock.recv(100) for _ in range(4)])
        assert heard == [b"WATCHDOG=1", b"STATUS=well", b"WATCHDOG=1", b"WATCHDOG=1"]
        telling.cancel()

    with closing(Notifier.from_environment(environment)) as notifier:
        since = time.monotonic()
        asyncio.run(live(notifier))
    assert time.monotonic() - since >= 0.1


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_signs_of_life_that_nobody_expects_of_us(
    manager: tuple[socket.socket, str], environment: dict[str, str]
) -> None:
    sock, address = manager

    async def live(notifier: Notifier) -> None:
        telling = asyncio.create_task(notifier.keep_telling(lambda: "well"))
        heard = await asyncio.to_thread(sock.recv, 100)
        assert heard == b"STATUS=well"
        telling.cancel()

    with closing(Notifier.from_environment({"NOTIFY_SOCKET": address} | environment)) as notifier:
        asyncio.run(live(notifier))


def test_a_manager_that_does_not_read_delays_no_one(manager: tuple[socket.socket, str]) -> None:
    """Nothing is lost, and the order stays."""
    sock, address = manager
    texts = [f"STATUS={number}".encode() for number in range(2000)]

    async def live(notifier: Notifier) -> None:
        for text in texts:
            notifier.status(text.decode().removeprefix("STATUS="))
        assert await asyncio.to_thread(lambda: [sock.recv(100) for _ in texts]) == texts

    with closing(Notifier.from_environment({"NOTIFY_SOCKET": address})) as notifier:
        asyncio.run(live(notifier))


def test_a_manager_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "nobody")})) as notifier:
        notifier.ready()
    assert "the service manager is told nothing" in caplog.text


def test_a_manager_that_leaves(manager: tuple[socket.socket, str], caplog: pytest.LogCaptureFixture) -> None:
    sock, address = manager
    with closing(Notifier.from_environment({"NOTIFY_SOCKET": address})) as notifier:
        sock.close()
        notifier.ready()
        notifier.status("still here")
    assert caplog.text.count("cannot be told anything") == 1


def test_no_manager() -> None:
    with closing(Notifier.from_environment({})) as notifier:
        notifier.ready()
        notifier.stopping(1)
        asyncio.run(notifier.keep_telling(lambda: pytest.fail("nobody wants to know")))
