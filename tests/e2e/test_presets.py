"""Presets between unmodified programs: their clients, the balancer, three of their servers."""

import itertools
import random
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import bmemcached
import pytest
from pymodbus.client import ModbusTcpClient
from thriftpy2.rpc import client_context
from thriftpy2.transport import TFramedTransportFactory

from tests.e2e.balancer import Balancer, configuration
from tests.e2e.lab import Lab
from tests.e2e.modbus_server import REGISTERS
from tests.e2e.namespaces import Endpoint, Namespace, join
from tests.e2e.polling import LIMIT, eventually, eventually_equal
from tests.e2e.processes import Process
from tests.e2e.thrift_server import demo

HOST = "127.0.0.1"
NAMES = "abc"


def listens(where: Namespace, endpoint: Endpoint) -> bool:
    try:
        where.connect(endpoint).close()
    except ConnectionRefusedError:
        return False
    return True


def start(lab: Lab, command: Callable[[str, int], Sequence[str]]) -> tuple[list[Process], list[Endpoint]]:
    """Three servers that listen, each with a name and a port of its own."""
    endpoints = [(HOST, lab.here.reserve(HOST)) for _ in NAMES]
    servers = [lab.start(*command(name, port)) for name, (_, port) in zip(NAMES, endpoints, strict=True)]
    eventually(lambda: all(listens(lab.here, endpoint) for endpoint in endpoints), what="all servers listen")
    return servers, endpoints


def settled(balancer: Balancer, messages: int, responses: int) -> None:
    """Everybody worked, nothing is outstanding, nothing was dropped, nothing took the slow way."""
    metrics = balancer.metrics()
    assert metrics.value("messages_total") == messages
    assert metrics.value("responses_total") == responses
    assert len(metrics.seen("backend", "messages_total")) == len(NAMES)
    assert metrics.value("backend_outstanding_messages") == 0
    assert metrics.value("protocol_errors_total") == 0
    assert metrics.value("dropped_messages_total") == 0
    assert metrics.value("datapath_messages_total", path="userspace") == 0


# --- Thrift -----------------------------------------------------------------------------------------------

LONG = "a_method_with_a_name_so_long_that_the_sequence_id_lies_outside_of_the_first_bytes"


@pytest.fixture
def thrift(lab: Lab) -> tuple[Balancer, list[Process]]:
    servers, endpoints = start(
        lab, lambda name, port: [sys.executable, "-m", "tests.e2e.thrift_server", name, str(port)]
    )
    return lab.serve(endpoints, protocol="thrift-framed", balance="round_robin"), servers


def test_thriftpy2(lab: Lab, thrift: tuple[Balancer, list[Process]]) -> None:
    balancer, servers = thrift
    host, port = balancer.listeners["rpc"]
    told, refused = set(), set()
    with (
        lab.here.entered(),
        client_context(
            demo.Demo, host, port, trans_factory=TFramedTransportFactory(), socket_timeout=int(LIMIT * 1000)
        ) as client,
    ):
        for number in range(60):
            for method in (client.told, getattr(client, LONG)):
                answer = method(number)
                assert answer.startswith(f"{number} told by ")
                told.add(answer[-1])
            client.note(number)
            with pytest.raises(demo.Refused) as caught:
                client.refuse()
            refused.add(caught.value.why)
    assert told == refused == set(NAMES)
    eventually_equal(
        lambda: sorted(
            int(line.split()[1]) for server in servers for line in server.stdout.text.splitlines()
        ),
        list(range(60)),
    )
    settled(balancer, messages=240, responses=180)


def test_fifty_thriftpy2_clients_over_shared_connections(lab: Lab) -> None:
    """Every call has the sequence id 0."""
    _, endpoints = start(
        lab, lambda name, port: [sys.executable, "-m", "tests.e2e.thrift_server", name, str(port)]
    )
    balancer = lab.serve(endpoints, protocol="thrift-framed", connections="shared")
    host, port = balancer.listeners["rpc"]
    all_connected = threading.Barrier(50, timeout=LIMIT)

    def ask(who: int) -> int:
        right = 0
        with (
            lab.here.entered(),
            client_context(
                demo.Demo,
                host,
                port,
                trans_factory=TFramedTransportFactory(),
                socket_timeout=int(LIMIT * 1000),
            ) as client,
        ):
            all_connected.wait()
            for number in range(1000 * who, 1000 * who + 20):
                for method in (client.told, getattr(client, LONG)):
                    right += method(number).startswith(f"{number} told by ")
        return right

    with ThreadPoolExecutor(50) as threads:
        assert list(threads.map(ask, range(50))) == [40] * 50
    assert set(balancer.metrics().by("backend", "backend_connections").values()) == {2}
    settled(balancer, messages=2000, responses=2000)


