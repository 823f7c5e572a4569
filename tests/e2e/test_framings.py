"""Protocols of one's own: whatever the header looks like, each message comes whole and its answer back."""

import itertools
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lb.framing import Message
from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, Tree, configuration, framing_of
from tests.e2e.lab import Lab
from tests.e2e.load import Pipeline, pipelines
from tests.e2e.polling import eventually_equal

Build = Callable[[int, bytes, bool], bytes]  # id, body, whether it is a response


@dataclass(frozen=True, slots=True)
class Wire:
    """A protocol as the configuration declares it, and how its messages are made."""

    declared: Tree
    build: Build
    header: int
    longest: int = 100_000


def little_endian(number: int, body: bytes, _: bool) -> bytes:
    return struct.pack("<II", 8 + len(body), number) + body


def width_1(number: int, body: bytes, _: bool) -> bytes:
    return struct.pack(">HB", number & 0xFFFF, len(body)) + body


def width_2(number: int, body: bytes, _: bool) -> bytes:
    return struct.pack(">HH", 2 + len(body), number & 0xFFFF) + body


def width_3(number: int, body: bytes, response: bool) -> bytes:
    """As Diameter."""
    head = bytes([1]) + (20 + len(body)).to_bytes(3, "big") + bytes([0 if response else 0x80, 0, 1, 16])
    return head + bytes(4) + struct.pack(">II", number, ~number & 0xFFFFFFFF) + body


def width_8(number: int, body: bytes, _: bool) -> bytes:
    return struct.pack(">I", number) + struct.pack("<Q", len(body)) + body


def masked(number: int, body: bytes, response: bool) -> bytes:
    """As ONC RPC: the length's top bit marks the last fragment."""
    return struct.pack(">III", 1 << 31 | 8 + len(body), number, int(response)) + body


def counts_too_much(number: int, body: bytes, _: bool) -> bytes:
    """The length is that of the message and of six bytes that nobody sends."""
    return struct.pack(">IQ", 12 + len(body) + 6, number) + body


def magic(number: int, body: bytes, response: bool) -> bytes:
    """As Dubbo."""
    return struct.pack(">HBBqI", 0xDABB, 0 if response else 0x80, 20, number, len(body)) + body


def last_bytes(number: int, body: bytes, _: bool) -> bytes:
    """The length ends where the kernel program stops to look."""
    return number.to_bytes(8, "big") + bytes(44) + struct.pack("<I", len(body)) + body


WIRES = {
    "little endian": Wire(
        {
            "length": {"offset": 0, "width": 4, "endian": "little"},
            "id": {"offset": 4, "width": 4, "endian": "little"},
        },
        little_endian,
        8,
    ),
    "width 1": Wire(
        {"length": {"offset": 2, "width": 1, "adjust": 3}, "id": {"offset": 0, "width": 2}}, width_1, 3, 250
    ),
    "width 2": Wire(
        {"length": {"offset": 0, "width": 2, "adjust": 2}, "id": {"offset": 2, "width": 2}},
        width_2,
        4,
        65_000,
    ),
    "width 3": Wire(
        {
            "length": {"offset": 1, "width": 3},
            "id": {"offset": 12, "width": 4},
            "response": {"offset": 4, "mask": 0x80, "value": 0},
        },
        width_3,
        20,
    ),
    "width 8": Wire(
        {
            "length": {"offset": 4, "width": 8, "endian": "little", "adjust": 12},
            "id": {"offset": 0, "width": 4},
        },
        width_8,
        12,
    ),
    "mask": Wire(
        {
            "length": {"offset": 0, "width": 4, "mask": 0x7FFFFFFF, "adjust": 4},
            "id": {"offset": 4, "width": 4},
            "response": {"offset": 8, "width": 4, "value": 1},
        },
        masked,
        12,
    ),
    "negative adjust": Wire(
        {"length": {"offset": 0, "width": 4, "adjust": -6}, "id": {"offset": 4, "width": 8}},
        counts_too_much,
        12,
    ),
    "magic": Wire(
        {
            "length": {"offset": 12, "width": 4, "adjust": 16},
            "id": {"offset": 4, "width": 8},
            "magic": {"offset": 0, "width": 2, "value": 0xDABB},
            "response": {"offset": 2, "mask": 0x80, "value": 0},
        },
        magic,
        16,
    ),
    "last bytes of the window": Wire(
        {
            "length": {"offset": 52, "width": 4, "endian": "little", "adjust": 56},
            "id": {"offset": 0, "width": 8},
        },
        last_bytes,
        56,
    ),
}


def serve(
    lab: Lab, wire: Wire, respond: Callable[[Backend, Message], bytes | None]
) -> tuple[Balancer, list[Backend]]:
    protocols = {"mine": wire.declared | {"max_message": "200KiB"}}
    framing = framing_of(configuration([("127.0.0.1", 1)], protocol="mine", protocols=protocols))
    backends = [lab.backend(name, framing=framing, respond=respond) for name in "abc"]
    return lab.serve(backends, protocol="mine", protocols=protocols), backends


