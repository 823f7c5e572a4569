"""Presets whose servers are scripted here: what they and their clients say is read by Wireshark as well."""

import json
import random
import struct
from collections.abc import Callable, Iterable

import pytest
import smpplib.client
import smpplib.consts

from lb.framing import PRESETS, Message
from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer
from tests.e2e.lab import Lab
from tests.e2e.polling import LIMIT, eventually_equal

Respond = Callable[[Backend, Message], bytes | None]


class Wireshark:
    """Reads bytes as tshark does."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._captures = 0

    def read(
        self, protocol: str, port: int, messages: Iterable[bytes], *fields: str
    ) -> list[tuple[int, ...]]:
        """The fields of each message, sent to the port of its protocol in a segment of its own."""
        self._captures += 1
        stem = self._lab.folder / f"capture{self._captures}"
        text, capture = stem.with_suffix(".txt"), stem.with_suffix(".pcap")
        text.write_text("".join(f"0 {message.hex(' ')}\n" for message in messages), encoding="ascii")
        self._run("text2pcap", "-q", "-T", f"{port},{port}", str(text), str(capture))
        wanted = [f"{protocol}.{field}" for field in fields]
        arguments = [argument for field in wanted for argument in ("-e", field)]
        found = self._run("tshark", "-r", str(capture), "-T", "json", "-e", "_ws.malformed", *arguments)
        packets = [packet["_source"]["layers"] for packet in json.loads(found)]
        assert not any("_ws.malformed" in packet for packet in packets)
        assert all(len(packet.get(field, ())) == 1 for packet in packets for field in wanted), packets
        return [tuple(_number(packet[field][0]) for field in wanted) for packet in packets]

    def _run(self, *command: str) -> str:
        done = self._lab.run(*command)
        assert done.code == 0, done.err
        return done.out


def _number(text: str) -> int:
    return int(text in {"1", "True"}) if text in {"True", "False"} else int(text, 0)


@pytest.fixture
def wireshark(lab: Lab, need: Callable[..., None]) -> Wireshark:
    need("tshark", "text2pcap")
    return Wireshark(lab)


def serve(lab: Lab, protocol: str, respond: Respond) -> tuple[Balancer, list[Backend]]:
    backends = [lab.backend(name, framing=PRESETS[protocol], respond=respond) for name in "abc"]
    return lab.serve(backends, protocol=protocol, balance="round_robin"), backends


def exchange(
    balancer: Balancer, backends: list[Backend], asked: list[bytes], silent: int = 0
) -> tuple[list[bytes], list[bytes]]:
    """Sends requests in pieces; what the backends received and the answers, both sorted."""
    source = random.Random(3)
    client = balancer.connect()
    sent = b"".join(asked)
    while sent:
        size = source.choice([1, 5, 40, 2000])
        client.send(sent[:size])
        sent = sent[size:]
    answers = client.answers(len(asked) - silent)

    def received() -> list[bytes]:
        return sorted(message.data for backend in backends for message in backend.received)

    eventually_equal(received, sorted(asked))
    assert all(backend.received for backend in backends)
    metrics = balancer.metrics()
    assert metrics.value("messages_total") == len(asked)
    assert metrics.value("responses_total") == len(answers)
    assert metrics.value("backend_outstanding_messages") == 0
    assert metrics.value("protocol_errors_total") == metrics.value("dropped_messages_total") == 0
    return received(), sorted(answers)


def bodies(count: int) -> list[bytes]:
    source = random.Random(count)
    return [source.randbytes(source.choice([0, 1, 100, 3000])) for _ in range(count)]


# --- Diameter ---------------------------------------------------------------------------------------------

ACCOUNTING = 271


def diameter(number: int, body: bytes, flags: int) -> bytes:
    """An accounting message with User-Name, RFC 6733 8.14; Wireshark takes nothing below 36 bytes."""
    avp = struct.pack(">II", 1, 0x40 << 24 | 8 + len(body)) + body + bytes(-len(body) % 4)
    head = struct.pack(
        ">IIIII", 1 << 24 | 20 + len(avp), flags << 24 | ACCOUNTING, 3, number, ~number & 0xFFFFFFFF
    )
    return head + avp


def test_diameter(lab: Lab, wireshark: Wireshark) -> None:
    balancer, backends = serve(
        lab, "diameter", lambda _, asked: diameter(asked.id or 0, asked.data[28:40][::-1], 0x40)
    )
    asked = [diameter(number << 20, b"user" * (2 + number % 60), 0xC0) for number in range(400)]

    received, answers = exchange(balancer, backends, asked)

    for messages, is_request in ((received, 1), (answers, 0)):
        read = wireshark.read("diameter", 3868, messages, "length", "hopbyhopid", "flags.request", "cmd.code")
        assert [length for length, *_ in read] == [len(message) for message in messages]
        assert sorted(rest for _, *rest in read) == [
            [number << 20, is_request, ACCOUNTING] for number in range(400)
        ]


# --- SMPP -------------------------------------------------------------------------------------------------

BIND, SUBMIT, ENQUIRE, RESPONSE = 0x02, 0x04, 0x15, 0x80000000


def smsc(backend: Backend, asked: Message) -> bytes:
    """What a message centre says to a transmitter: a message is known by the name of who took it."""
    command = int.from_bytes(asked.data[4:8], "big")
    text = b"" if command == ENQUIRE else backend.name.encode() + b"\0"
    return struct.pack(">IIII", 16 + len(text), command | RESPONSE, 0, asked.id or 0) + text


def test_smpplib(lab: Lab, wireshark: Wireshark) -> None:
    """A stock client; the message centres here take what comes without a bind."""
    balancer, backends = serve(lab, "smpp", smsc)
    host, port = balancer.listeners["rpc"]
    seen: set[str] = set()
    client = smpplib.client.Client(host, port, timeout=LIMIT, allow_unknown_opt_params=True)
    client.set_message_sent_handler(lambda pdu: seen.add(pdu.message_id.decode()))
    with lab.here.entered():
        client.connect()
    try:
        client.bind_transmitter(system_id="tests", password="x")
        for number in range(30):
            client.send_message(
                source_addr="1", destination_addr="2", short_message=b"m" * number, registered_delivery=False
            )
            client.read_once()
    finally:
        client.state = smpplib.consts.SMPP_CLIENT_STATE_OPEN  # no unbind: it would be one more message
        client.disconnect()
    assert seen == set("abc")
    messages = [message.data for backend in backends for message in backend.received]
    read = wireshark.read("smpp", 2775, messages, "command_length", "command_id", "sequence_number")
    assert [length for length, *_ in read] == [len(message) for message in messages]
    assert sorted(command for _, command, _ in read) == [BIND] + 30 * [SUBMIT]
    assert sorted(number for *_, number in read) == sorted(
        message.id or 0 for backend in backends for message in backend.received
    )
    assert balancer.metrics().value("backend_outstanding_messages") == 0


def test_smpp(lab: Lab, wireshark: Wireshark) -> None:
    balancer, backends = serve(lab, "smpp", smsc)
    asked = [struct.pack(">IIII", 16, ENQUIRE, 0, number) for number in range(1, 500)]

    received, answers = exchange(balancer, backends, asked)

    for messages, command in ((received, ENQUIRE), (answers, ENQUIRE | RESPONSE)):
        read = wireshark.read("smpp", 2775, messages, "command_length", "command_id", "sequence_number")
        assert sorted(read) == [(16, command, number) for number in range(1, 500)]


# --- Dubbo ------------------------------------------------------------------------------------------------


def dubbo(number: int, body: bytes, flags: int, status: int = 0) -> bytes:
    """Serialization 2 is Hessian."""
    return struct.pack(">HBBqI", 0xDABB, flags | 2, status, number, len(body)) + body


def test_dubbo(lab: Lab) -> None:
    """Calls, one-way calls and heartbeats. Wireshark does not know the protocol."""

    def respond(_: Backend, asked: Message) -> bytes | None:
        flags = asked.data[2]
        return dubbo(asked.id or 0, asked.data[:15:-1], flags & 0x20, 20) if flags & 0x40 else None

    balancer, backends = serve(lab, "dubbo", respond)
    kinds = [(0xC0, 0x80, 0xE0)[number % 3] for number in range(600)]
    made = list(enumerate(zip(bodies(600), kinds, strict=True), start=1 << 40))
    asked = [dubbo(number, body, kind) for number, (body, kind) in made]

    received, answers = exchange(balancer, backends, asked, silent=200)

    assert received == sorted(asked)
    assert answers == sorted(
        dubbo(number, body[::-1], kind & 0x20, 20) for number, (body, kind) in made if kind & 0x40
    )
