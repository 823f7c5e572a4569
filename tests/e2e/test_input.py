"""Bytes that are no messages: they end their own connection only, and are counted."""

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, Tree, configuration, framing_of, show
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.polling import eventually, eventually_equal

MAGIC: Tree = {
    "magic": {
        "length": {"offset": 4, "width": 4, "adjust": 12},
        "id": {"offset": 8, "width": 4},
        "magic": {"offset": 0, "width": 2, "value": 0xDABB},
        "response": {"offset": 2, "width": 1, "mask": 0x80, "value": 0x80},
        "max_message": "64KiB",
    }
}


def marked(number: int, body: bytes = b"", *, magic: int = 0xDABB, flags: int = 0) -> bytes:
    return struct.pack(">HBxII", magic, flags, len(body), number) + body


def answer_marked(_: Backend, asked: Any) -> bytes:
    return marked(asked.id, asked.data[12:], flags=0x80)


MALFORMED = [
    pytest.param("length-prefixed", struct.pack(">II", 3, 7), "too_short", id="too short"),
    pytest.param("length-prefixed", struct.pack(">II", 0, 7), "too_short", id="empty"),
    pytest.param("length-prefixed", struct.pack(">II", (1 << 20) - 3, 7), "oversize", id="oversize"),
    pytest.param("length-prefixed", b"GET / HTTP/1.1\r\n\r\n", "oversize", id="HTTP"),
    pytest.param("length-prefixed", b"\xff" * 100, "oversize", id="largest length"),
    pytest.param("magic", marked(1, magic=0xDABC), "bad_magic", id="bad magic"),
    pytest.param("magic", marked(1, flags=0x80), "unexpected_response", id="response of a client"),
    pytest.param("magic", marked(1, bytes(1 << 16)), "oversize", id="oversize, with magic"),
]


@dataclass(frozen=True, slots=True)
class Mixed:
    """A balancer with a listener for each protocol; what it counts goes on from test to test."""

    balancer: Balancer
    backends: dict[str, Backend]

    def received(self, protocol: str) -> list[int | None]:
        return [asked.id for asked in list(self.backends[protocol].received)]

    def errors(self, protocol: str) -> dict[str, float]:
        return self.balancer.metrics().seen("reason", "protocol_errors_total", listener=protocol)

    def wait_one_more(self, protocol: str, reason: str, before: dict[str, float]) -> None:
        """Wait until exactly one error was counted, for this reason."""
        wanted = {name: count for name, count in before.items() if count} | {
            reason: before.get(reason, 0) + 1
        }
        eventually_equal(
            lambda: {name: count for name, count in self.errors(protocol).items() if count}, wanted
        )


@pytest.fixture(name="mixed")
def _mixed(shared: Mixed) -> Iterator[Mixed]:
    yield shared
    shared.balancer.close_clients()
    eventually_equal(lambda: shared.balancer.metrics().value("backend_connections"), 0)
    for backend in shared.backends.values():
        backend.settle()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, need: Callable[..., None]) -> Iterator[Mixed]:
    need("ip")
    with ExitStack() as stack:
        lab = Lab(tmp_path_factory.mktemp("mixed"), stack)
        tree = configuration([("127.0.0.1", 1)], protocol="magic", protocols=MAGIC)
        backends = {
            "length-prefixed": lab.backend("a"),
            "magic": lab.backend("a", framing=framing_of(tree), respond=answer_marked),
        }
        tree["listeners"] = [
            {"name": name, "address": "127.0.0.1:0", "protocol": name, "pool": name} for name in backends
        ]
        (pool,) = tree["pools"]
        tree["pools"] = [
            pool | {"name": name, "backends": [{"name": "a", "address": show(backend.endpoint)}]}
            for name, backend in backends.items()
        ]
        yield Mixed(lab.balancer(tree).wait_ready(), backends)


def whole(protocol: str, number: int) -> bytes:
    return marked(number, b"good") if protocol == "magic" else message(number, b"good")


@pytest.mark.parametrize(("protocol", "malformed", "reason"), MALFORMED)
class TestClients:
    def test_first_thing(self, mixed: Mixed, protocol: str, malformed: bytes, reason: str) -> None:
        bystander = mixed.balancer.connect(protocol)
        assert bystander.ask(whole(protocol, 1))
        received = len(mixed.received(protocol))
        for _ in range(3):
            before = mixed.errors(protocol)
            client = mixed.balancer.connect(protocol)
            client.send(malformed)
            assert client.is_reset()
            mixed.wait_one_more(protocol, reason, before)
            assert bystander.ask(whole(protocol, 2))
        assert mixed.received(protocol)[received:] == [2, 2, 2]
        bystander.close()
        eventually_equal(lambda: mixed.balancer.status()["sockets"], 0)

    def test_behind_whole_messages(self, mixed: Mixed, protocol: str, malformed: bytes, reason: str) -> None:
        """In one segment: the messages before it arrive, those behind it do not."""
        bystander, client = mixed.balancer.connect(protocol), mixed.balancer.connect(protocol)
        received = len(mixed.received(protocol))
        before = mixed.errors(protocol)
        assert client.ask(whole(protocol, 1))
        client.send(whole(protocol, 2), whole(protocol, 3), malformed, whole(protocol, 4))
        assert client.is_reset()
        mixed.wait_one_more(protocol, reason, before)
        eventually(lambda: len(mixed.received(protocol)) >= received + 3)
        assert bystander.ask(whole(protocol, 5))
        assert mixed.received(protocol)[received:] == [1, 2, 3, 5]

    def test_of_a_client_that_has_sent_fin(
        self, mixed: Mixed, protocol: str, malformed: bytes, reason: str
    ) -> None:
        """Before it is accepted, so that user space reads it."""
        received = len(mixed.received(protocol))
        before = mixed.errors(protocol)
        client = mixed.balancer.connect_while_it_stands_still(
            whole(protocol, 1), malformed, listener=protocol
        )
        assert client.is_reset()
        mixed.wait_one_more(protocol, reason, before)
        eventually_equal(lambda: mixed.received(protocol)[received:], [1])


