"""The kernel has no memory for one more socket: it is turned away, everything is undone, and serving goes on.

The failures are injected, one system call at a time; all else is real.
"""

import asyncio
import errno
import itertools
import logging
import os
import socket
from collections.abc import Callable, Collection, Coroutine
from contextlib import closing, suppress
from ipaddress import IPv4Address
from typing import Any

import pytest

from lb import config
from lb.backends import Health
from lb.dataplane import DataPlane
from lb.server import Server
from lb.server.accepting import bind
from lb.server.poller import Poller, Watched
from lb.server.waiting import until
from tests.bpf.rig import LIMIT, PREFIXED, Rig, expect, message
from tests.bpf.test_mapped_sockets import leftovers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CODES = [errno.ENOMEM, errno.E2BIG, errno.ENOBUFS, errno.EPERM]


class Failing:
    """Stands before a method and fails some of its calls.

    Args:
        method: what it stands before.
        code: the errno that these calls fail with.
        calls: their numbers, counted from 0.
    """

    def __init__(self, method: Callable[..., Any], code: int, calls: Collection[int]) -> None:
        self.left = set(calls)
        self._method = method
        self._code = code
        self._numbers = itertools.count()

    def __call__(self, *arguments: Any) -> Any:
        number = next(self._numbers)
        if number in self.left:
            self.left.remove(number)
            raise OSError(self._code, f"injected: {os.strerror(self._code)}")
        return self._method(*arguments)


def fail(
    patch: pytest.MonkeyPatch, owner: object, method: str, code: int, calls: Collection[int] = (0,)
) -> Failing:
    failing = Failing(getattr(owner, method), code, calls)
    patch.setattr(owner, method, failing)
    return failing


# --- the data plane ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize(("owner", "method"), [("_conns", "update"), ("_socks", "insert")])
def test_a_client_that_cannot_be_inserted_leaves_nothing_behind(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, owner: str, method: str, code: int
) -> None:
    policy = rig.policy()
    client = rig.client(policy, rig.backend(), mapped=False)
    fail(monkeypatch, getattr(rig.plane, owner), method, code)

    with pytest.raises(OSError, match="injected") as caught:
        client.map(policy)

    assert caught.value.errno == code
    assert leftovers(rig, client) == (0, False)
    with pytest.raises(OSError, match="bpf_map_delete_elem"):
        rig.plane._socks.remove(client.ref.number)
    client.map(policy)  # the same socket, the same slot
    client.far.sendall(message(1))
    expect(client.upstreams[0].far, message(1))


@pytest.mark.parametrize(("owner", "method"), [("_conns", "update"), ("_socks", "insert")])
def test_an_upstream_that_cannot_be_inserted_leaves_nothing_behind(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, owner: str, method: str
) -> None:
    policy = rig.policy()
    client = rig.client(policy)
    backend = rig.backend()
    before = rig.plane.slots.in_use
    fail(monkeypatch, getattr(rig.plane, owner), method, errno.ENOMEM)
    ref = rig.plane.reserve()
    _, near = rig.connect()

    def insert() -> None:
        rig.plane.insert_upstream(ref, near, policy, client=client.ref, backend=backend.index, traffic=0)

    with pytest.raises(OSError, match="injected"):
        insert()

    assert rig.plane._slots[ref.number].generation == 0
    rig.plane.release(ref)
    rig.reclaim()
    assert rig.plane.slots.in_use == before
    assert backend.outstanding == 0
    upstream = rig.upstream(client, policy, backend)
    client.far.sendall(message(1))
    expect(upstream.far, message(1))


# --- the server -------------------------------------------------------------------------------------------