def call(method: str, number: int, kind: int = 1) -> bytes:
    """A call with the argument and the sequence id of this number."""
    name = method.encode()
    body = struct.pack(">HBBI", 0x8001, 0, kind, len(name)) + name + struct.pack(">i", number)
    body += struct.pack(">BhiB", 8, 1, number, 0)
    return struct.pack(">I", len(body)) + body


def test_pipelined_thrift_calls_of_methods_with_names_of_any_length(
    thrift: tuple[Balancer, list[Process]],
) -> None:
    balancer, _ = thrift
    client = balancer.connect()
    source = random.Random(11)
    methods = {number: source.choice(["told", LONG]) for number in range(900)}
    sent = b"".join(call(method, number) for number, method in methods.items())
    while sent:  # in pieces that end anywhere
        size = source.choice([1, 7, 50, 1000, 9000])
        client.send(sent[:size])
        sent = sent[size:]
    seen = set()
    for answer in client.answers(len(methods)):
        length = int.from_bytes(answer[8:12], "big")
        name, rest = answer[12 : 12 + length].decode(), answer[12 + length :]
        number = int.from_bytes(rest[:4], "big")
        assert (answer[4:8], name) == (b"\x80\x01\0\2", methods.pop(number))
        text = rest[11:-1].decode()
        assert text[:-1] == f"{number} told by "
        seen.add(text[-1])
    assert not methods
    assert seen == set(NAMES)
    settled(balancer, messages=900, responses=900)


# --- Modbus/TCP -------------------------------------------------------------------------------------------


def test_pymodbus(lab: Lab) -> None:
    _, endpoints = start(lab, lambda _, port: [sys.executable, "-m", "tests.e2e.modbus_server", str(port)])
    balancer = lab.serve(endpoints, protocol="modbus", balance="round_robin")
    host, port = balancer.listeners["rpc"]
    client = ModbusTcpClient(host, port=port, timeout=LIMIT)
    with lab.here.entered():
        assert client.connect()
    try:
        for first in range(0, 600, 5):
            count = 1 + first % 125
            answer = client.read_holding_registers(first, count=count)
            assert answer.registers == [3 * number for number in range(first, first + count)]
        assert client.read_holding_registers(REGISTERS - 1, count=2).exception_code == 2  # illegal address
    finally:
        client.close()
    settled(balancer, messages=121, responses=121)


# --- ONC RPC ----------------------------------------------------------------------------------------------

RPCBIND = 100000


@pytest.fixture
def portmappers(lab: Lab, need: Callable[..., None]) -> Balancer:
    """Three rpcbinds, each at the one port that it knows, in a network and with a /run of its own."""
    need("rpcbind", "rpcinfo")
    endpoints = []
    for number in range(len(NAMES)):
        where = lab.namespace("backend")
        join(lab.here, where, number + 1)
        endpoint = f"10.{number + 1}.0.2", 111
        lab.start("sh", "-c", "mount -t tmpfs tmpfs /run && exec rpcbind -f", where=where)
        eventually(partial(listens, where, endpoint), what="rpcbind listens")
        endpoints.append(endpoint)
    tree = configuration(endpoints, address=f"{HOST}:111", protocol="onc-rpc", balance="round_robin")
    return lab.balancer(tree).wait_ready()


def test_rpcinfo(lab: Lab, portmappers: Balancer) -> None:
    for version, _ in itertools.product((2, 3, 4), range(4)):
        done = lab.run("rpcinfo", "-T", "tcp", "-a", f"{HOST}.0.111", str(RPCBIND), str(version))
        assert done.code == 0, done.err
        assert f"program {RPCBIND} version {version} ready and waiting" in done.out
    done = lab.run("rpcinfo", "-p", HOST)
    assert done.code == 0, done.err
    assert {line.split()[2] for line in done.out.splitlines()[1:]} == {"tcp", "udp"}
    metrics = portmappers.metrics()
    assert metrics.value("messages_total") == metrics.value("responses_total") > 12
    assert len(metrics.seen("backend", "messages_total")) == len(NAMES)
    assert metrics.value("protocol_errors_total") == metrics.value("dropped_messages_total") == 0