def serve(lab: Lab, **settings: Any) -> tuple[Backend, Balancer]:
    backend = lab.backend("a")
    return backend, lab.serve([backend], **settings)


def wait_errors(balancer: Balancer, errors: dict[str, int]) -> None:
    eventually_equal(
        lambda: balancer.metrics().seen("reason", "protocol_errors_total", listener="rpc"), errors
    )


class TestHalfMessages:
    HALF = message(2, bytes(1000))[:500]

    @pytest.mark.parametrize("cut", [1, 7, 8, 500])
    def test_that_is_never_completed(self, lab: Lab, cut: int) -> None:
        backend, balancer = serve(lab, timeouts={"half_message": "300ms"})
        bystander, client = balancer.connect(), balancer.connect()
        assert client.ask(message(1))
        client.send(message(2, bytes(1000))[:cut])
        assert client.is_reset()
        wait_errors(balancer, {"half_message": 1})
        assert bystander.ask(message(3))
        assert [asked.id for asked in backend.received] == [1, 3]

    def test_an_idle_client_is_not_taken_for_one(self, lab: Lab) -> None:
        _, balancer = serve(lab, timeouts={"half_message": "100ms"})
        idle, client = balancer.connect(), balancer.connect()
        assert idle.ask(message(1))
        client.send(self.HALF)
        assert client.is_reset()
        other = balancer.connect()
        other.send(self.HALF)
        assert other.is_reset()
        assert idle.ask(message(2))

    @pytest.mark.parametrize("accepted", [True, False])
    def test_followed_by_fin(self, lab: Lab, accepted: bool) -> None:
        backend, balancer = serve(lab, timeouts={"half_message": "300ms"})
        if accepted:
            client = balancer.connect()
            assert client.ask(message(0))
            client.send(message(1), self.HALF)
            client.half_close()
        else:
            client = balancer.connect_while_it_stands_still(message(1), self.HALF)
        assert client.is_reset()
        wait_errors(balancer, {"half_message": 1})
        eventually(lambda: 1 in [asked.id for asked in backend.received])
        assert balancer.connect().ask(message(3))


class TestBackends:
    @pytest.mark.parametrize(
        ("garbage", "reason"),
        [(b"\xff" * 8, "backend_oversize"), (bytes(8), "backend_too_short")],
    )
    def test_garbage_that_nobody_asked_for(self, lab: Lab, garbage: bytes, reason: str) -> None:
        """No answer is lost with it: the connection is replaced and the client stays."""
        backends = [lab.backend(name) for name in "ab"]
        balancer = lab.serve(backends)
        client = balancer.connect()
        assert client.ask(*(message(number) for number in range(10)))
        backends[0].say(garbage)
        wait_errors(balancer, {reason: 1})
        eventually(lambda: _answerer(client.ask(message(1))) == "a", what="a is connected again")
        assert balancer.metrics().value("dropped_messages_total") == 0

    def test_garbage_instead_of_answers(self, lab: Lab) -> None:
        backends = [lab.backend("a", holding=True), lab.backend("b")]
        balancer = lab.serve(backends, balance="round_robin", batch=1)
        bystander, client = balancer.connect(), balancer.connect()
        client.send(*(message(number) for number in range(10)))
        client.answers(5)
        eventually(lambda: len(backends[0].received) == 5)
        backends[0].say(b"\xff" * 8)
        assert client.is_reset()
        wait_errors(balancer, {"backend_oversize": 1 + 1})  # one for each connection that it was said on
        eventually_equal(
            lambda: balancer.metrics().value("dropped_messages_total", reason="backend_malformed"), 5
        )
        backends[0].release()
        assert len(bystander.ask(*(message(number) for number in range(10)))) == 10

    def test_an_answer_too_many_does_not_reach_a_fifo_client(self, lab: Lab) -> None:
        """Without ids it would be taken for the answer to the next request."""
        protocols: Tree = {"fifo": {"length": {"offset": 0, "width": 4, "adjust": 4}, "ordering": "fifo"}}
        framing = framing_of(configuration([("127.0.0.1", 1)], protocol="fifo", protocols=protocols))
        backend = lab.backend("a", framing=framing, respond=lambda _, asked: asked.data)
        balancer = lab.serve([backend], protocol="fifo", protocols=protocols)
        client = balancer.connect()
        asked = [message(number) for number in range(5)]
        assert client.ask(*asked) == asked
        backend.say(message(99))
        eventually_equal(lambda: balancer.metrics().value("dropped_messages_total", reason="unsolicited"), 1)
        assert client.ask(*asked) == asked


def _answerer(answers: list[bytes]) -> str:
    return read_answer(answers[0]).backend