@pytest.mark.parametrize("name", WIRES)
def test_framing(lab: Lab, name: str) -> None:
    """Four clients, bodies of all lengths, written in pieces; the backend returns the body reversed."""
    wire = WIRES[name]

    def respond(_: Backend, asked: Message) -> bytes:
        assert asked.id is not None
        return wire.build(asked.id, asked.data[: wire.header - 1 : -1], True)

    balancer, backends = serve(lab, wire, respond)
    source = random.Random(name)
    lengths = [0, 1, 2, 100, 1448, 5000, wire.longest]
    bodies = [
        [source.randbytes(min(wire.longest, source.choice(lengths))) for _ in range(60)] for _ in range(4)
    ]

    def make(client: int) -> Pipeline:
        requests = [wire.build(i, body, False) for i, body in enumerate(bodies[client])]
        return Pipeline(requests, depth=20, framing=balancer.framing, cuts=source)

    everything = pipelines(lambda: balancer.connect().sock, 4, make)
    for client, answers in enumerate(everything):
        wanted = {wire.build(i, body[::-1], True) for i, body in enumerate(bodies[client])}
        assert len(answers) == len(wanted)
        assert set(answers) == wanted
    assert all(backend.received for backend in backends)
    metrics = balancer.metrics()
    assert metrics.value("messages_total") == metrics.value("responses_total") == 240
    assert metrics.value("message_duration_seconds_count") > 0
    assert metrics.value("backend_outstanding_messages") == 0
    assert metrics.value("protocol_errors_total") == 0


FIFO: Tree = {"mine": {"length": {"offset": 0, "width": 4, "adjust": 4}, "ordering": "fifo"}}


def counted(number: int, filling: int = 0) -> bytes:
    """Its number is the client's business: the framing does not know it."""
    return struct.pack(">II", 4 + filling, number) + bytes(filling)


class TestFifo:
    """Without ids, only the order tells which answer is whose."""

    def backends(self, lab: Lab, *delays: float) -> list[Backend]:
        framing = framing_of(configuration([("127.0.0.1", 1)], protocol="mine", protocols=FIFO))
        return [
            lab.backend(name, framing=framing, delay=delay, respond=lambda _, asked: asked.data)
            for name, delay in zip("abc", delays, strict=True)
        ]

    def test_answers_keep_the_order_of_the_requests(self, lab: Lab) -> None:
        backends = self.backends(lab, 0.004, 0.001, 0.0)
        balancer = lab.serve(backends, protocol="mine", protocols=FIFO, balance="round_robin")
        client = balancer.connect()
        source = random.Random(7)
        numbers = itertools.count()
        asked: list[bytes] = []
        answered: list[bytes] = []
        for _ in range(60):
            burst = [
                counted(next(numbers), source.choice([0, 10, 3000])) for _ in range(source.randrange(1, 10))
            ]
            client.send(*burst)
            asked += burst
            # Sometimes all are answered, so that the choice is free again, sometimes only some.
            answered += client.answers(
                source.choice([0, (len(asked) - len(answered)) // 2, len(asked) - len(answered)])
            )
        answered += client.answers(len(asked) - len(answered))
        assert answered == asked
        assert all(backend.received for backend in backends)
        assert balancer.metrics().value("backend_outstanding_messages") == 0

    def test_many_clients(self, lab: Lab) -> None:
        balancer = lab.serve(self.backends(lab, 0.0, 0.0, 0.0005), protocol="mine", protocols=FIFO)
        requests = [[counted(1000 * client + i, i) for i in range(100)] for client in range(20)]

        def make(client: int) -> Pipeline:
            return Pipeline(requests[client], depth=1 + client % 5, framing=balancer.framing)

        assert pipelines(lambda: balancer.connect().sock, 20, make) == requests
        assert balancer.metrics().value("message_duration_seconds_count") > 0


SILENT: Tree = {
    "length": {"offset": 0, "width": 4, "adjust": 4},
    "id": {"offset": 4, "width": 4},
    "no_response": {"offset": 8, "mask": 0x40, "value": 0x40},
}


class TestNoResponse:
    @pytest.mark.parametrize("ordering", ["any", "fifo"])
    def test_messages_that_nobody_answers(self, lab: Lab, ordering: str) -> None:
        protocols = {"mine": SILENT | {"ordering": ordering}}
        framing = framing_of(configuration([("127.0.0.1", 1)], protocol="mine", protocols=protocols))

        def respond(_: Backend, asked: Message) -> bytes | None:
            return asked.data if asked.wants_response else None

        backends = [lab.backend(name, framing=framing, respond=respond) for name in "abc"]
        balancer = lab.serve(backends, protocol="mine", protocols=protocols)
        client = balancer.connect()
        source = random.Random(5)
        silent = [source.random() < 0.5 for _ in range(1000)]
        requests = [struct.pack(">IIB", 5, i, 0x40 * quiet) for i, quiet in enumerate(silent)]
        wanted = [request for request, quiet in zip(requests, silent, strict=True) if not quiet]
        client.send(*requests)
        answers = client.answers(len(wanted))
        if ordering == "fifo":
            assert answers == wanted
        else:
            assert sorted(answers) == sorted(wanted)
        eventually_equal(
            lambda: sorted(asked.data for backend in backends for asked in backend.received),
            sorted(requests),
        )
        metrics = balancer.metrics()
        assert metrics.value("messages_total") == 1000
        assert metrics.value("responses_total") == len(wanted)
        assert metrics.value("backend_outstanding_messages") == 0
        assert metrics.value("message_duration_seconds_count") <= len(wanted)