def test_pipelined_rpc_calls(portmappers: Balancer) -> None:
    client = portmappers.connect()
    procedures = {xid: random.Random(xid).choice([0, 4]) for xid in range(600)}  # NULL, DUMP
    for xid, procedure in procedures.items():
        client.send(struct.pack(">11I", 1 << 31 | 40, xid, 0, 2, RPCBIND, 2, procedure, 0, 0, 0, 0))
    for answer in client.answers(len(procedures)):
        _, xid, kind, accepted = struct.unpack_from(">4I", answer)
        assert (kind, accepted) == (1, 0)
        assert (len(answer) > 28) == (procedures.pop(xid) == 4)
    assert not procedures
    settled(portmappers, messages=600, responses=600)


def test_a_record_of_several_fragments_is_refused(portmappers: Balancer) -> None:
    client = portmappers.connect()
    client.send(struct.pack(">11I", 40, 7, 0, 2, RPCBIND, 2, 0, 0, 0, 0, 0))
    assert client.is_reset()
    assert portmappers.metrics().value("protocol_errors_total", reason="bad_magic") == 1


# --- memcached, binary ------------------------------------------------------------------------------------


def memcached(_: str, port: int) -> Sequence[str]:
    return ["memcached", "-u", "nobody", "-l", HOST, "-p", str(port), "-U", "0", "-t", "2"]


@pytest.fixture
def caches(lab: Lab, need: Callable[..., None]) -> list[Endpoint]:
    need("memcached", "memccapable", "memcslap")
    return start(lab, memcached)[1]


# All but quit and quitq, which end a connection. What each stores is known to one server alone.
OPERATIONS = [
    "noop", "set", "setq", "flush", "flushq", "add", "addq", "replace", "replaceq", "delete", "deleteq",
    "get", "getq", "getk", "getkq", "incr", "incrq", "decr", "decrq", "version", "append", "appendq",
    "prepend", "prependq", "stat",
]  # fmt: skip


def test_memccapable(lab: Lab, caches: list[Endpoint]) -> None:
    balancer = lab.serve(caches[:1], protocol="memcached-binary")
    host, port = balancer.listeners["rpc"]
    for operation in OPERATIONS:
        done = lab.run(
            "memccapable", "-b", "-h", host, "-p", str(port), "-t", f"{LIMIT:g}", "-T", f"binary {operation}"
        )
        assert done.code == 0, done.out + done.err
        assert "[pass]" in done.out
    metrics = balancer.metrics()
    assert metrics.value("protocol_errors_total") == metrics.value("dropped_messages_total") == 0


def test_memcslap(lab: Lab, caches: list[Endpoint]) -> None:
    balancer = lab.serve(caches, protocol="memcached-binary")
    host, port = balancer.listeners["rpc"]
    done = lab.run(
        "memcslap",
        "--binary",
        f"--servers={host}:{port}",
        "--concurrency=8",
        "--execute-number=500",
        "--test=set",
    )
    assert done.code == 0, done.out + done.err
    metrics = balancer.metrics()
    assert metrics.value("responses_total") >= 8 * 500
    assert len(metrics.seen("backend", "messages_total")) == len(NAMES)
    assert metrics.value("protocol_errors_total") == metrics.value("dropped_messages_total") == 0
    eventually(lambda: balancer.metrics().value("backend_outstanding_messages") == 0)


def test_bmemcached(lab: Lab, caches: list[Endpoint]) -> None:
    """Quiet gets, every other of which hits, and a get that ends them: at one of three equal servers.

    All have the id 0, and there are more of them than travel together.
    """
    values = {f"key{number}": "v" * (number % 300) for number in range(0, 2000, 2)}
    asked = [f"key{number}" for number in range(2000)]

    def connect(endpoint: Endpoint) -> bmemcached.Client:
        return bmemcached.Client([f"{endpoint[0]}:{endpoint[1]}"], socket_timeout=LIMIT)

    with lab.here.entered():
        for endpoint in caches:
            cache = connect(endpoint)
            assert cache.set_multi(values) == []
            cache.disconnect_all()
        balancer = lab.serve(caches, protocol="memcached-binary", balance="random")
        cache = connect(balancer.listeners["rpc"])
        for _ in range(30):
            assert cache.get_multi(asked) == values
        assert cache.set_multi(values) == []
        cache.disconnect_all()
    metrics = balancer.metrics()
    assert metrics.value("responses_total") >= 30 * len(values)
    assert len(metrics.seen("backend", "messages_total")) == len(NAMES)
    assert metrics.value("backend_outstanding_messages") == 0
    assert metrics.value("protocol_errors_total") == metrics.value("dropped_messages_total") == 0
