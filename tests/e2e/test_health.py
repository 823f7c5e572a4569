"""Health checks of real servers: one that is stopped has its port open, and answers nothing."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from signal import Signals

import pytest

from lb.framing import PRESETS, Message
from tests.e2e import nameserver
from tests.e2e.backend import Backend
from tests.e2e.balancer import Balancer, configuration
from tests.e2e.client import Client
from tests.e2e.lab import Lab
from tests.e2e.messages import message, read_answer
from tests.e2e.namespaces import join
from tests.e2e.polling import PATIENCE, eventually, eventually_equal
from tests.e2e.processes import Process
from tests.e2e.test_presets import HOST, listens

INTERVAL = 0.4
CHECK = {"protocol": True, "interval": "400ms", "rise": 2, "fall": 3}
LATE = 0.5 * PATIENCE  # seconds that a busy machine may take to notice


def up(balancer: Balancer) -> dict[str, float]:
    return balancer.metrics().by("backend", "backend_up")


def stop_and_continue(balancer: Balancer, process: Process, name: str = "a") -> None:
    """A stopped server is out within fall times interval, and back soon after it goes on."""
    states = up(balancer)
    process.signal(Signals.SIGSTOP)
    since = time.monotonic()
    eventually_equal(lambda: up(balancer), states | {name: 0})
    out = time.monotonic() - since
    assert out < 3 * INTERVAL + LATE
    process.signal(Signals.SIGCONT)
    since = time.monotonic()
    eventually_equal(lambda: up(balancer), states)
    back = time.monotonic() - since
    assert back < 2 * INTERVAL + LATE
    print(f"out after {out:.2f} s, back after {back:.2f} s")  # noqa: T201 - for those who want to know
    assert f"backend workers/{name} is down (was up): no_answer" in balancer.log
    assert f"backend workers/{name} is up (was down): answered" in balancer.log
    changes = balancer.metrics()
    labels = {"pool": "workers", "backend": name}
    assert changes.value("backend_health_changes_total", **labels, to="down", reason="no_answer") == 1
    assert changes.value("backend_health_changes_total", **labels, to="up", reason="answered") == 2
    assert changes.value("backend_checks_total", **labels, result="no_answer") >= 3


def test_a_server_that_is_stopped(lab: Lab) -> None:
    """No message goes there any more, also over connections that clients have, and none is lost."""
    (process, first), (_, second) = lab.demo_backend("a"), lab.demo_backend("b")
    balancer = lab.serve([first, second], health_check=CHECK, balance="round_robin", batch=1)
    client = balancer.connect()
    numbers = itertools.count()
    client.ask(*(message(next(numbers)) for _ in range(20)))
    before = balancer.metrics().by("backend", "messages_total")
    assert min(before.values()) > 0
    process.signal(Signals.SIGSTOP)
    eventually_equal(lambda: up(balancer), {"a": 0, "b": 1})
    for who in (client, balancer.connect()):
        assert len(who.ask(*(message(next(numbers)) for _ in range(20)))) == 20
    after = balancer.metrics().by("backend", "messages_total")
    assert after == {"a": before["a"], "b": before["b"] + 40}
    entry = balancer.status()["pools"][0]["backends"][0]
    assert (entry["health"], entry["health_reason"]) == ("down", "no_answer")
    assert entry["health_seconds"] < 60
    checked = entry["last_check"]
    assert checked is not None
    assert checked["result"] == "no_answer"
    assert checked["duration_seconds"] == pytest.approx(INTERVAL / 2, abs=LATE)
    process.signal(Signals.SIGCONT)
    eventually_equal(lambda: up(balancer), {"a": 1, "b": 1})
    client.ask(*(message(next(numbers)) for _ in range(20)))
    assert balancer.metrics().value("messages_total", backend="a") > before["a"]
    assert balancer.metrics().value("dropped_messages_total") == 0


def test_how_soon(lab: Lab) -> None:
    process, endpoint = lab.demo_backend("a")
    stop_and_continue(lab.serve([endpoint, lab.backend("b")], health_check=CHECK), process)


def test_connections_of_clients_are_no_answer(lab: Lab) -> None:
    """The kernel of a stopped server accepts them: that must not keep it up, nor bring it back."""
    process, first = lab.demo_backend("a")
    balancer = lab.serve([first, lab.backend("b")], health_check=CHECK)
    process.signal(Signals.SIGSTOP)
    end = time.monotonic() + 4 * INTERVAL
    while time.monotonic() < end:
        balancer.connect().reset()
        time.sleep(0.02)
    eventually_equal(lambda: up(balancer), {"a": 0, "b": 1})


def test_shared_connections(lab: Lab) -> None:
    (process, first), second = lab.demo_backend("a"), lab.backend("b")
    balancer = lab.serve([first, second], health_check=CHECK, connections="shared")
    numbers = itertools.count()
    client = balancer.connect()
    eventually(lambda: client.ask(message(next(numbers))) and len(used(balancer)) == 2)
    process.signal(Signals.SIGSTOP)
    eventually_equal(lambda: up(balancer), {"a": 0, "b": 1})
    before = balancer.metrics().value("messages_total", backend="a")
    assert len(client.ask(*(message(next(numbers)) for _ in range(50)))) == 50
    assert balancer.metrics().value("messages_total", backend="a") == before


def reasons(balancer: Balancer) -> list[str]:
    return [entry["health_reason"] for entry in balancer.status()["pools"][0]["backends"]]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_checks_speak_for_the_balancer_itself(lab: Lab, version: str) -> None:
    """A backend that expects a PROXY header gets one with its check, too."""
    backend = lab.backend("a", proxied=True)
    check = expecting(ord("a"))
    balancer = lab.balancer(lab.tree([backend], send_proxy=version, health_check=check)).wait_ready()
    assert reasons(balancer) == ["answered"]
    assert backend.headers
    assert all(header.endpoints is None for header in backend.headers)


def used(balancer: Balancer) -> dict[str, float]:
    return balancer.metrics().seen("backend", "messages_total")


def expecting(value: int) -> dict[str, object]:
    send = message(0xFFFF, b"well?").hex()
    return {
        "message": {"send": send, "expect": {"offset": 8, "equals": value}},
        "interval": "50ms",
        "timeout": "500ms",
    }


def test_a_message_and_what_its_response_must_say(lab: Lab) -> None:
    """The scripted backends echo behind their name."""
    balancer = lab.balancer(lab.tree([lab.backend("a"), lab.backend("b")], health_check=expecting(ord("a"))))
    eventually_equal(lambda: reasons(balancer), ["answered", "unexpected"])
    assert up(balancer) == {"a": 1, "b": 0}
    assert balancer.metrics().value("backend_connect_failures_total") == 0


@pytest.mark.parametrize(
    ("respond", "reason"),
    [
        (lambda _backend, _asked: None, "no_answer"),
        (lambda _backend, _asked: message(1, b"x"), "no_answer"),
        (lambda _backend, _asked: b"\xff" * 8, "malformed"),
    ],
)
def test_answers_that_are_none(lab: Lab, respond: Callable[..., bytes | None], reason: str) -> None:
    backends = [lab.backend("a", respond=respond), lab.backend("b")]
    check = expecting(ord("b")) | {"timeout": "100ms"}
    balancer = lab.balancer(lab.tree(backends, health_check=check))
    eventually_equal(lambda: reasons(balancer), [reason, "answered"])


# Where the order of responses binds a client to a backend.

IN_ORDER = {
    "length": {"offset": 0, "width": 4, "adjust": 4},
    "id": {"offset": 4, "width": 4},
    "ordering": "fifo",
}


def goes_to(balancer: Balancer, messages: int, name: str) -> bool:
    """Whether any of so many messages went to a backend, once they have gone somewhere."""
    eventually_equal(lambda: balancer.metrics().value("messages_total"), messages)
    return name in used(balancer)


def owed_by_a_stopped_backend(lab: Lab, **timeouts: str) -> tuple[Balancer, Process, Client, int]:
    """A client to which ``a`` owes an answer, and is stopped; also the number of its next message."""
    process, first = lab.demo_backend("a")
    check = CHECK | {"protocol": False, "message": {"send": message(0xFFFF).hex()}}
    balancer = lab.serve(
        [first, lab.backend("b")],
        protocol="in-order",
        protocols={"in-order": IN_ORDER},
        balance="round_robin",
        batch=1,
        health_check=check,
        timeouts=timeouts,
    )
    process.signal(Signals.SIGSTOP)
    client = balancer.connect()
    numbers = itertools.count()
    while True:
        number = next(numbers)
        client.send(message(number))
        if goes_to(balancer, number + 1, "a"):
            break
        assert len(client.answers(1)) == 1
    eventually_equal(lambda: up(balancer), {"a": 0, "b": 1})
    return balancer, process, client, number + 1


def test_a_client_that_is_owed_sends_no_more_there(lab: Lab) -> None:
    """Its next messages wait for the answer, and go elsewhere then: answers keep their order."""
    balancer, process, client, number = owed_by_a_stopped_backend(lab, queue="60s")
    before = balancer.metrics().value("messages_total", backend="a")
    client.send(message(number), message(number + 1))
    eventually(lambda: balancer.metrics().value("pauses_total", reason="order") > 0)
    assert balancer.metrics().value("messages_total", backend="a") == before
    process.signal(Signals.SIGCONT)
    answers = [read_answer(answer) for answer in client.answers(3)]
    assert [answer.number for answer in answers] == [number - 1, number, number + 1]
    assert answers[0].backend == "a"
    assert balancer.metrics().value("dropped_messages_total") == 0


def test_a_client_that_is_owed_for_too_long_is_told(lab: Lab) -> None:
    balancer, _, client, number = owed_by_a_stopped_backend(lab, queue="300ms")
    client.send(message(number))
    assert client.is_reset()
    dropped = balancer.metrics().seen("reason", "dropped_messages_total")
    assert dropped == {"no_backend": 2}, "the one that waited, and the one that was due"


# Pings of presets, and real servers.


def test_nsd(lab: Lab, need: Callable[..., None]) -> None:
    need("nsd")
    where = lab.namespace("backend")
    join(lab.here, where, 1)
    process = nameserver.start(lab, where, "10.1.0.2")
    tree = configuration([("10.1.0.2", 53)], protocol="dns", health_check=CHECK)
    balancer = lab.balancer(tree).wait_ready()
    servers = family(process)
    assert len(servers) > 1, "nsd serves from children"
    for pid in servers:
        os.kill(pid, Signals.SIGSTOP)
    eventually_equal(lambda: up(balancer), {"a": 0})
    assert reasons(balancer) == ["no_answer"]
    for pid in servers:
        os.kill(pid, Signals.SIGCONT)
    eventually_equal(lambda: up(balancer), {"a": 1})


def family(process: Process) -> list[int]:
    """A process and its descendants."""
    found, ahead = [], [process.pid]
    while ahead:
        pid = ahead.pop()
        done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
        ahead += [int(word) for word in done.stdout.split()]
        found.append(pid)
    return found


def serve_at(lab: Lab, protocol: str, *command: str) -> tuple[Balancer, Process]:
    """A balancer with one real server; ``PORT`` in the command is replaced."""
    port = lab.here.reserve(HOST)
    process = lab.start(*(word.replace("PORT", str(port)) for word in command))
    eventually(lambda: listens(lab.here, (HOST, port)), what="the server listens")
    tree = configuration([(HOST, port)], protocol=protocol, health_check=CHECK)
    return lab.balancer(tree).wait_ready(), process


def test_thriftpy2(lab: Lab) -> None:
    """A method that nobody has is answered by an exception."""
    command = (sys.executable, "-m", "tests.e2e.thrift_server", "a", "PORT")
    stop_and_continue(*serve_at(lab, "thrift-framed", *command))


def test_memcached(lab: Lab, need: Callable[..., None]) -> None:
    need("memcached")
    command = ("memcached", "-u", "nobody", "-l", HOST, "-p", "PORT", "-U", "0")
    stop_and_continue(*serve_at(lab, "memcached-binary", *command))


def test_pymodbus(lab: Lab) -> None:
    stop_and_continue(*serve_at(lab, "modbus", sys.executable, "-m", "tests.e2e.modbus_server", "PORT"))


def test_rpcbind(lab: Lab, need: Callable[..., None]) -> None:
    need("rpcbind")
    where = lab.namespace("backend")
    join(lab.here, where, 1)
    process = lab.start("sh", "-c", "mount -t tmpfs tmpfs /run && exec rpcbind -f", where=where)
    eventually(lambda: listens(where, ("10.1.0.2", 111)), what="rpcbind listens")
    tree = configuration([("10.1.0.2", 111)], protocol="onc-rpc", health_check=CHECK)
    balancer = lab.balancer(tree).wait_ready()
    assert process.running
    assert balancer.metrics().value("backend_checks_total", result="ok") > 0


@pytest.mark.parametrize("name", ["dubbo", "smpp"])
def test_the_bytes_of_other_pings(lab: Lab, name: str) -> None:
    """Both protocols answer with the same number, and a bit for a response."""
    framing = PRESETS[name]
    seen: list[bytes] = []

    def respond(_: Backend, asked: Message) -> bytes:
        data = bytearray(asked.data)
        seen.append(bytes(data))
        if name == "smpp":
            data[4] |= 0x80
        else:
            data[2], data[3] = 0x22, 20
        return bytes(data)

    backend = lab.backend("a", framing=framing, respond=respond)
    balancer = lab.serve([backend], protocol=name, health_check=CHECK)
    assert set(seen) == {framing.ping}
    assert up(balancer) == {"a": 1}