class Net:
    """A server and its backends `a`, `b`, ..., in one event loop."""

    def __init__(self, plane: DataPlane, backends: int) -> None:
        self.plane = plane
        self.answered: list[str] = []
        self._backends = backends
        self._serving = 0

    async def run(self, scenario: Callable[["Net"], Coroutine[Any, Any, None]]) -> None:
        """Serves while the scenario lasts; drains then."""
        servers = [
            await asyncio.start_server(self._backend("abc"[number]), "127.0.0.1", 0)
            for number in range(self._backends)
        ]
        pool = config.Pool(
            "workers",
            tuple(
                config.Backend(name, config.Address(IPv4Address("127.0.0.1"), port(server)))
                for name, server in zip("abc", servers, strict=False)
            ),
            balance=config.Balance.ROUND_ROBIN,
            batch=1,
        )
        listener = config.Listener("rpc", config.Address(IPv4Address("127.0.0.1"), 0), PREFIXED, "workers")
        settings = config.Config(config.Admin(None), config.Runtime(), (listener,), (pool,))
        stop = asyncio.Event()
        with closing(bind(listener.address, PREFIXED.max_message, pool.timeouts)) as bound:
            self.server = Server(settings, self.plane, [bound], {})
            self.address = bound.getsockname()
            async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as tasks:
                tasks.create_task(self.server.run(stop))
                await self.server.started.wait()
                await until(lambda: all(b.health is Health.UP for b in self.server.pools[0].backends))
                await scenario(self)
                stop.set()
        for server in servers:
            server.close()
        await until(lambda: not self._serving)

    def _backend(self, name: str) -> Callable[..., Coroutine[Any, Any, None]]:
        """Gives every message back."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._serving += 1
            with suppress(asyncio.IncompleteReadError, ConnectionResetError):
                while data := await reader.readexactly(16):
                    self.answered.append(name)
                    writer.write(data)
            writer.close()
            with suppress(ConnectionResetError):
                await writer.wait_closed()
            self._serving -= 1

        return serve

    @property
    def connections(self) -> int:
        """To the backends."""
        return sum(backend.connections for backend in self.server.pools[0].backends)

    @property
    def refused(self) -> dict[str, int]:
        """Clients that were turned away, by reason."""
        return {reason: count for reason, count in self.server.listenings[0].refused.items() if count}

    @property
    def failures(self) -> dict[str, int]:
        """Of connects to the backend `a`."""
        return dict(self.server.pools[0].backends[0].connect_failures)

    async def client_is_served(self, done: Callable[[], bool] = lambda: True) -> bool:
        """A new client asks until it is done, then leaves; False if it is turned away instead."""
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, self.address)
                for number in itertools.count():
                    await loop.sock_sendall(sock, message(number))
                    answer = await loop.sock_recv(sock, 16)
                    assert answer == message(number), "EOF, or what is no answer"
                    if done():
                        break
            except (ConnectionResetError, BrokenPipeError):
                return False
        return True

    async def settled(self) -> None:
        """Nobody is connected, and every slot is free again."""
        await until(lambda: not self.connections and not self.plane.slots.in_use)
        assert not self.server.listenings[0].clients.addresses


def port(server: asyncio.Server) -> int:
    number: int = server.sockets[0].getsockname()[1]
    return number


def unwatchable(patch: pytest.MonkeyPatch, kind: str) -> None:
    """Sockets of this kind cannot be watched, once."""
    watch, left = Poller.watch, [kind]

    def fail_once(poller: Poller, fd: int, owner: Watched, *events: int) -> None:
        if type(owner).__name__ in left:
            left.clear()
            raise OSError(errno.ENOSPC, "injected: the user has no more watches")
        watch(poller, fd, owner, *events)

    patch.setattr(Poller, "watch", fail_once)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as wrong; fails on a traceback."""
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("step", ["_conns.update", "_socks.insert", "watch"])
def test_a_client_is_turned_away(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    async def scenario(net: Net) -> None:
        assert await net.client_is_served()
        if step == "watch":
            unwatchable(monkeypatch, "Client")
        else:
            owner, method = step.split(".")
            fail(monkeypatch, getattr(plane, owner), method, errno.ENOMEM, {2})  # after its upstreams
        assert not await net.client_is_served()
        assert net.refused == {"no_memory": 1}
        await net.settled()
        assert await net.client_is_served()
        assert net.refused == {"no_memory": 1}
        assert net.failures == {}
        await net.settled()

    asyncio.run(Net(plane, backends=2).run(scenario))
    line, *sums = warnings(caplog)
    assert "refused: " in line
    assert "injected" in line
    assert sums == ["1 messages not delivered (no_memory)", "listener rpc: 1 clients refused (no_memory)"]


@pytest.mark.parametrize("step", ["_conns.update", "_socks.insert", "watch"])
def test_without_its_only_upstream_a_client_waits_until_there_is_memory(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    async def scenario(net: Net) -> None:
        if step == "watch":
            unwatchable(monkeypatch, "Upstream")
        else:
            owner, method = step.split(".")
            fail(monkeypatch, getattr(plane, owner), method, errno.ENOMEM)
        assert await net.client_is_served()
        assert net.refused == {}
        assert net.failures == {"no_memory": 1}
        assert net.server.pools[0].backends[0].health is Health.UP, "it is not the backend's fault"
        await net.settled()
        assert await net.client_is_served()
        await net.settled()

    asyncio.run(Net(plane, backends=1).run(scenario))
    assert len(warnings(caplog)) == (step != "watch")  # an attempt to connect that fails is counted only


def test_without_one_upstream_a_client_is_served_by_the_others_and_gets_it_later(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(net: Net) -> None:
        # One of the two at admission, before the other and the client; when it is tried again, twice more.
        failing = fail(monkeypatch, plane._conns, "update", errno.ENOMEM, {0, 3, 4})
        assert await net.client_is_served(lambda: set(net.answered) == {"a", "b"})
        assert not failing.left
        assert net.refused == {}
        await net.settled()

    asyncio.run(Net(plane, backends=2).run(scenario))
    assert len(warnings(caplog)) == 3


def test_what_is_no_lack_of_memory_is_still_a_bug(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(net: Net) -> None:
        fail(monkeypatch, plane._conns, "update", errno.EINVAL)
        assert not await net.client_is_served()
        await net.settled()
        assert await net.client_is_served()
        await net.settled()

    asyncio.run(Net(plane, backends=1).run(scenario))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "because of a bug" in record.getMessage()
