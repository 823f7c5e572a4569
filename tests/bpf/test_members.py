"""Backends come into and leave a pool that serves, in this process, with the product's programs."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from ipaddress import ip_address
from typing import Any

import pytest
import yaml

from lb import config
from lb.config import Backend
from lb.dataplane import DataPlane, load, selftest
from lb.ranges import TableFullError
from lb.server import Server
from lb.server.accepting import bind
from lb.server.capacity import sizes
from tests.bpf.rig import LIMIT

POOLS: dict[str, dict[str, Any]] = {
    "per_client": {"balance": "round_robin"},
    "shared": {"connections": "shared"},
    "hash": {"balance": "hash", "hash": {"field": {"offset": 4, "width": 4}}},
}
# Answers come in the order of the requests.
FIFO = {"length": {"offset": 0, "width": 4, "adjust": 4}, "ordering": "fifo"}


class Echo:
    """A backend that answers, at once or when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.connections = 0
        self.open = asyncio.Event()
        self.open.set()
        self.address: config.Address
        self._server: asyncio.Server

    async def start(self) -> "Echo":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = config.Address(ip_address(host), port)
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readexactly(4)
                body = await reader.readexactly(int.from_bytes(head, "big"))
                self.asked += 1
                await self.open.wait()
                writer.write(head + body)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            writer.close()
            self.connections -= 1

    def close(self) -> None:
        self._server.close()


class Bench:
    """A server and its backends."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.pool = server.pools[0]

    def used(self) -> dict[str, int]:
        """What somebody has, of all tables."""
        plane = self.server.plane
        tables = (plane.backends, plane.counters.rows, plane.flights, plane.framings, plane.pools)
        return {table.kind: table.used for table in tables} | {"slots": plane.slots.in_use}

    async def client(self) -> "Caller":
        return Caller(*await asyncio.open_connection("127.0.0.1", self.port))


class Caller:
    """A client that keeps asking, ``depth`` requests at a time, until it is told to stop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.answers = 0
        self._reader, self._writer = reader, writer
        self._number = 0

    async def ask(self, count: int) -> None:
        """Requests, and exactly their answers."""
        asked = Counter[bytes]()
        for _ in range(count):
            self._number += 1
            body = self._number.to_bytes(4, "big")
            asked[body] += 1
            self._writer.write((4).to_bytes(4, "big") + body)
        async with asyncio.timeout(LIMIT):
            for _ in range(count):
                answer = await self._reader.readexactly(8)
                asked[answer[4:]] -= 1
                self.answers += 1
        assert not +asked, "an answer that nobody asked for, or one twice"

    async def keep_asking(self, until: asyncio.Event, depth: int) -> None:
        """A request more for each answer."""
        asked = Counter[bytes]()
        while sum(asked.values()) or not until.is_set():
            while sum(asked.values()) < depth and not until.is_set():
                self._number += 1
                body = self._number.to_bytes(4, "big")
                asked[body] += 1
                self._writer.write((4).to_bytes(4, "big") + body)
            async with asyncio.timeout(LIMIT):
                answer = await self._reader.readexactly(8)
            assert asked[answer[4:]] == 1, "an answer that nobody asked for, or one twice"
            del asked[answer[4:]]

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def serving(backends: list[Echo], pool: dict[str, Any], protocol: Any = None) -> AsyncIterator[Bench]:
    tree = {
        "protocols": {"own": protocol} if protocol else {},
        "listeners": [
            {
                "name": "rpc",
                "address": "127.0.0.1:0",
                "protocol": "own" if protocol else "length-prefixed",
                "pool": "workers",
            }
        ],
        "pools": [
            {
                "name": "workers",
                "backends": [
                    {"name": f"b{number}", "address": str(echo.address)}
                    for number, echo in enumerate(backends)
                ],
                "timeouts": {"drain": "2s"},
                **pool,
            }
        ],
    }
    settings = config.parse(yaml.safe_dump(tree), "test")
    with closing(load(sizes(settings, 256))) as plane:
        listener = settings.listeners[0]
        sock = bind(listener.address, listener.framing.max_message, settings.pools[0].timeouts)
        server = Server(settings, plane, [sock], {})
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.run(stop))
            await server.started.wait()
            try:
                yield Bench(server, sock.getsockname()[1])
            finally:
                stop.set()


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("kind", "protocol"), [*((kind, None) for kind in POOLS), ("per_client", FIFO)], ids=[*POOLS, "fifo"]
)
def test_backends_come_and_leave_under_load(kind: str, protocol: dict[str, Any] | None) -> None:
    """Nobody notices, the one that came has its share, and all numbers come back.

    Clients never wait for all of their answers: those that are bound to the one that leaves must leave it.
    """

    async def run() -> None:
        first, second, third = [await Echo().start() for _ in range(3)]
        async with serving([first, second], POOLS[kind], protocol) as bench:
            stop = asyncio.Event()
            callers = [await bench.client() for _ in range(4)]
            await asyncio.gather(*(caller.ask(1) for caller in callers))
            before = bench.used()
            asking = [asyncio.create_task(caller.keep_asking(stop, 8)) for caller in callers]
            members = bench.pool.members
            for _ in range(5):
                newcomer = members.add(Backend("b2", third.address))
                asked = third.asked
                await eventually(lambda asked=asked: third.asked > asked + 20)  # type: ignore[misc]
                members.remove(newcomer, "test")
                await eventually(lambda: not bench.pool.leaving)
                assert third.connections == 0
            stop.set()
            await asyncio.gather(*asking)
            await eventually(lambda: bench.used() == before)
            for caller in callers:
                caller.close()
            assert not any(bench.server.dropped_messages().values())
        for echo in (first, second, third):
            echo.close()

    asyncio.run(run())


@pytest.mark.parametrize("kind", POOLS)
def test_what_is_outstanding_is_answered_first(kind: str) -> None:
    async def run() -> None:
        staying, leaving = [await Echo().start() for _ in range(2)]
        async with serving([staying, leaving], POOLS[kind]) as bench:
            caller = await bench.client()
            await caller.ask(16)
            leaving.open.clear()
            before = leaving.asked
            asking = asyncio.create_task(caller.ask(16))
            await eventually(lambda: leaving.asked > before)
            bench.pool.members.remove(bench.pool.backends[1], "test")
            await asyncio.sleep(0.1)
            assert leaving.connections
            assert not asking.done()
            leaving.open.set()
            await asking
            await eventually(lambda: not bench.pool.leaving and not leaving.connections)
            asked = leaving.asked
            await caller.ask(16)
            assert leaving.asked == asked
            assert not any(bench.server.dropped_messages().values())
            caller.close()
        staying.close()
        leaving.close()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["per_client", "shared"])
def test_what_is_not_answered_in_time_is_lost_and_told(kind: str) -> None:
    async def run() -> None:
        staying, leaving = [await Echo().start() for _ in range(2)]
        async with serving([staying, leaving], POOLS[kind]) as bench:
            caller = await bench.client()
            await caller.ask(16)
            leaving.open.clear()
            before = leaving.asked
            asking = asyncio.create_task(caller.ask(16))
            await eventually(lambda: leaving.asked > before)
            bench.pool.members.remove(bench.pool.backends[1], "test")
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await asking
            await eventually(lambda: not bench.pool.leaving)
            assert bench.server.dropped_messages()["drain_timeout"] > 0
            caller.close()
            leaving.open.set()
        staying.close()
        leaving.close()

    asyncio.run(run())


def test_more_than_the_tables_hold_changes_nothing() -> None:
    async def run() -> None:
        echo = await Echo().start()
        async with serving([echo], POOLS["hash"]) as bench:
            members = bench.pool.members
            for number in range(31):
                members.add(Backend(f"more{number}", echo.address))
            before = bench.used()
            with pytest.raises(TableFullError, match="32 members of pool workers"):
                members.add(Backend("one-too-many", echo.address))
            assert bench.used() == before
            assert len(bench.pool.backends) == 32
        echo.close()

    asyncio.run(run())


def test_one_that_cannot_be_connected_to_comes_and_leaves_without_a_trace() -> None:

    async def run() -> None:
        echo = await Echo().start()
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            nobody = config.Address(ip_address("127.0.0.1"), closed.getsockname()[1])
            async with serving([echo], POOLS["per_client"]) as bench:
                caller = await bench.client()
                await caller.ask(8)
                before = bench.used()
                for _ in range(3):
                    newcomer = bench.pool.members.add(Backend("down", nobody))
                    await caller.ask(8)
                    bench.pool.members.remove(newcomer, "test")
                    await caller.ask(8)
                await eventually(lambda: not bench.pool.leaving)
                await eventually(lambda: bench.used() == before)
                caller.close()
        echo.close()

    asyncio.run(run())


def test_the_self_test_gives_back_what_can_be_used_again(plane: DataPlane) -> None:
    assert not [check for check in selftest.run(plane) if check.problem is not None]
    tables = (plane.framings, plane.counters.rows, plane.shared_routes, plane.flights)
    assert not [table.kind for table in tables if table.used]
